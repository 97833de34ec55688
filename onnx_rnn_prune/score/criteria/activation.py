"""Mean |h| on calibration data: a unit that is mostly silent says little (Hu et al. 2016)."""

from __future__ import annotations

from onnx_rnn_prune.score.moments import Matrix
from onnx_rnn_prune.score.subject import Criterion, Subject


def _score(subject: Subject) -> Matrix:
    return subject.seen.activity


CRITERION = Criterion(_score, needs="evidence")
