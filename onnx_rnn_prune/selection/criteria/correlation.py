"""Correlation: one of the two units that correlate most is removed, repeatedly.

|corr(h_i, h_j)| on calibration data; the one of the pair that varies less is removed. Copies of
units are removed first, units like no other last (Sietsma and Dow 1991, "Creating artificial neural
networks that generalize": units whose outputs are alike do the work of one).
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext, order_of_leaving
from onnx_rnn_prune.selection.influence import columns_of
from onnx_rnn_prune.trace.units import Ids


def _score(context: ScoringContext) -> Matrix:
    scores = np.zeros(context.traced.trace.units.count)
    for lanes in context.traced.trace.units.lanes.values():
        for lane in lanes:
            covariance = _covariance(context, lane)
            spread = np.sqrt(np.diag(covariance))
            scale = np.where(spread > 0, spread, 1.0)
            likeness = np.abs(covariance / np.outer(scale, scale))
            likeness[spread == 0] = 1.0  # a constant unit is predictable from any other
            likeness[:, spread == 0] = 1.0
            scores[lane] = order_of_leaving(likeness, spread)
    return scores


def _covariance(context: ScoringContext, lane: Ids) -> Matrix:
    for reader in context.readers:
        places = columns_of(reader.labels, lane)
        if places is not None:
            return context.seen.moments[reader.pool].covariance(places[0])
    return np.zeros((len(lane), len(lane)))


CRITERION = Criterion(_score, needs="evidence")
