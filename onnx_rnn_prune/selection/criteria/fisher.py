"""Mean (dL/dm)^2 for a factor m on all readers of a unit (Theis et al. 2018).

See `selection.gradients`. The diagonal of the Fisher information of the factors; large slopes count
more than with taylor. Needs no runs of cut models, but PyTorch.
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext


def _score(context: ScoringContext) -> Matrix:
    from onnx_rnn_prune.selection.gradients import mean_slope  # imports PyTorch

    return mean_slope(context, np.square)


CRITERION = Criterion(_score, needs="feeds", learns=True)
