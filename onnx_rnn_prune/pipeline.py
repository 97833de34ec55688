"""Pruning, step by step.

1. `choose` the units to keep: by scores, by masks, or so that provably nothing changes (selection).
2. Trace the removed units to all their readers (`trace_model`).
3. Adjust the kept weights to compensate (`recover_units`).
4. Cut the model, and prove that it computes the same as the full-size one with the removed units
   zeroed (`TracedModel.prove`, `.cut`; if asked for, `.narrow` its states as well).
5. Compress the remaining weights: lower rank, zeros, fewer bits (`run_stages`).
6. Compare the result with the original, for the report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnx_rnn_prune.calibration import Calibration, proof_feeds
from onnx_rnn_prune.compression import Stage, run_stages
from onnx_rnn_prune.compression.precision import read_quantize
from onnx_rnn_prune.compression.rank import read_rank
from onnx_rnn_prune.compression.sparsity import SparseStorage, notes_on, read_zeros
from onnx_rnn_prune.errors import Note, PruneError
from onnx_rnn_prune.evaluator import Evaluator, Recovered
from onnx_rnn_prune.lossless.unit_merging import equal_units, fit_stand_ins, nearest_units
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import is_apart
from onnx_rnn_prune.model.files import WrittenModel, check_output, write_text
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.opened_model import OpenedModel, stays_written_out
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.options import Interface, Options, Selection
from onnx_rnn_prune.passes.states import write_states
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig, require_torch
from onnx_rnn_prune.recovery.least_squares import Recover, place_states
from onnx_rnn_prune.recovery.schedules import Schedule
from onnx_rnn_prune.recovery_choice import recover_units, refitted
from onnx_rnn_prune.report import schema
from onnx_rnn_prune.report.build import drift_rows, environment, layer_rows, outlet_rows, total_rows
from onnx_rnn_prune.report.html import to_html
from onnx_rnn_prune.report.wording import verdict
from onnx_rnn_prune.selection.choice import (
    check_lossless,
    choose_plan,
    lossless_plan,
    plan_of_masks,
)
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.trace.plan import Plan, check_plan, fingerprint
from onnx_rnn_prune.traced_model import Narrowed, TracedModel, only_leaving, trace_plan
from onnx_rnn_prune.validate import Latency, Oracle, drift_in_detail, latency, time_axes
from onnx_rnn_prune.validate.narrow_states import NarrowState, StateRunner
from onnx_rnn_prune.validate.timing import node_times

_STAND_INS = {"merge": nearest_units, "lossless": equal_units}


@dataclass(frozen=True, eq=False, repr=False)
class PruneResult(WrittenModel):
    """A pruned model and its report.

    Attributes:
        plan: which units were kept.
        report: with the keys of the JSON report, as attributes and as a mapping.
    """

    plan: Plan
    report: schema.PruneReport

    def __repr__(self) -> str:
        """A summary in words."""
        return f"<PruneResult: {verdict(self.report)}>"

    def save_html(self, path: str | Path) -> None:
        """Writes the report as a self-contained HTML file, never over an input.

        Raises:
            PruneError: the file cannot be written.
        """
        check_output(path, self.inputs)
        write_text(path, to_html(self.report))


@dataclass(frozen=True)
class Treatment:
    """What to do with a model once its units are chosen.

    Attributes:
        recover: how kept weights compensate; auto for the best that the data allows.
        mode: shrink, or zero.
    """

    recover: str
    schedule: Schedule
    training: TrainingConfig
    mode: str
    interface: Interface
    stages: Sequence[Stage] = ()

    @staticmethod
    def of(options: Options) -> Treatment:
        """The treatment for the given options.

        Raises:
            PruneError: an option is invalid, or needs PyTorch, which is missing.
        """
        asked, cut = options.recovery, options.cut
        if asked.recover == "distill":
            require_torch("--recover=distill")
        return Treatment(
            recover=asked.recover or "auto",
            schedule=Schedule(cut.schedule, cut.steps),
            training=TrainingConfig(asked.distill_minutes, options.inputs.seed),
            mode=cut.mode,
            interface=options.interface,
            stages=_stages(options),
        )

    @property
    def learns(self) -> bool:
        """Whether the kept weights are trained."""
        return self.recover == "distill"


def _stages(options: Options) -> tuple[Stage, ...]:
    """The stages asked for, in order of execution: rounding comes late."""
    asked, given = options.compression, options.inputs.data is not None
    return (
        *([] if asked.rank is None else [read_rank(asked.rank)]),
        *([] if asked.sparsify is None else [read_zeros(asked.sparsify, asked.sparsify_by, given)]),
        *([] if asked.quantize is None else [read_quantize(asked.quantize)]),
        *([SparseStorage()] if asked.sparse_initializers else []),
    )


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan, and how it came about.

    Attributes:
        begun: start of the work, by `time.perf_counter`.
        traced: the traced model, or None if it was not traced.
        lossless: the superfluous units, if only those are removed.
        recovered: the recovery and the reason for it, if already known.
    """

    plan: Plan
    treatment: Treatment
    begun: float
    traced: TracedModel | None = None
    keep: str | None = None
    criterion: str | None = None
    allocate: str | None = None
    budget: str | None = None
    lossless: Sequence[schema.LosslessRow] | None = None
    recovered: tuple[Recovered, str] | None = None


