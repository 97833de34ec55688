"""Root of the sum of w^2 over all weights of a unit: its own rows, and those that read it.

Wen et al. 2018, "Learning intrinsic sparse structures within LSTM": the weights of a unit are those
that vanish with it. The default without data.
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext, summed


def _score(context: ScoringContext) -> Matrix:
    return np.sqrt(summed(context, np.square))


CRITERION = Criterion(_score, needs="weights")
