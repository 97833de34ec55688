"""The progress callback of long-running work."""

from __future__ import annotations

from collections.abc import Callable

# Called with a task, the steps done and their total (None if unknown).
Progress = Callable[[str, int, int | None], None]


def silent(what: str, done: int, total: int | None) -> None:
    """Reports nothing."""
