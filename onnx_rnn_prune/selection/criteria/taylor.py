"""Mean |dL/dm| for a factor m on all readers of a unit (Molchanov et al. 2017, 2019).

See `selection.gradients`. A first-order estimate of the effect of removing a unit; needs no runs of
cut models, but PyTorch.
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext


def _score(context: ScoringContext) -> Matrix:
    from onnx_rnn_prune.selection.gradients import mean_slope  # imports PyTorch

    return mean_slope(context, np.abs)


CRITERION = Criterion(_score, needs="feeds", learns=True)
