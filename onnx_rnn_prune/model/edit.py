"""The few operations that edit a graph; nodes may be in any of its subgraphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import storage_type
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import names_in_use, place_of

# Prefix of the names of inserted nodes and tensors.
OWN = "onnx_rnn_prune/"
# Prefix for restoring a state that callers just feed back.
HANDED_BACK = f"{OWN}handed_back/"
# Prefix for unpacking a weight from a narrower type.
HELD = "onnx_rnn_prune_held/"


def fresh_name(graph: gs.Graph, wanted: str) -> str:
    """A name that no tensor or node of the graph has or is reserved to get."""
    used, name, count = names_in_use(graph), wanted, 1
    while name in used:
        count += 1
        name = f"{wanted}_{count}"
    used.add(name)
    return name


def add_constant(graph: gs.Graph, name: str, value: Array) -> gs.Constant:
    """A new constant; it becomes part of the model once a node reads it."""
    return gs.Constant(fresh_name(graph, name), np.asarray(value, order="C"))


def set_input(node: gs.Node, slot: int, tensor: gs.Tensor) -> None:
    """Replaces an input; omitted ones before it are written as empty."""
    while len(node.inputs) <= slot:
        node.inputs.append(gs.Variable.empty())
    node.inputs[slot] = tensor


def like_constant(graph: gs.Graph, tensor: gs.Tensor, value: Array) -> gs.Tensor:
    """A new constant, stored in another one's type and widened in the same way."""
    name, held = f"{tensor.name}_cut", storage_type(tensor)
    if held is None:
        return add_constant(graph, name, value)
    stored = add_constant(graph, f"{name}_{held.name}", value.astype(held))
    result = gs.Variable(fresh_name(graph, name))
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    # First in the graph, since it depends on nothing and may have several readers.
    graph.nodes.insert(0, gs.Node("Cast", result.name, {"to": kind}, [stored], [result]))
    return result


def replace_constant(graph: gs.Graph, node: gs.Node, slot: int, value: Array) -> None:
    """Gives a node another constant, in place if nobody else reads the old one."""
    replace_constants(graph, [(node, slot)], value)


def replace_constants(graph: gs.Graph, places: list[tuple[gs.Node, int]], value: Array) -> None:
    """Gives readers of a constant another one, in place if nobody else reads the old one."""
    node, slot = places[0]
    tensor = node.inputs[slot]
    held, owner = storage_type(tensor), tensor
    alone = len(tensor.outputs) == len(places) and all(tensor is not t for t in graph.outputs)
    if held is not None and tensor.inputs[0].op == "Cast":
        owner = tensor.inputs[0].inputs[0]
        alone = alone and len(owner.outputs) == 1
    if alone and isinstance(owner, gs.Constant):
        owner.values = np.asarray(value if held is None else value.astype(held), order="C")
        if owner is not tensor and tensor.shape is not None:
            tensor.shape = list(value.shape)
        return
    made = like_constant(graph, tensor, value)
    for node, slot in places:
        set_input(node, slot, made)


def drop_input(node: gs.Node, slot: int) -> None:
    """Omits an optional input."""
    node.inputs[slot] = gs.Variable.empty()
    while node.inputs and not node.inputs[-1].name:
        node.inputs.pop()


def insert_node(graph: gs.Graph, node: gs.Node, *, after: gs.Node) -> None:
    """Inserts a node right after another one, so that the order stays topological."""
    siblings = place_of(graph, after).graph.nodes
    siblings.insert(_position(siblings, after) + 1, node)


def insert_before(graph: gs.Graph, node: gs.Node, *, before: gs.Node) -> None:
    """Inserts a node right before another one."""
    siblings = place_of(graph, before).graph.nodes
    siblings.insert(_position(siblings, before), node)


def remove_node(graph: gs.Graph, node: gs.Node) -> None:
    """Removes a node; readers of its outputs must have been given others."""
    siblings = place_of(graph, node).graph.nodes
    node.inputs.clear()
    node.outputs.clear()
    del siblings[_position(siblings, node)]


def _position(nodes: Sequence[gs.Node], node: gs.Node) -> int:
    return next(index for index, item in enumerate(nodes) if item is node)
