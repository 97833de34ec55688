"""Drift in detail: how differences are spread, and whether they grow from step to step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.runner import Array, Feed, Runner
from onnx_rnn_prune.validate.course import Course, OverTime
from onnx_rnn_prune.validate.drift import Drift, Sums
from onnx_rnn_prune.validate.outputs import Numbers, numbers, side_by_side
from onnx_rnn_prune.validate.spread import Histogram, Spread


@dataclass(frozen=True)
class Detail:
    """More about the drift of an output.

    Attributes:
        histogram: of differences; None where there are none, or entries are no numbers.
        over_time: None where the output has no axis of time steps.
    """

    histogram: Histogram | None
    over_time: OverTime | None


def drift_in_detail(
    a: Runner, b: Runner, feeds: Iterable[Feed], time_axes: Mapping[str, int]
) -> tuple[dict[str, Drift], dict[str, Detail]]:
    """As `drift`, in the same run through the feeds; memory grows with neither feeds nor steps.

    Args:
        a: the original.
        b: the other.
        feeds: what both run on.
        time_axes: outputs that hold sequences, with the axis of their steps.

    Raises:
        PruneError: the models have different outputs, or outputs of different shapes or types.
    """
    sums = {name: Sums() for name in a.outputs}
    spreads = {name: Spread() for name in a.outputs}
    courses = {name: Course() for name in time_axes}
    for name, one, other in side_by_side(a, b, feeds):
        sums[name].add(one, other)
        difference = _difference(one, other)
        if difference is None:
            continue
        spreads[name].add(difference)
        if name in courses and difference.ndim > time_axes[name]:
            courses[name].add(np.moveaxis(difference, time_axes[name], 0))
    details = {
        name: Detail(
            spreads[name].histogram(), courses[name].over_time() if name in courses else None
        )
        for name in a.outputs
    }
    return {name: total.drift() for name, total in sums.items()}, details


def _difference(one: Array, other: Array) -> Numbers | None:
    """Entry by entry, not a number where one of the two is not finite; None without numbers."""
    if not (is_float(one.dtype) or one.dtype.kind in "iu"):
        return None
    left, right = numbers(one), numbers(other)
    finite = np.isfinite(left) & np.isfinite(right)
    return np.where(finite, right, np.nan) - np.where(finite, left, np.nan)
