"""The prune, step by step."""
