"""Drift: how far the outputs are from the original's, in numbers, spread out, and over time.

A recurrence feeds on its own errors: where they grow with the steps, longer inputs than those that
were looked at fare worse than a single number says.
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

# Bins are a power of 3, so that three of them make one of a range three times as wide, and one has
# its middle at 0.
_FINE = 3**7
# Bins that are shown, and the share of entries that are within them.
_SHOWN, _WITHIN = 41, 0.995
# A power of 3 that a float still holds.
_LEAST = -640
# Most stretches of a course over time.
_BUCKETS = 60


@dataclass(frozen=True, eq=False)
class Drift(Record):
    """How far an output is from the original's, over all entries of all feeds.

    Attributes:
        max_abs: the largest absolute difference; infinite where one of the two is not a number, or
            infinite and the other is not.
        nrmse: rmse / standard deviation of the original's output (over its root mean square where
            it is constant; infinite where that is zero, too, and the outputs differ).
        cosine: the cosine of the angle between the two outputs as long vectors; None where one of
            them is all zero.
        top1_agreement: for floats, the share of places where the largest entry along the last axis
            is the same one, None if that axis has one entry or varies in length; for all other
            types, the share of equal entries.
        unequal: how many times the two differed in length; they are compared up to the shorter.
    """

    max_abs: float
    rmse: float
    nrmse: float
    cosine: float | None
    top1_agreement: float | None
    unequal: int = 0


def drift(a: Called, b: Called, feeds: Iterable[Feed]) -> dict[str, Drift]:
    """Compares the outputs of b with those of the original a, output by output.

    Where the two differ in length along an axis, they are compared up to the shorter.

    Outputs are summed up feed by feed, so memory does not grow with the number of feeds. Places
    where both outputs are the same infinity, as of masked scores, are left out of the sums.

    Raises:
        PruneError: the models have different outputs, or outputs of different shapes or types.
    """
    return deviations(results(a, b, feeds), f"{a.name} and {b.name}")


def deviations(found: Iterable[Result], where: str) -> dict[str, Drift]:
    """The same of results; errors call the two models by `where`."""
    sums: dict[str, Sums] = {}
    for result in found:
        for name, wanted in result.wanted.items():
            total = sums.setdefault(name, Sums())
            for one, other in pairs(wanted, result.found[name], name, where):
                total.add(one, other)
    return {name: total.drift() for name, total in sums.items()}


@dataclass
class Sums:
    """Running sums from which a Drift follows."""

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
        # What is left of a constant's deviation is rounding.
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
    """How many entries differ by how much: the other's less the original's.

    Attributes:
        edges: of bins of equal width, around 0; one more than there are bins.
        counts: entries in each bin.
        outside: entries that differ by more than the edges; at most half a percent.
    """

    edges: list[float]
    counts: list[int]
    outside: int


@dataclass
class Spread:
    """A histogram around 0 whose range grows by threes with what is added."""

    power: int | None = None  # bins are 3 ** power wide
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_FINE, np.int64))
    largest: float = 0.0

    def add(self, differences: Numbers) -> None:
        """Counts differences of any shape; those that are not numbers are left out."""
        values = differences[np.isfinite(differences)]
        if values.size == 0:
            return
        self.largest = max(self.largest, float(np.abs(values).max()))
        self._make_room()
        # As long as all are zero, any width will do.
        width = 1.0 if self.power is None else 3.0**self.power
        places = np.floor(values / width + 0.5).astype(np.int64) + _FINE // 2
        self.counts += np.bincount(places, minlength=_FINE)

    def _make_room(self) -> None:
        if self.largest == 0.0:
            return
        wanted = math.ceil(math.log(self.largest, 3) - math.log(_FINE // 2, 3))
        wanted = max(wanted, _LEAST)
        if self.power is None:
            self.power = wanted  # what was counted before is zero, and in the middle
        while self.power < wanted:
            thirds = self.counts.reshape(-1, 3).sum(axis=1)
            self.counts = np.zeros(_FINE, np.int64)
            start = (_FINE - thirds.size) // 2
            self.counts[start : start + thirds.size] = thirds
            self.power += 1

    def histogram(self) -> Histogram | None:
        """Bins wide enough for nearly all differences; None where nothing differs."""
        if self.power is None:
            return None
        middle, total = _FINE // 2, int(self.counts.sum())
        # Entries within so many bins of the middle one, in both directions.
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
    """The root of the mean squared difference in the course of a sequence.

    Attributes:
        steps: the first step of each stretch, counted from 0; all are equally long.
        rmse: of all entries of all feeds within the stretch.
        unit: what is counted: step, or call where each call of a stream is one.
    """

    steps: list[int]
    rmse: list[float]
    unit: str = "step"


@dataclass
class Course:
    """Squared differences by stretches of steps, which double when there are too many."""

    stride: int = 1
    squares: Numbers = field(default_factory=lambda: np.zeros(0))
    counts: Numbers = field(default_factory=lambda: np.zeros(0))

    def add(self, differences: Numbers, start: int = 0) -> None:
        """Adds differences [steps, ...]; those that are not numbers are left out.

        Args:
            start: the number of the first of them.
        """
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
        """None where there was nothing to add up."""
        if not self.counts.any():
            return None
        known = np.flatnonzero(self.counts)
        rmse = np.sqrt(self.squares[known] / self.counts[known])
        return OverTime((known * self.stride).tolist(), rmse.tolist(), unit)


def _by(count: int, values: Numbers) -> Numbers:
    """Sums of so many neighbours; the last may be of fewer."""
    return np.add.reduceat(values, np.arange(0, values.size, count)) if values.size else values


@dataclass(frozen=True, eq=False)
class Detail(Record):
    """More about the drift of an output.

    Attributes:
        histogram: of differences; None where there are none, or entries are no numbers.
        over_time: over the steps, or over the calls of streams; None where the output has no axis
            of time steps and each feed stands alone.
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
    """As `drift`, in the same run through the feeds; memory grows with neither feeds nor steps.

    Args:
        time_axes: outputs that hold sequences, with the axis of their steps.
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
    """What is known of one output so far.

    Attributes:
        axis: of its time steps, if it has one.
        calls: whether calls follow one another, and count as steps where there is no such axis.
    """

    axis: int | None
    calls: bool
    sums: Sums = field(default_factory=Sums)
    spread: Spread = field(default_factory=Spread)
    course: Course = field(default_factory=Course)
    step: int = 0

    def begins(self) -> None:
        """What comes next is the start of a sequence."""
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
        """What became of it."""
        unit = "step" if self.axis is not None else "call"
        return Detail(self.spread.histogram(), self.course.over_time(unit))


def _difference(one: Numbers, other: Numbers) -> Numbers:
    """Entry by entry, not a number where one of the two is not finite."""
    finite = np.isfinite(one) & np.isfinite(other)
    return np.where(finite, other, np.nan) - np.where(finite, one, np.nan)
