"""A model that was read and runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnx_rnn_prune.cells import RecurrentLayer, computed_parameters, find_layers
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.files import load_model
from onnx_rnn_prune.model.outputs import runnable_outputs, with_outputs
from onnx_rnn_prune.model.runner import Feed, Runner
from onnx_rnn_prune.passes.base import Pipeline
from onnx_rnn_prune.passes.layout import SortNodes, StateHiddenSize, TimeFirst

ModelSource = str | Path | onnx.ModelProto


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that was read and runs.

    Attributes:
        name: how errors and tables call it.
        model: the message as read; never changed.
        document: its graph, as onnxruntime can run it; never changed.
        layers: its recurrent layers.
        runner: runs what onnxruntime can run of it.
        notes: what the user should know about it.
    """

    name: str
    model: onnx.ModelProto
    document: Document
    layers: list[RecurrentLayer]
    runner: Runner
    notes: tuple[str, ...] = ()


def open_model(source: ModelSource) -> Opened:
    """Reads a model and loads it in onnxruntime.

    Raises:
        PruneError: it is no model, has no recurrent layer, or does not load.
    """
    name = "the model" if isinstance(source, onnx.ModelProto) else str(source)
    model = load_model(source)
    document = Document.read(model)
    notes = []
    for layer, parameter in computed_parameters(document.graph).items():
        notes.append(f"{layer} is left alone: its {parameter} is computed while the model runs")
    SortNodes()(document)
    stated = StateHiddenSize()(document)
    turned = TimeFirst()(document)
    layers = find_layers(document.graph)
    if not layers:
        raise PruneError(
            "; ".join(notes) or "has no LSTM, GRU or RNN node in its main graph",
            where=name,
            remedy="give a model with recurrent layers whose weights are constants",
        )
    if turned:
        notes.append("layers with layout=1, which onnxruntime cannot run, were turned to layout=0")
    runner = open_runner(document.write() if stated or turned else model, name)
    return Opened(name, model, document, layers, runner, tuple(notes))


def as_run(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that computes the same, in the form that onnxruntime runs."""
    document = Document.read(model)
    changed = Pipeline((StateHiddenSize(), TimeFirst()))(document)
    return document.write() if changed else model


def open_runner(model: onnx.ModelProto, name: str, threads: int = 1) -> Runner:
    """Runs a model as far as onnxruntime can: up to operators of foreign domains."""
    outputs = runnable_outputs(model)
    if outputs != [port.name for port in model.graph.output]:
        model = with_outputs(model, outputs)
    return Runner(model, threads=threads, name=name)


def runs(runner: Runner) -> Callable[[Feed], bool]:
    """Whether a model runs on a feed."""

    def accepts(feed: Feed) -> bool:
        try:
            runner(feed)
        except PruneError:
            return False
        return True

    return accepts
