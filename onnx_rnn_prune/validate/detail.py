"""Drift in detail: how differences are spread, and whether they grow from step to step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.runner import Array, Feed
from onnx_rnn_prune.record import Record
from onnx_rnn_prune.validate.curve import Course, OverTime
from onnx_rnn_prune.validate.drift import Drift, Sums
from onnx_rnn_prune.validate.outputs import Numbers, numbers, pairs, parts, up_to_shorter
from onnx_rnn_prune.validate.results import Called, results
from onnx_rnn_prune.validate.spread import Histogram, Spread


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
        a: the original.
        b: the other.
        feeds: what both run on.
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
