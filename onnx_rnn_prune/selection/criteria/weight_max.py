"""Largest |w| of all weights of a unit: one strong connection saves it."""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext, owned_amounts, owned_weights


def _score(context: ScoringContext) -> Matrix:
    scores = np.zeros(context.traced.trace.units.count)
    for value, labels in owned_weights(context):
        for amounts, units in owned_amounts(value, labels):
            np.maximum.at(scores, units, amounts)
    return scores


CRITERION = Criterion(_score, needs="weights")