def choose(
    opened: OpenedModel,
    data: Calibration,
    request: Request,
    treatment: Treatment,
    selection: Selection,
    begun: float,
    progress: Progress,
) -> Planned:
    """Makes the plan asked for; `selection` holds the user's options, `begun` the start time.

    Raises:
        PruneError: the request does not fit the model.
        ConstraintError: a budget cannot be met.
    """
    if selection.lossless:
        names = request.layers_of(opened)
        found = lossless_plan(opened, names, data, treatment.interface, progress)
        merged = replace(treatment, recover="lossless")
        return Planned(found.plan, merged, begun, found.traced, lossless=found.rows)
    if selection.masks is not None:
        plan = plan_of_masks(selection.masks, fingerprint(opened.model), opened.layers)
        names = request.layers_of(opened)
        plan = replace(plan, layers={n: kept for n, kept in plan.layers.items() if n in names})
        check_plan(plan, opened.model, opened.layers)
        return Planned(plan, treatment, begun)
    plan, traced = choose_plan(opened, data, request, treatment.interface, progress)
    return Planned(
        plan=plan,
        treatment=treatment,
        begun=begun,
        traced=traced,
        keep=None if request.keep is None else str(request.keep),
        criterion=request.criterion_for(data).name,
        allocate=request.allocate,
        budget=selection.budget,
    )


def finish(
    opened: OpenedModel, data: Calibration, planned: Planned, progress: Progress
) -> PruneResult:
    """Carries out a plan: the steps above, from the second on."""
    plan, treatment = planned.plan, planned.treatment
    if not plan.cut():
        return _untouched(opened, data, planned, progress)
    traced = _followed(opened, data, planned, progress)
    known = planned.recovered if traced is planned.traced else None
    recovered, reason = _recover(traced, data, plan, treatment, known, progress)
    feeds = proof_feeds(opened, data.validation)
    proof, shrunk, narrowed = _proven(traced, planned, recovered, feeds, progress)
    shrunk, steps = run_stages(traced.original, shrunk, treatment.stages, data, progress)
    # A file with narrow states is not processed further.
    model = (narrowed.document if narrowed.states else shrunk).write()
    keys = treatment.interface.state_metadata
    report = _report(
        traced.original, data, model, planned, progress,
        layers=_layer_rows(traced, plan, model, narrowed),
        oracle=proof,
        recovery=schema.Recovery(
            treatment.recover, recovered.used, recovered.ridge, recovered.rounds,
            recovered.learning, reason,
        ),
        stages=steps,
        states=narrowed.states,
        notes=[*write_states(model, keys, narrowed.states), *narrowed.notes],
    )  # fmt: skip
    return PruneResult(model, plan, report, apart=is_apart(opened.model))


def _followed(
    opened: OpenedModel, data: Calibration, planned: Planned, progress: Progress
) -> TracedModel:
    """The model, traced for the cut layers only."""
    if planned.traced is not None:
        return planned.traced.for_plan(planned.plan, progress)
    interface = planned.treatment.interface
    return trace_plan(opened, planned.plan, data.calibration, interface, progress)


def _proven(
    traced: TracedModel,
    planned: Planned,
    recovered: Recovered,
    feeds: Sequence[Feed],
    progress: Progress,
) -> tuple[Oracle, Document, Narrowed]:
    """The proof, the cut, and the result for callers; frees the full-width document."""
    progress("checking", 0, None)
    plan, document = planned.plan, traced.document.copy()
    recovered.write(document)
    proof = traced.prove(plan, document, feeds)
    shrunk = traced.cut(plan, planned.treatment.mode, document)
    narrowed = traced.narrow(plan, document, shrunk, feeds)
    if recovered.used == "lossless":
        check_lossless(traced.original, shrunk, feeds)
    return proof, shrunk, narrowed


def _layer_rows(
    traced: TracedModel, plan: Plan, model: onnx.ModelProto, narrowed: Narrowed
) -> list[schema.LayerRow]:
    opened = traced.original
    states = traced.outside.states if narrowed.states else ()
    leaving = only_leaving(opened.document, traced.restored, states)
    rows = outlet_rows(opened.layers, traced.ends, traced.restored, leaving)
    return layer_rows(opened.layers, all_layers(Document.read(model).graph), rows, plan.pinned)


