"""Candidates are recovered, and scored on validation feeds."""
