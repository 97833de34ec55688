"""Decides how many units each group keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.cost.budget import Budget
from onnx_rnn_prune.cost.cost import Cost, limit_of
from onnx_rnn_prune.cost.price import Price, price_of
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluator import Evaluator
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.passes.cut import Unshare
from onnx_rnn_prune.passes.states import OpenStates
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.selection.allocation import (
    ALLOCATORS,
    Fits,
    Urgency,
    choose,
    within_budget,
    within_keep,
)
from onnx_rnn_prune.selection.profitability import filled, place
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.selection.space import QUICK, Counts, Space, Trial
from onnx_rnn_prune.selection.strategies import sharing
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.traced_model import TracedModel


def share_out(
    traced: TracedModel, data: Calibration, scores: Matrix, request: Request, progress: Progress
) -> list[int]:
    """The number of units that each group keeps.

    Raises:
        PruneError: the allocation needs measurements, and there is no data.
        ConstraintError: a budget cannot be met.
    """
    trace = traced.trace
    cost = cache(lambda: cost_of_cuts(traced, scores, request.refits(data)))
    price = price_of(request.per, traced.document, trace, cost)
    fits = _limits(traced, request, price, cost)

    def shares(urgency: Urgency) -> list[int]:
        dear = None if request.per == "units" else price
        order = request.bounds.order(trace.groups, urgency, dear)
        return request.bounds.share(trace.groups, fits, order)

    if request.allocate != "joint":
        return shares(ALLOCATORS[request.allocate](trace, scores))
    if not data.given:
        raise PruneError(
            "joint allocation measures the effect of cuts, but there is no data",
            where="--allocate",
            remedy="pass --data, or choose uniform or global",
        )
    data.evidence(traced, progress)
    space = Space(trace, scores, request.bounds, price, fits)
    return _joint(Evaluator.of(traced, data), space, progress)


def _joint(evaluator: Evaluator, space: Space, progress: Progress) -> list[int]:
    """The counts with the least error among those tried by the search's allocation.

    The price of a cut stands in for time.
    """

    def tried(counts: Counts) -> Trial:
        error = evaluator.quick_error(choose(space.trace, space.scores, list(counts)))
        return Trial(counts, QUICK, error, error, 0.0, error, space.price(counts), 0, 0, 0.0)

    steps, number = sharing(space), 0
    asks = next(steps)
    try:
        while True:
            progress("distributing the cut across layers", number, None)
            number += len(asks)
            asks = steps.send([tried(ask.counts) for ask in asks])
    except StopIteration as end:
        return list(end.value.counts)


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
        # A limit that the original meets needs no check: an uncut model gets no extra nodes.
        if limit < limit_of(Budget(budget.kind, share=1.0), opened.document, counted):
            least = [request.bounds.floor(group) for group in trace.groups]
            limits.append(within_budget(budget, limit, cost(), least))
    return lambda counts: all(fits(counts) for fits in limits)


def cost_of_cuts(traced: TracedModel, scores: Matrix, refits: bool) -> Cost:
    """The cost of cuts, derived from one that removes as little as possible.

    Args:
        traced: the model.
        scores: one per unit.
        refits: whether recovery may write to all weights that read units. If it then does not, the
            result is smaller than computed here.
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
