"""Feeds: checked inputs that can be run through as often as needed, one in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from onnx_rnn_prune.data.check import check_feed
from onnx_rnn_prune.data.files import open_path
from onnx_rnn_prune.data.sources import Source
from onnx_rnn_prune.data.values import is_function_name, open_function, open_value
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import NamedFeed
from onnx_rnn_prune.model.signature import Port

Checker = Callable[[object, str], NamedFeed]


class Feeds:
    """A number of feeds, each a dict from input names to arrays.

    Iterating loads and checks one feed after the other, so that memory does not grow with their
    number; it can be done again and again. A subset shares its source.

    Attributes:
        source: where the feeds come from, for reports.
        random: whether they are made up.
        shared: whether they also serve another purpose, because there were too few to split.
    """

    def __init__(
        self,
        source: Source,
        check: Checker,
        *,
        random: bool = False,
        shared: bool = False,
        indices: Sequence[int] | None = None,
    ) -> None:
        self.source = source.name
        self.random = random
        self.shared = shared
        self._source = source
        self._check = check
        self._indices = None if indices is None else tuple(sorted(set(indices)))

    def __iter__(self) -> Iterator[NamedFeed]:
        wanted = None if self._indices is None else frozenset(self._indices)
        count = 0
        for label, raw in self._source.read(wanted):
            count += 1
            yield self._check(raw, label)
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

    def take(self, indices: Iterable[int]) -> Feeds:
        """The feeds with these numbers, counted from 0 within this object."""
        return self._only(indices, shared=self.shared)

    def split(self, held_out: float = 0.25) -> tuple[Feeds, Feeds]:
        """Two disjoint parts: one to fit on, one to judge by.

        The held-out feeds are drawn, the same ones each time: picking them at even distances would
        favour one kind where kinds take turns. A single feed cannot be split: it serves for both,
        and both parts say so in `shared`.

        Args:
            held_out: the share of feeds in the second part, above 0 and below 1; each part gets at
                least one feed.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, not {held_out}")
        count = len(self)
        if count < 2:
            both = self._only(range(count), shared=True)
            return both, both
        number = min(max(1, round(count * held_out)), count - 1)
        chosen = set(np.random.default_rng(count).permutation(count)[:number].tolist())
        return self.take(set(range(count)) - chosen), self.take(chosen)

    def _only(self, indices: Iterable[int], *, shared: bool) -> Feeds:
        own = range(len(self)) if self._indices is None else self._indices
        chosen = [own[i] for i in indices]
        return Feeds(self._source, self._check, random=self.random, shared=shared, indices=chosen)


def open_feeds(source: object, ports: Sequence[Port], states: frozenset[str]) -> Feeds:
    """Opens data of any form; each feed is loaded and checked when it is its turn.

    Args:
        source: a path (str or Path) of a .npz file, of a folder of them, or of a folder of ONNX
            test_data_set_* folders; the text `module:function`; a dict of arrays; an iterable of
            dicts; a function that returns one; a CalibrationDataReader; or Feeds, which are
            checked against these ports instead of their own.
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
