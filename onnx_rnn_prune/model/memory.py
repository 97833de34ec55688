"""Giving memory back between the steps that take much of it."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Frees what nobody uses any more; graphs hold themselves in circles, and their weights."""
    gc.collect()
    trim()


def trim() -> None:
    """Returns blocks that were freed, of which glibc keeps those below 32 MB by itself."""
    try:
        returned = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return  # another C library
    returned(0)
