"""Sum of |w| over all weights that a unit has a part in: its own rows, and all that read it.

Li et al. 2017, "Pruning filters for efficient ConvNets", for structures of a recurrent layer.
"""

from __future__ import annotations

from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.selection.context import Criterion, Subject, summed


def _score(subject: Subject) -> Matrix:
    return summed(subject, lambda amount: amount)


CRITERION = Criterion(_score, needs="weights")
