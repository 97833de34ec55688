"""Feeds: checked inputs that can be run through as often as needed, one in memory at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from onnx_rnn_prune.data.check import check_feed
from onnx_rnn_prune.data.files import open_path
from onnx_rnn_prune.data.sources import Source
from onnx_rnn_prune.data.values import is_function_name, open_function, open_value
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import NamedFeed
from onnx_rnn_prune.model.signature import Port

# Calls of a stream that time is measured on.
_OPENING = 32

Checker = Callable[[object, str], NamedFeed]


class Feeds:
    """A number of feeds, each a dict from input names to arrays.

    Iterating loads and checks one feed after the other, so that memory does not grow with their
    number; it can be done again and again. A subset shares its source.

    Feeds that follow one another are a stream, which stays whole and in order in every subset. A
    feed that goes on from none, and from which none goes on, is a stream by itself.

    Attributes:
        source: where the feeds come from, for reports.
        random: whether they are made up.
        shared: whether they also serve another purpose, because there were too few to split.
        states: where feeds follow one another, the state inputs, each with the output in which a
            call leaves what it is in the next; empty where each feed stands alone.
    """

    def __init__(
        self,
        source: Source,
        check: Checker,
        *,
        random: bool = False,
        shared: bool = False,
        indices: Sequence[int] | None = None,
        states: Mapping[str, str] = MappingProxyType({}),
        starts: frozenset[int] = frozenset(),
    ) -> None:
        self.source = source.name
        self.random = random
        self.shared = shared
        self.states = dict(states)
        self._source = source
        self._check = check
        self._indices = None if indices is None else tuple(sorted(set(indices)))
        self._starts = starts

    def __iter__(self) -> Iterator[NamedFeed]:
        wanted = None if self._indices is None else frozenset(self._indices)
        count = 0
        numbers = itertools.count() if self._indices is None else self._indices
        for number, (label, raw) in zip(numbers, self._source.read(wanted), strict=False):
            feed = self._check(raw, label)
            if count and self.states and number not in self._starts:
                feed.follows = self.states
            count += 1
            yield feed
        if count == 0:
            raise PruneError(
                "there are no feeds in it", where=self.source, remedy="give at least one"
            )
        if count != len(self):
            raise PruneError(
                f"it gave {count} feeds where it gave {len(self)} before",
                where=self.source,
                remedy="make it give the same feeds each time",
            )

    def __len__(self) -> int:
        return len(self._source) if self._indices is None else len(self._indices)

    @property
    def streams(self) -> int:
        """The number of streams."""
        return len(self._streams())

    @property
    def laid_out(self) -> frozenset[int]:
        """The feeds that come first in a folder or iterable, by their numbers in this object."""
        starts = self._source.starts
        return frozenset(at for at, number in enumerate(self.numbers) if number in starts)

    def joined(self, states: Mapping[str, str], starts: Iterable[int]) -> Feeds:
        """The same feeds as streams.

        Args:
            states: the state inputs, each with the output that goes on in it.
            starts: numbers of the feeds with which a stream starts.
        """
        numbers = self.numbers
        first = frozenset(numbers[at] for at in starts)
        return self._only(range(len(self)), self.shared, states, first)

    def take(self, numbers: Iterable[int]) -> Feeds:
        """The streams with these numbers, counted from 0 within this object."""
        streams = self._streams()
        return self._only([at for number in numbers for at in streams[number]], self.shared)

    def opening(self) -> list[NamedFeed]:
        """The first feed, and some of those that follow it."""
        found: list[NamedFeed] = []
        for feed in itertools.islice(self, _OPENING):
            if found and not feed.follows:
                break
            found.append(feed)
        return found

    def split(self, held_out: float = 0.25) -> tuple[Feeds, Feeds]:
        """Two disjoint parts: one to fit on, one to judge by.

        The held-out streams are drawn, the same ones each time: picking them at even distances
        would favour one kind where kinds take turns. A single stream is cut in two, the later part
        held out. A single feed cannot be split: it serves for both, and both parts say so in
        `shared`.

        Args:
            held_out: the share of streams in the second part, above 0 and below 1; each part gets
                at least one.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, not {held_out}")
        if len(self) < 2:
            both = self._only(range(len(self)), True)
            return both, both
        count = self.streams
        number = min(max(1, round(count * held_out)), count - 1)
        if count < 2:
            return self._cut(len(self) - max(1, round(len(self) * held_out)))
        chosen = set(np.random.default_rng(count).permutation(count)[:number].tolist())
        return self.take(set(range(count)) - chosen), self.take(chosen)

    def _cut(self, at: int) -> tuple[Feeds, Feeds]:
        at = max(at, 1)
        later = self._only(range(at, len(self)), self.shared)
        return self._only(range(at), self.shared), later

    def _streams(self) -> list[list[int]]:
        """The places of the feeds of each stream."""
        found: list[list[int]] = []
        for at, number in enumerate(self.numbers):
            if at == 0 or not self.states or number in self._starts:
                found.append([])
            found[-1].append(at)
        return found

    @property
    def numbers(self) -> tuple[int, ...]:
        """Which of the source's feeds these are."""
        return tuple(range(len(self))) if self._indices is None else self._indices

    def _only(
        self,
        places: Iterable[int],
        shared: bool,
        states: Mapping[str, str] | None = None,
        starts: frozenset[int] | None = None,
    ) -> Feeds:
        numbers = self.numbers
        return Feeds(
            self._source,
            self._check,
            random=self.random,
            shared=shared,
            indices=[numbers[at] for at in places],
            states=self.states if states is None else states,
            starts=self._starts if starts is None else starts,
        )


def open_feeds(source: object, ports: Sequence[Port], states: frozenset[str]) -> Feeds:
    """Opens data of any form; each feed is loaded and checked when it is its turn.

    Args:
        source: a path (str or Path) of a .npz file, of a folder of them, or of a folder of ONNX
            test_data_set_* folders; the text `module:function`; a dict of arrays; an iterable of
            dicts, or of iterables of dicts; a function that returns one; a CalibrationDataReader;
            or Feeds, which are checked against these ports instead of their own. A folder may also
            hold such folders, each with feeds that belong together.
        ports: the model's inputs.
        states: names of inputs that are recurrent states: a feed may leave them out, and then they
            are zero.

    Raises:
        PruneError: there is no data, or none that can be read. Faults of single feeds are raised
            when they are read.
    """

    def check(raw: object, label: str) -> NamedFeed:
        return check_feed(raw, ports, states, label)

    if isinstance(source, Feeds):
        return Feeds(
            source._source,
            check,
            random=source.random,
            shared=source.shared,
            indices=source._indices,
            states=source.states,
            starts=source._starts,
        )
    feeds = Feeds(_open(source, ports), check)
    if len(feeds) == 0:
        raise PruneError("there are no feeds in it", where=feeds.source, remedy="give at least one")
    return feeds


def _open(source: object, ports: Sequence[Port]) -> Source:
    if isinstance(source, str) and not source:
        raise PruneError("the name is empty", where="data", remedy="name a file or folder of feeds")
    if isinstance(source, str | Path):
        path = Path(source)
        if isinstance(source, str) and is_function_name(source) and not path.exists():
            return open_function(source)
        return open_path(path, ports)
    return open_value(source)
