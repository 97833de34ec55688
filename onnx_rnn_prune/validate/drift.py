"""Drift: the deviation of outputs from the original's, as numbers, as a histogram, and over time.

A recurrence feeds on its own errors: if they grow with the steps, longer inputs than those tested
fare worse than a single number tells.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.runner import Array, Feed
from onnx_rnn_prune.record import Record
from onnx_rnn_prune.validate.results import (
    Called,
    Numbers,
    Result,
    numbers,
    pairs,
    parts,
    results,
    same_places,
    up_to_shorter,
)

# A power of 3, so that three bins merge into one when the range triples, and one is centred at 0.
_FINE = 3**7
# Bins shown, and the share of entries within them.
_SHOWN, _WITHIN = 41, 0.995
# The least power of 3 that a float represents.
_LEAST = -640
# The most points of a curve over time.
_BUCKETS = 60


@dataclass(frozen=True, eq=False)
class Drift(Record):
    """The deviation of an output from the original's, over all entries of all feeds.

    Attributes:
        max_abs: the largest absolute difference; infinite if NaN or infinities differ.
        nrmse: rmse / standard deviation of the original's output (its root mean square if it is
            constant; infinite if that is zero, too, and the outputs differ).
        cosine: of the two outputs as vectors; None if one is all zero.
        top1_agreement: for floats, how often the largest entry along the last axis is at the same
            index, None if that axis has one entry or varies in length; for other types, the share
            of equal entries.
        unequal: how often the two differed in length; they are compared up to the shorter.
    """

    max_abs: float
    rmse: float
    nrmse: float
    cosine: float | None
    top1_agreement: float | None
    unequal: int = 0


def drift(a: Called, b: Called, feeds: Iterable[Feed]) -> dict[str, Drift]:
    """Compares the outputs of b with those of the original a, output by output.

    If the two differ in length along an axis, they are compared up to the shorter. Entries where
    both are the same infinity, as masked scores are, are left out. Memory does not grow with the
    number of feeds.

    Raises:
        PruneError: the models have different outputs, or outputs of different shapes or types.
    """
    return deviations(results(a, b, feeds), f"{a.name} and {b.name}")


def deviations(found: Iterable[Result], where: str) -> dict[str, Drift]:
    """The same from results; `where` names the two models in errors."""
    sums: dict[str, Sums] = {}
    for result in found:
        for name, wanted in result.wanted.items():
            total = sums.setdefault(name, Sums())
            for one, other in pairs(wanted, result.found[name], name, where):
                total.add(one, other)
    return {name: total.drift() for name, total in sums.items()}


@dataclass
class Sums:
    """Running sums for a Drift."""

    count: int = 0
    mean: float = 0.0  # of the original's entries
    spread: float = 0.0  # sum of squared distances of the original's entries from their mean
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    product: float = 0.0
    error: float = 0.0  # sum of squared differences
    largest: float = 0.0
    broken: bool = False
    rows: int = 0
    agreeing: int = 0
    widths: set[int] = field(default_factory=set)
    unequal: int = 0

    def add(self, one: Array, other: Array) -> None:
        self.unequal += one.shape != other.shape
        one, other = up_to_shorter(one, other)
        if is_float(one.dtype):
            self._add_rows(one, other)
            self._add_parts(one, other)
            return
        same = np.asarray(one == other)
        self.rows += one.size
        self.agreeing += int(np.count_nonzero(same))
        if one.dtype.kind in "iu":
            self._add_parts(one, other)
        else:
            self._add_parts(np.ones(one.shape), same)

    def _add_rows(self, one: Array, other: Array) -> None:
        if one.ndim == 0 or one.size == 0:
            return
        self.widths.add(one.shape[-1])
        self.rows += one.size // one.shape[-1]
        self.agreeing += int(np.count_nonzero(one.argmax(-1) == other.argmax(-1)))

    def _add_parts(self, one: Array, other: Array) -> None:
        for left, right in parts(one.reshape(-1), other.reshape(-1)):
            self._add_numbers(numbers(left), numbers(right))

    def _add_numbers(self, one: Numbers, other: Numbers) -> None:
        finite = np.isfinite(one) & np.isfinite(other)
        if not finite.all():
            self.broken |= not same_places(one, other) or bool(np.isnan(one).any())
            one, other = one[finite], other[finite]
        if one.size == 0:
            return
        # Merging means and spreads keeps their precision where a sum of squares would lose it.
        mean = float(one.mean())
        total = self.count + one.size
        shift = mean - self.mean
        self.spread += float(np.sum((one - mean) ** 2))
        self.spread += shift * shift * self.count * one.size / total
        self.mean += shift * one.size / total
        self.count = total
        difference = np.abs(one - other)
        self.largest = max(self.largest, float(difference.max()))
        self.error += float(np.sum(difference**2))
        self.squares[0] += float(np.sum(one**2))
        self.squares[1] += float(np.sum(other**2))
        self.product += float(np.sum(one * other))

    def drift(self) -> Drift:
        count = max(self.count, 1)
        rmse = math.inf if self.broken else math.sqrt(self.error / count)
        size = math.sqrt(self.squares[0] / count)
        std = math.sqrt(self.spread / count)
        # The deviation of a constant is rounding.
        scale = std if std > 1e-7 * size else size
        ratio = rmse / scale if scale else math.inf
        lengths = math.sqrt(self.squares[0]) * math.sqrt(self.squares[1])
        classes = self.widths != {1} and len(self.widths) < 2
        return Drift(
            max_abs=math.inf if self.broken else self.largest,
            rmse=rmse,
            nrmse=ratio if rmse else 0.0,
            cosine=max(-1.0, min(1.0, self.product / lengths)) if lengths else None,
            top1_agreement=self.agreeing / self.rows if classes and self.rows else None,
            unequal=self.unequal,
        )


@dataclass(frozen=True, eq=False)
class Histogram(Record):
    """A histogram of differences, the other's entries minus the original's.

    Attributes:
        edges: of bins of equal width around 0; one more than there are bins.
        outside: entries beyond the edges; at most half a percent.
    """

    edges: list[float]
    counts: list[int]
    outside: int


@dataclass
class Spread:
    """A histogram around 0 whose range triples as needed."""

    power: int | None = None  # bins are 3 ** power wide
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_FINE, np.int64))
    largest: float = 0.0

    def add(self, differences: Numbers) -> None:
        """Counts differences of any shape, other than NaN and infinities."""
        values = differences[np.isfinite(differences)]
        if values.size == 0:
            return
        self.largest = max(self.largest, float(np.abs(values).max()))
        self._make_room()
        # While all are zero, any width will do.
        width = 1.0 if self.power is None else 3.0**self.power
        places = np.floor(values / width + 0.5).astype(np.int64) + _FINE // 2
        self.counts += np.bincount(places, minlength=_FINE)

    def _make_room(self) -> None:
        if self.largest == 0.0:
            return
        wanted = math.ceil(math.log(self.largest, 3) - math.log(_FINE // 2, 3))
        wanted = max(wanted, _LEAST)
        if self.power is None:
            self.power = wanted  # all before were zero, and in the middle bin
        while self.power < wanted:
            thirds = self.counts.reshape(-1, 3).sum(axis=1)
            self.counts = np.zeros(_FINE, np.int64)
            start = (_FINE - thirds.size) // 2
            self.counts[start : start + thirds.size] = thirds
            self.power += 1

    def histogram(self) -> Histogram | None:
        """Bins wide enough for nearly all differences; None if nothing differs."""
        if self.power is None:
            return None
        middle, total = _FINE // 2, int(self.counts.sum())
        # Entries by their distance from the middle bin.
        around = self.counts[middle:] + self.counts[middle::-1]
        around[0] = self.counts[middle]
        reach = int(np.searchsorted(np.cumsum(around), _WITHIN * total))
        # An odd number of fine bins in each shown one, so that one has its middle at 0.
        each = max(1, math.ceil((2 * reach + 1) / _SHOWN))
        each += 1 - each % 2
        half = (_SHOWN * each) // 2
        padded = np.pad(self.counts, max(0, half - middle))
        center = padded.size // 2
        shown = padded[center - half : center + half + 1].reshape(_SHOWN, each).sum(axis=1)
        width = each * 3.0**self.power
        edges = [(number - _SHOWN / 2) * width for number in range(_SHOWN + 1)]
        return Histogram(edges, shown.tolist(), total - int(shown.sum()))


@dataclass(frozen=True, eq=False)
class OverTime(Record):
    """The RMSE over the steps of sequences, or the calls of streams.

    Attributes:
        steps: the first step of each interval, counted from 0; all are equally long.
        rmse: over all entries of all feeds in the interval.
        unit: step or call.
    """

    steps: list[int]
    rmse: list[float]
    unit: str = "step"


@dataclass
class Course:
    """Squared differences by intervals of steps, whose length doubles if there are too many."""

    stride: int = 1
    squares: Numbers = field(default_factory=lambda: np.zeros(0))
    counts: Numbers = field(default_factory=lambda: np.zeros(0))

    def add(self, differences: Numbers, start: int = 0) -> None:
        """Adds differences [steps, ...] from step `start` on, other than NaN and infinities."""
        rows = differences.reshape(len(differences), math.prod(differences.shape[1:]))
        known = np.isfinite(rows)
        squares = np.square(rows, where=known, out=np.zeros(rows.shape)).sum(axis=1)
        end = start + len(rows)
        while end > self.stride * _BUCKETS:
            self.stride *= 2
            self.squares, self.counts = (_by(2, each) for each in (self.squares, self.counts))
        places = np.arange(start, end) // self.stride
        size = max(self.squares.size, -(-end // self.stride))
        self.squares, self.counts = (
            np.pad(old, (0, size - old.size)) + np.bincount(places, new, size)
            for old, new in ((self.squares, squares), (self.counts, known.sum(axis=1)))
        )

    def over_time(self, unit: str = "step") -> OverTime | None:
        """The RMSE of each interval; None if nothing was added."""
        if not self.counts.any():
            return None
        known = np.flatnonzero(self.counts)
        rmse = np.sqrt(self.squares[known] / self.counts[known])
        return OverTime((known * self.stride).tolist(), rmse.tolist(), unit)


def _by(count: int, values: Numbers) -> Numbers:
    """Sums of `count` neighbours; the last may be of fewer."""
    return np.add.reduceat(values, np.arange(0, values.size, count)) if values.size else values


@dataclass(frozen=True, eq=False)
class Detail(Record):
    """More about the drift of an output.

    Attributes:
        histogram: of differences; None if nothing differs, or entries are not numbers.
        over_time: over steps, or calls of streams; None if the output has no axis of time steps and
            each feed is independent.
    """

    histogram: Histogram | None
    over_time: OverTime | None


def drift_in_detail(
    a: Called,
    b: Called,
    feeds: Iterable[Feed],
    time_axes: Mapping[str, int],
    skip: Collection[str] = (),
) -> tuple[dict[str, Drift], dict[str, Detail]]:
    """As `drift`, with details; memory grows with neither feeds nor steps.

    Args:
        time_axes: the axis of time steps of outputs that hold sequences.
        skip: outputs that are not compared.

    Raises:
        PruneError: the models have different outputs, or outputs of different shapes or types.
    """
    calls = isinstance(feeds, Feeds) and bool(feeds.states)
    parts = {name: _Part(time_axes.get(name), calls) for name in a.outputs if name not in skip}
    where = f"{a.name} and {b.name}"
    for result in results(a, b, feeds):
        for name, part in parts.items():
            if not result.follows:
                part.begins()
            for one, other in pairs(result.wanted[name], result.found[name], name, where):
                part.add(one, other)
    return (
        {name: part.sums.drift() for name, part in parts.items()},
        {name: part.detail() for name, part in parts.items()},
    )


@dataclass
class _Part:
    """Running sums for one output.

    Attributes:
        axis: of its time steps, if it has one.
        calls: whether feeds are calls of streams, which count as steps if there is no such axis.
    """

    axis: int | None
    calls: bool
    sums: Sums = field(default_factory=Sums)
    spread: Spread = field(default_factory=Spread)
    course: Course = field(default_factory=Course)
    step: int = 0

    def begins(self) -> None:
        """Starts a new sequence."""
        self.step = 0

    def add(self, one: Array, other: Array) -> None:
        """Adds the arrays of a call."""
        self.sums.add(one, other)
        if not (is_float(one.dtype) or one.dtype.kind in "iu"):
            return
        one, other = up_to_shorter(one, other)
        axis = self.axis
        timed = axis is not None and one.ndim > axis
        if axis is not None and timed:
            one, other = (np.moveaxis(value, axis, 0) for value in (one, other))
        else:
            one, other = one.reshape(-1), other.reshape(-1)
        called = axis is None and self.calls
        for left, right in parts(one, other):
            difference = _difference(numbers(left), numbers(right))
            self.spread.add(difference)
            if timed:
                self.course.add(difference, self.step)
                self.step += len(difference)
            elif called:
                self.course.add(difference[None], self.step)
        self.step += called

    def detail(self) -> Detail:
        """The details."""
        unit = "step" if self.axis is not None else "call"
        return Detail(self.spread.histogram(), self.course.over_time(unit))


def _difference(one: Numbers, other: Numbers) -> Numbers:
    """Entry by entry; NaN where one of the two is not finite."""
    finite = np.isfinite(one) & np.isfinite(other)
    return np.where(finite, other, np.nan) - np.where(finite, one, np.nan)
