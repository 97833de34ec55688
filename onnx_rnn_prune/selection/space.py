"""The search space of cuts, and trials: cuts that were made, run and judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from onnx_rnn_prune.cost.price import Price
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.allocation import Allocation, Fits
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Group

# How many units each group keeps.
Counts = tuple[int, ...]

# Recovery in trials: least squares with one lambda, or the full recovery of the final result.
QUICK, FULL = "quick", "full"
# The group size from which on steps of 8 units are small.
_MANY = 32
# The number of shares tried to narrow a cut until it fits.
_SHARES = 101
# Times that differ by less than this share count as equal: predictions are no better.
_ALIKE = 0.02


class Ask(NamedTuple):
    """A cut to try."""

    counts: Counts
    recovery: str = QUICK


class Verdict(NamedTuple):
    """The part of a trial that needs a cut model; attributes as in `Trial`."""

    value: float
    loss: float
    spread: float
    nrmse: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """The result of trying a cut.

    Attributes:
        counts: kept units per group.
        recovery: quick or full.
        value: quality on the validation set.
        loss: how much worse the quality is than the original's.
        spread: standard error of the loss, from parts of the validation set.
        nrmse: NRMSE of the output that deviates most.
        ms: predicted time of a run.
        params: parameters of the model.
        bytes: upper bound of the file size.
        seconds: duration of the trial.
    """

    counts: Counts
    recovery: str
    value: float
    loss: float
    spread: float
    nrmse: float
    ms: float
    params: int
    bytes: int
    seconds: float

    def record(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self)

    @staticmethod
    def of(record: dict[str, Any]) -> Trial:
        """From a record."""
        return Trial(**{**record, "counts": tuple(record["counts"])})


# Yields batches of cuts to try, and is sent their trials. What it asks for may depend on those
# alone, so that a resumed search ends like an uninterrupted one.
Strategy = Generator[Sequence[Ask], Sequence[Trial], None]


@dataclass(frozen=True, eq=False)
class Space:
    """The search space: the cuts to choose from.

    Attributes:
        trace: the model's trace.
        scores: one per unit; a group keeps those with the highest.
        bounds: alignment and least number of units.
        price: the price of a cut: the predicted time of a run, or what is limited instead.
        fits: whether a cut is within all limits on its cost.
        profitable: leaves groups whole if cutting them does not pay.
        eights: indices of groups whose counts are rounded to multiples of 8: channels of
            convolutions, which run faster then.
    """

    trace: Trace
    scores: Matrix
    bounds: Allocation
    price: Price
    fits: Fits
    profitable: Callable[[Counts], Counts] = tuple
    eights: frozenset[int] = frozenset()

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups whose counts are chosen."""
        return self.trace.groups

    @property
    def full(self) -> Counts:
        """The counts of the original."""
        return tuple(group.size for group in self.groups)

    @property
    def floor(self) -> Counts:
        """The lowest counts allowed."""
        return tuple(self.bounds.floor(group) for group in self.groups)

    def within(self, most: float, order: Sequence[int]) -> Counts:
        """The most units within a price, about, given to groups in the given order."""

        def fits(counts: list[int]) -> bool:
            return self.fits(counts) and (math.isinf(most) or self.price(counts) <= most)

        counts = self.bounds.share(self.groups, fits, order)
        for rounding in (round, math.floor):
            rounded = self._rounded(counts, rounding)
            if self.fits(list(rounded)):
                return rounded
        return self.profitable(tuple(counts))

    def narrowed(self, counts: Counts) -> Counts:
        """Narrows all groups, by the same share of their removable units, until the cut fits."""
        start, floor = np.array(counts, float), np.array(self.floor, float)
        for share in np.linspace(0.0, 1.0, _SHARES):
            found = self.aligned(start - share * (start - floor))
            if self.fits(list(found)):
                return found
        return self.floor

    def aligned(self, counts: Sequence[float]) -> Counts:
        """Rounds real numbers to the nearest counts allowed."""
        return self._rounded(counts, round)

    def _rounded(self, counts: Sequence[float], rounding: Callable[[float], int]) -> Counts:
        found = []
        for number, (group, count) in enumerate(zip(self.groups, counts, strict=True)):
            eight = number in self.eights and group.size * group.each >= _MANY
            step = self.bounds.steps(group, 8 if eight else 1)
            near = max(rounding(count / step) * step, self.bounds.floor(group))
            # A whole group stays whole, even if its size is no multiple of the step.
            over = abs(near - count) if rounding is round else 0
            whole = group.size - count <= over
            found.append(group.size if whole else min(near, group.size))
        return self.profitable(tuple(found))


@dataclass(frozen=True)
class Aim:
    """The goal in numbers, for one model.

    Attributes:
        most: the largest loss allowed, or None to minimise it.
        fits: whether a cut is within all limits on its cost.
        nrmse: the largest NRMSE allowed, if the loss is of another quality.
    """

    most: float | None
    fits: Fits
    nrmse: float = math.inf

    def meets(self, trial: Trial) -> bool:
        """Whether a trial meets the goal, with a margin of one standard error."""
        good = self.most is None or trial.loss + trial.spread <= self.most
        return good and trial.nrmse <= self.nrmse and self.fits(list(trial.counts))

    def rank(self, trial: Trial) -> tuple[bool, bool, int, float]:
        """A sort key, best first: cuts that fit, then good enough, then fast, then little loss."""
        fits, meets = self.fits(list(trial.counts)), self.meets(trial)
        by_time = meets and self.most is not None
        time = round(math.log(max(trial.ms, 1e-9)) / _ALIKE) if by_time else 0
        return not fits, not meets, time, trial.loss

    def for_quick(self, quick: Trial, full: Trial) -> Aim:
        """The aim for quick trials, if full recovery always gains as much as on this cut."""
        if self.most is None:
            return self
        most = self.most + quick.loss + quick.spread - full.loss - full.spread
        return Aim(most, self.fits, self.nrmse + quick.nrmse - full.nrmse)
