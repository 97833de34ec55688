"""Clean-up after a cut: matrices that only pick entries, and unread nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value, require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN, add_constant, fresh_name, insert_before, remove_node
from onnx_rnn_prune.model.integers import dequantized
from onnx_rnn_prune.model.walk import all_nodes, places
from onnx_rnn_prune.model.writing import is_edited, local_initializers
from onnx_rnn_prune.operators.layers import find_duplicates
from onnx_rnn_prune.operators.recurrent import RECURRENT, find_layers


@dataclass(frozen=True)
class PickEntries:
    """Replaces products with a 0/1 matrix around a layer by Gathers.

    A Gather needs no arithmetic. A column without a 1 takes its zero from a padding entry. The two
    Gathers for the states of one LSTM share their indices.
    """

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        changed = False
        indices: dict[tuple[int, bytes], gs.Constant] = {}
        for node in list(all_nodes(graph)):
            if node.op == "MatMul" and node.name.startswith(OWN):
                matrix = constant_value(node.inputs[1])
                picked = None if matrix is None else picked_entries(matrix)
                if picked is not None:
                    _to_gather(graph, node, picked, indices)
                    changed = True
        return changed


@dataclass(frozen=True)
class DropUnread:
    """Removes nodes whose outputs nothing reads any more."""

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        changed = False
        while True:
            graphs = [place.graph for place in places(graph)]
            read = {tensor.name for item in graphs for tensor in item.outputs}
            read.update(tensor.name for node in all_nodes(graph) for tensor in node.inputs)
            unread = [n for n in all_nodes(graph) if not any(t.name in read for t in n.outputs)]
            if not unread:
                return changed
            gone = {id(node) for node in unread}
            for item in graphs:
                item.nodes[:] = [node for node in item.nodes if id(node) not in gone]
            for node in unread:
                node.inputs.clear()
            changed = True


@dataclass(frozen=True)
class ShareDuplicates:
    """Makes layers in branches of an If that are equal after the cut share their weights."""

    def __call__(self, document: Document) -> bool:
        layers = find_layers(document.graph)
        by_name = {layer.name: layer for layer in layers}
        local = local_initializers(document.source.graph)
        changed = False
        for name, first in find_duplicates(layers).items():
            layer = by_name[name]
            for letter in layer.cell.parameters:
                if layer.input(letter) is not None:
                    twin, slot = by_name[first].node, layer.slot(letter)
                    changed |= _share(twin, layer.node, slot, local)
        return changed


def _share(twin: gs.Node, node: gs.Node, slot: int, local: set[str]) -> bool:
    """Makes a node read the constant of its twin, or the integers that is dequantized from."""
    kept, own = twin.inputs[slot], node.inputs[slot]
    if kept is own:
        return False
    if is_edited(kept) and kept.name not in local:
        node.inputs[slot] = kept
        return True
    if dequantized(kept) is None or dequantized(own) is None:
        return False
    one, other = kept.inputs[0], own.inputs[0]
    changed = False
    for place, (first, second) in enumerate(zip(one.inputs, other.inputs, strict=False)):
        if is_edited(first) and np.array_equal(require_constant(first), require_constant(second)):
            changed |= _share(one, other, place, local)
    return changed


def picked_entries(matrix: npt.NDArray[np.generic]) -> npt.NDArray[np.int64] | None:
    """For a 0/1 matrix [1, n, m] with at most one 1 per column: the row each column takes.

    Returns:
        [m], with n for a zero column; None if the matrix does more than pick.
    """
    if matrix.ndim != 3 or len(matrix) != 1:
        return None
    ones = matrix[0] == 1
    if not np.array_equal(ones, matrix[0] != 0) or ones.sum(axis=0).max(initial=0) > 1:
        return None
    return np.where(ones.any(axis=0), ones.argmax(axis=0), len(ones)).astype(np.int64)


def _to_gather(
    graph: gs.Graph,
    node: gs.Node,
    picked: npt.NDArray[np.int64],
    indices: dict[tuple[int, bytes], gs.Constant],
) -> None:
    data, result = node.inputs[0], node.outputs[0]
    size = require_constant(node.inputs[1]).shape[1]
    if picked.max(initial=0) == size:
        data = _padded(graph, node, data)
    node.outputs.clear()
    layer = next((reader for reader in result.outputs if reader.op in RECURRENT), node)
    key = id(layer), picked.tobytes()
    if key not in indices:
        indices[key] = add_constant(graph, f"{node.name}_units", picked)
    index = indices[key]
    gather = gs.Node("Gather", node.name, {"axis": -1}, [data, index], [result])
    insert_before(graph, gather, before=node)
    remove_node(graph, node)


def _padded(graph: gs.Graph, node: gs.Node, data: gs.Tensor) -> gs.Tensor:
    """The output of a recurrent layer with a zero appended on the last axis."""
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
