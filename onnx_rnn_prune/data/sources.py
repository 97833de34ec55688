"""Where raw feeds come from: a list that is read by number, or a stream that is started anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from onnx_rnn_prune.errors import PruneError

# What users give: values are turned into arrays, and checked, later.
RawFeed = Mapping[str, object]

# What code of the user's may raise; its sys.exit() must not end this process as if all was done.
FAILURES = (Exception, SystemExit)
# Nobody calibrates with so many; a generator that never ends would keep the process busy for ever.
_MOST_FEEDS = 100_000


class Source(Protocol):
    """A number of raw feeds that can be read as often as needed, one at a time."""

    @property
    def name(self) -> str:
        """How reports and errors call the source."""

    def __len__(self) -> int:
        """The number of feeds."""

    def read(self, wanted: frozenset[int] | None) -> Iterator[tuple[str, RawFeed]]:
        """Yields the wanted feeds (None: all) in order, each with what errors call it."""


class Listed:
    """Feeds that can be loaded by number, so that unwanted ones cost nothing.

    Args:
        name: what to call the source.
        labels: what to call each feed.
        load: loads the feed of a number.
    """

    def __init__(self, name: str, labels: list[str], load: Callable[[int], RawFeed]) -> None:
        self.name = name
        self._labels = labels
        self._load = load

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, wanted: frozenset[int] | None) -> Iterator[tuple[str, RawFeed]]:
        """Loads the wanted feeds only."""
        for number, label in enumerate(self._labels):
            if wanted is None or number in wanted:
                yield label, self._load(number)


class Streamed:
    """Feeds that come one after the other, from an iteration that can be started anew.

    Nothing is kept: a feed that is not wanted is made and dropped, and counting the feeds takes
    one run through them.

    Args:
        name: what to call the source.
        start: starts an iteration over the feeds; must give the same feeds each time.
    """

    def __init__(self, name: str, start: Callable[[], Iterable[RawFeed]]) -> None:
        self.name = name
        self._start = start
        self._length: int | None = None

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self._run())
        return self._length

    def read(self, wanted: frozenset[int] | None) -> Iterator[tuple[str, RawFeed]]:
        """Runs up to the last wanted feed."""
        last = None if wanted is None else max(wanted, default=-1)
        for number, feed in enumerate(self._run()):
            if last is not None and number > last:
                return
            if wanted is None or number in wanted:
                yield f"{self.name}: feed {number}", feed

    def _run(self) -> Iterator[RawFeed]:
        """Runs the user's own code, whose exceptions of any type are the user's to mend."""
        try:
            feeds = iter(self._start())
        except PruneError:
            raise
        except FAILURES as error:
            raise self._failed(error) from error
        for _ in range(_MOST_FEEDS):
            try:
                feed = next(feeds)
            except StopIteration:
                return
            except PruneError:
                raise
            except FAILURES as error:
                raise self._failed(error) from error
            yield feed
        raise PruneError(
            f"there are {_MOST_FEEDS} feeds in it, and it may never end",
            where=self.name,
            remedy="give fewer feeds",
        )

    def _failed(self, error: BaseException) -> PruneError:
        return PruneError(
            f"making the feeds failed with {type(error).__name__}: {error}",
            where=self.name,
            remedy="mend the code that makes them",
        )
