"""Letting the kept units stand in for the removed ones, in closed form.

A reader computes W z + b. With kept entries S of its signal z, the removed ones are estimated from
them by ridge regression, and what the estimate adds is folded into the weight:

    z_D ~ A z_S + a,   A = C_DS (C_SS + lambda diag C_SS)^-1,   a = m_D - A m_S
    W_S' = W_S + W_D A,   b' = b + W_D a

with the mean m and the covariance C of z on calibration data. The kept weights themselves are not
shrunk: lambda = infinity leaves only the means, which is the recovery called bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.score.moments import Matrix, Moments
from onnx_rnn_prune.score.readers import Reader
from onnx_rnn_prune.trace.labels import Mask, kept

# Keeps the system solvable where a kept entry never changes, or two are equal.
_FLOOR = 1e-10


@dataclass(frozen=True, eq=False)
class Recover:
    """Fits what every reader of the cut units computes.

    Attributes:
        readers: all that read units.
        moments: by reader name, of the signals that they read in the original.
        keep: per unit, True where it stays.
        ridge: lambda; infinity corrects biases only.
    """

    readers: Sequence[Reader]
    moments: Mapping[str, Moments]
    keep: Mask
    ridge: float

    def __call__(self, document: Document) -> bool:
        changed = False
        for reader in self.readers:
            stays = kept(reader.labels, self.keep)
            if stays.all():
                continue
            moments = self.moments[reader.name]
            slope, offset = estimate(moments, stays, self.ridge)
            weight = reader.weight(document)
            removed = weight[:, ~stays]
            weight[:, stays] += removed @ slope
            weight[:, ~stays] = 0.0
            reader.store(document, weight, removed @ offset)
            changed = True
        return changed


def estimate(moments: Moments, stays: Mask, ridge: float) -> tuple[Matrix, Matrix]:
    """The removed entries of a signal as a linear function of the kept ones.

    Args:
        moments: of the signal, n entries.
        stays: True for the kept entries, [n].
        ridge: lambda.

    Returns:
        A, shape [removed, kept], and a, shape [removed].
    """
    mean, covariance = moments.mean, moments.covariance
    if math.isinf(ridge) or not stays.any():
        return np.zeros(((~stays).sum(), stays.sum())), mean[~stays]
    slope = solve(covariance[np.ix_(stays, stays)], covariance[np.ix_(stays, ~stays)], ridge).T
    return slope, mean[~stays] - slope @ mean[stays]


def solve(own: Matrix, cross: Matrix, ridge: float) -> Matrix:
    """(C + lambda diag C)^-1 X for a covariance C, [k, k], and X, [k, m]."""
    scale = np.diag(own)
    floor = _FLOOR * max(float(scale.mean()), np.finfo(np.float64).tiny)
    damped = own + np.diag(ridge * scale + floor)
    solution: Matrix = np.linalg.solve(damped, cross)
    return solution
