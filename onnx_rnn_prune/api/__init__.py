"""What the command line offers, from Python."""

from onnx_rnn_prune.api.looking import inspect
from onnx_rnn_prune.api.pruning import apply, plan, prune
from onnx_rnn_prune.api.searching import search
from onnx_rnn_prune.flow.looking.comparing import bench, compare

__all__ = ["apply", "bench", "compare", "inspect", "plan", "prune", "search"]
