"""Mean |dL/dm| for a factor m on all that reads a unit (Molchanov et al. 2017, 2019).

See `score.gradients`. A first-order estimate of what cutting a unit does; no runs of cut models are
needed, but PyTorch is.
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext


def _score(context: ScoringContext) -> Matrix:
    from onnx_rnn_prune.selection.gradients import mean_slope  # imports PyTorch

    return mean_slope(context, np.abs)


CRITERION = Criterion(_score, needs="feeds", learns=True)
