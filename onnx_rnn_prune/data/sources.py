"""Where raw feeds come from: a list that is read by number, or a stream that is started anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, cast

from onnx_rnn_prune.errors import PruneError

# What users give: values are turned into arrays, and checked, later.
RawFeed = Mapping[str, object]

# What code of the user's may raise; its sys.exit() must not end this process as if all was done.
FAILURES = (Exception, SystemExit)
# Nobody calibrates with so many; a generator that never ends would keep the process busy for ever.
_MOST_FEEDS = 100_000


def flat(items: Iterable[object]) -> Iterator[tuple[bool, RawFeed]]:
    """Feeds, or the feeds of parts in turn, each with whether it is the first one of a part."""
    for item in items:
        if isinstance(item, Iterable) and not isinstance(item, Mapping | str | bytes):
            for number, feed in enumerate(item):
                yield number == 0, cast(RawFeed, feed)
        else:
            yield False, cast(RawFeed, item)


class Source(Protocol):
    """A number of raw feeds that can be read as often as needed, one at a time."""

    @property
    def name(self) -> str:
        """How reports and errors call the source."""

    def __len__(self) -> int:
        """The number of feeds."""

    @property
    def starts(self) -> frozenset[int]:
        """The feeds that come first, in all or of a part, as the source is laid out."""

    def read(self, wanted: frozenset[int] | None) -> Iterator[tuple[str, RawFeed]]:
        """Yields the wanted feeds (None: all) in order, each with what errors call it."""


class Listed:
    """Feeds that can be loaded by number, so that unwanted ones cost nothing.

    Args:
        name: what to call the source.
        labels: what to call each feed.
        load: loads the feed of a number.
        starts: numbers of feeds that come first in a part of the source.
    """

    def __init__(
        self,
        name: str,
        labels: list[str],
        load: Callable[[int], RawFeed],
        starts: Iterable[int] = (0,),
    ) -> None:
        self.name = name
        self.starts = frozenset(starts)
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
        start: starts an iteration over feeds, or over parts that are iterables of feeds; must give
            the same ones each time.
    """

    def __init__(self, name: str, start: Callable[[], Iterable[object]]) -> None:
        self.name = name
        self._start = start
        self._seen: tuple[int, frozenset[int]] | None = None

    def __len__(self) -> int:
        return self._counted()[0]

    @property
    def starts(self) -> frozenset[int]:
        """The first feed, and the first one of each part."""
        return self._counted()[1]

    def _counted(self) -> tuple[int, frozenset[int]]:
        if self._seen is None:
            firsts = [first for first, _ in self.run()]
            self._seen = (
                len(firsts),
                frozenset(n for n, first in enumerate(firsts) if first or not n),
            )
        return self._seen

    def read(self, wanted: frozenset[int] | None) -> Iterator[tuple[str, RawFeed]]:
        """Runs up to the last wanted feed."""
        last = None if wanted is None else max(wanted, default=-1)
        for number, (_, feed) in enumerate(self.run()):
            if last is not None and number > last:
                return
            if wanted is None or number in wanted:
                yield f"{self.name}: feed {number}", feed

    def run(self) -> Iterator[tuple[bool, RawFeed]]:
        """Runs the user's own code, whose exceptions of any type are the user's to mend."""
        try:
            feeds = flat(self._start())
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