def _recover(
    traced: TracedModel,
    data: Calibration,
    plan: Plan,
    treatment: Treatment,
    known: tuple[Recovered, str] | None,
    progress: Progress,
) -> tuple[Recovered, str]:
    wanted, keep = treatment.recover, plan.mask(traced.trace)
    if wanted in _STAND_INS:
        fits = fit_stand_ins(traced, keep, _STAND_INS[wanted](traced, keep))
        return Recovered(wanted, Recover(traced.readers, keep, fits), None, 0.0), "it needs no data"
    if not data.given:
        if wanted in ("bias", "lstsq", "distill"):
            raise PruneError(
                f"{wanted} needs data",
                where="--recover",
                remedy="pass --data, or leave --recover out",
            )
        if treatment.schedule.kind != "hard":
            raise PruneError(
                "gradual removal refits on data, but there is none",
                where="--schedule",
                remedy="pass --data, or choose hard",
            )
        return _left(traced, keep), "there is no data for recovery"
    if wanted == "none":
        return _left(traced, keep), "requested"
    data.evidence(traced, progress)
    candidate = Evaluator.of(traced, data, loss=data.loss).candidate(keep)
    training = replace(treatment.training, loss=data.loss)
    found, reason = known or recover_units(
        candidate, wanted, treatment.schedule, training, progress
    )
    final = refitted(candidate, found, training.until) if data.tested else found
    reason = reason if final is found else f"{reason}, then refitted on these as well"
    return replace(final, refit=None), reason  # `refit` holds all its moments


def _left(traced: TracedModel, keep: Mask) -> Recovered:
    """No recovery: nothing stands in for the removed units."""
    fits = place_states(traced, keep)
    return Recovered("none", Recover(traced.readers, keep, fits), None, 0.0)


def _untouched(
    opened: OpenedModel, data: Calibration, planned: Planned, progress: Progress
) -> PruneResult:
    """Carries out a plan that keeps all units; the report names recurrences that are not layers."""
    plan, stages = planned.plan, planned.treatment.stages
    document, steps = run_stages(opened, opened.document.copy(), stages, data, progress)
    model = document.write()
    report = _report(
        opened, data, model, planned, progress,
        layers=layer_rows(opened.layers, opened.layers, {}, planned.plan.pinned),
        oracle=Oracle(0.0, True, 0),
        recovery=schema.Recovery("none", "none", None, 0, None, "nothing was pruned"),
        stages=steps,
        notes=stays_written_out(opened),
    )  # fmt: skip
    return PruneResult(model, plan, report, apart=is_apart(opened.model))


def _report(
    opened: OpenedModel,
    data: Calibration,
    model: onnx.ModelProto,
    planned: Planned,
    progress: Progress,
    *,
    layers: Sequence[schema.LayerRow],
    oracle: Oracle,
    recovery: schema.Recovery,
    stages: Sequence[schema.StageRow],
    states: Sequence[NarrowState] = (),
    notes: Sequence[str] = (),
) -> schema.PruneReport:
    """Measures a result and builds the report; the other arguments say how it came about."""
    judged, timed = (
        (before, StateRunner(after, states) if states else after)
        for before, after in opened.pairs(model, "the pruned model")
    )
    progress("measuring", 0, None)
    feed, left_out = data.test.opening(), [state.result for state in states]
    spent = latency(*timed, feed)
    drifts, details = drift_in_detail(*judged, data.test, time_axes(opened.document), left_out)
    del judged, timed  # each holds a copy of the weights
    return schema.PruneReport(
        model=opened.name,
        mode=planned.treatment.mode,
        totals=total_rows(opened, model),
        drift=drift_rows(drifts, opened.judged, data.streams),
        drift_details=details,
        latency=spent,
        data=_data_row(data),
        environment=environment(),
        warnings=[
            *map(Note, (*opened.notes, *opened.judged.notes, *data.warnings)),
            *map(Note, (*_defaults(opened.model, model), *notes, *planned.plan.notes)),
            *map(Note, notes_on(planned.treatment.stages)),
        ],
        stages=stages,
        states=[
            schema.StateRow(list(s.layers), s.source, s.result, s.full, s.width) for s in states
        ],
        layers=layers,
        oracle=oracle,
        recovery=recovery,
        seconds=time.perf_counter() - planned.begun,
        keep=planned.keep,
        criterion=planned.criterion,
        allocate=planned.allocate,
        budget=planned.budget,
        lossless=planned.lossless,
        rolled=opened.rolling.rolled if opened.rolling else None,
        rolled_speedup=opened.rolled_speedup(feed),
        share_of_others=_share_of_others(opened, feed, spent) if planned.keep else None,
    )


def _share_of_others(opened: OpenedModel, feeds: Sequence[Feed], spent: Latency) -> float | None:
    """The share of layers that were not to be pruned in a run of the result; None if none."""
    asked = {layer.key for layer in opened.layers}
    others = [layer.key for layer in all_layers(opened.document.graph) if layer.key not in asked]
    if not others:
        return None
    taken = node_times(opened.document, others, feeds[:1], opened.name)
    ms = sum(node.ms for node in taken.nodes.values())
    return min(ms / max(spent.after_ms, ms), 1.0)


def _data_row(data: Calibration) -> schema.DataRow:
    feeds = data.calibration
    return schema.DataRow(
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
        f"the default value of the input '{name}' was pruned: values of the"
        " original's size no longer fit in its place"
        for name in signature.changed_defaults(before, after)
    ]
