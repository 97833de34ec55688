"""Traversal of a graph with its subgraphs, and of ONNX messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import onnx
import onnx_graphsurgeon as gs

Message = TypeVar("Message")


@dataclass(frozen=True, eq=False)
class Place:
    """Where a node is.

    Attributes:
        way: the path from the main graph: each node with a body on it, and the body's name.
    """

    graph: gs.Graph
    way: tuple[tuple[gs.Node, str], ...] = ()

    @property
    def scope(self) -> str:
        """The path as text, as in `If_12.then_branch`; empty for the main graph."""
        return "/".join(f"{node.name or node_key(node)}.{body}" for node, body in self.way)


def node_key(node: gs.Node) -> str:
    """A name by which a node is found in a copy of its graph: that of its first output."""
    return next((tensor.name for tensor in node.outputs if tensor.name), "")


def nodes_by_key(graph: gs.Graph) -> dict[str, gs.Node]:
    """Every node by its key."""
    return {node_key(node): node for node in all_nodes(graph)}


def bodies_of(node: gs.Node) -> Mapping[str, gs.Graph]:
    """The bodies of a control-flow node, by name."""
    return {name: value for name, value in node.attrs.items() if isinstance(value, gs.Graph)}


@dataclass(frozen=True, eq=False)
class State:
    """A value that a Loop or Scan carries from iteration to iteration.

    Attributes:
        slot: the node's input with its initial value.
        source: the body's input.
        result: the body's output, which is the source of the next iteration.
        final: the node's output, the result of the last iteration.
    """

    slot: int
    source: gs.Tensor
    result: gs.Tensor
    final: gs.Tensor


@dataclass(frozen=True, eq=False)
class Ports:
    """The inputs and outputs of the body of a Loop or Scan.

    Attributes:
        states: what it carries.
        taken: scanned inputs of the node by slot, each with the body's input and the axis.
        stacked: the body's outputs that are stacked, each with the node's output and the axis.
    """

    states: tuple[State, ...]
    taken: tuple[tuple[int, gs.Tensor, int], ...]
    stacked: tuple[tuple[gs.Tensor, gs.Tensor, int], ...]


def ports_of(node: gs.Node) -> Ports | None:
    """The ports of a Loop or Scan; None for other nodes, or if inputs are missing."""
    body = next(iter(bodies_of(node).values()), None)
    if node.op not in ("Loop", "Scan") or body is None:
        return None
    loop, scans = node.op == "Loop", int(node.attrs.get("num_scan_inputs", 0))
    outer = 2 if loop else len(node.inputs) - len(body.inputs)  # sequence_lens, before opset 9
    inner, left = (2, 1) if loop else (0, 0)
    count = len(body.inputs) - inner - (0 if loop else scans)
    results = body.outputs[left:]
    if outer < 0 or count < 0 or len(node.inputs) < outer + count or len(results) < count:
        return None
    finals = [*node.outputs, *(gs.Variable.empty() for _ in results)]
    carried = zip(body.inputs[inner:][:count], results, finals, strict=False)
    states = tuple(State(outer + number, *tensors) for number, tensors in enumerate(carried))
    first, into = (node.attrs.get(f"scan_{end}_axes") or [] for end in ("input", "output"))
    taken = zip(body.inputs[inner + count :], [*first, *[0] * scans], strict=False)
    stacked = zip(results[count:], finals[count:], [*into, *[0] * len(results)], strict=False)
    return Ports(
        states,
        tuple((outer + count + number, *item) for number, item in enumerate(taken)),
        tuple(stacked),
    )


Link = tuple[gs.Tensor, gs.Tensor, gs.Node | None]


def links_of(node: gs.Node) -> Iterator[Link]:
    """Pairs of tensors with the same value, inside and outside the bodies of a node.

    With the node if the first is of one iteration and the second of the next.
    """
    for body in bodies_of(node).values():
        if node.op == "If":
            yield from ((*pair, None) for pair in zip(body.outputs, node.outputs, strict=False))
            continue
        ports = ports_of(node)
        if ports is None:
            continue
        for state in ports.states:
            yield node.inputs[state.slot], state.source, None
            yield state.result, state.final, None
            yield state.result, state.source, node
        yield from ((node.inputs[slot], inner, None) for slot, inner, _ in ports.taken)
        yield from ((inner, outer, None) for inner, outer, _ in ports.stacked)


def source(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor that another is a copy of, through nodes that change nothing."""
    while tensor.inputs and tensor.inputs[0].op == "Identity":
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def places(graph: gs.Graph) -> Iterator[Place]:
    """The graph and all its subgraphs, outer ones first."""
    waiting = [Place(graph)]
    while waiting:
        place = waiting.pop()
        yield place
        inside = [(node, name) for node in place.graph.nodes for name in bodies_of(node)]
        waiting += [Place(n.attrs[name], (*place.way, (n, name))) for n, name in inside[::-1]]


