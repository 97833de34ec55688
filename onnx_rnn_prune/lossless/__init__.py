"""Finds and removes units that provably change nothing."""
