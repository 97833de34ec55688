"""Choosing units so that the others can be computed from them: pivoted Cholesky with weights.

For one lane with covariance C of its states and readers with weights W (stacked, [outputs, H]), the
kept set S is grown one unit at a time. Once S is kept, a removed state is known up to the residual
covariance E = C - C_S (C_SS)^-1 C_S', and the readers miss tr(W E W'). Keeping unit j takes

    |W E_j|^2 / E_jj

off that; the unit that takes most is next, and E is deflated by it. (Greedy column subset selection
of Farahat et al. 2011, with the readers' weights; the order matches the closed form of recovery.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.score.evidence import Evidence
from onnx_rnn_prune.score.lookup import Lookup
from onnx_rnn_prune.score.moments import Matrix, blocks
from onnx_rnn_prune.score.readers import Reader
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Ids

_FLOOR = 1e-9


@dataclass(frozen=True, eq=False)
class Demand:
    """What some readers want to know of a lane.

    Attributes:
        covariance: C of the lane's entries in their signal, [H, H].
        gram: W' W, [H, H].
    """

    covariance: Matrix
    gram: Matrix


class _Residual:
    """The residual covariance E of a demand, of which only diagonals and columns are formed.

    E = C - L L' for one column of L a kept unit, and |W E_j|^2 = E_j' G E_j follows each step.
    """

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._factor = np.empty_like(demand.covariance)  # columns of L as rows
        self._kept = 0
        self._spread = np.diag(demand.covariance).copy()
        self._floor = _FLOOR * self._spread + np.finfo(np.float64).tiny
        self._missed = np.zeros(len(self._spread))
        for rows in blocks(len(self._spread)):
            part = demand.covariance[rows]
            self._missed[rows] = np.einsum("ij,ij->i", part @ demand.gram, part)

    def total(self) -> float:
        """tr(W E W')."""
        return float(np.sum(self._demand.covariance * self._demand.gram))

    def gains(self) -> Matrix:
        """What keeping each unit takes off, [H]."""
        known = self._spread <= self._floor
        return np.where(known, 0.0, self._missed / np.where(known, 1.0, self._spread))

    def keep(self, unit: int) -> None:
        """Deflates E by a unit."""
        if self._spread[unit] <= self._floor[unit]:
            return
        factor = self._factor[: self._kept]
        covariance, gram = self._demand.covariance, self._demand.gram
        column = covariance[unit] - factor[:, unit] @ factor
        column /= np.sqrt(self._spread[unit])
        read = gram @ column
        seen = covariance @ read - (factor @ read) @ factor
        self._missed += column * (column * (column @ read) - 2.0 * seen)
        np.maximum(self._missed, 0.0, out=self._missed)
        self._spread -= column**2
        self._factor[self._kept] = column
        self._kept += 1


def reconstruction_gains(
    document: Document, trace: Trace, readers: Sequence[Reader], evidence: Evidence
) -> Matrix:
    """The share of the readers' variance that each unit explains when it is picked.

    Returns:
        One score per unit; within a lane they follow the order of picking.
    """
    scores = np.zeros(trace.units.count)
    lookup = Lookup.of(document)
    for lanes in trace.units.lanes.values():
        for lane in lanes:
            scores[lane] = greedy_gains(list(_demands(lookup, readers, evidence, lane)))
    return scores


def greedy_gains(demands: Sequence[Demand]) -> Matrix:
    """Picks all units of a lane in turn; returns each one's share of what is explained, [H]."""
    size = len(demands[0].covariance)
    residuals = [_Residual(demand) for demand in demands]
    total = max(sum(residual.total() for residual in residuals), np.finfo(np.float64).tiny)
    gains = np.zeros(size)
    free = np.ones(size, dtype=bool)
    last = np.inf
    for _ in range(size):
        found = np.sum([residual.gains() for residual in residuals], axis=0)
        found[~free] = -1.0
        unit = int(found.argmax())
        free[unit] = False
        # Gains need not fall from pick to pick, but what was picked first matters more.
        last = min(last * (1 - 1e-12), float(found[unit]) / total)
        gains[unit] = last
        for residual in residuals:
            residual.keep(unit)
    return gains


def _demands(
    lookup: Lookup, readers: Iterable[Reader], evidence: Evidence, lane: Ids
) -> Iterable[Demand]:
    """The demands on one lane; readers of the same signal are taken together."""
    weights: list[Matrix] = []
    covariances: list[Matrix] = []
    for reader in readers:
        columns = columns_of(reader.labels, lane)
        if columns is None:
            continue
        for places in columns:
            covariance = evidence.moments[reader.pool].covariance(places)
            gram = _gram(reader.weight(lookup), places, evidence.emphasis[reader.pool])
            for number, known in enumerate(covariances):
                if np.array_equal(known, covariance):
                    weights[number] = weights[number] + gram
                    break
            else:
                covariances.append(covariance)
                weights.append(gram)
    yield from map(Demand, covariances, weights)


def _gram(weight: Array, places: Ids, emphasis: Matrix) -> Matrix:
    """W' diag(e) W of some columns, [places, places]."""
    total = np.zeros((len(places), len(places)))
    for rows in blocks(len(weight)):
        part = weight[rows, places].astype(np.float64)
        total += part.T @ (emphasis[rows, None] * part)
    return total


def columns_of(labels: Ids, lane: Ids) -> list[Ids] | None:
    """Where a signal holds a lane: one array of H places for each time it does."""
    inside = np.isin(labels, lane)
    if not inside.any():
        return None
    places = np.flatnonzero(inside)
    order = places[np.argsort(labels[places], kind="stable")]
    repeats = len(order) // len(lane)
    if repeats * len(lane) != len(order):
        return None
    return list(order.reshape(len(lane), repeats).T)
