"""Mean |h| on calibration data: mostly silent units matter little (Hu et al. 2016)."""

from __future__ import annotations

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext


def _score(context: ScoringContext) -> Matrix:
    return context.seen.activity


CRITERION = Criterion(_score, needs="evidence")
