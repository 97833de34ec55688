"""Selection of the units that stay."""
