"""How much better the readers' signals are known once a unit is kept, picked greedily.

See `score.reconstruction` for the formula. The usual choice where there is data: it takes into
account what recovery can make up for.
"""

from __future__ import annotations

from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext
from onnx_rnn_prune.selection.reconstruction import reconstruction_gains


def _score(context: ScoringContext) -> Matrix:
    return reconstruction_gains(context)


CRITERION = Criterion(_score, needs="evidence")
