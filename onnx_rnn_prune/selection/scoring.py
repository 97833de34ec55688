"""Scores of units, by the criterion that was asked for."""

from __future__ import annotations

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.evidence import Evidence
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.distill.configuration import require_torch
from onnx_rnn_prune.selection.context import Criterion, Subject
from onnx_rnn_prune.selection.criteria import CRITERIA
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.study.feeding import Data
from onnx_rnn_prune.study.studying import Studied, look


def criterion_of(request: Request, data: Data) -> Criterion:
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
    studied: Studied, data: Data, request: Request, progress: Progress
) -> tuple[Matrix, Studied]:
    """One score per unit, and what was learnt of the model on the way."""
    criterion = criterion_of(request, data)
    if criterion.needs in ("either", "evidence"):
        studied = look(studied, data, progress)
    progress("scoring units", 0, None)
    document, evidence = studied.prepared.document, studied.evidence
    return score_again(document, evidence, studied, data, request, progress), studied


def score_again(
    document: Document,
    evidence: Evidence | None,
    studied: Studied,
    data: Data,
    request: Request,
    progress: Progress,
) -> Matrix:
    """Scores of the same units in another document, with evidence of that one."""
    subject = Subject(
        document=document,
        trace=studied.prepared.trace,
        # No one looks at what removed units leave in a state that is only handed back.
        readers=[reader for reader in studied.readers if not reader.places],
        feeds=data.fitting,
        evidence=evidence,
        seed=request.seed,
        progress=progress,
        loss=data.loss,
    )
    return criterion_of(request, data).score(subject)
