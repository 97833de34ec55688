"""What each operator does to labels; an operator that is not listed stops them."""

from __future__ import annotations

from onnx_rnn_prune.trace.rules import contracts, meets, moves, reduces
from onnx_rnn_prune.trace.rules.base import Bound, Flow, Rule, Shape, Step, Stop

__all__ = ["RULES", "Bound", "Flow", "Rule", "Shape", "Step", "Stop"]

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
    (
        reduces.reduce,
        "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare"
        " ReduceLogSumExp",
    ),
    (reduces.pool, "MaxPool AveragePool GlobalMaxPool GlobalAveragePool"),
    (reduces.along_axis, "Softmax LogSoftmax CumSum"),
]
RULES: dict[str, Rule] = {op: rule for rule, ops in _FAMILIES for op in ops.split()}
