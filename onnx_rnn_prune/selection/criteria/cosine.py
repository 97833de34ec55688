"""Similar weights: one of the two units whose rows are most alike is removed, repeatedly.

|cos| of the rows of W, R and B that make a unit; the one of the pair with smaller rows is removed.
Units with equal rows compute the same. Needs no data (Srinivas and Babu 2015, "Data-free parameter
pruning for deep neural networks").
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.lossless.unit_merging import own_rows
from onnx_rnn_prune.selection.context import Criterion, ScoringContext, order_of_leaving


def _score(context: ScoringContext) -> Matrix:
    scores = np.zeros(context.traced.trace.units.count)
    rows = own_rows(context.traced)
    length = np.linalg.norm(rows, axis=1)
    unit = rows / np.where(length > 0, length, 1.0)[:, None]
    for lanes in context.traced.trace.units.lanes.values():
        for lane in lanes:
            scores[lane] = order_of_leaving(np.abs(unit[lane] @ unit[lane].T), length[lane])
    return scores


CRITERION = Criterion(_score, needs="weights")
