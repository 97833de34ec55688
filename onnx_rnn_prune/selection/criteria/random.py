"""Random scores from a seed: the baseline that every other criterion has to beat."""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext


def _score(context: ScoringContext) -> Matrix:
    return np.random.default_rng(context.seed).random(context.traced.trace.units.count)


CRITERION = Criterion(_score, needs="weights")
