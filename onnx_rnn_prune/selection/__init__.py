"""Selection of the units to keep."""
