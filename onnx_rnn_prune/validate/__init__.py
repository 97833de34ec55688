"""Proof and measurement: the oracle, drift and latency.

The oracle tells whether the smaller file computes what it should: the original with the removed
units zeroed. Drift is its deviation from the original, latency its gain in speed.
"""

from onnx_rnn_prune.validate.drift import Detail, Drift, drift, drift_in_detail
from onnx_rnn_prune.validate.oracle import EXACT, QUANTIZED, Oracle, either_order, oracle
from onnx_rnn_prune.validate.results import time_axes
from onnx_rnn_prune.validate.timing import Latency, Timing, latency, timings

__all__ = [
    "EXACT",
    "QUANTIZED",
    "Detail",
    "Drift",
    "Latency",
    "Oracle",
    "Timing",
    "drift",
    "drift_in_detail",
    "either_order",
    "latency",
    "oracle",
    "time_axes",
    "timings",
]
