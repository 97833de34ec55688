"""States as inputs and outputs of a model that hold the entries of kept units only.

By default a cut layer selects the entries it needs from a full-width state and restores its final
state to that width, so callers see no difference. If a state enters by one input of the model and
leaves by one output, both steps can be left out: the state's entries then carry the labels of the
units, and the cut makes it narrower like any other tensor.

Widths stated in the file, in metadata and constant outputs, are updated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import (
    HANDED_BACK,
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
from onnx_rnn_prune.trace.states import ENDS, InitialState, StatePair, state_pairs, way_back
from onnx_rnn_prune.trace.trace import Trace, trace
from onnx_rnn_prune.validate.narrow_states import KEPT, NarrowState, write_kept


@dataclass(frozen=True, eq=False)
class NarrowInterface:
    """The interface of a cut model.

    Attributes:
        trace: of the prepared document once the states are open; else its own.
        states: those that hold kept units only.
        reasons: by layer and state, why others stay at full width.
    """

    trace: Trace
    states: tuple[StatePair, ...] = ()
    reasons: Mapping[InitialState, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class OpenStates:
    """Removes the nodes that select from some states, and those that restore their full width."""

    trace: Trace
    states: Sequence[StatePair]

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
    document: Document, states: Sequence[StatePair], feeds: Iterable[Feed]
) -> tuple[StatePair, ...]:
    """The states whose entries each return to the unit they came from.

    This runs the model with a unit's number in place of each entry of the final states.

    Args:
        document: the model.
        states: those that callers only hand back.
        feeds: the first is used.
    """
    feed = next(iter(feeds)) if states else {}
    return tuple(state for state in states if _comes_back(document, state, feed))


def _comes_back(document: Document, state: StatePair, feed: Feed) -> bool:
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
        left = run(feed).get(state.result)  # unless it depends on an unknown operator
        found = {} if left is None else run({**feed, state.source: left})
    except PruneError:
        return False  # then it is unknown
    return found.keys() >= sent.keys() and all(
        bool(np.all(found[name] == numbers)) for name, numbers in sent.items()
    )


def _send(graph: gs.Graph, layer: Layer, start: str, numbers: Array) -> None:
    """Replaces a final state by the numbers of its units, for each sequence."""
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
) -> NarrowInterface:
    """Lets states hold kept units only, where possible; layers that share one are tied.

    Args:
        document: the prepared model, with all states at full width.
        known: its trace.
        source: the model before it was prepared.
        feeds: show the shapes of tensors.
    """
    states, reasons = state_pairs(source)
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
            return NarrowInterface(found, states, reasons)
        reasons |= {start: text for state, text in closed.items() for start in state.starts}
        states = tuple(state for state in states if state not in closed)


def _opened(
    document: Document, known: Trace, states: Sequence[StatePair], feeds: Iterable[Feed]
) -> Trace:
    """The trace of a model some of whose states hold kept units only."""
    result = document.copy()
    OpenStates(known, states)(result)
    layers = traced_layers(result, known)
    seen = observe(result, layers, feeds, [state.source for state in states])
    return trace(result, layers, seen, states)


def _closed(states: Sequence[StatePair], found: Trace) -> dict[StatePair, str]:
    """The states that cannot be narrow, and why."""
    closed: dict[StatePair, str] = {}
    finals = {output: start for start, output in ENDS.items()}
    for outlet, reason in found.restored.items():
        start: InitialState = outlet.layer, finals.get(outlet.output, "")
        for state in states:
            if not outlet.output and state.source == outlet.layer:
                closed.setdefault(state, f"the input '{state.source}' {reason}")
            elif start in state.starts:
                closed.setdefault(state, f"its final value {reason}")
    for state in states:
        if state.source not in found.labels:
            closed.setdefault(state, "its final value does not reach an output of the model")
    if found.restored and not closed:  # it is unclear which state this belongs to
        closed = dict.fromkeys(states, next(iter(found.restored.values())))
    return closed


def _take_restore(graph: gs.Graph, layer: Layer, output: str, result: gs.Tensor) -> None:
    """Connects a state's output directly to the layer; other readers keep full width."""
    inner = layer.output(output)
    assert inner is not None
    own = [n for n in inner.outputs if n.op == "MatMul" and n.name.startswith(OWN)]
    last = next((n for n in own if n.name.startswith(HANDED_BACK)), own[0])
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
    """Removes an unread node, and unread ones before it, if preparation added them.

    Original nodes stay even if unread, since layers are numbered.
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


_OPTION = "--state-metadata"


@dataclass(frozen=True)
class _Place:
    """A place in a file that holds a number.

    Attributes:
        entry: the key of the metadata, or the output.
        path: path to the number in JSON; empty if the entry is just the number.
        value: the number.
    """

    entry: str
    path: tuple[str | int, ...]
    value: int

    @property
    def name(self) -> str:
        """Its name in the option."""
        return f"{self.entry}:{'.'.join(map(str, self.path))}" if self.path else self.entry


def write_states(
    model: onnx.ModelProto, keys: Sequence[str], states: Sequence[NarrowState]
) -> list[str]:
    """Writes which entries narrow states hold, and their width where requested.

    Args:
        model: the model, edited in place.
        keys: what holds the width of a state: entries of metadata, places in those that are JSON
            (`config:rnn.hidden_size`), and constant outputs.
        states: those that became narrower.

    Returns:
        Warnings of other places that may hold the width of a state.

    Raises:
        PruneError: a place does not exist, or does not hold the width of exactly one state.
    """
    widths: dict[int, set[int]] = {}
    for state in states:
        widths.setdefault(state.full, set()).add(state.width)
    places = [*_metadata(model), *_outputs(model)]
    chosen = [_chosen(key, model, places, widths) for key in keys]
    for place in chosen:
        (after,) = widths[place.value]
        _write(model, place, after)
    if states:
        write_kept(model, {state.source: state.keep for state in states if state.keep is not None})
    return [
        f"'{place.name}' holds {place.value}, the former width of a state that now has "
        f"{min(widths[place.value])}; if it refers to that width, add {_OPTION}={place.name}"
        for place in places
        if place.value in widths and place not in chosen
    ]


def _chosen(
    key: str, model: onnx.ModelProto, places: Sequence[_Place], widths: Mapping[int, set[int]]
) -> _Place:
    where = f"{_OPTION}={key}"
    named = [place for place in places if key in (place.name, place.entry)]
    fitting = [place for place in named if place.value in widths]
    texts = {entry.key: entry.value for entry in model.metadata_props if entry.key != KEPT}
    if not named and key not in texts:
        raise PruneError(
            "the model has no such entry",
            where=where,
            remedy=f"its entries are {', '.join(texts) or 'none'}",
        )
    if len(fitting) > 1:
        raise PruneError(
            "it contains the state width in several places",
            where=where,
            remedy="give the right one: " + ", ".join(place.name for place in fitting),
        )
    if not fitting or len(widths[fitting[0].value]) > 1:
        held = named[0].value if len(named) == 1 else texts.get(key, "")
        raise PruneError(
            f"its value '{held}' was the width of states that now differ in width"
            if fitting
            else f"its value '{held}' is not the width of a state that shrinks",
            where=where,
            remedy="leave it out",
        )
    return fitting[0]


def _metadata(model: onnx.ModelProto) -> Iterator[_Place]:
    for entry in model.metadata_props:
        if entry.key != KEPT:
            for path, value in _numbers(_parsed(entry.value)):
                yield _Place(entry.key, path, value)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _numbers(value: object) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """The integers in a JSON value, each with its path."""
    waiting: list[tuple[tuple[str | int, ...], object]] = [((), value)]
    while waiting:
        path, item = waiting.pop(0)
        if isinstance(item, dict):
            waiting += [((*path, str(key)), inner) for key, inner in item.items()]
        elif isinstance(item, list):
            waiting += [((*path, number), inner) for number, inner in enumerate(item)]
        elif isinstance(item, int) and not isinstance(item, bool):
            yield path, item


def _outputs(model: onnx.ModelProto) -> Iterator[_Place]:
    """Outputs that are a single constant integer, such as Unity's `memory_size`."""
    for tensor in Document.read(model).graph.outputs:
        value = constant_value(tensor)
        if value is not None and value.size == 1 and value.dtype.kind in "fiu":
            number = float(value.reshape(())[()])
            if number.is_integer():
                yield _Place(tensor.name, (), int(number))


