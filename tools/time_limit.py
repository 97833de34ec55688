"""A time limit for a block of code."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TooLong(BaseException):
    """Raised at the time limit; not an Exception, so that no handler on the way catches it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupts a block of Python code after some time; main thread only, not on Windows.

    Raises:
        TooLong: the block did not finish in time.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
