"""The table of operators that can be computed with gradients, by family."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_rnn_prune.recovery.distill.operators import (
    elementwise,
    moves,
    products,
    recurrent,
    reduces,
)
from onnx_rnn_prune.recovery.distill.operators.base import Call, Operator

__all__ = ["OPERATORS", "Call", "Operator"]

OPERATORS: Mapping[str, Operator] = {
    **elementwise.OPERATORS,
    **moves.OPERATORS,
    **reduces.OPERATORS,
    **products.OPERATORS,
    **recurrent.OPERATORS,
}
