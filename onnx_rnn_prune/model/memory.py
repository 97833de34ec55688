"""Giving memory back between the steps that take much of it."""

from __future__ import annotations

import ctypes
import gc

# To look for garbage takes as long as there are objects; in the graphs of smaller models, it would
# take longer than all else, and there is little to be found.
_WORTH = 1 << 21


def give_back(size: int) -> None:
    """Frees what nobody uses any more; graphs hold themselves in circles, and their weights.

    Args:
        size: of what such a graph may hold, in bytes.
    """
    if size > _WORTH:
        gc.collect()
    trim()


def trim() -> None:
    """Returns blocks that were freed, of which glibc keeps those below 32 MB by itself."""
    try:
        returned = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return  # another C library
    returned(0)
