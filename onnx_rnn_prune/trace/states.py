"""Graph inputs and outputs that are recurrent states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import MOVING
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.walk import all_nodes, node_key, nodes_by_key, places, ports_of
from onnx_rnn_prune.operators.recurrent import RECURRENT, find_layers

# Operators that copy entries: what they make is no longer the same state.
_MOVING = (MOVING | {"Cast"}) - {"Expand", "Tile"}
# What preparation may put behind a state: a restoring product and an addition.
_RESTORING = {"MatMul", "Add"}
ENDS = {"initial_h": "Y_h", "initial_c": "Y_c"}

# A layer's name, and initial_h or initial_c.
InitialState = tuple[str, str]


@dataclass(frozen=True)
class StatePair:
    """A state of one or more layers that callers carry from run to run.

    Attributes:
        source: the model input that takes it.
        result: the model output that returns it.
        starts: the layers' initial states that it holds.
    """

    source: str
    result: str
    starts: frozenset[InitialState]


def state_pairs(document: Document) -> tuple[tuple[StatePair, ...], dict[InitialState, str]]:
    """Pairs of inputs and outputs that hold the same states, and why other states have no pair."""
    graph = document.graph
    inputs = [tensor for tensor in graph.inputs if not isinstance(tensor, gs.Constant)]
    known = {id(tensor) for tensor in inputs}
    coming: dict[str, set[InitialState]] = defaultdict(set)
    reasons: dict[InitialState, str] = {}
    finals: dict[int, InitialState] = {}
    for layer in find_layers(graph):
        for name, output in ENDS.items():
            if name not in layer.cell.inputs:
                continue
            start, tensor, final = (layer.name, name), layer.input(name), layer.output(output)
            sources = [] if tensor is None else list(_sources(tensor, _MOVING))
            if final is not None:
                finals[id(final)] = start
            if len(sources) == 1 and id(sources[0]) in known:
                coming[sources[0].name].add(start)
            elif sources:
                reasons[start] = _from_elsewhere(sources)
    leaving = {
        tensor.name: {finals.get(id(source)) for source in _sources(tensor, _MOVING)}
        for tensor in graph.outputs
    }
    found = []
    for source, starts in coming.items():
        results = [result for result, ends in leaving.items() if ends == starts]
        if len(results) == 1:
            found.append(StatePair(source, results[0], frozenset(starts)))
        for start in starts if len(results) != 1 else ():
            reasons[start] = _no_pair(source, start, leaving, start in finals.values())
    return tuple(found), reasons


def _from_elsewhere(sources: list[gs.Tensor]) -> str:
    first = sources[0]
    via = f", but through {first.inputs[0].op} ({first.name})" if first.inputs else ""
    return f"it does not come directly from one input of the model{via}"


def _no_pair(
    source: str, start: InitialState, leaving: Mapping[str, set[InitialState | None]], given: bool
) -> str:
    ends = [result for result, starts in leaving.items() if start in starts]
    if len(ends) > 1:
        return "two outputs of the model return its final value"
    if ends:
        return f"the input '{source}' and the output '{ends[0]}' do not hold the same states"
    if given:
        return "its final value does not go directly to an output of the model"
    return "the model does not return it"


def known_states(document: Document) -> dict[str, str]:
    """The state inputs, each with the output that holds its next value."""
    return {state.source: state.result for state in state_pairs(document)[0]}


def state_inputs(document: Document) -> frozenset[str]:
    """The inputs that reach an initial state of a layer through moves alone."""
    inputs = {tensor.name for tensor in document.graph.inputs}
    found: set[str] = set()
    for layer in find_layers(document.graph):
        for name in ("initial_h", "initial_c"):
            tensor = layer.input(name)
            if tensor is not None:
                found.update(source.name for source in _sources(tensor, _MOVING))
    return frozenset(found & inputs)


def turning_states(document: Document) -> frozenset[str]:
    """The initial states of layers that a Loop or Scan carries, through moves alone."""
    ports = [found for node in all_nodes(document.graph) if (found := ports_of(node)) is not None]
    sources = {id(state.source) for found in ports for state in found.states}
    turning = set()
    for layer in find_layers(document.graph) if sources else ():
        for name in ENDS:
            tensor = layer.input(name)
            if tensor is not None and sources.intersection(map(id, way_back(tensor))):
                turning.add(tensor.name)
    return frozenset(turning)


def plain_outputs(document: Document) -> tuple[str, ...]:
    """The outputs that are not just states; all outputs if there are no others."""
    outputs, states = [t.name for t in document.graph.outputs], state_outputs(document)
    return tuple(name for name in outputs if name not in states) or tuple(outputs)


def state_outputs(document: Document) -> frozenset[str]:
    """The outputs that are final states Y_h and Y_c of layers, moved or restored to full width."""
    return frozenset(
        tensor.name
        for tensor in document.graph.outputs
        if all(map(_is_state, _sources(tensor, _MOVING | _RESTORING)))
    )


def way_back(tensor: gs.Tensor, through: Container[str] = frozenset(_MOVING)) -> list[gs.Tensor]:
    """A tensor and everything it is made from through some operators."""
    way, seen = [tensor], {id(tensor)}
    for item in way:
        for other in _moved(item, through):
            if id(other) not in seen:
                way.append(other)
                seen.add(id(other))
    return way


def _sources(tensor: gs.Tensor, through: Container[str]) -> Iterator[gs.Tensor]:
    """The sources of a tensor, back through some operators, constants left out."""
    for item in way_back(tensor, through):
        if not isinstance(item, gs.Constant) and not _moved(item, through):
            yield item


def _moved(tensor: gs.Tensor, through: Container[str]) -> Sequence[gs.Tensor]:
    """The inputs that a tensor is made from, if its operator is one of some."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op not in through:
        return ()
    wanted: Sequence[gs.Tensor] = node.inputs
    return wanted if node.op in {"Concat", *_RESTORING} else wanted[:1]


