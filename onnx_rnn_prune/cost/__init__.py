"""The cost of a model: parameters, operations, bytes, time."""
