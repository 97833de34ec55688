"""A limit to how long something may take."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TooLong(BaseException):
    """It took longer; no Exception, so that nothing on the way takes it for its own error."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends a block of Python code after some time; for the main thread, not on Windows.

    Raises:
        TooLong: the block was not done.
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
