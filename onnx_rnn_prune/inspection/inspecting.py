"""What can be known of a model before it is cut, and what it would save to halve a layer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from onnx_rnn_prune.calibration import Calibration, open_data, opened_feeds
from onnx_rnn_prune.cost.cost import count_params, recurrent_weights
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import stored_bytes
from onnx_rnn_prune.model.runner import OURS, Runner
from onnx_rnn_prune.opened_model import OpenedModel, written_out
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.report.build import outlet_rows
from onnx_rnn_prune.report.schema import (
    Half,
    InspectedLayer,
    InspectReport,
    ModelRow,
    OutletRow,
    RefusedRow,
    TimedOn,
    WrittenRow,
)
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.selection.profitability import unprofitable_layers
from onnx_rnn_prune.trace.decomposed import advice
from onnx_rnn_prune.trace.plan import Plan, fingerprint
from onnx_rnn_prune.trace.units import Group
from onnx_rnn_prune.traced_model import TracedModel, trace_model
from onnx_rnn_prune.validate import timings
from onnx_rnn_prune.validate.timing import NodeTime, node_times

# For timing one cut; and for all of it, after which no other layer is begun with.
_SECONDS = 0.6
_MOST_SECONDS = 5.0


@dataclass(frozen=True)
class Seen:
    """What runs of a model show.

    Attributes:
        outlets: by layer, where its units end.
        pinned: by layer, why it is left alone.
        times: by layer, what it takes of a run.
        share: what all layers together take of a run, or None where nothing ran.
        others: what dense layers and convolutions take that were not asked for.
        half: by layer, what half of its units would save.
        feed: shapes of the feed that was timed, by input; empty where nothing ran.
        random: whether feeds were made up.
        warnings: what could not be found out.
    """

    outlets: Mapping[str, Sequence[OutletRow]] = field(default_factory=dict)
    pinned: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, NodeTime] = field(default_factory=dict)
    share: float | None = None
    others: float | None = None
    half: Mapping[str, Half] = field(default_factory=dict)
    feed: Mapping[str, list[int]] = field(default_factory=dict)
    random: bool = True
    warnings: tuple[str, ...] = ()


def inspect_model(
    opened: OpenedModel, path: str | None, asked: Inputs, progress: Progress
) -> InspectReport:
    """The layers of a model, what they cost, and where their units end.

    Raises:
        PruneError: it has no recurrence of any kind, does not load, or the data do not suit it.
    """
    if not opened.misfits:
        opened.run()
    written = written_out(opened)
    if not (opened.layers or opened.misfits or opened.notes or written):
        raise PruneError(
            "has no LSTM, GRU or RNN node, and none that is written out",
            where=opened.name,
            remedy="give a model with recurrent layers",
        )
    total = count_params(opened.document)
    left = opened.misfits or not opened.layers
    seen = Seen() if left else _look(opened, asked, progress)
    return InspectReport(
        model=ModelRow(
            path=path,
            bytes=stored_bytes(opened.model, like=opened.model),
            params=total,
            inputs=[str(port) for port in signature.inputs(opened.model)],
            outputs=[str(port) for port in signature.outputs(opened.model)],
        ),
        layers=_rows(opened, seen, total),
        written_out=[WrittenRow(**item, text=str(item)) for item in written],
        refused=[RefusedRow(**item, text=str(item)) for item in opened.misfits],
        remedies=[
            *dict.fromkeys(item.remedy for item in opened.misfits),
            *filter(None, [advice(written, opened.model.producer_name)]),
        ],
        share_of_time=seen.share,
        share_of_others=seen.others,
        timed_on=TimedOn(seen.feed, seen.random, threads=1),
        warnings=[*opened.notes, *seen.warnings],
    )


def _rows(opened: OpenedModel, seen: Seen, total: int) -> list[InspectedLayer]:
    return [
        InspectedLayer(
            name=layer.name,
            op=layer.cell.op,
            direction=layer.direction,
            scope=layer.scope,
            hidden=layer.hidden,
            input=layer.input_size,
            params=layer.params(),
            share_of_params=layer.params() / max(total, 1),
            flops_per_step=layer.flops(),
            time_ms=seen.times[layer.name].ms if layer.name in seen.times else None,
            share_of_time=seen.times[layer.name].share if layer.name in seen.times else None,
            outlets=seen.outlets.get(layer.name, []),
            pinned=seen.pinned.get(layer.name),
            half=seen.half.get(layer.name),
        )
        for layer in opened.layers
    ]


def _look(opened: OpenedModel, asked: Inputs, progress: Progress) -> Seen:
    """Runs a model; where no data are given, and none can be made up, that is a warning."""
    keys = {layer.key: layer.name for layer in opened.layers}
    every = [layer.key for layer in all_layers(opened.document.graph)]
    progress("measuring", 0, None)
    try:
        data = _open(opened, asked)
        timed = node_times(opened.document, every, data.calibration, opened.name)
    except PruneError as error:
        if asked.data is not None or asked.size:
            raise
        why = error.for_shell
        return Seen(warnings=(f"where the units end and what takes time is not known: {why}",))
    times = {keys[key]: spent for key, spent in timed.nodes.items() if key in keys}
    first = next(iter(data.calibration))
    shapes = {name: list(value.shape) for name, value in first.items()}
    share, others = timed.share_of(keys), timed.share_of(set(every).difference(keys))
    seen = Seen(times=times, share=share, others=others, feed=shapes, random=not data.given)
    try:
        return _follow(opened, data, seen, progress)
    except PruneError as error:
        return replace(seen, warnings=(f"where the units end is not known: {error.for_shell}",))


def _open(opened: OpenedModel, asked: Inputs) -> Calibration:
    """All feeds for everything, since nothing is fitted."""
    if asked.data is None:
        return open_data(opened, asked)
    feeds = opened_feeds(opened, asked.data, asked.stream)
    return Calibration(feeds, feeds, feeds, given=True)


def _follow(opened: OpenedModel, data: Calibration, seen: Seen, progress: Progress) -> Seen:
    names = [layer.name for layer in opened.layers]
    traced = trace_model(opened, names, data.calibration, progress=progress)
    pinned = {**traced.left, **unprofitable_layers(traced)}
    free = {name: spent for name, spent in seen.times.items() if name not in pinned}
    half = halves(traced, data, free, progress)
    outlets = outlet_rows(opened.layers, traced.ends, traced.restored)
    late = sum(1 for layer in opened.layers if layer.name in free and layer.name not in half)
    notes = (
        [
            f"what pruning {late} of the layers would save was not measured, for lack of time; they"
            " are the ones that take least of a run"
        ]
        if late
        else []
    )
    return replace(seen, outlets=outlets, pinned=pinned, half=half, warnings=tuple(notes))


def halves(
    traced: TracedModel,
    data: Calibration,
    times: Mapping[str, NodeTime],
    progress: Progress,
) -> dict[str, Half]:
    """Cuts one group of layers after another to half of its units.

    Those that take most time come first; what a few seconds do not do is left out.

    Args:
        traced: the model, with all of its layers.
        data: feeds, on one of which each cut is timed.
        times: by layer, for those that are to be cut.
        progress: is told how far the work is.

    Returns:
        By layer.
    """
    opened, trace = traced.opened, traced.trace
    shares = {number: _share(group, times) for number, group in enumerate(trace.groups)}
    order = sorted((number for number in shares if shares[number]), key=lambda n: -shares[n])
    groups = [trace.groups[number] for number in order]
    whole = opened.document
    params, weights = count_params(whole), recurrent_weights(whole)
    size, model_hash = stored_bytes(opened.model, like=opened.model), fingerprint(opened.model)
    runner, start = opened.run(), time.perf_counter()
    found: dict[str, Half] = {}
    for number, group in enumerate(groups):
        gone = time.perf_counter() - start
        if gone + gone / max(number, 1) > _MOST_SECONDS:
            break  # another would take too long
        progress("cutting layers to half", number, len(groups))
        counts = [(each.size + 1) // 2 if each is group else each.size for each in trace.groups]
        keep = choose(trace, np.zeros(trace.units.count), counts)
        plan = Plan.from_mask(model_hash, trace, keep)
        model = traced.for_plan(plan).cut(plan, "shrink").write()
        smaller = Document.read(model)
        spent = next(times[name] for name in group.layers if name in times)
        feed = next(islice(data.calibration, spent.feed, None))
        pair = [runner, Runner(model, name="the half-cut model", remedy=OURS)]
        before, after = timings(pair, feed, seconds=_SECONDS)
        for name in group.layers:
            found[name] = Half(
                units=(group.size + 1) // 2,
                together=tuple(other for other in group.layers if other != name),
                params=params - count_params(smaller),
                bytes=size - stored_bytes(model, like=opened.model),
                flops=2 * (weights - recurrent_weights(smaller)),
                ms=before.ms * (1.0 - 1.0 / after.ratio),
                speedup=after.ratio,
                speedup_quartiles=after.ratio_quartiles,
            )
    return found


def _share(group: Group, times: Mapping[str, NodeTime]) -> float:
    return sum(times[name].share for name in group.layers if name in times)
