"""How differences develop in the course of a sequence.

A recurrence feeds on its own errors: where they grow with the steps, longer inputs than those that
were looked at fare worse than a single number says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from onnx_rnn_prune.record import Record
from onnx_rnn_prune.validate.outputs import Numbers

_BUCKETS = 60


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
            differences: of steps in a row.
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
