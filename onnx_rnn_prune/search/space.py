"""The cuts that a search chooses from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx_rnn_prune.cost.price import Price
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.search.trial import Counts
from onnx_rnn_prune.selection.allocation import Allocation, Fits, Urgency
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Group


@dataclass(frozen=True, eq=False)
class Space:
    """The cuts that a search chooses from.

    Attributes:
        trace: of the model.
        scores: of its units; of a group, those with the highest stay.
        bounds: alignment and least number of units.
        ms: what a run is predicted to take.
        fits: whether a cut is within all that limits its cost.
        paying: leaves groups whole whose cut does not pay.
    """

    trace: Trace
    scores: Matrix
    bounds: Allocation
    ms: Price
    fits: Fits
    paying: Callable[[Counts], Counts] = tuple

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

    def within(self, ms: float, urgency: Urgency, price: Price | None = None) -> Counts:
        """As many units as fit into so much time, shared out by an urgency."""

        def fits(counts: list[int]) -> bool:
            return self.fits(counts) and (math.isinf(ms) or self.ms(counts) <= ms)

        return self.paying(tuple(self.bounds.share(self.groups, fits, urgency, price)))

    def aligned(self, counts: Sequence[float]) -> Counts:
        """Real numbers as the nearest numbers of units that are allowed."""
        found = []
        for group, count in zip(self.groups, counts, strict=True):
            step = self.bounds.align
            near = round(count / step) * step
            found.append(min(max(near, self.bounds.floor(group)), group.size))
        return self.paying(tuple(found))
