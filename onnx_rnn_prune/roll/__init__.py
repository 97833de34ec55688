"""Turns decomposed recurrences back into recurrent operators."""
