"""Ways through a graph: its nodes and tensors, those of its subgraphs included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs


@dataclass(frozen=True, eq=False)
class Place:
    """Where a node is.

    Attributes:
        graph: the graph that holds it.
        way: from the main graph down: each node that carries a body, and the body's name.
    """

    graph: gs.Graph
    way: tuple[tuple[gs.Node, str], ...] = ()

    @property
    def scope(self) -> str:
        """The way as text, as in `If_12.then_branch`; empty for the main graph."""
        return "/".join(f"{node.name or node_key(node)}.{body}" for node, body in self.way)


def node_key(node: gs.Node) -> str:
    """The name by which a node is found again in a copy of its graph: its first output's."""
    return next((tensor.name for tensor in node.outputs if tensor.name), "")


def nodes_by_key(graph: gs.Graph) -> dict[str, gs.Node]:
    """Every node by its key."""
    return {node_key(node): node for node in all_nodes(graph)}


def bodies_of(node: gs.Node) -> Mapping[str, gs.Graph]:
    """The bodies that a control-flow node carries, by name."""
    return {name: value for name, value in node.attrs.items() if isinstance(value, gs.Graph)}


def places(graph: gs.Graph) -> Iterator[Place]:
    """The graph and all graphs inside it."""
    yield from _places(Place(graph))


def _places(place: Place) -> Iterator[Place]:
    yield place
    for node in place.graph.nodes:
        for name, body in bodies_of(node).items():
            yield from _places(Place(body, (*place.way, (node, name))))


def all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """Every node, in an order in which it follows all that it reads."""
    for node in graph.nodes:
        yield node
        for body in bodies_of(node).values():
            yield from all_nodes(body)


def place_of(graph: gs.Graph, node: gs.Node) -> Place:
    """Where a node is."""
    return next(p for p in places(graph) if any(item is node for item in p.graph.nodes))


def tensors_of(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """Every tensor that the graph names, those that its subgraphs capture included."""
    yield from graph.inputs
    yield from graph.outputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs
        for body in bodies_of(node).values():
            yield from tensors_of(body)
