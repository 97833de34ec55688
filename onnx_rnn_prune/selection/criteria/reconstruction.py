"""Keeps units from which the others can be reconstructed: weighted pivoted Cholesky.

For one lane with covariance C of its states and readers with weights W (stacked, [outputs, H]), the
kept set S is grown one unit at a time. Given S, removed states are known up to the residual
covariance E = C - C_S (C_SS)^-1 C_S', and the readers' error is tr(W E W'). Keeping unit j reduces
it by

    |W E_j|^2 / E_jj

The unit with the largest gain is next, and E is deflated by it. (Greedy column subset selection of
Farahat et al. 2011, with the readers' weights; the order matches the closed form of recovery.)

W is scaled by the effect of errors in a reader's sums, see `selection.influence`.

All gains are on the diagonals of E and of M = E W' W E. Keeping j deflates both: with c = E_j /
sqrt(E_jj) and s = M_j / sqrt(E_jj) - c M_jj / (2 E_jj),

    E - c c'        M - c s' - s c'

The next pick needs only these diagonals and one row, so the rest is deferred for a block of picks
and done by matrix products (as LAPACK's dpstrf does for pivoted Cholesky). It takes about 2 H^3
multiplications: the only cubic part besides the closed form. Large lanes are held in single
precision, which halves memory and time.

The default with data: it takes into account what recovery can compensate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.evidence.evidence import Evidence
from onnx_rnn_prune.evidence.matrices import Matrix, blocks
from onnx_rnn_prune.evidence.readers import Lookup, Reader
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.selection.context import Criterion, ScoringContext
from onnx_rnn_prune.selection.influence import Influence, columns_of, influence_of, meeting
from onnx_rnn_prune.trace.units import Ids

Real = npt.NDArray[Any]

# Residual share of a unit's variance below which it counts as known: the rest is rounding.
_FLOOR = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-5}
# Lanes of more units are held in single precision.
_LARGE = 1024
# Covariances that differ by at most this are taken as equal: those of one signal at the taps of a
# kernel differ at borders only.
_SAME = 0.05
# Picks whose deflations are deferred and done together.
_PICKS = 64


@dataclass(frozen=True, eq=False)
class Demand:
    """The demand of some readers on a lane.

    Attributes:
        covariance: C of the lane's entries in their signal, [H, H].
        gram: W' W, [H, H].
    """

    covariance: Real
    gram: Real


class _Residual:
    """E and M of a demand, before the last few picks.

    Attributes:
        total: tr(W E W') of the whole demand.
    """

    def __init__(self, demand: Demand) -> None:
        covariance, gram = demand.covariance, demand.gram
        self.total = float(np.vdot(covariance, gram))
        for part in blocks(len(gram)):  # in place of what is no longer needed
            gram[part] = gram[part] @ covariance
        for part in blocks(len(gram)):
            gram[:, part] = covariance @ gram[:, part]
        self._left, self._seen = covariance, gram
        self._spread, self._missed = np.diag(covariance).copy(), np.diag(gram).copy()
        self._floor = _FLOOR[gram.dtype] * self._spread + np.finfo(gram.dtype).tiny
        self._columns = np.empty((2, _PICKS, len(gram)), gram.dtype)  # c and s of picks, as rows
        self._picks = 0

    def gains(self) -> Real:
        """The reduction of the error by keeping each unit, [units left]."""
        known = self._spread <= self._floor
        return np.where(known, 0.0, self._missed / np.where(known, 1.0, self._spread))

    def keep(self, unit: int) -> None:
        """Deflates by a unit."""
        spread = self._spread[unit]
        if spread <= self._floor[unit]:
            return
        columns, seen = self._columns[:, : self._picks]
        column = self._left[unit] - columns[:, unit] @ columns
        met = self._seen[unit] - columns[:, unit] @ seen - seen[:, unit] @ columns
        column /= np.sqrt(spread)
        met /= np.sqrt(spread)
        met -= column * (met[unit] / (2.0 * np.sqrt(spread)))
        self._missed -= 2.0 * column * met
        np.maximum(self._missed, 0.0, out=self._missed)
        self._spread -= column**2
        self._columns[:, self._picks] = column, met
        self._picks += 1

    def settle(self, free: Mask) -> None:
        """Applies deferred updates, and drops units that are not free, [units left]."""
        columns, seen = self._columns[:, : self._picks]
        places = np.flatnonzero(free)
        size = len(places)
        for part in blocks(size):  # upwards, so that nothing is overwritten before it is read
            at = places[part]
            rows = slice(part.start, part.start + len(at))
            one, other = columns[:, at].T, seen[:, at].T
            left = self._left[at] - one @ columns
            self._left[rows, :size] = left[:, places]
            met = self._seen[at] - one @ seen - other @ columns
            self._seen[rows, :size] = met[:, places]
        self._left, self._seen = self._left[:size, :size], self._seen[:size, :size]
        self._spread, self._missed = self._spread[places], self._missed[places]
        self._floor = self._floor[places]
        self._columns = np.empty((2, _PICKS, size), self._columns.dtype)
        self._picks = 0


def _score(context: ScoringContext) -> Matrix:
    """The share of the readers' variance that each unit explains when it is picked.

    Returns:
        One score per unit; within a lane they follow the order of picking.
    """
    trace, evidence, readers = context.traced.trace, context.seen, context.readers
    scores = np.zeros(trace.units.count)
    lookup = Lookup.of(context.traced.document)
    influence = influence_of(context.traced, readers, evidence, context.data.calibration)
    lanes = [lane for lanes in trace.units.lanes.values() for lane in lanes]
    for lane, own in zip(lanes, meeting([each.labels for each in readers], lanes), strict=True):
        reading = [readers[number] for number in own]
        demands = list(_demands(lookup, reading, evidence, lane, influence))
        if demands:  # else it is only read as part of a sum with another lane, whose scores count
            scores[lane] = greedy_gains(demands)
    return scores


def greedy_gains(demands: Sequence[Demand]) -> Matrix:
    """Picks all units of a lane in turn; overwrites the arrays of the demands.

    Returns:
        The share of the variance that each unit explains, [H].
    """
    gains = np.zeros(len(demands[0].covariance))
    residuals = [_Residual(demand) for demand in demands]
    total = max(sum(residual.total for residual in residuals), np.finfo(np.float64).tiny)
    left, last = np.arange(len(gains)), np.inf
    while len(left):
        free = np.ones(len(left), dtype=bool)
        for _ in range(min(_PICKS, len(left))):
            found = np.sum([residual.gains() for residual in residuals], axis=0)
            found[~free] = -1.0
            unit = int(found.argmax())
            if found[unit] <= 0.0:  # the rest is known, and explains nothing more
                return gains
            free[unit] = False
            # Gains need not fall from pick to pick, but earlier picks matter more.
            last = min(last * (1 - 1e-12), float(found[unit]) / total)
            gains[left[unit]] = last
            for residual in residuals:
                residual.keep(unit)
        for residual in residuals:
            residual.settle(free)
        left = left[free]
    return gains


def _demands(
    lookup: Lookup,
    readers: Iterable[Reader],
    evidence: Evidence,
    lane: Ids,
    influence: Influence,
) -> Iterable[Demand]:
    """The demands on one lane; readers of (nearly) the same signal are combined.

    A state that callers only hand back is no demand: the layer reads only its units' entries.
    """
    weights: list[Real] = []
    covariances: list[Real] = []
    dtype = np.dtype(np.float32 if len(lane) > _LARGE else np.float64)
    for reader in readers:
        columns = None if reader.places else columns_of(reader.labels, lane)
        for places in columns or ():
            covariance = evidence.moments.covariance(reader.pool, places, dtype)
            gram = influence.gram(reader, lookup, places, dtype)
            for number, known in enumerate(covariances):
                if np.linalg.norm(known - covariance) <= _SAME * np.linalg.norm(known):
                    weights[number] += gram
                    break
            else:
                covariances.append(covariance)
                weights.append(gram)
    yield from map(Demand, covariances, weights)


CRITERION = Criterion(_score, needs="evidence")
