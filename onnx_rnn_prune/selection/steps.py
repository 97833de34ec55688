"""Choosing units in several steps, each on the model that the step before left and recovered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.passes.cut import Zero
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.least_squares import Recover, teacher_fits
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.selection.scoring import score_units
from onnx_rnn_prune.traced_model import TracedModel


def choose_in_steps(
    traced: TracedModel,
    data: Calibration,
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
    trace = traced.trace
    keep = np.ones(trace.units.count, dtype=bool)
    goes = [group.size - count for group, count in zip(trace.groups, counts, strict=True)]
    steps = max(1, min(request.steps, max(goes, default=1)))  # in each, some unit goes
    for step in range(1, steps + 1):
        progress("choosing units in steps", step - 1, steps)
        share = step / steps
        now = [count + round(most * (1 - share)) for count, most in zip(counts, goes, strict=True)]
        keep = choose(trace, np.where(keep, scores, -np.inf), now)
        if step < steps:
            rest = _without(traced, data, keep, recovers=request.refits(data))
            scores = score_units(rest, data, request, progress)
    return keep


def _without(traced: TracedModel, data: Calibration, keep: Mask, recovers: bool) -> TracedModel:
    """The model at full width with some units zeroed, and made up for where that is wanted."""
    document, readers = traced.document.copy(), traced.readers
    evidence = data.evidence(traced) if recovers else None
    if evidence is not None:  # merging, which takes no data, follows the last step
        fits = teacher_fits(traced, keep, evidence.moments)
        Recover(readers, keep, fits)(document)
    Zero(traced.trace, keep)(document)
    return replace(traced, document=document)