def _is_state(tensor: gs.Tensor) -> bool:
    node = tensor.inputs[0] if tensor.inputs else None
    return node is not None and node.op in RECURRENT and node.outputs[0] is not tensor


def handed_back(document: Document) -> tuple[StatePair, ...]:
    """The states that callers can only feed back: only the layers read the inputs."""
    sources = {tensor.name: tensor for tensor in document.graph.inputs}
    layers = find_layers(document.graph)
    taken = {(o.key, o.slot(name)) for o in layers for name in ENDS if name in o.cell.inputs}
    found = []
    for state in state_pairs(document)[0]:
        read, passed = _ends(document, [sources[state.source]])
        if read <= taken and not passed:
            found.append(state)
    return tuple(found)


def leaves_only(document: Document, key: str, results: Container[str]) -> bool:
    """Whether all outputs of a node merely move to some outputs of the model, unread otherwise.

    Args:
        document: the model.
        key: of the node; empty for an output of the model itself.
        results: names of the outputs.
    """
    if not key:
        return True
    node = nodes_by_key(document.graph)[key]
    read, passed = _ends(document, node.outputs)
    return node.op in _MOVING and not read and all(name in results for name in passed)


def _ends(document: Document, start: Iterable[gs.Tensor]) -> tuple[set[tuple[str, int]], set[str]]:
    """The inputs of nodes, by key and slot, and the model outputs that tensors are moved to."""
    outputs = {id(t): t.name for place in places(document.graph) for t in place.graph.outputs}
    read: set[tuple[str, int]] = set()
    passed: set[str] = set()
    waiting = list(start)
    seen = set(map(id, waiting))
    for tensor in waiting:
        if id(tensor) in outputs:
            passed.add(outputs[id(tensor)])
        for node in tensor.outputs:
            for slot in (n for n, item in enumerate(node.inputs) if item is tensor):
                if node.op in _MOVING and (slot == 0 or node.op == "Concat"):
                    waiting += [made for made in node.outputs if id(made) not in seen]
                    seen.update(map(id, node.outputs))
                elif node.op != "Shape":  # which ignores values
                    read.add((node_key(node), slot))
    return read, passed
