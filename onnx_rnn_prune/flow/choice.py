"""From what a user asks for to a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnx_rnn_prune.flow.feeding import Data
from onnx_rnn_prune.flow.interface import Interface
from onnx_rnn_prune.flow.opening import Opened
from onnx_rnn_prune.flow.request import Request
from onnx_rnn_prune.flow.studying import Studied, cut_outside, look, study
from onnx_rnn_prune.flow.worth import filled, pin_losses
from onnx_rnn_prune.passes.cut import Unshare
from onnx_rnn_prune.passes.prepared import choose_layers
from onnx_rnn_prune.passes.states import OpenStates
from onnx_rnn_prune.plan.allocation import (
    ALLOCATORS,
    Fits,
    choose,
    within_budget,
    within_keep,
)
from onnx_rnn_prune.plan.budget import Budget
from onnx_rnn_prune.plan.cost import Cost, limit_of
from onnx_rnn_prune.plan.plan import Plan, fingerprint
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.score.criteria import CRITERIA, LOOKING, Subject
from onnx_rnn_prune.score.moments import Matrix


def choose_plan(
    opened: Opened, data: Data, request: Request, interface: Interface, progress: Progress
) -> tuple[Plan, Studied]:
    """Scores the units, shares the cut between layers, and picks what stays.

    Raises:
        PruneError: a glob matches nothing, or a criterion needs data.
        Unmet: the budget cannot be met.
    """
    criterion = CRITERIA[request.criterion_for(data)]
    allocator = ALLOCATORS[request.allocate]
    names = choose_layers(opened.layers, request.only, request.skip)
    studied = study(opened, names, data, interface, progress)
    if request.criterion_for(data) in LOOKING:
        studied = look(studied, data, progress)
    prepared = studied.prepared
    subject = Subject(
        prepared.document, prepared.trace, studied.readers, studied.evidence, request.seed
    )
    progress("scoring units", 0, None)
    scores = criterion(subject)
    urgency = allocator(prepared.trace, scores)
    fits = _limits(opened, studied, scores, request, request.refits(data))
    counts = request.bounds.share(prepared.trace.groups, fits, urgency)
    keep = choose(prepared.trace, scores, counts)
    plan = Plan.from_mask(fingerprint(opened.model), prepared.trace, keep)
    if request.budget is None:  # what a budget asks for is not for us to judge
        plan = pin_losses(opened, data, studied, plan, interface, request.refits(data))
    plan = replace(plan, pinned={**prepared.left, **plan.pinned})
    notes = [f"{name} is left alone: {reason}" for name, reason in plan.pinned.items()]
    notes += request.bounds.notes(prepared.trace.groups)
    return replace(plan, notes=tuple(notes)), studied


def _limits(
    opened: Opened, studied: Studied, scores: Matrix, request: Request, refits: bool
) -> Fits:
    trace = studied.prepared.trace
    limits: list[Callable[[list[int]], bool]] = []
    if request.keep is not None:
        limits.append(within_keep(request.keep, trace, request.allocate))
    budget = request.budget
    if budget is not None:
        limit = limit_of(budget, opened.document)
        # A model that keeps all is left as it is, and has nothing to bring back to full width.
        if limit < limit_of(Budget(budget.kind, share=1.0), opened.document):
            least = [request.bounds.floor(group) for group in trace.groups]
            cost = cost_of_cuts(studied, scores, refits)
            limits.append(within_budget(budget, limit, cost, least))
    return lambda counts: all(fits(counts) for fits in limits)


def cost_of_cuts(studied: Studied, scores: Matrix, refits: bool) -> Cost:
    """What cuts cost, as seen in one that removes as little as a cut can.

    Args:
        studied: the model.
        scores: of the units.
        refits: whether recovery may write to all weights that read units. Where it then does not,
            the result is smaller than is counted here.
    """
    prepared = studied.prepared
    trace = prepared.outside.trace
    document = filled(studied) if refits else prepared.document.copy()
    Unshare(prepared.trace)(document)
    counts = [max(group.size - 1, 1) for group in trace.groups]
    plan = Plan.from_mask("", trace, choose(trace, scores, counts))
    smaller = cut_outside(document, studied, plan, "shrink")
    OpenStates(prepared.trace, prepared.outside.states)(document)
    return Cost.of(document, trace, smaller, counts)
