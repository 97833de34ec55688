"""How many units each group keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.cost.budget import Budget
from onnx_rnn_prune.cost.cost import Cost, limit_of
from onnx_rnn_prune.cost.price import Price, price_of
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluator import Evaluator
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.passes.cut import Unshare
from onnx_rnn_prune.passes.states import OpenStates
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.selection.allocation import (
    ALLOCATORS,
    Allocation,
    Fits,
    Urgency,
    choose,
    within_budget,
    within_keep,
)
from onnx_rnn_prune.selection.profitability import filled, place
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.trace.units import Group
from onnx_rnn_prune.traced_model import TracedModel

SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)


@dataclass(frozen=True, eq=False)
class Curve:
    """The error of the outputs as one group is cut.

    Attributes:
        layers: the group's layers.
        kept: numbers of units, rising; the last is all of them, [n].
        error: mean NRMSE on validation feeds, with least squares as recovery; 0 for all units, [n].
    """

    layers: tuple[str, ...]
    kept: Matrix
    error: Matrix

    def slopes(self) -> Matrix:
        """What each further unit takes off the squared error: those of the lower convex hull, [H].

        A step that takes nothing off may have to be made on the way to one that does.
        """
        size = int(self.kept[-1])
        squared = np.interp(np.arange(size + 1), self.kept, self.error**2)
        slopes = np.zeros(size + 1)
        unit = 0
        while unit < size:
            ahead = (squared[unit] - squared[unit + 1 :]) / np.arange(1, size - unit + 1)
            stretch = int(ahead.argmax()) + 1
            slopes[unit : unit + stretch] = ahead[stretch - 1]
            unit += stretch
        return slopes


def sensitivity(
    evaluator: Evaluator, scores: Matrix, bounds: Allocation, progress: Progress
) -> tuple[Curve, ...]:
    """Cuts each group alone to several widths, and runs what is left.

    Args:
        evaluator: judges cuts of the model.
        scores: of the units, higher is kept.
        bounds: widths below its floor are left out.
        progress: is told how far the work is.
    """
    trace = evaluator.traced.trace
    curves = []
    for number, group in enumerate(trace.groups):
        progress("cutting layers one by one", number, len(trace.groups))
        widths = sorted({max(round(share * group.size), bounds.floor(group)) for share in SHARES})
        errors = []
        for width in widths:
            counts = [other.size for other in trace.groups]
            counts[number] = width
            errors.append(evaluator.quick_error(choose(trace, scores, counts)))
        rising = np.array([*errors, 0.0])
        curves.append(Curve(group.layers, np.array([*widths, group.size], float), rising))
    return tuple(curves)


def by_slopes(curves: Sequence[Curve]) -> Urgency:
    """The most urgent group is the one whose next unit takes most off the error."""
    slopes = [curve.slopes() for curve in curves]
    return lambda number, kept: float(slopes[number][kept])


Shares = Callable[[Urgency], list[int]]

# How often units are moved from one group to another, and how many: a part of a group's own.
_MOVES, _PART = 8, 16


def share_out(
    traced: TracedModel, data: Calibration, scores: Matrix, request: Request, progress: Progress
) -> list[int]:
    """The number of units that each group keeps.

    Raises:
        PruneError: the cut is to be measured, and there is no data.
        ConstraintError: a budget cannot be met.
    """
    trace = traced.trace
    cost = cache(lambda: cost_of_cuts(traced, scores, request.refits(data)))
    price = price_of(request.per, traced.document, trace, cost)
    fits = _limits(traced, request, price, cost)

    def shares(urgency: Urgency) -> list[int]:
        dear = None if request.per == "units" else price
        return request.bounds.share(trace.groups, fits, urgency, dear)

    if request.allocate != "joint":
        return shares(ALLOCATORS[request.allocate](trace, scores))
    if not data.given:
        raise PruneError(
            "joint cuts layers and measures what that does, and there is no data",
            where="--allocate",
            remedy="pass --data, or choose uniform or global",
        )
    data.evidence(traced, progress)
    return _joint(Evaluator.of(traced, data), scores, request, shares, fits, progress)


def _joint(
    evaluator: Evaluator,
    scores: Matrix,
    request: Request,
    shares: Shares,
    fits: Fits,
    progress: Progress,
) -> list[int]:
    """The best of several ways to share, then with units moved between groups while that helps.

    Each layer's sensitivity is measured alone; since errors of several layers add up otherwise than
    alone, what comes of it is cut and measured, too, beside the shares of the other allocators.
    """
    trace = evaluator.traced.trace

    def error(counts: list[int]) -> float:
        return evaluator.quick_error(choose(trace, scores, counts))

    curves = sensitivity(evaluator, scores, request.bounds, progress)
    ways = [allocator(trace, scores) for allocator in ALLOCATORS.values()]
    best = min((shares(urgency) for urgency in [*ways, by_slopes(curves)]), key=error)
    for move in range(_MOVES):
        progress("moving units between layers", move, _MOVES)
        found = min([best, *_moved(trace.groups, request, best, fits)], key=error)
        if found == best:
            break
        best = found
    return best


def _moved(
    groups: Sequence[Group], request: Request, counts: list[int], fits: Fits
) -> Iterator[list[int]]:
    """The same cut with some units of one group given up for as many as fit of another."""
    for giver, group in enumerate(groups):
        less = max(counts[giver] - max(group.size // _PART, 1), request.bounds.floor(group))
        for taker, other in enumerate(groups):
            after = [less if n == giver else count for n, count in enumerate(counts)]
            while taker != giver and after[taker] < other.size:
                more = list(after)
                more[taker] = request.bounds.step(other, after[taker])
                if not fits(more):
                    break
                after = more
            if after[giver] < counts[giver] and after[taker] > counts[taker]:
                yield after


def _limits(traced: TracedModel, request: Request, price: Price, cost: Callable[[], Cost]) -> Fits:
    trace, opened = traced.trace, traced.opened
    limits: list[Fits] = []
    if request.keep is not None:
        shared = None if request.allocate == "uniform" else price
        limits.append(within_keep(request.keep, trace, shared))
    budget = request.budget
    if budget is not None:
        counted = opened.find_counted
        limit = limit_of(budget, opened.document, counted)
        # A model that keeps all is left as it is, and has nothing to bring back to full width.
        if limit < limit_of(Budget(budget.kind, share=1.0), opened.document, counted):
            least = [request.bounds.floor(group) for group in trace.groups]
            limits.append(within_budget(budget, limit, cost(), least))
    return lambda counts: all(fits(counts) for fits in limits)


def cost_of_cuts(traced: TracedModel, scores: Matrix, refits: bool) -> Cost:
    """What cuts cost, as seen in one that removes as little as a cut can.

    Args:
        traced: the model.
        scores: of the units.
        refits: whether recovery may write to all weights that read units. Where it then does not,
            the result is smaller than is counted here.
    """
    trace = traced.outside.trace
    document = filled(traced) if refits else traced.document.copy()
    Unshare(traced.trace)(document)
    counts = [max(group.size - 1, 1) for group in trace.groups]
    plan = Plan.from_mask("", trace, choose(trace, scores, counts))
    place(document, traced, plan)
    smaller = traced.cut_outside(plan, "shrink", document)
    OpenStates(traced.trace, traced.outside.states)(document)
    return Cost.of(document, trace, smaller, counts, traced.opened.find_counted)
