"""Drift: how far the outputs are from the original's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.runner import Array, Feed
from onnx_rnn_prune.record import Record
from onnx_rnn_prune.validate.outputs import (
    Numbers,
    numbers,
    pairs,
    parts,
    same_places,
    up_to_shorter,
)
from onnx_rnn_prune.validate.results import Called, Result, results


@dataclass(frozen=True, eq=False)
class Drift(Record):
    """How far an output is from the original's, over all entries of all feeds.

    Attributes:
        max_abs: the largest absolute difference; infinite where one of the two is not a number, or
            infinite and the other is not.
        rmse: the root of the mean squared difference.
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
