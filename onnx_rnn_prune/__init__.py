"""Prunes units of LSTM, GRU and RNN layers in ONNX models, and proves the result."""

import importlib
import os
import sys
from typing import TYPE_CHECKING

# onnxruntime 1.32 and later records the names of graphs and nodes and tries to send them. It reads
# this variable on import (0 leaves telemetry on); child processes inherit it.
if not os.environ.get("ORT_DISABLE_TELEMETRY"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if "onnxruntime" in sys.modules:
        sys.modules["onnxruntime"].disable_telemetry_events()

# Subpackages become attributes on first import only; imported here, these cannot shadow the
# functions of the same names later.
import onnx_rnn_prune.roll
import onnx_rnn_prune.search

del onnx_rnn_prune

__all__ = [
    "ConstraintError",
    "Plan",
    "PruneError",
    "PruneResult",
    "apply",
    "bench",
    "compare",
    "inspect",
    "plan",
    "prune",
    "roll",
    "search",
    "sensitivity",
]

if TYPE_CHECKING:
    from onnx_rnn_prune.api import (
        apply,
        bench,
        compare,
        inspect,
        plan,
        prune,
        roll,
        search,
        sensitivity,
    )
    from onnx_rnn_prune.errors import ConstraintError, PruneError
    from onnx_rnn_prune.pipeline import PruneResult
    from onnx_rnn_prune.trace.plan import Plan
else:
    del roll, search

    # Heavy imports happen on first use, so that the command can handle a Ctrl-C meanwhile.
    def __getattr__(name):
        homes = {
            "Plan": "trace.plan",
            "PruneError": "errors",
            "PruneResult": "pipeline",
            "ConstraintError": "errors",
        }
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{homes.get(name, 'api')}"), name)

    def __dir__():
        return sorted({*globals(), *__all__})
