"""Which tensors hold the states of units as they are, and which at least their zeros."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import MOVING, constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.walk import all_nodes
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.table import operator_of
from onnx_rnn_prune.trace.trace import Trace


def moved_states(document: Document, trace: Trace) -> frozenset[str]:
    """The tensors that hold states of layers as they are: they come from Y or Y_h by moves only.

    Cell states of an LSTM are other numbers.
    """
    found = _leaving(document, trace, ("Y", "Y_h"))
    for node in all_nodes(document.graph):
        if node.op in MOVING or node.op == "Pad":
            _pass_on(node, trace, found)
    return frozenset(found)


def kept_zeros(document: Document, trace: Trace) -> frozenset[str]:
    """The tensors that are 0 wherever a layer's output that they come from is."""
    found = _leaving(document, trace, ("Y", "Y_h", "Y_c"))
    for node in all_nodes(document.graph):
        row = operator_of(node)
        zero = "" if row is None or _makes_no_number(node) else row.zero
        alone = all(tensor.name in trace.labels for tensor in node.inputs)
        if zero == "each" or (zero == "all" and alone):
            _pass_on(node, trace, found)
    return frozenset(found)


def _leaving(document: Document, trace: Trace, names: Sequence[str]) -> set[str]:
    """The outputs of the layers of a trace."""
    layers = [layer for layer in all_layers(document.graph) if layer.name in trace.units.lanes]
    outputs = [layer.output(n) for layer in layers for n in names if n in layer.cell.outputs]
    return {tensor.name for tensor in outputs if tensor is not None}


def _pass_on(node: gs.Node, trace: Trace, found: set[str]) -> None:
    carrying = [tensor.name for tensor in node.inputs if tensor.name in trace.labels]
    if carrying and found.issuperset(carrying):
        found.update(tensor.name for tensor in node.outputs if tensor.name in trace.labels)


def _makes_no_number(node: gs.Node) -> bool:
    """Whether an operator meets a constant with which 0 is not a number: 0 * inf, 0 / 0."""
    if node.op not in ("Mul", "Div"):
        return False
    values = [constant_value(tensor) for tensor in node.inputs]
    finite = all(np.isfinite(value).all() for value in values if value is not None)
    divisor = values[1] if node.op == "Div" else None
    return not finite or (divisor is not None and not divisor.all())
