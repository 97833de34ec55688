"""Share of a unit's weights that are not near zero: above 1 % of their matrix's largest.

For models trained to have sparse weights: removes the units with the most zeros (the average
percentage of zeros of Hu et al. 2016, "Network trimming", of weights instead of activations).
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.selection.context import Criterion, ScoringContext, owned_amounts, owned_weights

_NEAR_ZERO = 0.01


def _score(context: ScoringContext) -> Matrix:
    count = context.traced.trace.units.count
    present, total = np.zeros(count), np.zeros(count)
    for value, labels in owned_weights(context):
        most = max(float(value.max(initial=0)), -float(value.min(initial=0)))
        for amounts, units in owned_amounts(value, labels):
            total += np.bincount(units, minlength=count)
            present += np.bincount(units[amounts > _NEAR_ZERO * most], minlength=count)
    return present / np.maximum(total, 1)


CRITERION = Criterion(_score, needs="weights")
