"""Giving memory back between the steps that take much of it."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Frees what nobody uses any more.

    Graphs hold themselves in circles, and their weights with them; and glibc keeps blocks below
    32 MB that were freed, unless it is told to return them.
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return  # another C library
    trim(0)
