"""Recurrent nodes with incompatible input shapes, which no runtime can compute."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.walk import node_key
from onnx_rnn_prune.operators.layers import Cell, Layer
from onnx_rnn_prune.operators.recurrent import (
    computed_parameters,
    find_layers,
    recurrent_nodes,
    weight_shapes,
)
from onnx_rnn_prune.record import Record

_PROJECTED = "as with projected states (proj_size), which such nodes do not support"
_REMEDIES = {
    True: "no ONNX node has projections: train a layer without, or export the cell in a loop",
    False: "export the model again",
}


@dataclass(frozen=True, eq=False)
class InvalidNode(Record):
    """A recurrent node that cannot run.

    Attributes:
        name: of the node.
        op: its operator.
        scope: path to its graph; empty for the main graph.
        reason: which inputs are incompatible.
        remedy: what the user can do about it.
    """

    name: str
    op: str
    scope: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"no runtime can compute the {self.op} {self.name}: {self.reason}"


def find_invalid_nodes(graph: gs.Graph) -> tuple[InvalidNode, ...]:
    """The recurrent nodes of a graph and its bodies whose constants have incompatible shapes."""
    layers = {layer.key: layer for layer in find_layers(graph)}
    computed = computed_parameters(graph)
    known = {tensor.name for tensor in graph.inputs}
    found = []
    for node, cell, name, scope in recurrent_nodes(graph):
        if name in computed:
            continue
        layer = layers.get(node_key(node))
        reason = _weights(node, cell) if layer is None else _others(layer, known)
        if reason:
            remedy = _REMEDIES[_PROJECTED in reason]
            found.append(InvalidNode(name, cell.op, scope, reason, remedy))
    return tuple(found)


def _weights(node: gs.Node, cell: Cell) -> str:
    weight, recurrence = weight_shapes(node, cell)
    return f"W {list(weight)} and R {list(recurrence)} are not the weights of one {cell.op}"


def _others(layer: Layer, inputs: set[str]) -> str:
    """Which other input of a layer contradicts the hidden size of R, if one does."""
    wrong = {}
    for letter in ("B", "P", "initial_h", "initial_c"):
        tensor = layer.input(letter)
        if tensor is None or not (isinstance(tensor, gs.Constant) or tensor.name in inputs):
            continue
        shape = tuple(tensor.shape or ())  # of an input, the declared sizes are enforced
        for axis, blocks in layer.cell.unit_axes[letter] if shape else ():
            found = shape[axis] if axis < len(shape) else 0
            if isinstance(found, int) and found != blocks * layer.hidden:
                wrong[letter] = (found, blocks * layer.hidden)
    reasons = [
        f"{name} has {found} entries but R implies {n}" for name, (found, n) in wrong.items()
    ]
    states = [letter for letter in wrong if letter.startswith("initial_")]
    if len(states) == 1 and wrong.keys() == set(states) and layer.input("initial_c") is not None:
        reasons.append(_PROJECTED)
    return ", ".join(reasons)
