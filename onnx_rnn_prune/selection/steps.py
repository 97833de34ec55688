"""Choosing units in several steps, each on the model that the step before left and recovered."""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.evidence import collect
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.passes.cut import Zero
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.least_squares import Recover, teacher_fits
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.selection.scoring import score_again
from onnx_rnn_prune.study.feeding import Data
from onnx_rnn_prune.study.studying import Studied, look


def choose_in_steps(
    studied: Studied,
    data: Data,
    request: Request,
    scores: Matrix,
    counts: list[int],
    progress: Progress,
) -> Mask:
    """The units that stay, after equal steps from all of them to so many per group.

    A unit that goes in one step does not come back. One step is the usual choice; with more, each
    ranks the units by what they do once those before are gone (Han et al. 2015, iterative pruning;
    Molchanov et al. 2017 rank anew after each removal).
    """
    trace = studied.prepared.trace
    keep = np.ones(trace.units.count, dtype=bool)
    goes = [group.size - count for group, count in zip(trace.groups, counts, strict=True)]
    steps = max(1, min(request.steps, max(goes, default=1)))  # in each, some unit goes
    for step in range(1, steps + 1):
        progress("choosing units in steps", step - 1, steps)
        share = step / steps
        now = [count + round(most * (1 - share)) for count, most in zip(counts, goes, strict=True)]
        keep = choose(trace, np.where(keep, scores, -np.inf), now)
        if step < steps:
            scores = _scores_of_rest(studied, data, request, keep, progress)
    return keep


def _scores_of_rest(
    studied: Studied, data: Data, request: Request, keep: Mask, progress: Progress
) -> Matrix:
    document = _without(studied, data, keep, progress, recovers=request.refits(data))
    evidence = None
    if studied.evidence is not None:
        trace, readers = studied.prepared.trace, studied.readers
        evidence = collect(document, trace, readers, data.fitting, progress)
    return score_again(document, evidence, studied, data, request, progress)


def _without(
    studied: Studied, data: Data, keep: Mask, progress: Progress, recovers: bool
) -> Document:
    """The model at full width with some units zeroed, and made up for where that is wanted."""
    prepared, readers = studied.prepared, studied.readers
    document = prepared.document.copy()
    evidence = look(studied, data, progress).evidence if recovers else None
    if evidence is not None:  # merging, which takes no data, follows the last step
        fits = teacher_fits(document, readers, keep, evidence.moments)
        Recover(readers, keep, fits)(document)
    Zero(prepared.trace, keep)(document)
    return document
