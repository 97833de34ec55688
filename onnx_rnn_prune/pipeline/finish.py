"""From a plan to a proven model and its report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from onnx_rnn_prune.calibration import Calibration, proof_feeds
from onnx_rnn_prune.compression.sparsity import notes_on
from onnx_rnn_prune.compression.stage import run_stages
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluator import Evaluator, Recovered, recover_units, refitted
from onnx_rnn_prune.lossless.unit_merging import equal_units, fit_stand_ins, nearest_units
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import is_apart
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.pipeline.planning import Asked
from onnx_rnn_prune.pipeline.result import PruneResult
from onnx_rnn_prune.pipeline.state_shrinking import Narrowed, State, narrow, say_states
from onnx_rnn_prune.pipeline.treatment import Treatment
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.least_squares import Recover, place_states
from onnx_rnn_prune.report.build import (
    drift_rows,
    environment,
    layer_rows,
    outlet_rows,
    total_rows,
)
from onnx_rnn_prune.report.schema import (
    DataRow,
    LayerRow,
    PruneReport,
    Recovery,
    StageRow,
    StateRow,
)
from onnx_rnn_prune.selection.lossless import check_lossless
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.traced_model import TracedModel, only_leaving, trace_plan
from onnx_rnn_prune.validate import Oracle, drift_in_detail, latency, time_axes
from onnx_rnn_prune.validate.narrow_states import Narrow, NarrowRunner

_STAND_INS = {"merge": nearest_units, "lossless": equal_units}


def finish(
    opened: OpenedModel,
    data: Calibration,
    plan: Plan,
    traced: TracedModel | None,
    treatment: Treatment,
    asked: Asked,
    progress: Progress,
) -> PruneResult:
    """Recovers, cuts, proves, treats further as asked, and measures."""
    if not plan.cut():
        return _untouched(opened, data, plan, treatment, asked, progress)
    interface = treatment.interface
    if traced is None:
        traced = trace_plan(opened, plan, data.calibration, interface, progress)
    else:
        traced = traced.for_plan(plan, progress)
    opened = traced.original
    recovered, reason = _recover(traced, data, plan, treatment, progress)
    progress("checking", 0, None)
    feeds = proof_feeds(opened, data.validation)
    proof, shrunk, narrowed = _prove(traced, plan, recovered, treatment.mode, feeds)
    if recovered.used == "lossless":
        check_lossless(opened, shrunk, feeds)
    shrunk, steps = run_stages(opened, shrunk, treatment.stages, data, progress)
    # Nothing more is done to a file with narrow states.
    model = (narrowed.document if narrowed.states else shrunk).write()
    notes = [
        *say_states(model, interface, narrowed.states),
        *(narrowed.notes if interface.shrink_states else ()),
    ]
    leaving = only_leaving(
        opened.document, traced.restored, traced.outside.states if narrowed.states else ()
    )
    rows = outlet_rows(opened.layers, traced.ends, traced.restored, leaving)
    left = all_layers(Document.read(model).graph)
    cutting = Cutting(
        layers=layer_rows(opened.layers, left, rows, plan.pinned),
        oracle=proof,
        recovery=Recovery(
            treatment.recover, recovered.used, recovered.ridge, recovered.rounds,
            recovered.learning, reason,
        ),
        stages=steps,
        states=narrowed.states,
        notes=notes,
    )  # fmt: skip
    report = _report(opened, data, model, treatment, cutting, asked, progress)
    return PruneResult(model, plan, report, is_apart(opened.model))


def _prove(
    traced: TracedModel,
    plan: Plan,
    recovered: Recovered,
    mode: str,
    feeds: Sequence[Feed],
) -> tuple[Oracle, Document, Narrowed]:
    """The proof, the cut, and what callers get; the document of full width is gone by then."""
    document = traced.document.copy()
    recovered.write(document)
    proof = traced.prove(plan, document, feeds)
    shrunk = traced.cut(plan, mode, document)
    return proof, shrunk, narrow(traced, plan, document, shrunk, feeds)


def _recover(
    traced: TracedModel, data: Calibration, plan: Plan, treatment: Treatment, progress: Progress
) -> tuple[Recovered, str]:
    wanted, keep = treatment.recover, plan.mask(traced.trace)
    if wanted in _STAND_INS:
        fits = fit_stand_ins(traced, keep, _STAND_INS[wanted](traced, keep))
        return Recovered(wanted, Recover(traced.readers, keep, fits), None, 0.0), "it needs no data"
    if not data.given:
        if wanted in ("bias", "lstsq", "distill"):
            raise PruneError(
                f"{wanted} looks at what the units do, and there is no data",
                where="--recover",
                remedy="pass --data, or leave --recover out",
            )
        if treatment.schedule.kind != "hard":
            raise PruneError(
                "there is no data to learn from while units fade out",
                where="--schedule",
                remedy="pass --data, or choose hard",
            )
        return _left(traced, keep), "there is no data to recover with"
    if wanted == "none":
        return _left(traced, keep), "asked for"
    data.evidence(traced, progress)
    candidate = Evaluator.of(traced, data, data.loss).candidate(keep)
    course = replace(treatment.course, loss=data.loss)
    found, reason = recover_units(candidate, wanted, treatment.schedule, course, progress)
    final = refitted(candidate, found, course.until) if data.tested else found
    return final, reason if final is found else f"{reason}, then fitted on those as well"


def _left(traced: TracedModel, keep: Mask) -> Recovered:
    """Nothing stands in for the removed units."""
    fits = place_states(traced, keep)
    return Recovered("none", Recover(traced.readers, keep, fits), None, 0.0)


def _untouched(
    opened: OpenedModel,
    data: Calibration,
    plan: Plan,
    treatment: Treatment,
    asked: Asked,
    progress: Progress,
) -> PruneResult:
    """A plan that keeps everything leaves the units as they are."""
    document, steps = run_stages(opened, opened.document.copy(), treatment.stages, data, progress)
    model = document.write()
    cutting = Cutting(
        layers=layer_rows(opened.layers, opened.layers, {}, plan.pinned),
        oracle=Oracle(0.0, True, 0),
        recovery=Recovery("none", "none", None, 0, None, "nothing was cut"),
        stages=steps,
    )
    report = _report(opened, data, model, treatment, cutting, asked, progress)
    return PruneResult(model, plan, report, is_apart(opened.model))


@dataclass(frozen=True, eq=False)
class Cutting:
    """What a report says of the cut, beside what is measured of its result.

    Attributes:
        layers: what became of each.
        oracle: the proof.
        recovery: what makes up for removed units.
        stages: what each step did.
        states: those that the result holds in another width.
        notes: what the user should know.
    """

    layers: Sequence[LayerRow]
    oracle: Oracle
    recovery: Recovery
    stages: Sequence[StageRow]
    states: Sequence[State] = ()
    notes: Sequence[str] = ()


def _report(
    opened: OpenedModel,
    data: Calibration,
    model: onnx.ModelProto,
    treatment: Treatment,
    cutting: Cutting,
    asked: Asked,
    progress: Progress,
) -> PruneReport:
    """Measures a result."""
    narrow = [Narrow(s.source, s.result, s.axis, s.kept, s.mask) for s in cutting.states]
    judged, timed = (
        (before, NarrowRunner(after, narrow) if narrow else after)
        for before, after in opened.pairs(model, "the pruned model")
    )
    progress("measuring", 0, None)
    drifts, details = drift_in_detail(
        *judged, data.test, time_axes(opened.document), [state.result for state in narrow]
    )
    return PruneReport(
        model=opened.name,
        mode=treatment.mode,
        totals=total_rows(opened.model, model),
        drift=drift_rows(drifts, opened.judged, data.streams),
        drift_details=details,
        latency=latency(*timed, data.test.opening()),
        data=_data_row(data),
        environment=environment(),
        warnings=[
            *opened.notes,
            *opened.judged.notes,
            *data.warnings,
            *_defaults(opened.model, model),
            *cutting.notes,
            *asked.notes,
            *notes_on(treatment.stages),
        ],
        stages=cutting.stages,
        states=[_state_row(state) for state in cutting.states],
        layers=cutting.layers,
        oracle=cutting.oracle,
        recovery=cutting.recovery,
        seconds=time.perf_counter() - asked.begun,
        keep=asked.keep,
        criterion=asked.criterion,
        allocate=asked.allocate,
        budget=asked.budget,
        lossless=asked.lossless,
    )


def _state_row(state: State) -> StateRow:
    return StateRow(list(state.layers), state.source, state.result, state.width, state.kept)


def _data_row(data: Calibration) -> DataRow:
    feeds = data.calibration
    return DataRow(
        source=feeds.source,
        feeds=data.count,
        random=feeds.random,
        calibration_feeds=len(feeds) if data.given else 0,
        heldout_feeds=len(data.validation) if data.given else 0,
        shared=feeds.shared,
        streams=data.streams,
    )


def _defaults(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    return [
        f"the default value of the input '{name}' was pruned: a value of the original's that is fed"
        " in its place does not fit any more"
        for name in signature.changed_defaults(before, after)
    ]
