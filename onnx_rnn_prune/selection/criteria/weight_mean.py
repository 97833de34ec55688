"""Mean of |w| over all weights of a unit.

Like l1, but units read by wide matrices do not count more.
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext, summed


def _score(context: ScoringContext) -> Matrix:
    return summed(context, lambda amount: amount) / np.maximum(summed(context, np.ones_like), 1)


CRITERION = Criterion(_score, needs="weights")
