"""Prunes units of LSTM, GRU and RNN layers in ONNX models, and proves the result."""

from onnx_rnn_prune.api import apply, bench, compare, inspect, plan, prune
from onnx_rnn_prune.errors import PruneError, Unmet
from onnx_rnn_prune.flow.finish import PruneResult
from onnx_rnn_prune.plan.plan import Plan

__all__ = [
    "Plan",
    "PruneError",
    "PruneResult",
    "Unmet",
    "apply",
    "bench",
    "compare",
    "inspect",
    "plan",
    "prune",
]
