"""Checks feeds against a model's inputs: a one-line error instead of a crash in the runtime."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from onnx_rnn_prune.data.folders import open_path
from onnx_rnn_prune.data.sources import (
    FAILURES,
    Source,
    is_function_name,
    open_function,
    open_value,
)
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.runner import Array, NamedFeed
from onnx_rnn_prune.model.signature import Port

# The key of the labels in a feed.
LABELS = "labels"


def check_feed(
    raw: object,
    ports: Sequence[Port],
    states: frozenset[str],
    where: str,
    likely: frozenset[str] = frozenset(),
) -> NamedFeed:
    """A feed as onnxruntime needs it: complete, with the declared types and ranks.

    Values are converted to the declared type if that preserves them (integers of another width,
    whole numbers as floats, floats of another precision).

    Args:
        raw: a mapping from input names, and `labels`, to arrays or what NumPy converts to them.
        states: inputs that may be missing and are zero then.
        where: the feed's name in errors.
        likely: further inputs that may be states.

    Raises:
        PruneError: a name is missing or unknown; a value has the wrong type, rank or size, is
            empty, is not finite; or sizes that should be the same differ.
    """
    if not isinstance(raw, Mapping):
        raise PruneError(
            f"a feed must be a dict of arrays, not {type(raw).__name__}",
            where=where,
            remedy="map graph input names to arrays",
        )
    _check_names([str(key) for key in raw], ports, states, where, likely)
    sizes: dict[str, tuple[int, str]] = {}
    given = {p.name: _check_value(raw[p.name], p, sizes, where) for p in ports if p.name in raw}
    values = {p.name: given[p.name] if p.name in given else _zeros(p, sizes, where) for p in ports}
    labels = raw.get(LABELS) if LABELS not in values else None
    return NamedFeed(values, where, None if labels is None else _labels(labels, where))


def _check_names(
    names: Sequence[str],
    ports: Sequence[Port],
    states: frozenset[str],
    where: str,
    likely: frozenset[str],
) -> None:
    known = [port.name for port in ports]
    for name in names:
        if name not in known and name != LABELS:
            close = [other for other in known if other.lower() == name.lower()]
            close = close or get_close_matches(name, known, n=1)
            raise PruneError(
                f"the model has no input '{name}'",
                where=where,
                remedy=f"did you mean '{close[0]}'?"
                if close
                else f"its inputs are {_list(known)}; leave out all others, including those"
                " fixed by --freeze",
            )
    missing = [name for name in known if name not in names and name not in states]
    if missing:
        there = _list(names) if names else "nothing"
        state = ""
        if likely.issuperset(missing):
            state = ", or pass --stream if it is a state that is passed from one feed to the next"
        raise PruneError(
            f"the input {_list(missing)} is missing",
            where=where,
            remedy=f"add it{state}; the feed has {there}",
        )


def _check_value(value: object, port: Port, sizes: dict[str, tuple[int, str]], where: str) -> Array:
    where = f"{where}: input '{port.name}'"
    array = _convert(value, port, where)
    if port.dims is not None:
        _check_shape(array, port, sizes, where)
    if array.size == 0:
        raise PruneError(
            f"it is empty: its shape is {list(array.shape)}",
            where=where,
            remedy="leave out empty feeds",
        )
    if is_float(array.dtype):
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise PruneError(
                f"{bad} of {array.size} entries are NaN or infinite as {array.dtype.name}",
                where=where,
                remedy="give finite numbers",
            )
    return array


def _check_shape(array: Array, port: Port, sizes: dict[str, tuple[int, str]], where: str) -> None:
    """Compares a shape with the declared one; `sizes` collects named sizes and their inputs."""
    dims = port.dims or ()
    if array.ndim != len(dims):
        raise PruneError(
            f"its shape {list(array.shape)} has {array.ndim} axes, but the model expects "
            f"{len(dims)}",
            where=where,
            remedy=f"give it as {port}",
        )
    for axis, (size, dim) in enumerate(zip(array.shape, dims, strict=True)):
        if isinstance(dim, int) and size != dim:
            raise PruneError(
                f"its shape {list(array.shape)} has size {size} on axis {axis}, but the model "
                f"expects {dim}",
                where=where,
                remedy=f"give it as {port}",
            )
        if isinstance(dim, str):
            first, owner = sizes.setdefault(dim, (size, port.name))
            if size != first:
                raise PruneError(
                    f"'{dim}' is {size} on axis {axis} but {first} in input '{owner}'",
                    where=where,
                    remedy="make both the same size",
                )


def _labels(value: object, where: str) -> Array:
    try:
        return np.asarray(value)
    except FAILURES as error:
        raise PruneError(
            f"its labels cannot be converted to an array: {error}",
            where=where,
            remedy="give an array",
        ) from error


def _convert(value: object, port: Port, where: str) -> Array:
    if port.dtype is None:
        raise PruneError(
            "this input is not a tensor, which feeds do not support",
            where=where,
            remedy="export the model with tensor inputs",
        )
    try:
        array = np.asarray(value)
    except FAILURES as error:  # foreign objects fail in many ways
        raise PruneError(
            f"cannot be converted to an array: {error}", where=where, remedy=f"give it as {port}"
        ) from error
    if array.dtype == port.dtype:
        return array
    if port.dtype == object and array.dtype.kind in "US":
        return array.astype(object)
    converted = _cast(array, port.dtype)
    if converted is None:
        raise PruneError(
            f"its values are {array.dtype.name}, which cannot be represented as {port.dtype.name}",
            where=where,
            remedy=f"give it as {port}",
        )
    return converted


def _cast(array: Array, dtype: np.dtype[Any]) -> Array | None:
    """The array in another type, or None if values would change by more than rounding."""
    source_float, target_float = is_float(array.dtype), is_float(dtype)
    if not (source_float or array.dtype.kind in "biu"):
        return None
    if not (target_float or dtype.kind in "biu"):
        return None
    if source_float and not target_float:
        return None
    # Overflow gives infinity, which the caller refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
        if source_float:
            return converted
        back = converted.astype(array.dtype)
        # A cast to an unsigned type and back gives a negative number again.
        wrapped = dtype.kind == "u" and bool(np.any(np.less(array, 0)))
    return converted if not wrapped and np.array_equal(back, array) else None


def _zeros(port: Port, sizes: Mapping[str, tuple[int, str]], where: str) -> Array:
    """The initial value of a state; sizes that no other input determines are 1."""
    if port.dtype is None or port.dims is None:
        raise PruneError(
            f"the model does not declare the shape of state '{port.name}'",
            where=where,
            remedy=f"add '{port.name}' to the feed",
        )
    shape = [dim if isinstance(dim, int) else sizes.get(dim or "", (1, ""))[0] for dim in port.dims]
    return np.zeros(shape, port.dtype)


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


# Number of calls of a stream used for timing.
_OPENING = 32

Checker = Callable[[object, str], NamedFeed]


@dataclass(frozen=True, eq=False)
class Feeds:
    """Feeds: dicts from input names to arrays.

    Iteration can be repeated, and loads and checks one feed at a time, so memory does not grow with
    their number. Subsets share their source.

    Consecutive calls form a stream, which stays whole and in order in every subset. A feed that
    neither continues another nor is continued is a stream of its own.

    Attributes:
        check: makes a feed from a raw one and its name in errors.
        random: whether they were generated.
        shared: whether they also serve another purpose, because there were too few to split.
        indices: the indices of these feeds in the origin, in order; None for all.
        states: the state inputs that consecutive calls carry, each with the output that becomes its
            next value; empty if each feed is independent.
        starts: the origin's feeds that start a stream, by number.
    """

    origin: Source
    check: Checker
    random: bool = False
    shared: bool = False
    indices: tuple[int, ...] | None = None
    states: Mapping[str, str] = field(default_factory=dict)
    starts: frozenset[int] = frozenset()

    @property
    def source(self) -> str:
        """Where the feeds come from, for reports."""
        return self.origin.name

    def __iter__(self) -> Iterator[NamedFeed]:
        wanted = None if self.indices is None else frozenset(self.indices)
        count = 0
        numbers = itertools.count() if self.indices is None else self.indices
        for number, (label, raw) in zip(numbers, self.origin.read(wanted), strict=False):
            feed = self.check(raw, label)
            if count and self.states and number not in self.starts:
                feed.follows = self.states
            count += 1
            yield feed
        if count == 0:
            raise PruneError("it contains no feeds", where=self.source, remedy="give at least one")
        if count != len(self):
            raise PruneError(
                f"it yielded {count} feeds, but {len(self)} before",
                where=self.source,
                remedy="make it yield the same feeds every time",
            )

    def __len__(self) -> int:
        return len(self.origin) if self.indices is None else len(self.indices)

    @property
    def streams(self) -> int:
        """The number of streams."""
        return len(self._streams())

    @property
    def laid_out(self) -> frozenset[int]:
        """The feeds that come first in a folder or iterable, by index within this object."""
        starts = self.origin.starts
        return frozenset(at for at, number in enumerate(self.numbers) if number in starts)

    def joined(self, states: Mapping[str, str], starts: Iterable[int]) -> Feeds:
        """The same feeds as streams.

        Args:
            states: the state inputs, each with the output that becomes its next value.
            starts: numbers of the feeds that start a stream.
        """
        numbers = self.numbers
        return replace(self, states=states, starts=frozenset(numbers[at] for at in starts))

    def take(self, numbers: Iterable[int]) -> Feeds:
        """The streams with these numbers, counted from 0 within this object."""
        streams = self._streams()
        return self._only(at for number in numbers for at in streams[number])

    def opening(self) -> list[NamedFeed]:
        """The first feed, and some of those that continue it."""
        found: list[NamedFeed] = []
        for feed in itertools.islice(self, _OPENING):
            if found and not feed.follows:
                break
            found.append(feed)
        return found

    def split(self, held_out: float = 0.25) -> tuple[Feeds, Feeds]:
        """Two disjoint parts: one to fit on, one to judge by.

        Held-out streams are drawn at random with a fixed seed: taking every fourth, say, would
        yield one kind only if kinds alternate. Streams longer than the held-out part are skipped. A
        single stream is split, and its later part held out. A single feed serves as both parts,
        which say so in `shared`.

        Args:
            held_out: the share of the second part, above 0 and below 1; each part gets at least
                one stream.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, not {held_out}")
        if len(self) < 2:
            both = replace(self, shared=True)
            return both, both
        lengths = np.array([len(stream) for stream in self._streams()])
        count = len(lengths)
        if count < 2:
            at = max(len(self) - max(1, round(len(self) * held_out)), 1)
            return self._only(range(at)), self._only(range(at, len(self)))
        number = min(max(1, round(count * held_out)), count - 1)
        left, chosen = max(len(self) * number // count, lengths.min()), set()
        for stream in np.random.default_rng(count).permutation(count).tolist():
            if lengths[stream] <= left:
                left -= lengths[stream]
                chosen.add(stream)
        return self.take(set(range(count)) - chosen), self.take(chosen)

    def _streams(self) -> list[list[int]]:
        """The indices of the feeds of each stream."""
        found: list[list[int]] = []
        for at, number in enumerate(self.numbers):
            if at == 0 or not self.states or number in self.starts:
                found.append([])
            found[-1].append(at)
        return found

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of these feeds in the source."""
        return tuple(range(len(self))) if self.indices is None else self.indices

    def _only(self, places: Iterable[int]) -> Feeds:
        numbers = self.numbers
        return replace(self, indices=tuple(sorted({numbers[at] for at in places})))


def open_feeds(
    source: object,
    ports: Sequence[Port],
    states: frozenset[str],
    likely: frozenset[str] = frozenset(),
) -> Feeds:
    """Opens data of any form; each feed is loaded and checked when used.

    Args:
        source: a path (str or Path) of a .npz file, of a folder of them, or of a folder of ONNX
            test_data_set_* folders; the text `module:function`; a dict of arrays; an iterable of
            dicts, or of iterables of dicts; a function that returns one; a CalibrationDataReader;
            or Feeds, which are checked against these ports instead of their own. A folder may also
            hold such folders, each with feeds that belong together.
        states: names of recurrent states, which are zero if a feed leaves them out.
        likely: names of further inputs that may be states.

    Raises:
        PruneError: there is no readable data. Faults of single feeds are raised when they are read.
    """

    def check(raw: object, label: str) -> NamedFeed:
        return check_feed(raw, ports, states, label, likely)

    if isinstance(source, Feeds):
        return replace(source, check=check)
    feeds = Feeds(_open(source, ports), check)
    if len(feeds) == 0:
        raise PruneError("it contains no feeds", where=feeds.source, remedy="give at least one")
    return feeds


def _open(source: object, ports: Sequence[Port]) -> Source:
    if isinstance(source, str) and not source:
        raise PruneError("the name is empty", where="data", remedy="give a file or folder of feeds")
    if isinstance(source, str | Path):
        path = Path(source)
        if isinstance(source, str) and is_function_name(source) and not os.path.exists(path):
            return open_function(source)
        return open_path(path, ports)
    return open_value(source)
