"""Adapting operators and declared shapes on the units' way to shorter tensors."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.walk import all_nodes
from onnx_rnn_prune.operators.base import Cut
from onnx_rnn_prune.operators.labels import Mask, kept
from onnx_rnn_prune.operators.table import operator_of
from onnx_rnn_prune.trace.trace import Trace


def resize(document: Document, trace: Trace, keep: Mask) -> None:
    """Adapts operators and declared shapes along the way of the units."""
    graph = document.graph
    cuts = {name: _cut(trace, name, keep) for name in trace.labels}
    for node in list(all_nodes(graph)):
        row = operator_of(node)
        if row is not None and row.resize is not None and node.inputs[0].name in cuts:
            row.resize(graph, node, cuts)
    made = [tensor for node in all_nodes(graph) for tensor in node.outputs]
    for tensor in (*graph.inputs, *made):
        if tensor.name in cuts:
            _declare(tensor, cuts[tensor.name])


def _cut(trace: Trace, name: str, keep: Mask) -> Cut:
    labels, axis = trace.labels[name], trace.axes[name]
    line = np.moveaxis(kept(labels, keep), axis, -1).reshape(-1, labels.shape[axis])[0]
    return Cut(axis, labels.ndim, line)


def _declare(tensor: gs.Tensor, cut: Cut) -> None:
    shape = getattr(tensor, "shape", None)
    if shape is not None and len(shape) == cut.rank and isinstance(shape[cut.axis], int):
        tensor.shape = [*shape[: cut.axis], cut.ratio[0], *shape[cut.axis + 1 :]]
