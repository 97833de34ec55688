"""The sample models: one module each, and what they share in `common` and `sources`."""
