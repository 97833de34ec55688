"""Removing only what provably changes nothing, and proving that on the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.errors import Unmet
from onnx_rnn_prune.lossless.superfluous import KINDS, Superfluous, find_superfluous, keep_needed
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import sums_integers
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.options import Interface
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.report.schema import LosslessRow
from onnx_rnn_prune.selection.profitability import pin_unprofitable
from onnx_rnn_prune.trace.plan import Plan, fingerprint
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.traced_model import TracedModel, remedy_of, trace_model
from onnx_rnn_prune.validate import QUANTIZED, oracle

# Sums in another order differ by rounding, and what a layer makes of that goes through all steps.
_ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class Lossless:
    """A plan that changes nothing.

    Attributes:
        plan: what stays.
        traced: the model, and of its layers just those that are cut, unless none is.
        rows: for each layer, how many units of which kind are superfluous, and how many go.
    """

    plan: Plan
    traced: TracedModel
    rows: list[LosslessRow]


def lossless_plan(
    opened: OpenedModel,
    names: Sequence[str],
    data: Calibration,
    interface: Interface,
    progress: Progress,
) -> Lossless:
    """The plan that removes all superfluous units that it can.

    Args:
        opened: the model.
        names: the layers to look at.
        data: feeds to follow units with; what they hold does not matter.
        interface: what callers of the result see.
        progress: is told how far the work is.
    """
    found: dict[str, dict[str, int]] = {}
    pinned: dict[str, str] = {}
    while True:
        traced = trace_model(opened, names, data.calibration, interface, progress)
        trace = traced.trace
        superfluous = find_superfluous(traced)
        found = found or _counts(trace, superfluous)
        plan = Plan.from_mask(fingerprint(opened.model), trace, keep_needed(trace, superfluous))
        plan = pin_unprofitable(traced, plan, refits=True)
        pinned.update({**traced.left, **plan.pinned})
        if plan.cut() in ((), tuple(trace.units.lanes)):
            notes = tuple(f"{name} is left alone: {reason}" for name, reason in pinned.items())
            plan = replace(plan, pinned=pinned, notes=notes)
            return Lossless(plan, traced, _rows(found, plan))
        names = plan.cut()  # what is equal may hang on layers that stay whole


def check_lossless(opened: OpenedModel, document: Document, feeds: Sequence[Feed]) -> None:
    """Runs a result against the original.

    Raises:
        Unmet: they differ.
    """
    tolerance = QUANTIZED if sums_integers(document.graph) else _ROUNDING
    before, after = opened.watched(), opened.beside(document, "the smaller model")
    found = oracle(before, after, feeds, tolerance, original=before)
    if not found:
        raise Unmet(
            f"the smaller model does not compute what the original does ({found.reason})",
            where=opened.name,
            remedy=remedy_of(found),
        )


def _rows(found: Mapping[str, Mapping[str, int]], plan: Plan) -> list[LosslessRow]:
    removed = {
        name: sum(layer.hidden_size - len(lane) for lane in layer.keep)
        for name, layer in plan.layers.items()
    }
    return [
        LosslessRow(layer=name, **counts, removed=removed.get(name, 0))
        for name, counts in found.items()
    ]


def _counts(trace: Trace, found: Superfluous) -> dict[str, dict[str, int]]:
    return {
        name: {kind: int(getattr(found, kind)[lanes].sum()) for kind in KINDS}
        for name, lanes in trace.units.lanes.items()
    }
