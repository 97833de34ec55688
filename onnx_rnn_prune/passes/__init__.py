"""Passes: each edits a document in place and says whether it changed it."""
