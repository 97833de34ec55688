"""Mean of |w| over all weights that a unit has a part in.

As l1, but a unit that wide matrices read does not count for more.
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext, summed


def _score(context: ScoringContext) -> Matrix:
    return summed(context, lambda amount: amount) / np.maximum(summed(context, np.ones_like), 1)


CRITERION = Criterion(_score, needs="weights")
