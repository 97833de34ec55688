"""Leaving nothing behind: matrices that only pick entries, and nodes that nobody reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value, require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN, add_constant, fresh_name, insert_before
from onnx_rnn_prune.model.walk import subgraphs_of, tensors_of


@dataclass(frozen=True)
class PickEntries:
    """Turns products with a 0/1 matrix in front of a layer or behind it into Gathers.

    A Gather needs no arithmetic. A column without a 1 takes its zero from one entry of padding.
    """

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        changed = False
        for node in list(graph.nodes):
            if node.op == "MatMul" and node.name.startswith(OWN):
                matrix = constant_value(node.inputs[1])
                picked = None if matrix is None else picked_entries(matrix)
                if picked is not None:
                    _to_gather(graph, node, picked)
                    changed = True
        return changed


@dataclass(frozen=True)
class DropUnread:
    """Removes nodes whose outputs nobody reads any more."""

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        changed = False
        while True:
            read = {tensor.name for tensor in graph.outputs}
            for node in graph.nodes:
                read.update(tensor.name for tensor in node.inputs)
                for body in subgraphs_of(node):
                    read.update(tensor.name for tensor in tensors_of(body))
            stays = [n for n in graph.nodes if any(t.name in read for t in n.outputs)]
            if len(stays) == len(graph.nodes):
                return changed
            for node in graph.nodes:
                if not any(t.name in read for t in node.outputs):
                    node.inputs.clear()
            graph.nodes[:] = stays
            changed = True


def picked_entries(matrix: npt.NDArray[np.generic]) -> npt.NDArray[np.int64] | None:
    """For a 0/1 matrix [1, n, m] with at most one 1 a column: which row each column takes.

    Returns:
        [m], with n where a column is zero; None where the matrix does more than pick.
    """
    if matrix.ndim != 3 or len(matrix) != 1:
        return None
    ones = matrix[0] == 1
    if not np.array_equal(ones, matrix[0] != 0) or ones.sum(axis=0).max(initial=0) > 1:
        return None
    return np.where(ones.any(axis=0), ones.argmax(axis=0), len(ones)).astype(np.int64)


def _to_gather(graph: gs.Graph, node: gs.Node, picked: npt.NDArray[np.int64]) -> None:
    data, result = node.inputs[0], node.outputs[0]
    size = require_constant(node.inputs[1]).shape[1]
    if picked.max(initial=0) == size:
        data = _padded(graph, node, data)
    node.outputs.clear()
    index = add_constant(graph, f"{node.name}_units", picked)
    gather = gs.Node("Gather", node.name, {"axis": -1}, [data, index], [result])
    insert_before(graph, gather, before=node)
    node.inputs.clear()
    graph.nodes[:] = [item for item in graph.nodes if item is not node]


def _padded(graph: gs.Graph, node: gs.Node, data: gs.Tensor) -> gs.Tensor:
    """One more entry on the last axis, zero; the data is an output of a recurrent layer."""
    layer = data.inputs[0]
    rank = 4 if layer.outputs[0] is data else 3
    pads = np.array([0] * (2 * rank - 1) + [1], dtype=np.int64)
    padded = gs.Variable(fresh_name(graph, f"{node.name}_padded"))
    made = gs.Node("Pad", padded.name, inputs=[data], outputs=[padded])
    if graph.opset < 11:
        made.attrs["pads"] = pads.tolist()
    else:
        made.inputs.append(add_constant(graph, f"{node.name}_pads", pads))
    insert_before(graph, made, before=node)
    return padded
