"""Smallest |w| of all weights that a unit has a part in: one dead connection loses a unit."""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.score.moments import Matrix
from onnx_rnn_prune.score.subject import Criterion, Subject, owned_weights


def _score(subject: Subject) -> Matrix:
    scores = np.full(subject.trace.units.count, np.inf)
    for amount, labels in owned_weights(subject):
        owned = labels >= 0
        np.minimum.at(scores, labels[owned], amount[owned])
    return np.where(np.isfinite(scores), scores, 0.0)


CRITERION = Criterion(_score, needs="weights")