def _write(model: onnx.ModelProto, place: _Place, after: int) -> None:
    entry = next((item for item in model.metadata_props if item.key == place.entry), None)
    if entry is None:
        _write_output(model, place.entry, after)
        return
    if not place.path:
        entry.value = str(after)
        return
    whole = json.loads(entry.value)
    holder = whole
    for step in place.path[:-1]:
        holder = holder[step]
    holder[place.path[-1]] = after
    tight = None if " " in entry.value else (",", ":")
    entry.value = json.dumps(whole, separators=tight, ensure_ascii=False)


def _write_output(model: onnx.ModelProto, name: str, after: int) -> None:
    """Gives an output a constant of its own, since other nodes may read the present one."""
    document = Document.read(model)
    graph = document.graph
    number = next(n for n, tensor in enumerate(graph.outputs) if tensor.name == name)
    before = graph.outputs[number]
    value = constant_value(before)
    assert value is not None
    if before.outputs:
        raise PruneError(
            "nodes of the model read it as well", where=f"{_OPTION}={name}", remedy="leave it out"
        )
    own = add_constant(graph, f"{name}_width", np.full_like(value, after))
    maker = before.inputs[0] if before.inputs else None
    if maker is not None and len(maker.outputs) == 1:
        remove_node(graph, maker)
    elif maker is not None:
        maker.outputs[maker.outputs.index(before)] = gs.Variable("")
    result = gs.Variable(name, value.dtype, value.shape)
    graph.outputs[number] = result
    graph.nodes.append(gs.Node("Identity", name, inputs=[own], outputs=[result]))
    model.CopyFrom(document.write())
