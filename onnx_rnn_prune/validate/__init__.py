"""Proof and measurement: the oracle, drift and latency.

The oracle says whether the smaller file computes what it should: the original with the removed
units zeroed. Drift says how far that is from the original. Latency says what it gained.
"""

from onnx_rnn_prune.validate.drift import Drift, deviations, drift
from onnx_rnn_prune.validate.latency import Latency, Timing, latency, timings
from onnx_rnn_prune.validate.oracle import EXACT, QUANTIZED, Oracle, either_order, oracle

__all__ = [
    "EXACT",
    "QUANTIZED",
    "Drift",
    "Latency",
    "Oracle",
    "Timing",
    "deviations",
    "drift",
    "either_order",
    "latency",
    "oracle",
    "timings",
]