def all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """Every node, in topological order."""
    yield from (item for item in _parts(graph) if isinstance(item, gs.Node))


def _parts(graph: gs.Graph) -> Iterator[gs.Graph | gs.Node]:
    """The graph and its nodes in order, each followed by its bodies, recursively.

    Implemented without recursion, in which each item would pass through all levels above it.
    """
    waiting: list[Iterator[gs.Graph | gs.Node]] = [iter((graph,))]
    while waiting:
        item = next(waiting[-1], None)
        if item is None:
            waiting.pop()
            continue
        yield item
        if isinstance(item, gs.Graph):
            waiting.append(iter(item.nodes))
        elif item.attrs:
            waiting.append(iter(bodies_of(item).values()))


def place_of(graph: gs.Graph, node: gs.Node) -> Place:
    """The place of a node."""
    known: dict[int, Place] = _notes(graph).setdefault("places", {})
    found = known.get(id(node))
    there = found is not None and any(item is node for item in found.graph.nodes)
    if found is None or not there:  # it was moved or added
        known.clear()
        known.update((id(item), place) for place in places(graph) for item in place.graph.nodes)
        found = known[id(node)]
    return found


def names_in_use(graph: gs.Graph) -> set[str]:
    """The names of all tensors and nodes in the graph, now or since the first call."""
    known: set[str] | None = _notes(graph).get("names")
    if known is None:
        known = {tensor.name for tensor in tensors_of(graph)}
        known.update(node.name for node in all_nodes(graph))
        _notes(graph)["names"] = known
    return known


def _notes(graph: gs.Graph) -> dict[str, Any]:
    """Cached values of a graph, which its copies do not share."""
    notes: dict[str, Any] = vars(graph).setdefault("onnx_rnn_prune_notes", {})
    return notes


def tensors_of(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """Every tensor of the graph, including those captured by its subgraphs."""
    for item in _parts(graph):
        yield from item.inputs
        yield from item.outputs


def messages(message: Any, kind: type[Message]) -> Iterator[Message]:
    """All messages of one type in an ONNX message, at any depth."""
    waiting = [message]
    while waiting:
        item = waiting.pop()
        if isinstance(item, kind):
            yield item
        waiting.extend([part for _, part in parts(item, kind)][::-1])


def parts(message: Any, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """The direct parts of a message that can hold those of a type, with their field names.

    Derived from ONNX's declarations, so that no place is forgotten, nor one added later.
    """
    leading = _leading(message.DESCRIPTOR, kind.DESCRIPTOR)
    if not leading:
        return
    for field, value in message.ListFields():
        if field.name in leading:
            for part in value if hasattr(value, "extend") else (value,):
                yield field.name, part


@cache
def _leading(kind: Any, wanted: Any) -> frozenset[str]:
    """The fields of a message type that lead to the wanted type."""
    names = (field.name for field in kind.fields if _leads(field.message_type, wanted, set()))
    return frozenset(names)


def _leads(kind: Any, wanted: Any, seen: set[Any]) -> bool:
    """Whether a message type (None: the field holds no message) is or can hold the wanted one."""
    if kind is None or kind in seen:
        return False
    seen.add(kind)
    return kind is wanted or any(_leads(field.message_type, wanted, seen) for field in kind.fields)


class Reads:
    """The tensors read by nodes and in their bodies; each node is examined once."""

    def __init__(self) -> None:
        # Nodes are kept, so that no id is reused.
        self._known: dict[int, tuple[onnx.NodeProto, Set[str]]] = {}

    def __call__(self, node: onnx.NodeProto) -> Set[str]:
        """Of one node."""
        known = self._known.get(id(node))
        if known is None:
            bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
            names = set(filter(None, node.input)).union(*map(self.graph, bodies))
            known = self._known[id(node)] = (node, names)
        return known[1]

    def graph(self, graph: onnx.GraphProto) -> set[str]:
        """Of a graph, its outputs included."""
        return self.all(graph.node).union(port.name for port in graph.output)

    def all(self, nodes: Iterable[onnx.NodeProto]) -> set[str]:
        """Of several nodes."""
        return set[str]().union(*map(self, nodes))
