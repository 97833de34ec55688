"""Which tensors hold the states of units as they are, and which at least their zeros."""

from __future__ import annotations

from onnx_rnn_prune.cells import find_layers
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.walk import all_nodes
from onnx_rnn_prune.trace.trace import Trace

# Operators that move entries; the trace follows them only where each line stays whole.
MOVES = frozenset(
    (
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape",
        "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
        "Unsqueeze",
    )
)  # fmt: skip
# And those that make 0 of 0, whatever constant they meet it with.
ZEROS = MOVES | {
    "Abs", "AveragePool", "Cast", "CumSum", "DequantizeLinear", "Dropout", "DynamicQuantizeLinear",
    "Elu", "Erf", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu", "MaxPool", "Mul", "Neg",
    "PRelu", "QuantizeLinear", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceSum", "ReduceSumSquare", "Relu", "Sign", "Sin", "Softsign", "Tanh",
}  # fmt: skip
# And those that make 0 of nothing but zeros.
_SUMS = frozenset(("Add", "Max", "Mean", "Min", "Sub", "Sum"))


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
        alone = ops is ZEROS and node.op in _SUMS and len(carrying) == len(node.inputs)
        if carrying and (alone or node.op in ops) and found.issuperset(carrying):
            found.update(tensor.name for tensor in node.outputs if tensor.name in trace.labels)
    return frozenset(found)
