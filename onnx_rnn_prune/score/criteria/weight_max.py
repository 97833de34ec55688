"""Largest |w| of all weights that a unit has a part in: one strong connection saves a unit."""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.score.moments import Matrix
from onnx_rnn_prune.score.subject import Criterion, Subject, owned_weights


def _score(subject: Subject) -> Matrix:
    scores = np.zeros(subject.trace.units.count)
    for amount, labels in owned_weights(subject):
        owned = labels >= 0
        np.maximum.at(scores, labels[owned], amount[owned])
    return scores


CRITERION = Criterion(_score, needs="weights")
