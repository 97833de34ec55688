"""The steps that the commands are made of: open, choose, cut, prove."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from onnx_rnn_prune.cells import RecurrentLayer, find_layers
from onnx_rnn_prune.data import Feeds, open_feeds, random_feeds
from onnx_rnn_prune.errors import PruneError, Unmet
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.files import load_model
from onnx_rnn_prune.model.outputs import runnable_outputs, with_outputs
from onnx_rnn_prune.model.runner import Array, Feed, Runner
from onnx_rnn_prune.passes.base import Pipeline
from onnx_rnn_prune.passes.cleanup import DropUnread, PickEntries
from onnx_rnn_prune.passes.cut import Shrink, Zero
from onnx_rnn_prune.passes.layout import TimeFirst
from onnx_rnn_prune.passes.prepared import Prepared, prepare
from onnx_rnn_prune.passes.room import DropRoom
from onnx_rnn_prune.plan.plan import Plan
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.score.evidence import Evidence, collect, find_readers
from onnx_rnn_prune.score.readers import Reader
from onnx_rnn_prune.trace.states import state_inputs
from onnx_rnn_prune.validate import Oracle, oracle

ModelSource = str | Path | onnx.ModelProto

# Feeds made up where there is no data; a part of the feeds that is kept from fitting.
_RANDOM_FEEDS = 3
_HELD_OUT = 0.25


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


@dataclass(frozen=True, eq=False)
class Data:
    """Feeds by what they are for; the three sets share nothing unless `fitting.shared` says so.

    Attributes:
        fitting: what is calibrated on.
        held_out: what candidates are judged by.
        judging: what drift is reported on.
        given: whether the user gave data; made-up feeds calibrate nothing.
        warnings: what the user should know about them.
    """

    fitting: Feeds
    held_out: Feeds
    judging: Feeds
    given: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Studied:
    """A prepared model with all that is known about its units.

    Attributes:
        prepared: ready to be cut.
        readers: all that read units.
        evidence: from data, None where there is none.
    """

    prepared: Prepared
    readers: list[Reader] = field(default_factory=list)
    evidence: Evidence | None = None


def open_model(source: ModelSource) -> Opened:
    """Reads a model and loads it in onnxruntime.

    Raises:
        PruneError: it is no model, has no recurrent layer, or does not load.
    """
    name = "the model" if isinstance(source, onnx.ModelProto) else str(source)
    model = load_model(source)
    document = Document.read(model)
    turned = TimeFirst()(document)
    layers = find_layers(document.graph)
    if not layers:
        raise PruneError(
            "has no LSTM, GRU or RNN node in its main graph",
            where=name,
            remedy="give a model with recurrent layers",
        )
    if not turned:
        return Opened(name, model, document, layers, open_runner(model, name))
    note = "layers with layout=1, which onnxruntime cannot run, were turned to layout=0"
    runner = open_runner(document.write(), name)
    return Opened(name, model, document, layers, runner, notes=(note,))


def open_runner(model: onnx.ModelProto, name: str, threads: int = 1) -> Runner:
    """Runs a model as far as onnxruntime can: up to operators of foreign domains."""
    outputs = runnable_outputs(model)
    if outputs != [port.name for port in model.graph.output]:
        model = with_outputs(model, outputs)
    return Runner(model, threads=threads, name=name)


def open_data(opened: Opened, data: object, eval_data: object, seed: int) -> Data:
    """Opens the user's data, or makes up feeds.

    Raises:
        PruneError: data cannot be read, or the model does not run on made-up feeds.
    """
    ports = signature.inputs(opened.model)
    states = state_inputs(opened.document)
    if data is None:
        made = random_feeds(ports, seed=seed, count=_RANDOM_FEEDS, accepts=runs(opened.runner))
        judging = made if eval_data is None else open_feeds(eval_data, ports, states)
        note = (
            "nothing was calibrated: with --data and some typical inputs, units are chosen by what"
            " they do and the kept ones make up for the removed ones, which loses far less"
        )
        return Data(made, made, judging, given=False, warnings=(note,))
    feeds = open_feeds(data, ports, states)
    fitting, held_out = feeds.split(_HELD_OUT)
    judging = held_out if eval_data is None else open_feeds(eval_data, ports, states)
    notes = []
    if fitting.shared:
        notes.append("there is one feed only: it was fitted on and judged by; give several")
    return Data(fitting, held_out, judging, given=True, warnings=tuple(notes))


def runs(runner: Runner) -> Callable[[Feed], bool]:
    """Whether a model runs on a feed."""

    def accepts(feed: Feed) -> bool:
        try:
            runner(feed)
        except PruneError:
            return False
        return True

    return accepts


def study(opened: Opened, names: Iterable[str], data: Data, progress: Progress) -> Studied:
    """Prepares some layers for the cut and collects what data says about their units."""
    progress("following units", 0, None)
    prepared = prepare(opened.document, tuple(names), next(iter(data.fitting)))
    readers = find_readers(prepared.document, prepared.trace)
    if not data.given:
        return Studied(prepared, readers)
    evidence = collect(prepared.document, prepared.trace, readers, data.fitting, progress)
    return Studied(prepared, readers, evidence)


def cut(document: Document, studied: Studied, plan: Plan, mode: str) -> onnx.ModelProto:
    """The model that a plan makes of a recovered document."""
    keep = plan.mask(studied.prepared.trace)
    result = document.copy()
    if mode == "zero":
        Zero(studied.prepared.trace, keep)(result)
    else:
        shrink = Shrink(studied.prepared.trace, keep)
        Pipeline((shrink, DropRoom(), PickEntries(), DropUnread()))(result)
    return result.write()


def prove(
    opened: Opened, studied: Studied, plan: Plan, document: Document, feeds: Iterable[Feed]
) -> Oracle:
    """Runs the zeroed and the shrunk model against each other.

    Raises:
        Unmet: they differ.
    """
    zeroed = open_runner(cut(document, studied, plan, "zero"), "the zeroed model")
    shrunk = open_runner(cut(document, studied, plan, "shrink"), "the shrunk model")
    found = oracle(zeroed, shrunk, feeds)
    if not found:
        raise Unmet(
            f"the shrunk model does not compute what the zeroed one does ({found.reason})",
            where=opened.name,
            remedy="report this; no file was written",
        )
    return found


def proof_feeds(opened: Opened, feeds: Feeds) -> list[Feed]:
    """Feeds to prove on: a real one, and the same in other sizes where the model takes them."""
    first = next(iter(feeds))
    accepts = runs(opened.runner)
    found: list[Feed] = [first]
    for resize in (lambda size: min(size, 13), lambda size: 2 if size == 1 else min(size, 5)):
        other = _resized(opened.model, first, resize)
        if other is not None and accepts(other):
            found.append(other)
    return found


def _resized(
    model: onnx.ModelProto, feed: Feed, resize: Callable[[int], int]
) -> dict[str, Array] | None:
    """A feed with other sizes on all open axes, entries repeated or left out."""
    result = dict(feed)
    for port in signature.inputs(model):
        value = result.get(port.name)
        if value is None or port.dims is None:
            return None
        for axis, dim in enumerate(port.dims):
            if not isinstance(dim, int):
                size = value.shape[axis]
                value = np.take(value, np.arange(resize(size)) % size, axis=axis)
        result[port.name] = value
    same = all(np.shape(result[name]) == np.shape(feed[name]) for name in feed)
    return None if same else result


def settle(opened: Opened, studied: Studied, plan: Plan, data: Data, progress: Progress) -> Studied:
    """What is known of just the layers that a plan cuts; layers that keep all stay untouched."""
    if plan.cut() == tuple(studied.prepared.trace.units.lanes):
        return studied
    return study(opened, plan.cut(), data, progress)
