"""Which unit owns each entry of each tensor, and who reads it."""
