"""What each operator does to labels; an operator that is not listed stops them."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.integers import MICROSOFT
from onnx_rnn_prune.operators import contracts, meets, moves, quantizes, reduces
from onnx_rnn_prune.operators.base import Bound, Flow, Rule, Shape, Step, Stop
from onnx_rnn_prune.operators.recurrent import CELLS

__all__ = ["Bound", "Flow", "Rule", "Shape", "Step", "Stop", "rule_of"]

_FAMILIES: list[tuple[Rule, str]] = [
    (moves.pass_on, "Identity Cast Dropout"),
    (
        moves.move,
        "Transpose Reshape Squeeze Unsqueeze Flatten Slice Gather Split Expand Tile ReverseSequence"
        " DepthToSpace SpaceToDepth",
    ),
    (moves.concat, "Concat"),
    (moves.pad, "Pad"),
    (moves.shape, "Shape"),
    (
        meets.meet,
        "Add Sub Mul Div Pow Min Max Sum Mean Where And Or Xor Equal Greater GreaterOrEqual Less"
        " LessOrEqual PRelu Abs Ceil Clip Cos Elu Celu Erf Exp Floor Gelu HardSigmoid HardSwish"
        " LeakyRelu Mish Neg Not Relu Round Selu Sigmoid Sign Sin Softplus Softsign Swish Tanh"
        " ThresholdedRelu",
    ),
    (meets.batch_norm, "BatchNormalization"),
    (contracts.matmul, "MatMul"),
    (contracts.gemm, "Gemm"),
    (contracts.conv, "Conv"),
    (contracts.recurrent, "LSTM GRU RNN"),
    (contracts.quantized_recurrent, "DynamicQuantizeLSTM"),
    (quantizes.quantize, "DynamicQuantizeLinear"),
    (quantizes.in_steps, "QuantizeLinear DequantizeLinear"),
    (contracts.integer_matmul, "MatMulInteger"),
    (contracts.quantized_matmul, "DynamicQuantizeMatMul"),
    (
        reduces.reduce,
        "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare"
        " ReduceLogSumExp",
    ),
    (reduces.pool, "MaxPool AveragePool GlobalMaxPool GlobalAveragePool"),
    (reduces.along_axis, "Softmax LogSoftmax CumSum"),
]
_RULES: dict[str, Rule] = {op: rule for rule, ops in _FAMILIES for op in ops.split()}
_DOMAINS = {"DynamicQuantizeMatMul": MICROSOFT, **{cell.op: cell.domain for cell in CELLS}}


def rule_of(node: gs.Node) -> Rule | None:
    """The rule for a node's operator, or None where there is none."""
    return _RULES.get(node.op) if (node.domain or "") == _DOMAINS.get(node.op, "") else None
