"""The cut model learns from the original."""
