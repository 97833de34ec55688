"""Cuts that a search chooses from, and trials: cuts that were made, run and judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from onnx_rnn_prune.cost.price import Price
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.selection.allocation import Allocation, Fits
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Group

# How many units each group keeps.
Counts = tuple[int, ...]

# How a cut is made up for while it is tried: least squares with one lambda, or all that the final
# one gets.
QUICK, FULL = "quick", "full"
# Units of a group from which on steps of 8 are small.
_MANY = 32
# In so many steps a cut is made narrower until it fits.
_SHARES = 101
# Times that differ by less than this share are equal: predictions are not better than that.
_ALIKE = 0.02


class Ask(NamedTuple):
    """A cut that is to be tried."""

    counts: Counts
    recovery: str = QUICK


class Verdict(NamedTuple):
    """The part of a trial that takes a cut to know; its attributes are as there."""

    value: float
    loss: float
    spread: float
    nrmse: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """What came of a cut.

    Attributes:
        counts: units that the groups keep.
        recovery: how it was made up for.
        value: its quality on the validation feeds.
        loss: by how much that is worse than the original's.
        spread: the standard error of the loss, from parts of these feeds.
        nrmse: of the output that deviates most.
        ms: what a run is predicted to take.
        params: of the model.
        bytes: of the file, at most.
        seconds: that the trial took.
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
        """As JSON knows it."""
        return asdict(self)

    @staticmethod
    def of(record: dict[str, Any]) -> Trial:
        """From a record."""
        return Trial(**{**record, "counts": tuple(record["counts"])})


# Asks for batches of trials, and is sent what came of them. What it asks must follow from what it
# was sent alone, so that a search that goes on where it stopped ends as one left alone.
Strategy = Generator[Sequence[Ask], Sequence[Trial], None]


@dataclass(frozen=True, eq=False)
class Space:
    """The cuts that a search chooses from.

    Attributes:
        trace: of the model.
        scores: of its units; of a group, those with the highest stay.
        bounds: alignment and least number of units.
        price: what a cut costs: what a run is predicted to take, or what is limited instead.
        fits: whether a cut is within all that limits its cost.
        profitable: leaves groups whole whose cut does not pay.
        eights: the numbers of groups that keep multiples of 8 where counts are rounded: the
            channels of convolutions, which run faster then.
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
        """Those whose numbers of units are chosen."""
        return self.trace.groups

    @property
    def full(self) -> Counts:
        """All units."""
        return tuple(group.size for group in self.groups)

    @property
    def floor(self) -> Counts:
        """The fewest that may stay."""
        return tuple(self.bounds.floor(group) for group in self.groups)

    def within(self, most: float, order: Sequence[int]) -> Counts:
        """As many units as fit into so high a price, given to groups in an order."""

        def fits(counts: list[int]) -> bool:
            return self.fits(counts) and (math.isinf(most) or self.price(counts) <= most)

        return self.profitable(tuple(self.bounds.share(self.groups, fits, order)))

    def narrowed(self, counts: Counts) -> Counts:
        """Fewer units in every group, by the same share of those that may go, until that fits."""
        start, floor = np.array(counts, float), np.array(self.floor, float)
        for share in np.linspace(0.0, 1.0, _SHARES):
            found = self.aligned(start - share * (start - floor))
            if self.fits(list(found)):
                return found
        return self.floor

    def aligned(self, counts: Sequence[float]) -> Counts:
        """Real numbers as the nearest numbers of units that are allowed."""
        found = []
        for number, (group, count) in enumerate(zip(self.groups, counts, strict=True)):
            eight = number in self.eights and group.size * group.each >= _MANY
            step = self.bounds.steps(group, 8 if eight else 1)
            near = max(round(count / step) * step, self.bounds.floor(group))
            # A group that is to stay whole does, whatever its size is a multiple of.
            whole = group.size - count <= abs(near - count)
            found.append(group.size if whole else min(near, group.size))
        return self.profitable(tuple(found))


@dataclass(frozen=True)
class Aim:
    """A goal in numbers, of one model.

    Attributes:
        most: the largest loss, or None for as little as can be.
        fits: whether a cut is within all that limits its cost.
        nrmse: the largest NRMSE, beside a loss that is another quality's.
    """

    most: float | None
    fits: Fits
    nrmse: float = math.inf

    def meets(self, trial: Trial) -> bool:
        """Whether a trial is all that is asked for: good enough, with a standard error to spare."""
        good = self.most is None or trial.loss + trial.spread <= self.most
        return good and trial.nrmse <= self.nrmse and self.fits(list(trial.counts))

    def rank(self, trial: Trial) -> tuple[bool, bool, int, float]:
        """The lower, the better: what fits, of that what is good enough, of that the fastest.

        Of equally fast ones, the one that loses least.
        """
        fits, meets = self.fits(list(trial.counts)), self.meets(trial)
        by_time = meets and self.most is not None
        time = round(math.log(max(trial.ms, 1e-9)) / _ALIKE) if by_time else 0
        return not fits, not meets, time, trial.loss

    def for_quick(self, quick: Trial, full: Trial) -> Aim:
        """What quick trials must reach, if one in full makes up for as much as it did here."""
        if self.most is None:
            return self
        most = self.most + quick.loss + quick.spread - full.loss - full.spread
        return Aim(most, self.fits, self.nrmse + quick.nrmse - full.nrmse)
