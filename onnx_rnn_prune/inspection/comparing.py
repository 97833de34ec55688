"""Models against each other: how far their outputs are apart, and how fast they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from onnx_rnn_prune.calibration import feeds_for, made_up, stream_row
from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import stored_bytes
from onnx_rnn_prune.model.files import load_model
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.opened_model import ModelSource, as_run
from onnx_rnn_prune.options import Inputs, Options
from onnx_rnn_prune.report.build import drift_rows
from onnx_rnn_prune.report.schema import BenchReport, BenchRow, CompareReport, FileSizes
from onnx_rnn_prune.report.words import worst
from onnx_rnn_prune.validate import Drift, latency, timings
from onnx_rnn_prune.validate.drift import deviations
from onnx_rnn_prune.validate.narrow_states import (
    NarrowState,
    StateRunner,
    judged_beside,
    narrow_states,
)
from onnx_rnn_prune.validate.results import Result, results


def compare(
    a: ModelSource,
    b: ModelSource,
    *,
    data: object = None,
    size: object = None,
    stream: bool | None = None,
    max_nrmse: float | None = None,
    seed: int = 0,
) -> CompareReport:
    """How far the outputs of b are from those of a, and how size and latency compare.

    Args:
        a: the original, a path or a model.
        b: the other one.
        data: inputs, see `data.open_feeds`; made up where there are none.
        size: sizes of made-up inputs: {"input": (1, 512)}, or of a named dimension {"batch": 4}.
        stream: whether inputs follow one another, see `api.prune`; each model carries its own
            states along.
        max_nrmse: the largest deviation of an output that passes.
        seed: for made-up inputs.
    """
    options = Options.of(locals())
    asked, most = options.inputs, options.target.max_nrmse
    models = [load_model(source) for source in (a, b)]
    names = [_name(source, letter) for source, letter in ((a, "model A"), (b, "model B"))]
    narrow = narrow_states(models[0], models[1], names)
    first, second = (
        Runner(as_run(model), name=name) for model, name in zip(models, names, strict=True)
    )
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
    return CompareReport(
        drift=rows,
        bytes=FileSizes(*sizes),
        latency=latency(first, StateRunner(second, narrow), feeds.opening()),
        max_nrmse=most,
        passed=most is None or off is None or (off[1] is not None and off[1] <= most),
        streams=None if feeds.random else states,
        warnings=[
            *(["the inputs are made up: give --data"] if feeds.random else []),
            *judged.notes,
            *_notes(narrow, feeds),
        ],
    )


def bench(
    models: Sequence[ModelSource],
    *,
    data: object = None,
    size: object = None,
    stream: bool | None = None,
    threads: int = 1,
    seed: int = 0,
) -> BenchReport:
    """Times models against each other on one feed; the first is what the others compare with."""
    if not isinstance(models, Sequence) or isinstance(models, str) or not models:
        raise PruneError("there is nothing to time", where="bench", remedy="give a list of models")
    options = Options.of(locals())
    read = [load_model(source) for source in models]
    names = [_name(source, f"model {number}") for number, source in enumerate(models, start=1)]
    runners = [
        Runner(as_run(model), name=name, threads=options.effort.threads)
        for model, name in zip(read, names, strict=True)
    ]
    feeds = _feeds(read[0], options.inputs, runners[0])
    others = [
        StateRunner(runner, narrow_states(read[0], model, (names[0], runner.name)))
        for model, runner in zip(read[1:], runners[1:], strict=True)
    ]
    found = timings([runners[0], *others], feeds.opening())
    return BenchReport(
        rows=[
            BenchRow(name, timing.ms, timing.ratio, timing.ratio_quartiles)
            for name, timing in zip(names, found, strict=True)
        ],
        threads=options.effort.threads,
        warnings=["the inputs are made up: give --data"] if feeds.random else [],
    )


def _drift(
    first: Runner, second: Runner, narrow: Sequence[NarrowState], feeds: Feeds
) -> dict[str, Drift]:
    """How far the outputs are apart that both models have in the same size."""
    left_out = {state.result for state in narrow}

    def comparable() -> Iterator[Result]:
        for result in results(first, StateRunner(second, narrow), feeds):
            wanted, found = (
                {name: value for name, value in side.items() if name not in left_out}
                for side in (result.wanted, result.found)
            )
            yield replace(result, wanted=wanted, found=found)

    return deviations(comparable(), f"{first.name} and {second.name}")


def _notes(narrow: Sequence[NarrowState], feeds: Feeds) -> list[str]:
    if not narrow:
        return []
    outputs = ", ".join(state.result for state in narrow if state.result)
    notes = [f"{outputs}: not compared, since their states differ in width"]
    lost = [state.source for state in narrow if state.keep is None]
    cold = any(np.any(feed[name]) for feed in feeds if not feed.follows for name in lost)
    if lost and cold and not feeds.random:
        notes.append(
            f"{', '.join(lost)}: it is not known which of its entries the second model keeps, so"
            " that one starts at zero where the first does not; streams that start at zero"
            " (--stream) show how the two differ in use"
        )
    return notes


def _feeds(model: onnx.ModelProto, asked: Inputs, runner: Runner) -> Feeds:
    if asked.data is None:
        document = as_run(model)
        if not isinstance(document, Document):
            document = Document.read(document)
        return made_up(document, runner, asked)
    return feeds_for(model, Document.read(model), lambda: runner, asked.data, asked.stream)


def _name(source: ModelSource, otherwise: str) -> str:
    return str(source) if isinstance(source, str | Path) else otherwise
