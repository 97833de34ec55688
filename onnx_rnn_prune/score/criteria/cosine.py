"""How little a unit's own weights resemble another's: of the two most alike, one goes, repeatedly.

|cos| of the rows of W, R and B that make a unit; of the pair the one with the smaller rows goes.
Units with equal rows compute the same. Needs no data (Srinivas and Babu 2015, "Data-free parameter
pruning for deep neural networks").
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.cells import RecurrentLayer
from onnx_rnn_prune.score.moments import Matrix
from onnx_rnn_prune.score.redundancy import order_of_leaving
from onnx_rnn_prune.score.subject import Criterion, Subject
from onnx_rnn_prune.trace.bindings import traced_layers


def _score(subject: Subject) -> Matrix:
    scores = np.zeros(subject.trace.units.count)
    for layer in traced_layers(subject.document, subject.trace):
        for direction, lane in enumerate(subject.trace.units.lanes[layer.name]):
            rows = own_rows(layer, direction)
            length = np.linalg.norm(rows, axis=1)
            unit = rows / np.where(length > 0, length, 1.0)[:, None]
            scores[lane] = order_of_leaving(np.abs(unit @ unit.T), length)
    return scores


def own_rows(layer: RecurrentLayer, direction: int) -> Matrix:
    """The weights that make each unit of one direction, its biases last, [H, ...]."""
    gates, hidden = len(layer.cell.gates), layer.hidden
    parts = []
    for name in ("W", "R"):
        value = layer.constant(name)
        assert value is not None
        stacked = value[direction].astype(np.float64).reshape(gates, hidden, -1)
        parts.append(np.moveaxis(stacked, 1, 0).reshape(hidden, -1))
    bias = layer.constant("B")
    if bias is not None:
        parts.append(bias[direction].astype(np.float64).reshape(2 * gates, hidden).T)
    return np.concatenate(parts, axis=1)


CRITERION = Criterion(_score, needs="weights")
