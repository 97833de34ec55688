"""The table of operators; one that is not listed stops labels."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import MOVING
from onnx_rnn_prune.model.integers import MICROSOFT
from onnx_rnn_prune.operators import contracts, meets, moves, quantizes, reduces
from onnx_rnn_prune.operators.base import Bound, Flow, Operator, Rule, Shape, Step, Stop
from onnx_rnn_prune.operators.resize import (
    resize_gather,
    resize_groups,
    resize_scaled,
    resize_shape,
    resize_slice,
    resize_split,
    resize_target,
)

__all__ = ["Bound", "Flow", "Operator", "Rule", "Shape", "Step", "Stop", "operator_of", "rule_of"]

_SIZES = {
    "Expand": resize_target,
    "Gather": resize_gather,
    "Reshape": resize_target,
    "Slice": resize_slice,
    "Split": resize_split,
}
_FAMILIES: list[tuple[Operator, str]] = [
    *((Operator(moves.move, "each", _SIZES.get(op)), op) for op in MOVING - {"Concat", "Identity"}),
    (Operator(moves.pass_on, "each"), "Identity Cast Dropout"),
    (Operator(moves.concat, "each"), "Concat"),
    (Operator(moves.place_elements, "all"), "GatherElements ScatterElements"),
    (Operator(moves.pad, "each"), "Pad"),
    (Operator(moves.shape, resize=resize_shape), "Shape"),
    (
        Operator(meets.meet, "each"),
        "Abs Ceil Celu Div Elu Erf Floor Gelu HardSwish LeakyRelu Mish Mul Neg PRelu Pow Relu Round"
        " Selu Sign Sin Softsign Sqrt Swish Tanh ThresholdedRelu",
    ),
    (Operator(meets.meet, "all"), "Add Max Mean Min Sub Sum"),
    (
        Operator(meets.meet),
        "And Clip Cos Equal Exp Greater GreaterOrEqual HardSigmoid Less LessOrEqual Not Or Sigmoid"
        " Softplus Where Xor",
    ),
    (Operator(meets.normalize), "BatchNormalization InstanceNormalization"),
    (Operator(meets.normalize, resize=resize_groups), "GroupNormalization"),
    (Operator(contracts.matmul), "MatMul"),
    (Operator(contracts.gemm), "Gemm"),
    (Operator(contracts.conv, resize=resize_groups), "Conv ConvTranspose"),
    (Operator(contracts.recurrent), "LSTM GRU RNN"),
    (Operator(contracts.quantized_recurrent, domain=MICROSOFT), "DynamicQuantizeLSTM"),
    (Operator(quantizes.quantize, "each"), "DynamicQuantizeLinear"),
    (Operator(quantizes.in_steps, "each"), "QuantizeLinear DequantizeLinear"),
    (Operator(contracts.integer_matmul), "MatMulInteger"),
    (Operator(contracts.integer_conv, resize=resize_groups), "ConvInteger"),
    (Operator(contracts.quantized_matmul, domain=MICROSOFT), "DynamicQuantizeMatMul"),
    (
        Operator(reduces.reduce, "each"),
        "ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare",
    ),
    (Operator(reduces.reduce), "ReduceLogSumExp"),
    (
        Operator(reduces.pool, "each"),
        "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool Upsample",
    ),
    (Operator(reduces.pool, "each", resize_scaled), "Resize"),
    (Operator(reduces.along_axis, "each"), "CumSum"),
    (Operator(reduces.along_axis), "LogSoftmax Softmax"),
]
_TABLE = {op: row for row, ops in _FAMILIES for op in ops.split()}


def rule_named(op: str) -> Rule | None:
    """The rule for operators of a name, or None."""
    return _TABLE[op].rule if op in _TABLE else None


def operator_of(node: gs.Node) -> Operator | None:
    """The table's row for a node, or None."""
    row = _TABLE.get(node.op)
    return row if row is not None and row.domain == (node.domain or "") else None


def rule_of(node: gs.Node) -> Rule | None:
    """The rule for a node's operator, or None."""
    row = operator_of(node)
    return None if row is None else row.rule
