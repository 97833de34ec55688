"""Where a plan comes from: a choice by scores, masks from training, or what is superfluous."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.options import Selection
from onnx_rnn_prune.pipeline.treatment import Treatment
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.report.schema import LosslessRow
from onnx_rnn_prune.selection.choice import choose_plan, plan_of_masks
from onnx_rnn_prune.selection.lossless import lossless_plan
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.trace.plan import Plan, check_plan, fingerprint
from onnx_rnn_prune.traced_model import TracedModel


@dataclass(frozen=True)
class Asked:
    """What a report says of how a plan came about.

    Attributes:
        begun: when the work began, on the clock of `time.perf_counter`.
        notes: what the user should know of the plan.
        keep: how many units layers were to keep.
        criterion: by which units were ranked.
        allocate: how the cut was shared.
        budget: what the result may have at most.
        lossless: where only superfluous units go, what there are of them.
    """

    begun: float
    notes: Sequence[str] = ()
    keep: str | None = None
    criterion: str | None = None
    allocate: str | None = None
    budget: str | None = None
    lossless: Sequence[LosslessRow] | None = None


@dataclass(frozen=True, eq=False)
class Planned:
    """What is to be cut, and how it came about.

    Attributes:
        plan: what stays.
        traced: the model with its units, or None where they were not looked at.
        treatment: what is done next.
        asked: what the report says of the choice.
    """

    plan: Plan
    traced: TracedModel | None
    treatment: Treatment
    asked: Asked


def make_plan(
    opened: OpenedModel,
    data: Calibration,
    request: Request,
    treatment: Treatment,
    selection: Selection,
    begun: float,
    progress: Progress,
) -> Planned:
    """Plans as the user asks; `selection` is in the user's words, and the work began when `begun`.

    Raises:
        PruneError: the request does not fit the model.
        Unmet: a budget cannot be met.
    """
    if selection.lossless:
        names = request.layers_of(opened)
        found = lossless_plan(opened, names, data, treatment.interface, progress)
        asked = Asked(begun, found.plan.notes, lossless=found.rows)
        return Planned(found.plan, found.traced, replace(treatment, recover="lossless"), asked)
    if selection.masks is not None:
        plan = plan_of_masks(selection.masks, fingerprint(opened.model), opened.layers)
        names = request.layers_of(opened)
        plan = replace(plan, layers={n: kept for n, kept in plan.layers.items() if n in names})
        check_plan(plan, opened.model, opened.layers)
        return Planned(plan, None, treatment, Asked(begun, plan.notes))
    plan, traced = choose_plan(opened, data, request, treatment.interface, progress)
    keep = None if request.keep is None else str(request.keep)
    ranked = request.criterion_for(data).name
    asked = Asked(begun, plan.notes, keep, ranked, request.allocate, selection.budget)
    return Planned(plan, traced, treatment, asked)
