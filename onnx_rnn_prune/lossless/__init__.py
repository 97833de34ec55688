"""Units that provably change nothing."""
