"""Ways through a graph: its nodes and tensors, those of its subgraphs included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs


def node_key(node: gs.Node) -> str:
    """The name by which a node is found again in a copy of its graph: its first output's."""
    return next((tensor.name for tensor in node.outputs if tensor.name), "")


def nodes_by_key(graph: gs.Graph) -> dict[str, gs.Node]:
    """All nodes of the main graph."""
    return {node_key(node): node for node in graph.nodes}


def subgraphs_of(node: gs.Node) -> list[gs.Graph]:
    """The bodies that a control-flow node carries."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]


def all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """Every node, those of subgraphs included."""
    for node in graph.nodes:
        yield node
        for body in subgraphs_of(node):
            yield from all_nodes(body)


def tensors_of(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """Every tensor that the graph names, those that its subgraphs capture included."""
    yield from graph.inputs
    yield from graph.outputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs
        for body in subgraphs_of(node):
            yield from tensors_of(body)
