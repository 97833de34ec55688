"""Which tensors hold the states of units as they are, and which at least their zeros."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.walk import all_nodes
from onnx_rnn_prune.operators.base import ZERO_AT_ZERO, ZERO_OF_ZEROS
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.trace.trace import Trace

# Operators that move entries; the trace follows them only where each line stays whole.
MOVES = frozenset(
    (
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape",
        "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
        "Unsqueeze",
    )
)  # fmt: skip
# And those that make 0 of 0.
ZEROS = MOVES | ZERO_AT_ZERO


def passing(document: Document, trace: Trace, ops: frozenset[str]) -> frozenset[str]:
    """The tensors with units in them that come from layers through some operators only.

    Cell states of an LSTM are left out where entries are only moved: they are other numbers.
    """
    found: set[str] = set()
    for layer in find_layers(document.graph):
        if layer.name in trace.units.lanes:
            names = ("Y", "Y_h") if ops is MOVES else layer.cell.outputs
            outputs = [layer.output(name) for name in names]
            found.update(tensor.name for tensor in outputs if tensor is not None)
    for node in all_nodes(document.graph):
        carrying = [tensor.name for tensor in node.inputs if tensor.name in trace.labels]
        alone = ops is ZEROS and node.op in ZERO_OF_ZEROS and len(carrying) == len(node.inputs)
        if not carrying or not (alone or node.op in ops) or not found.issuperset(carrying):
            continue
        if ops is ZEROS and _makes_no_number(node):
            continue
        found.update(tensor.name for tensor in node.outputs if tensor.name in trace.labels)
    return frozenset(found)


def _makes_no_number(node: gs.Node) -> bool:
    """Whether an operator meets a constant with which 0 is not a number: 0 * inf, 0 / 0."""
    if node.op not in ("Mul", "Div"):
        return False
    values = [constant_value(tensor) for tensor in node.inputs]
    finite = all(np.isfinite(value).all() for value in values if value is not None)
    divisor = values[1] if node.op == "Div" else None
    return not finite or (divisor is not None and not divisor.all())
