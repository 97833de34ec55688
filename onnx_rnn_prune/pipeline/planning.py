"""Where a plan comes from: a choice by scores, masks from training, or what is superfluous."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.passes.prepared import choose_layers
from onnx_rnn_prune.pipeline.treatment import Treatment
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.selection.choice import choose_plan
from onnx_rnn_prune.selection.lossless import lossless_plan
from onnx_rnn_prune.selection.masks import plan_of_masks
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.study.feeding import Data
from onnx_rnn_prune.study.opening import Opened
from onnx_rnn_prune.study.studying import Studied
from onnx_rnn_prune.trace.plan import Plan, check_plan, fingerprint


@dataclass(frozen=True, eq=False)
class Planned:
    """What is to be cut, and how it came about.

    Attributes:
        plan: what stays.
        studied: the model with its units, or None where they were not looked at.
        treatment: what is done next.
        report: what the report says of the choice.
    """

    plan: Plan
    studied: Studied | None
    treatment: Treatment
    report: Mapping[str, Any]


def make_plan(
    opened: Opened,
    data: Data,
    request: Request,
    treatment: Treatment,
    lossless: bool,
    masks: object,
    progress: Progress,
) -> Planned:
    """Plans as the user asks.

    Raises:
        PruneError: the request does not fit the model.
        Unmet: a budget cannot be met.
    """
    report: dict[str, Any] = dict.fromkeys(("keep", "criterion", "allocate"))
    if lossless:
        names = choose_layers(opened.layers, request.only, request.skip)
        found = lossless_plan(opened, names, data, treatment.interface, progress)
        report["lossless"] = found.rows
        return Planned(found.plan, found.studied, replace(treatment, recover="lossless"), report)
    if masks is not None:
        plan = plan_of_masks(masks, fingerprint(opened.model), opened.layers)
        names = choose_layers(opened.layers, request.only, request.skip)
        plan = replace(plan, layers={n: kept for n, kept in plan.layers.items() if n in names})
        check_plan(plan, opened.model, opened.layers)
        return Planned(plan, None, treatment, report)
    plan, studied = choose_plan(opened, data, request, treatment.interface, progress)
    report["keep"] = None if request.keep is None else str(request.keep)
    report["criterion"], report["allocate"] = request.criterion_for(data).name, request.allocate
    return Planned(plan, studied, treatment, report)


def check_choice(
    lossless: object, masks: object, recover: object, others: Mapping[str, object]
) -> None:
    """Refuses two ways to say what is cut.

    Args:
        lossless: whether only superfluous units go; then there is nothing to recover, either.
        masks: what stays, or None.
        recover: how kept weights make up for cut ones, or None.
        others: all else that says so, by option; None where it is left out.

    Raises:
        PruneError: there are two, or one of them means nothing.
    """
    if not isinstance(lossless, bool):
        raise PruneError(
            f"{lossless!r} is neither True nor False", where="--lossless", remedy="give one"
        )
    chosen = "--lossless" if lossless else "--masks" if masks is not None else ""
    given = {**others, "--masks": masks, "--recover": recover} if lossless else others
    clash = [option for option, value in given.items() if value is not None]
    if chosen and clash:
        raise PruneError(
            f"it says by itself what stays, and {', '.join(clash)} would say it again",
            where=chosen,
            remedy="leave one of them out",
        )
