"""Recovery: adjusts the kept weights to compensate for the removed ones."""
