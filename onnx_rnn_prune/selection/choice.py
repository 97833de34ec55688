"""From what a user asks for to a plan."""

from __future__ import annotations

from dataclasses import replace

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.options import Interface
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.selection.profitability import pin_losses
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.selection.scoring import criterion_of, score_units
from onnx_rnn_prune.selection.sharing import share_out
from onnx_rnn_prune.selection.steps import choose_in_steps
from onnx_rnn_prune.trace.plan import Plan, fingerprint
from onnx_rnn_prune.traced_model import TracedModel, trace_model


def choose_plan(
    opened: OpenedModel,
    data: Calibration,
    request: Request,
    interface: Interface,
    progress: Progress,
) -> tuple[Plan, TracedModel]:
    """Scores the units, shares the cut between layers, and picks what stays.

    Raises:
        PruneError: a glob matches nothing, or a method needs data.
        Unmet: the budget cannot be met.
    """
    criterion_of(request, data)
    names = request.layers_of(opened)
    if request.keep is not None:
        request.keep.check(names)
    traced = trace_model(opened, names, data.calibration, interface, progress)
    scores = score_units(traced, data, request, progress)
    counts = share_out(traced, data, scores, request, progress)
    keep = choose_in_steps(traced, data, request, scores, counts, progress)
    plan = Plan.from_mask(fingerprint(opened.model), traced.trace, keep)
    if request.budget is None:  # what a budget asks for is not for us to judge
        plan = pin_losses(traced, plan, request.refits(data))
    plan = replace(plan, pinned={**traced.left, **plan.pinned})
    notes = [f"{name} is left alone: {reason}" for name, reason in plan.pinned.items()]
    notes += request.bounds.notes(traced.trace.groups)
    return replace(plan, notes=tuple(notes)), traced
