"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# What is going on, how much is done, and of how much (None where that is not known).
Progress = Callable[[str, int, int | None], None]


def silent(what: str, done: int, total: int | None) -> None:
    """Tells nobody."""
