"""Scores of units, by the criterion that was asked for."""

from __future__ import annotations

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.distill.configuration import require_torch
from onnx_rnn_prune.selection.context import Criterion, ScoringContext
from onnx_rnn_prune.selection.criteria import CRITERIA
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.traced_model import TracedModel


def criterion_of(request: Request, data: Calibration) -> Criterion:
    """The criterion to use on this data.

    Raises:
        PruneError: it needs data, or PyTorch, and there is none.
    """
    criterion = request.criterion_for(data)
    if criterion.needs in ("feeds", "evidence") and not data.given:
        others = ", ".join(n for n, other in CRITERIA.items() if other.needs == "weights")
        raise PruneError(
            f"the criterion {criterion.name} looks at what units do, and there is no data",
            where="--criterion",
            remedy=f"pass --data, or choose one of {others}",
        )
    if criterion.learns:
        require_torch(f"--criterion={criterion.name}")
    return criterion


def score_units(
    traced: TracedModel, data: Calibration, request: Request, progress: Progress
) -> Matrix:
    """One score per unit."""
    criterion = criterion_of(request, data)
    if criterion.needs in ("either", "evidence"):
        data.evidence(traced, progress)
    progress("scoring units", 0, None)
    return criterion.score(ScoringContext(traced, data, request.seed, progress))
