"""From what a user asks for to a plan."""

from __future__ import annotations

from dataclasses import replace

from onnx_rnn_prune.interface import Interface
from onnx_rnn_prune.passes.prepared import choose_layers
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.selection.profitability import pin_losses
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.selection.scoring import criterion_of, score_units
from onnx_rnn_prune.selection.sharing import share_out
from onnx_rnn_prune.selection.steps import choose_in_steps
from onnx_rnn_prune.study.feeding import Data
from onnx_rnn_prune.study.opening import Opened
from onnx_rnn_prune.study.studying import Studied, study
from onnx_rnn_prune.trace.plan import Plan, fingerprint


def choose_plan(
    opened: Opened, data: Data, request: Request, interface: Interface, progress: Progress
) -> tuple[Plan, Studied]:
    """Scores the units, shares the cut between layers, and picks what stays.

    Raises:
        PruneError: a glob matches nothing, or a method needs data.
        Unmet: the budget cannot be met.
    """
    criterion_of(request, data)
    names = choose_layers(opened.layers, request.only, request.skip)
    if request.keep is not None:
        request.keep.check(names)
    studied = study(opened, names, data, interface, progress)
    scores, studied = score_units(studied, data, request, progress)
    counts, studied = share_out(opened, data, studied, scores, request, progress)
    keep = choose_in_steps(studied, data, request, scores, counts, progress)
    prepared = studied.prepared
    plan = Plan.from_mask(fingerprint(opened.model), prepared.trace, keep)
    if request.budget is None:  # what a budget asks for is not for us to judge
        plan = pin_losses(opened, data, studied, plan, interface, request.refits(data))
    plan = replace(plan, pinned={**prepared.left, **plan.pinned})
    notes = [f"{name} is left alone: {reason}" for name, reason in plan.pinned.items()]
    notes += request.bounds.notes(prepared.trace.groups)
    return replace(plan, notes=tuple(notes)), studied
