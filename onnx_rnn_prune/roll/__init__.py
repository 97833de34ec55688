"""Turns decomposed recurrences back into recurrent operators, and copied layers into one."""
