"""Which units are like others."""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.evidence.moments import Matrix


def order_of_leaving(likeness: Matrix, weight: Matrix) -> Matrix:
    """How unlike all that are left each unit is when it leaves: the most alike pair comes first.

    Args:
        likeness: of each pair, from 0 to 1, symmetric, [H, H].
        weight: of each pair the unit of less weight leaves, [H].

    Returns:
        1 - the likeness to the unit most like it among those left, never falling from one that
        leaves to the next, [H]; the last one has 1.
    """
    size = len(likeness)
    left = likeness.astype(np.float64).copy()
    np.fill_diagonal(left, -1.0)
    scores = np.ones(size)
    nearest = left.argmax(axis=1)
    last = 0.0
    for _ in range(size - 1):
        closest = left[np.arange(size), nearest]
        one = int(closest.argmax())
        other = int(nearest[one])
        gone, kept = (one, other) if weight[one] <= weight[other] else (other, one)
        last = max(last * (1 + 1e-12), 1.0 - float(left[gone, kept]))
        scores[gone] = last
        left[gone], left[:, gone] = -1.0, -1.0
        stale = (nearest == gone) & (left.max(axis=1) >= 0)
        nearest[stale] = left[stale].argmax(axis=1)
    return scores
