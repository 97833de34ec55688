"""Letting the kept units stand in for the removed ones, in closed form.

A reader computes W z + b for a signal z of the original. In the cut model it has only z', what
became of the kept entries S of that signal. Ridge regression makes up for the difference:

    W z - W_S z' ~ A z' + a,   A = Cov(W z - W_S z', z') (C' + lambda diag C')^-1,   C' = Cov(z')
    W_S' = W_S + A,            b' = b + a,   with a from the means

With signals of the original on both sides (z' = z_S) that estimates the removed entries from the
kept ones. With signals of the cut model itself on the right, it also draws the cut model back to
where the original is. The kept weights are not shrunk: lambda = infinity leaves only a, the
recovery called bias.
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
        moments: by reader name, of pairs of signals laid side by side: z, then z'.
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
            weight = reader.weight(document)
            fitted, bias = fit(self.moments[reader.name], weight, stays, self.ridge)
            reader.store(document, fitted, bias)
            changed = True
        return changed


def fit(moments: Moments, weight: Matrix, stays: Mask, ridge: float) -> tuple[Matrix, Matrix]:
    """The weight that makes up for removed entries.

    Args:
        moments: of z and z' side by side, [n + kept], with products with z' only.
        weight: W, [outputs, n].
        stays: True for the kept entries of z, [n].
        ridge: lambda.

    Returns:
        A weight [outputs, n] that is zero where entries are removed, and what to add to the bias,
        [outputs].
    """
    size = len(stays)
    missing = np.concatenate([weight, -weight[:, stays]], axis=1)
    offset: Matrix = missing @ moments.mean
    fitted = weight * stays
    if stays.any() and not math.isinf(ridge):
        covariance = moments.covariance
        slope = solve(covariance[size:], (missing @ covariance).T, ridge).T
        fitted[:, stays] += slope
        offset -= slope @ moments.mean[size:]
    return fitted, offset


def solve(own: Matrix, cross: Matrix, ridge: float) -> Matrix:
    """(C + lambda diag C)^-1 X for a covariance C, [k, k], and X, [k, m]."""
    scale = np.diag(own)
    floor = _FLOOR * float(scale.mean()) + np.finfo(np.float64).tiny
    damped = own + np.diag(ridge * scale + floor)
    return np.asarray(np.linalg.solve(damped, cross), dtype=np.float64)


def teacher_pairs(moments: Moments, stays: Mask) -> Moments:
    """Moments of (z, z_S) from those of z: both sides are the original's signals."""
    places = np.concatenate([np.arange(len(stays)), np.flatnonzero(stays)])
    comoment = moments.comoment[np.ix_(places, places[len(stays) :])]
    return Moments(moments.count, moments.mean[places], comoment)
