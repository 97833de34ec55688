"""Streamed moments of a vector, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.errors import PruneError

Matrix = npt.NDArray[np.float64]

_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and co-moment of samples of a vector.

    Merging is associative, so samples may be split between any number of workers (Chan, Golub and
    LeVeque 1983, "Algorithms for computing the sample variance").

    Attributes:
        count: number of samples.
        mean: [n].
        comoment: sum of outer products of deviations from the mean, [n, n]; or [n, last] where only
            the products with the last entries are wanted.
    """

    count: int
    mean: Matrix
    comoment: Matrix

    @staticmethod
    def of(samples: npt.NDArray[np.generic], last: int | None = None) -> Moments:
        """The moments of samples, shape [N, n]."""
        values = np.asarray(samples, dtype=np.float64)
        if not np.isfinite(values).all():
            raise PruneError(
                "a recurrent layer's signals become infinite or not a number on this data",
                where="calibration",
                remedy="look for broken values in the data, or leave such feeds out",
            )
        mean = values.mean(axis=0) if len(values) else np.zeros(values.shape[1])
        centred = values - mean
        first = 0 if last is None else len(mean) - last
        return Moments(len(values), mean, centred.T @ centred[:, first:])

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of samples together; the arrays of `other` are used up."""
        count = self.count + other.count
        if count == 0:
            return self
        step = other.mean - self.mean
        comoment = other.comoment
        comoment += self.comoment
        last = step[len(step) - comoment.shape[1] :] * (self.count * other.count / count)
        for rows in blocks(len(step)):
            comoment[rows] += np.outer(step[rows], last)
        return Moments(count, self.mean + step * (other.count / count), comoment)

    def covariance(self, places: npt.NDArray[np.int64]) -> Matrix:
        """Of some entries, [places, places]."""
        return self.comoment[np.ix_(places, places)] / max(self.count, 1)

    @property
    def variance(self) -> Matrix:
        """[n]."""
        return np.diag(self.comoment) / max(self.count, 1)


def blocks(rows: int) -> Iterator[slice]:
    """Cuts rows of a matrix into parts, so that what is made of one at a time stays small."""
    for start in range(0, rows, _BLOCK):
        yield slice(start, start + _BLOCK)
