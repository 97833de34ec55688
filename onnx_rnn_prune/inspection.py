"""Measures without pruning: inspects a model, compares two, times several."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx

from onnx_rnn_prune.calibration import (
    Calibration,
    feeds_for,
    made_up,
    open_data,
    opened_feeds,
    stream_row,
)
from onnx_rnn_prune.cost.cost import count_flops, count_params
from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import Note, PruneError
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import stored_bytes
from onnx_rnn_prune.model.files import load_model
from onnx_rnn_prune.model.runner import OURS, Runner
from onnx_rnn_prune.opened_model import (
    ModelSource,
    OpenedModel,
    as_run,
    frozen,
    remedy_of,
    written_out,
)
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.layers import count_weights
from onnx_rnn_prune.options import Inputs, Options
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.report import schema
from onnx_rnn_prune.report.build import drift_rows, outlet_rows
from onnx_rnn_prune.report.rolled import WrittenRow, rolling_row
from onnx_rnn_prune.report.wording import worst
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.selection.profitability import unprofitable_layers
from onnx_rnn_prune.trace.decomposed import DecomposedRecurrence, title
from onnx_rnn_prune.trace.plan import Plan, fingerprint
from onnx_rnn_prune.trace.units import Group
from onnx_rnn_prune.traced_model import TracedModel, trace_model
from onnx_rnn_prune.validate import Drift, latency, timings
from onnx_rnn_prune.validate.drift import deviations
from onnx_rnn_prune.validate.narrow_states import (
    NarrowState,
    StateRunner,
    check_inputs,
    judged_beside,
    narrow_states,
)
from onnx_rnn_prune.validate.results import Result, results
from onnx_rnn_prune.validate.timing import NodeTime, node_times

# Seconds for timing one cut; and for all, after which no further layer is started.
_SECONDS = 0.6
_MOST_SECONDS = 5.0


@dataclass(frozen=True)
class Seen:
    """Results of running a model.

    Attributes:
        outlets: by layer, where its units end.
        pinned: by layer, why it is left alone.
        times: by layer, its time in a run.
        share: share of all layers in the time of a run, or None if nothing ran.
        others: share of dense layers and convolutions that were not asked for.
        half: by layer, the savings from cutting it to half.
        feed: shapes of the timed feed, by input; empty if nothing ran.
        rolled_speedup: speedup from rolling unrolled layers.
    """

    outlets: Mapping[str, Sequence[schema.OutletRow]] = field(default_factory=dict)
    pinned: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, NodeTime] = field(default_factory=dict)
    share: float | None = None
    others: float | None = None
    half: Mapping[str, schema.Half] = field(default_factory=dict)
    feed: Mapping[str, list[int]] = field(default_factory=dict)
    random: bool = True
    warnings: tuple[str, ...] = ()
    rolled_speedup: float | None = None


def inspect_model(
    opened: OpenedModel, path: str | None, asked: Inputs, progress: Progress
) -> schema.InspectReport:
    """The layers of a model, what they cost, and where their units end.

    Raises:
        PruneError: it has no recurrence of any kind, does not load, or the data do not suit it.
    """
    if not opened.invalid_nodes:
        opened.run()
    written = written_out(opened)
    if not (opened.layers or opened.invalid_nodes or opened.notes or written):
        raise PruneError(
            "has no LSTM, GRU or RNN node, and no decomposed one",
            where=opened.name,
            remedy=remedy_of(opened, written, asked.roll) or "give a model with recurrent layers",
        )
    total = count_params(opened.document)
    left = opened.invalid_nodes or not opened.layers
    seen = Seen() if left else _look(opened, asked, progress)
    rows = _written_rows(opened, seen, written)
    lost = [row for row in rows if not (row.in_place and asked.roll)]
    return schema.InspectReport(
        model=schema.ModelRow(
            path=path,
            bytes=stored_bytes(opened.model, like=opened.model),
            params=total,
            inputs=[str(port) for port in signature.inputs(opened.model)],
            outputs=[str(port) for port in signature.outputs(opened.model)],
        ),
        layers=_rows(opened, seen, total),
        written_out=rows,
        refused=[schema.RefusedRow(**item, text=str(item)) for item in opened.invalid_nodes],
        remedies=[
            *dict.fromkeys(item.remedy for item in opened.invalid_nodes),
            *map(
                Note,
                filter(None, [remedy_of(opened, lost, asked.roll)]),
            ),
        ],
        share_of_time=seen.share,
        share_of_others=seen.others,
        timed_on=schema.TimedOn(seen.feed, seen.random, threads=1),
        warnings=[Note(text) for text in (*opened.notes, *seen.warnings)],
        rolling=rolling_row(opened.rolling, seen.rolled_speedup) if opened.rolling else None,
    )


def _written_rows(
    opened: OpenedModel, seen: Seen, written: Iterable[DecomposedRecurrence]
) -> list[WrittenRow]:
    cut = {title(layer.node) for layer in opened.layers if layer.name not in seen.pinned}
    return [
        WrittenRow(**item, text=str(item), in_place=not cut.isdisjoint(item.nodes))
        for item in written
    ]


def _rows(opened: OpenedModel, seen: Seen, total: int) -> list[schema.InspectedLayer]:
    weights = count_weights(opened.layers)
    return [
        schema.InspectedLayer(
            name=layer.name,
            op=layer.cell.op,
            direction=layer.direction,
            scope=layer.scope,
            hidden=layer.hidden,
            input=layer.input_size,
            params=weights[layer.name],
            share_of_params=weights[layer.name] / max(total, 1),
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
    """Runs a model; warns if there are no data and none can be made up."""
    keys = {layer.key: layer.name for layer in opened.layers}
    every = [layer.key for layer in all_layers(opened.document.graph)]
    progress("measuring", 0, None)
    try:
        data = _open(opened, asked)
        timed = node_times(opened.document, every, data.calibration, opened.name)
    except PruneError as error:
        if asked.data is not None or asked.size:
            raise
        why = error.declared
        return Seen(warnings=(f"could not trace the units or measure the layers: {why}",))
    times = {keys[key]: spent for key, spent in timed.nodes.items() if key in keys}
    first = next(iter(data.calibration))
    shapes = {name: list(value.shape) for name, value in first.items()}
    share, others = timed.share_of(keys), timed.share_of(set(every).difference(keys))
    seen = Seen(
        times=times,
        share=share,
        others=others,
        feed=shapes,
        random=not data.given,
        rolled_speedup=opened.rolled_speedup(first),
    )
    try:
        return _follow(opened, data, seen, progress)
    except PruneError as error:
        return replace(seen, warnings=(f"could not trace the units: {error.declared}",))


def _open(opened: OpenedModel, asked: Inputs) -> Calibration:
    """Opens all feeds for all purposes, since nothing is fitted."""
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
    least = "the fastest layer" if late == 1 else f"the {late} fastest layers"
    note = f"there was no time to measure what pruning {least} would save"
    notes = (note,) if late else ()
    return replace(seen, outlets=outlets, pinned=pinned, half=half, warnings=notes)


def halves(
    traced: TracedModel, data: Calibration, times: Mapping[str, NodeTime], progress: Progress
) -> dict[str, schema.Half]:
    """Measures the savings from cutting each group of layers to half of its units, by layer.

    The slowest come first; those that do not fit into a few seconds are left out.

    Args:
        data: feeds; each cut is timed on one of them.
        times: times of the layers to cut.
    """
    opened, trace = traced.opened, traced.trace

    def share(group: Group) -> float:
        return sum(times[name].share for name in group.layers if name in times)

    groups, whole = sorted(filter(share, trace.groups), key=share, reverse=True), opened.document
    params, flops = count_params(whole), count_flops(whole, opened.find_counted)
    # The speedup from rolling is not credited to the cut.
    original = opened.document.write() if opened.rolled else opened.model
    size, model_hash = stored_bytes(original, like=opened.model), fingerprint(opened.model)
    runner = Runner(whole, name=opened.name) if opened.rolled else opened.run()
    found, start = dict[str, schema.Half](), time.perf_counter()
    for number, group in enumerate(groups):
        gone = time.perf_counter() - start
        if gone + gone / max(number, 1) > _MOST_SECONDS:
            break  # the next one would take too long
        progress("halving layers", number, len(groups))
        counts = [(each.size + 1) // 2 if each is group else each.size for each in trace.groups]
        keep = choose(trace, np.zeros(trace.units.count), counts)
        plan = Plan.from_mask(model_hash, trace, keep)
        model = traced.for_plan(plan).cut(plan, "shrink").write()
        smaller = Document.read(model)
        spent = next(times[name] for name in group.layers if name in times)
        feed = next(islice(data.calibration, spent.feed, None))
        pair = [runner, Runner(model, name="the half-cut model", remedy=OURS)]
        before, after = timings(pair, feed, seconds=_SECONDS)
        half = schema.Half(
            units=(group.size + 1) // 2 * trace.lanes_of(group),
            together=group.layers,
            params=params - count_params(smaller),
            bytes=size - stored_bytes(model, like=opened.model),
            flops=flops - count_flops(smaller, opened.find_counted),
            ms=before.ms * (1.0 - 1.0 / after.ratio),
            speedup=after.ratio,
            speedup_quartiles=after.ratio_quartiles,
        )
        for name in group.layers:
            others = tuple(other for other in group.layers if other != name)
            found[name] = replace(half, together=others)
    return found


def compare(
    a: ModelSource,
    b: ModelSource,
    *,
    data: object = None,
    size: object = None,
    stream: bool | None = None,
    max_nrmse: float | None = None,
    freeze: Mapping[str, object] | None = None,
    threads: int = 1,
    seed: int = 0,
) -> schema.CompareReport:
    """Compares the outputs, size and speed of model b with those of a.

    Other arguments as in `api.prune`; in streams, each model carries its own states.

    Args:
        a: the original, a path or an onnx.ModelProto.
        b: the other model.
        max_nrmse: the largest deviation of an output for the comparison to pass.
        freeze: values of inputs to fix, by name, in the models that have them.
        threads: threads per timed run.
    """
    options = Options.of(locals())
    asked, most = options.inputs, options.target.max_nrmse
    models, (first, second) = _loaded({"model A": a, "model B": b}, options)
    names = (first.name, second.name)
    narrow = narrow_states(models[0], models[1], names)
    feeds = _feeds(models[0], asked, first)
    judged = judged_beside(models[0], models[1])
    if judged.watched is None:
        found = _drift(first, second, narrow, feeds)
    else:
        watched = [
            Runner(as_run(model), outputs=judged.watched, name=name)
            for model, name in zip(models, names, strict=True)
        ]
        found = _drift(watched[0], watched[1], narrow, feeds)
    states = stream_row(Document.read(models[0]), stream, feeds)
    rows = drift_rows(found, judged, states)
    off = worst(rows)
    sizes = [stored_bytes(model, like=model) for model in models]
    return schema.CompareReport(
        drift=rows,
        bytes=schema.FileSizes(*sizes),
        latency=latency(
            first, StateRunner(second, narrow), feeds.opening(), threads=options.effort.threads
        ),
        max_nrmse=most,
        passed=most is None or off is None or (off[1] is not None and off[1] <= most),
        streams=None if feeds.random else states,
        warnings=[*_made_up(feeds), *map(Note, (*judged.notes, *_notes(narrow, feeds)))],
    )


def bench(
    models: Sequence[ModelSource],
    *,
    data: object = None,
    size: object = None,
    stream: bool | None = None,
    freeze: Mapping[str, object] | None = None,
    threads: int = 1,
    seed: int = 0,
) -> schema.BenchReport:
    """Times models against each other on one feed; the others are compared with the first.

    Arguments as in `compare`.
    """
    if not isinstance(models, Sequence) or isinstance(models, str) or not models:
        raise PruneError(
            "there are no models to time", where="bench", remedy="give a list of models"
        )
    options = Options.of(locals())
    read, runners = _loaded({f"model {n}": m for n, m in enumerate(models, start=1)}, options)
    first = runners[0]
    feeds = _feeds(read[0], options.inputs, first)
    others = [
        StateRunner(runner, narrow_states(read[0], model, (first.name, runner.name)))
        for model, runner in zip(read[1:], runners[1:], strict=True)
    ]
    found = timings([first, *others], feeds.opening())
    return schema.BenchReport(
        rows=[
            schema.BenchRow(runner.name, timing.ms, timing.ratio, timing.ratio_quartiles)
            for runner, timing in zip(runners, found, strict=True)
        ],
        threads=options.effort.threads,
        warnings=_made_up(feeds),
    )


def _loaded(
    sources: Mapping[str, ModelSource], options: Options
) -> tuple[list[onnx.ModelProto], list[Runner]]:
    """Loads models with the same inputs; the keys name those that are not files.

    Each has only those inputs fixed that it has: pruned models may lack them.
    """
    models = [load_model(source) for source in sources.values()]
    values = options.inputs.freeze or {}
    ports = [{port.name for port in signature.inputs(model)} for model in models]
    lost = values.keys() - set().union(*ports)
    models = [
        frozen(model, {name: values[name] for name in values if name in {*own, *lost}})
        for model, own in zip(models, ports, strict=True)
    ]
    names = [str(m) if isinstance(m, str | Path) else name for name, m in sources.items()]
    check_inputs(models, names)
    threads = options.effort.threads
    runners = [
        Runner(as_run(model), name=name, threads=threads)
        for model, name in zip(models, names, strict=True)
    ]
    return models, runners


def _drift(
    first: Runner, second: Runner, narrow: Sequence[NarrowState], feeds: Feeds
) -> dict[str, Drift]:
    """The drift of the outputs that both models have in the same size."""
    left_out = {state.result for state in narrow}

    def comparable() -> Iterator[Result]:
        for result in results(first, StateRunner(second, narrow), feeds):
            wanted, found = (
                {name: value for name, value in side.items() if name not in left_out}
                for side in (result.wanted, result.found)
            )
            yield replace(result, wanted=wanted, found=found)

    return deviations(comparable(), f"{first.name} and {second.name}")


def _made_up(feeds: Feeds) -> list[Note]:
    return [Note("the inputs are random; give typical ones with --data")] if feeds.random else []


def _notes(narrow: Sequence[NarrowState], feeds: Feeds) -> list[str]:
    if not narrow:
        return []
    outputs = ", ".join(state.result for state in narrow if state.result)
    notes = [f"{outputs}: not compared, since the states differ in width"]
    lost = [state.source for state in narrow if state.keep is None]
    cold = any(np.any(feed[name]) for feed in feeds if not feed.follows for name in lost)
    if lost and cold and not feeds.random:
        notes.append(
            f"{', '.join(lost)}: it is unknown which of its entries the second model keeps, so that"
            " one starts from zero where the first does not; streams that start from zero"
            " (--stream) show how the two differ in production"
        )
    return notes


def _feeds(model: onnx.ModelProto, asked: Inputs, runner: Runner) -> Feeds:
    if asked.data is None:
        document = as_run(model)
        if not isinstance(document, Document):
            document = Document.read(document)
        return made_up(document, runner, asked)
    return feeds_for(Document.read(model), lambda: runner, asked.data, asked.stream)
