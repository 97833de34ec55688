"""States as inputs and outputs of a model, with the entries of kept units only.

By default a cut layer selects the entries that it needs from a state that stays at full width, and
brings its final state back to that width, so that callers see no difference. Where one input and
one output of the model are the two ends of a state, both can be left out: then the state's entries
carry the labels of the units, and the cut makes it narrower like any other tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import (
    CARRIED,
    OWN,
    add_constant,
    fresh_name,
    insert_node,
    remove_node,
)
from onnx_rnn_prune.model.runnable import with_outputs
from onnx_rnn_prune.model.runner import OURS, Array, Feed, Runner
from onnx_rnn_prune.model.walk import places
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.trace.bindings import traced_layers
from onnx_rnn_prune.trace.observe import observe
from onnx_rnn_prune.trace.states import ENDS, Carried, Start, carried_states, way_back
from onnx_rnn_prune.trace.trace import Trace, trace


@dataclass(frozen=True, eq=False)
class Outside:
    """How a cut model looks to its callers.

    Attributes:
        trace: of the prepared document once the states are open; else its own.
        states: those that hold kept units only.
        reasons: by layer and state, why others stay at full width.
    """

    trace: Trace
    states: tuple[Carried, ...] = ()
    reasons: Mapping[Start, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class OpenStates:
    """Takes out what selects from some states, and what brings them back to full width.

    Attributes:
        trace: of the prepared document.
        states: those that callers carry.
    """

    trace: Trace
    states: Sequence[Carried]

    def __call__(self, document: Document) -> bool:
        layers = {layer.name: layer for layer in traced_layers(document, self.trace)}
        for state in self.states:
            result = next(t for t in document.graph.outputs if t.name == state.result)
            for name, start in state.starts:
                layer = layers[name]
                select = layer.node.inputs[layer.slot(start)].inputs[0]
                layer.node.inputs[layer.slot(start)] = select.inputs[0]
                _drop(document.graph, select)
                _take_restore(document.graph, layer, ENDS[start], result)
        return bool(self.states)


def come_back_in_place(
    document: Document, states: Sequence[Carried], feeds: Iterable[Feed]
) -> tuple[Carried, ...]:
    """Those of some states of which each entry comes back to the unit that it left.

    A number for each unit is sent around in onnxruntime, in the place of the final states.

    Args:
        document: the model.
        states: those that callers only hand back.
        feeds: of which one serves to see it.
    """
    feed = next(iter(feeds)) if states else {}
    return tuple(state for state in states if _comes_back(document, state, feed))


def _comes_back(document: Document, state: Carried, feed: Feed) -> bool:
    probe = document.copy()
    graph = probe.graph
    layers = {layer.name: layer for layer in find_layers(graph)}
    sent: dict[str, Array] = {}
    count = 0
    for name, start in sorted(state.starts):
        layer = layers[name]
        coming = layer.input(start)
        assert coming is not None
        numbers = count + 1 + np.arange(layer.directions * layer.hidden, dtype=np.float32)
        count += numbers.size
        sent[coming.name] = numbers.reshape(layer.directions, 1, layer.hidden)
        _send(graph, layer, start, sent[coming.name])
    try:
        part = with_outputs(probe.write(), [state.result, *sent])
        run = Runner(part, name="the states", remedy=OURS)
        found = run({**feed, state.source: run(feed)[state.result]})
    except PruneError:
        return False  # then it is not known
    return all(bool(np.all(found[name] == numbers)) for name, numbers in sent.items())


def _send(graph: gs.Graph, layer: Layer, start: str, numbers: Array) -> None:
    """Puts numbers in the place of a final state, as many as there are sequences."""
    final, coming = layer.output(ENDS[start]), layer.input(start)
    assert final is not None and coming is not None
    layer.node.name = layer.name
    slot = layer.cell.outputs.index(ENDS[start])
    layer.node.outputs[slot] = gs.Variable(fresh_name(graph, f"{final.name}_unsent"))
    shape = gs.Variable(fresh_name(graph, f"{final.name}_shape"))
    constant = add_constant(graph, f"{final.name}_numbers", numbers.astype(coming.dtype or "f4"))
    expand = gs.Node("Expand", shape.name + "_sent", inputs=[constant, shape], outputs=[final])
    insert_node(graph, expand, after=layer.node)
    insert_node(
        graph, gs.Node("Shape", shape.name, inputs=[coming], outputs=[shape]), after=layer.node
    )


def open_states(
    document: Document, known: Trace, source: Document, feeds: Iterable[Feed]
) -> Outside:
    """Lets states hold kept units only, where that can be; layers that share one are tied.

    Args:
        document: the prepared model, with all states at full width.
        known: its trace.
        source: the model before it was prepared.
        feeds: what the model runs on, to see shapes with.
    """
    states, reasons = carried_states(source)
    cut = {name for name, lanes in known.units.lanes.items() if lanes.shape[1] > 1}
    reasons = {start: text for start, text in reasons.items() if start[0] in cut}
    for state in states:
        others = sorted({name for name, _ in state.starts} - cut)
        if others:
            text = f"{', '.join(others)}, which shares the input '{state.source}', keeps all units"
            reasons |= {start: text for start in state.starts if start[0] in cut}
    states = tuple(state for state in states if cut.issuperset(name for name, _ in state.starts))
    while True:
        found = _opened(document, known, states, feeds)
        closed = _closed(states, found)
        if not closed:
            return Outside(found, states, reasons)
        reasons |= {start: text for state, text in closed.items() for start in state.starts}
        states = tuple(state for state in states if state not in closed)


def _opened(
    document: Document, known: Trace, states: Sequence[Carried], feeds: Iterable[Feed]
) -> Trace:
    """The trace of a model in which some states hold the entries of kept units only."""
    result = document.copy()
    OpenStates(known, states)(result)
    layers = traced_layers(result, known)
    seen = observe(result, layers, feeds, [state.source for state in states])
    return trace(result, layers, seen, states)


def _closed(states: Sequence[Carried], found: Trace) -> dict[Carried, str]:
    """The states that cannot hold kept units only, and why."""
    closed: dict[Carried, str] = {}
    finals = {output: start for start, output in ENDS.items()}
    for outlet, reason in found.restored.items():
        start: Start = outlet.layer, finals.get(outlet.output, "")
        for state in states:
            if not outlet.output and state.source == outlet.layer:
                closed.setdefault(state, f"the input '{state.source}' {reason}")
            elif start in state.starts:
                closed.setdefault(state, f"its final value {reason}")
    for state in states:
        if state.source not in found.labels:
            closed.setdefault(state, "its final value does not reach an output of the model")
    if found.restored and not closed:  # a way that does not show which state it is of
        closed = dict.fromkeys(states, next(iter(found.restored.values())))
    return closed


def _take_restore(graph: gs.Graph, layer: Layer, output: str, result: gs.Tensor) -> None:
    """Lets the way to a state's output begin at the layer; other readers keep the full width."""
    inner = layer.output(output)
    assert inner is not None
    own = [n for n in inner.outputs if n.op == "MatMul" and n.name.startswith(OWN)]
    last = next((n for n in own if n.name.startswith(CARRIED)), own[0])
    after = last.outputs[0].outputs
    if after and after[0].op == "Add" and after[0].name.startswith(OWN):
        last = after[0]
    full, moved = last.outputs[0], {tensor.name for tensor in way_back(result)}
    if full is not result:
        for node in list(full.outputs):
            if any(tensor.name in moved for tensor in node.outputs):
                _read(node, full, inner)
        _drop(graph, last)
        return
    last.outputs[0] = gs.Variable(fresh_name(graph, f"{full.name}_full"))
    for before, now in ((full, last.outputs[0]), (inner, full)):
        for node in list(before.outputs):
            _read(node, before, now)
    layer.node.outputs[layer.cell.outputs.index(output)] = full
    _drop(graph, last)


def _drop(graph: gs.Graph, node: gs.Node) -> None:
    """Removes a node and those before it that are not of the original and that nobody reads.

    What the original has stays, even if nobody reads it: its layers are numbered.
    """
    result = node.outputs[0]
    given = any(tensor is result for place in places(graph) for tensor in place.graph.outputs)
    if node.name.startswith(OWN) and not result.outputs and not given:
        before = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs]
        remove_node(graph, node)
        for other in before:
            _drop(graph, other)


def _read(node: gs.Node, before: gs.Tensor, now: gs.Tensor) -> None:
    for slot, tensor in enumerate(node.inputs):
        if tensor is before:
            node.inputs[slot] = now
