"""Sum of |w| over all weights of a unit: its own rows, and those that read it.

Li et al. 2017, "Pruning filters for efficient ConvNets", for structures of a recurrent layer.
"""

from __future__ import annotations

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext, summed


def _score(context: ScoringContext) -> Matrix:
    return summed(context, lambda amount: amount)


CRITERION = Criterion(_score, needs="weights")
