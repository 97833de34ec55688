"""Makes plans: from scores, from masks, or of units whose removal provably changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.data.folders import read_archive
from onnx_rnn_prune.errors import ConstraintError, Note, PruneError
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.lossless.superfluous import KINDS, Superfluous, find_superfluous, keep_needed
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import sums_integers
from onnx_rnn_prune.model.runner import Array, Feed
from onnx_rnn_prune.model.scratch import trim
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.options import Interface
from onnx_rnn_prune.passes.cut import Zero
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.distill.configuration import require_torch
from onnx_rnn_prune.recovery.least_squares import Recover, teacher_fits
from onnx_rnn_prune.report.schema import LosslessRow
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.selection.context import Criterion, ScoringContext
from onnx_rnn_prune.selection.criteria import CRITERIA
from onnx_rnn_prune.selection.profitability import pin_unprofitable
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.selection.sharing import share_out
from onnx_rnn_prune.trace.plan import LayerPlan, Plan, fingerprint
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.traced_model import TracedModel, remedy_of, trace_model
from onnx_rnn_prune.validate import QUANTIZED, oracle


def criterion_of(request: Request, data: Calibration) -> Criterion:
    """The criterion to use on this data.

    Raises:
        PruneError: it needs data, or PyTorch, and there is none.
    """
    criterion = request.criterion_for(data)
    if criterion.needs in ("feeds", "evidence") and not data.given:
        others = ", ".join(n for n, other in CRITERIA.items() if other.needs == "weights")
        raise PruneError(
            f"the criterion {criterion.name} needs data",
            where="--criterion",
            remedy=f"pass --data, or choose one of {others}",
        )
    if criterion.learns:
        require_torch(f"--criterion={criterion.name}")
    return criterion


def score_units(
    traced: TracedModel, data: Calibration, request: Request, progress: Progress
) -> Matrix:
    """One score per unit."""
    criterion = criterion_of(request, data)
    if criterion.needs in ("either", "evidence"):
        data.evidence(traced, progress)
    progress("scoring units", 0, None)
    scores = criterion.score(ScoringContext(traced, data, request.seed, progress))
    trim()  # scoring took many times the memory of its result
    return scores


def choose_in_steps(
    traced: TracedModel,
    data: Calibration,
    request: Request,
    scores: Matrix,
    counts: list[int],
    progress: Progress,
) -> Mask:
    """The mask of kept units, chosen in equal steps down to the given number per group.

    A unit removed in one step does not come back. The default is one step; with more, each ranks
    the units of the model as the previous one left it (Han et al. 2015, iterative pruning;
    Molchanov et al. 2017 rank anew after each removal).
    """
    trace = traced.trace
    keep = np.ones(trace.units.count, dtype=bool)
    goes = [group.size - count for group, count in zip(trace.groups, counts, strict=True)]
    steps = max(1, min(request.steps, max(goes, default=1)))  # each removes at least one unit
    for step in range(1, steps + 1):
        progress("choosing units in steps", step - 1, steps)
        share = step / steps
        now = [count + round(most * (1 - share)) for count, most in zip(counts, goes, strict=True)]
        keep = choose(trace, np.where(keep, scores, -np.inf), now)
        if step < steps:
            rest = _without(traced, data, keep, recovers=request.refits(data))
            scores = score_units(rest, data, request, progress)
    return keep


def _without(traced: TracedModel, data: Calibration, keep: Mask, recovers: bool) -> TracedModel:
    """The model at full width with some units zeroed and, if wanted, recovered."""
    document, readers = traced.document.copy(), traced.readers
    evidence = data.evidence(traced) if recovers else None
    if evidence is not None:  # merging needs no data, and follows the last step
        fits = teacher_fits(traced, keep, evidence.moments)
        Recover(readers, keep, fits)(document)
    Zero(traced.trace, keep)(document)
    return replace(traced, document=document)


def choose_plan(
    opened: OpenedModel,
    data: Calibration,
    request: Request,
    interface: Interface,
    progress: Progress,
) -> tuple[Plan, TracedModel]:
    """Scores the units, allocates the cut among layers, and chooses the units to keep.

    Raises:
        PruneError: a glob matches nothing, or a method needs data.
        ConstraintError: the budget cannot be met.
    """
    criterion_of(request, data)
    known = fingerprint(opened.model)  # copies the model: done before more is in memory
    names = request.layers_of(opened)
    if request.keep is not None:
        request.keep.check(names)
    traced = trace_model(opened, names, data.calibration, interface, progress)
    scores = score_units(traced, data, request, progress)
    counts = share_out(traced, data, scores, request, progress)
    keep = choose_in_steps(traced, data, request, scores, counts, progress)
    plan = Plan.from_mask(known, traced.trace, keep)
    if request.budget is None:  # a budget may ask for unprofitable cuts
        plan = pin_unprofitable(traced, plan, request.refits(data))
    notes = request.bounds.notes(traced.trace.groups)
    notes += () if request.keep is None else request.keep.notes(traced.trace)
    return replace(
        plan, pinned={**traced.left, **plan.pinned}, notes=tuple(map(Note, notes))
    ), traced


def plan_of_masks(masks: object, model: str, layers: Sequence[Layer]) -> Plan:
    """The plan for given masks; layers without one keep all units.

    Args:
        masks: the path of an .npz file, or a mapping from layer names to booleans of shape [D, H],
            or [H] for the same units in both directions. True means keep.
        model: SHA-256 of the model.
        layers: the model's layers.

    Raises:
        PruneError: the masks cannot be read, or do not fit the layers.
    """
    known = {layer.name: layer for layer in layers}
    found = {}
    for name, mask in _read(masks).items():
        if name not in known:
            raise _wrong(f"the model has no layer '{name}'", f"its layers are {', '.join(known)}")
        found[name] = _layer_plan(known[name], np.asarray(mask))
    if not found:
        raise _wrong("they do not name any layer", f"the layers are {', '.join(known)}")
    return Plan(model, found)


def _layer_plan(layer: Layer, mask: Array) -> LayerPlan:
    wanted = (layer.directions, layer.hidden)
    if mask.dtype != bool or mask.shape not in (wanted, wanted[1:]):
        raise _wrong(
            f"the mask of {layer.name} is {mask.dtype} with shape {list(mask.shape)}",
            f"give booleans with shape {list(wanted)} or [{layer.hidden}]",
        )
    lanes = np.broadcast_to(mask, wanted)
    counts = {int(lane.sum()) for lane in lanes}
    if len(counts) > 1 or not min(counts):
        raise _wrong(
            f"the mask of {layer.name} keeps {', '.join(str(int(lane.sum())) for lane in lanes)}"
            " units",
            "keep the same number in each direction, at least one",
        )
    keep = tuple(tuple(np.flatnonzero(lane).tolist()) for lane in lanes)
    return LayerPlan(layer.hidden, keep, layer.scope)


def _read(masks: object) -> Mapping[str, Array]:
    if isinstance(masks, Mapping):
        return masks
    if not isinstance(masks, str | Path):
        raise _wrong(
            f"masks cannot be given as {type(masks).__name__}", "give an .npz file or a mapping"
        )
    try:
        return read_archive(Path(masks))
    except PruneError as error:
        raise _wrong(f"{masks}: {error.what}", "give an .npz file") from error


def _wrong(what: str, remedy: str) -> PruneError:
    return PruneError(what, where="--masks", remedy=remedy)


# Sums in another order differ by rounding, which layers carry through all steps.
_ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class Lossless:
    """A plan that changes nothing.

    Attributes:
        plan: the units to keep.
        traced: the model, traced for the cut layers only, or for all if none is cut.
        rows: for each layer, its superfluous units by kind, and how many are removed.
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
        data: feeds to trace units with; their values do not matter.
        interface: the interface of the result.
        progress: progress callback.
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
            plan = replace(plan, pinned=pinned)
            return Lossless(plan, traced, _rows(found, plan))
        names = plan.cut()  # equal units may depend on layers that stay whole


def check_lossless(opened: OpenedModel, document: Document, feeds: Sequence[Feed]) -> None:
    """Compares the outputs of a result with the original's.

    Raises:
        ConstraintError: they differ.
    """
    tolerance = QUANTIZED if sums_integers(document.graph) else _ROUNDING
    before, after = opened.watched(), opened.beside(document, "the smaller model")
    found = oracle(before, after, feeds, tolerance, original=before)
    if not found:
        raise ConstraintError(
            f"the smaller model does not match the original ({found.reason})",
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
