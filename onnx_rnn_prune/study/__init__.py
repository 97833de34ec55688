"""A model that was opened, and what its data shows."""
