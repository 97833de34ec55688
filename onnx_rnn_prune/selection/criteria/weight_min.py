"""Smallest |w| of all weights of a unit: one dead connection condemns it."""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext, owned_amounts, owned_weights


def _score(context: ScoringContext) -> Matrix:
    scores = np.full(context.traced.trace.units.count, np.inf)
    for value, labels in owned_weights(context):
        for amounts, units in owned_amounts(value, labels):
            np.minimum.at(scores, units, amounts)
    return np.where(np.isfinite(scores), scores, 0.0)


CRITERION = Criterion(_score, needs="weights")
