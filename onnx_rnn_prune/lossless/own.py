"""The weights that make a unit what it is: its rows of W and R, and its biases."""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.trace.bindings import traced_layers
from onnx_rnn_prune.traced_model import TracedModel


def own_rows(traced: TracedModel) -> Matrix:
    """[W R B] of each unit, gate after gate, [units, widest]; zeros where a layer has fewer."""
    found: list[tuple[np.ndarray, Matrix]] = []
    trace = traced.trace
    for layer in traced_layers(traced.document, trace):
        parts = []
        for name in ("W", "R", "B"):
            value = layer.constant(name)
            if value is not None:
                full = value.astype(np.float64).reshape(layer.directions, -1, layer.hidden, 1)
                if name != "B":
                    full = full.reshape(*full.shape[:1], -1, layer.hidden, value.shape[2])
                parts.append(np.moveaxis(full, 2, 1).reshape(layer.directions, layer.hidden, -1))
        found.append((trace.units.lanes[layer.name], np.concatenate(parts, axis=2)))
    result = np.zeros((trace.units.count, max((rows.shape[2] for _, rows in found), default=0)))
    for lanes, rows in found:
        result[lanes, : rows.shape[2]] = rows
    return result
