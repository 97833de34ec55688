"""Variance of h on calibration data: a unit that hardly varies is nearly a bias.

Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient inference",
among the criteria compared there.
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext


def _score(context: ScoringContext) -> Matrix:
    scores = np.zeros(context.traced.trace.units.count)
    for reader in context.readers:
        units = reader.labels >= 0
        spread = context.seen.moments[reader.pool].variance
        np.maximum.at(scores, reader.labels[units], spread[units])
    return scores


CRITERION = Criterion(_score, needs="evidence")
