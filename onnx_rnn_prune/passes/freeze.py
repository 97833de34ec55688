"""Fixing inputs to values, and dropping the branches that this decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import constant_value, evaluate
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import add_constant, fresh_name, remove_node
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.signature import inputs
from onnx_rnn_prune.model.walk import all_nodes, bodies_of, place_of


@dataclass(frozen=True)
class Freeze:
    """Makes graph inputs constants.

    Attributes:
        values: by input name, the value as text.
    """

    values: Mapping[str, str]

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        ports = {port.name: port for port in inputs(document.source)}
        for name, text in self.values.items():
            port = ports.get(name)
            if port is None or port.dtype is None:
                raise PruneError(
                    f"the model has no input '{name}'",
                    where="--freeze",
                    remedy=f"its inputs are {', '.join(ports)}",
                )
            value = _parse(name, text, port.dtype)
            shape = [dim if isinstance(dim, int) else 1 for dim in port.dims or ()]
            tensor = next(item for item in graph.inputs if item.name == name)
            frozen = add_constant(graph, f"{name}_frozen", np.full(shape, value))
            for node in list(tensor.outputs):
                for slot, item in enumerate(node.inputs):
                    if item is tensor:
                        node.inputs[slot] = frozen
            graph.inputs.remove(tensor)
        return bool(self.values)


@dataclass(frozen=True)
class TakeBranches:
    """Puts the branch of an If in its place where the condition is a constant."""

    def __call__(self, document: Document) -> bool:
        graph, changed = document.graph, False
        while True:
            for node in all_nodes(graph):
                taken = known_value(node.inputs[0], graph.opset) if node.op == "If" else None
                if taken is not None:
                    branch = "then_branch" if bool(np.ravel(taken)[0]) else "else_branch"
                    _take(graph, node, bodies_of(node)[branch])
                    changed = True
                    break
            else:
                return changed


def known_value(tensor: gs.Tensor, opset: int) -> Array | None:
    """The value of a tensor that follows from constants by any operators, else None."""
    value = constant_value(tensor, opset)
    if value is not None or not tensor.inputs:
        return value
    node = tensor.inputs[0]
    if node.domain or bodies_of(node) or node.op.startswith("Random"):
        return None
    values = [known_value(item, opset) if item.name else None for item in node.inputs]
    if any(value is None and item.name for value, item in zip(values, node.inputs, strict=True)):
        return None
    slot = next(slot for slot, output in enumerate(node.outputs) if output is tensor)
    return evaluate(node, values, opset)[slot]


def _parse(name: str, text: str, dtype: np.dtype[np.generic]) -> Array:
    try:
        if dtype.kind == "b":
            return np.array({"true": True, "false": False}[text.lower()])
        return np.array(text, dtype) if dtype.kind == "O" else np.array(text).astype(dtype)
    except (KeyError, ValueError, OverflowError) as error:
        raise PruneError(
            f"'{text}' is no {dtype.name}", where=f"--freeze={name}", remedy="give one value"
        ) from error


def _take(graph: gs.Graph, node: gs.Node, body: gs.Graph) -> None:
    """Moves a body's nodes in front of the node that carries it; its outputs keep their names."""
    siblings = place_of(graph, node).graph.nodes
    position = next(index for index, item in enumerate(siblings) if item is node)
    moved, results = list(body.nodes), list(body.outputs)
    for inner in moved:
        for slot, tensor in enumerate(inner.inputs):
            if isinstance(tensor, gs.Constant):  # it may be seen in the body only
                value = constant_value(tensor)
                inner.inputs[slot] = gs.Constant(fresh_name(graph, f"{tensor.name}_taken"), value)
    outputs = list(node.outputs)
    node.outputs.clear()
    for result, output in zip(results, outputs, strict=True):
        if output.name:
            name = fresh_name(graph, f"{output.name}_taken")
            moved.append(gs.Node("Identity", name, inputs=[result], outputs=[output]))
    siblings[position:position] = moved
    remove_node(graph, node)
