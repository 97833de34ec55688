"""The few ways in which a graph is edited."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import tensors_of

# How the names of nodes and tensors begin that are put into a graph here.
OWN = "onnx_rnn_prune/"


def fresh_name(graph: gs.Graph, wanted: str) -> str:
    """A name that no tensor and no node of the graph has yet."""
    used = {tensor.name for tensor in tensors_of(graph)} | {node.name for node in graph.nodes}
    name, count = wanted, 1
    while name in used:
        count += 1
        name = f"{wanted}_{count}"
    return name


def add_constant(graph: gs.Graph, name: str, value: Array) -> gs.Constant:
    """A new constant; it becomes part of the model once a node reads it."""
    return gs.Constant(fresh_name(graph, name), np.asarray(value, order="C"))


def set_input(node: gs.Node, slot: int, tensor: gs.Tensor) -> None:
    """Replaces an input; omitted ones before it are written as empty."""
    while len(node.inputs) <= slot:
        node.inputs.append(gs.Variable.empty())
    node.inputs[slot] = tensor


def replace_constant(graph: gs.Graph, node: gs.Node, slot: int, value: Array) -> None:
    """Gives a node another constant; in place where nobody else reads the old one."""
    tensor = node.inputs[slot]
    if isinstance(tensor, gs.Constant) and len(tensor.outputs) == 1:
        tensor.values = np.asarray(value, order="C")
    else:
        set_input(node, slot, add_constant(graph, f"{tensor.name}_cut", value))


def drop_input(node: gs.Node, slot: int) -> None:
    """Omits an optional input."""
    node.inputs[slot] = gs.Variable.empty()
    while node.inputs and not node.inputs[-1].name:
        node.inputs.pop()


def insert_node(graph: gs.Graph, node: gs.Node, *, after: gs.Node) -> None:
    """Puts a node right behind another one, so that the order stays topological."""
    graph.nodes.insert(_position(graph, after) + 1, node)


def insert_before(graph: gs.Graph, node: gs.Node, *, before: gs.Node) -> None:
    """Puts a node right in front of another one."""
    graph.nodes.insert(_position(graph, before), node)


def _position(graph: gs.Graph, node: gs.Node) -> int:
    return next(index for index, item in enumerate(graph.nodes) if item is node)
