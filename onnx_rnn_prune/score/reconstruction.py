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
from onnx_rnn_prune.score.moments import Matrix, blocks
from onnx_rnn_prune.score.readers import Reader
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Ids

_FLOOR = 1e-9


@dataclass(frozen=True, eq=False)
class Demand:
    """What some readers want to know of a lane.

    Attributes:
        covariance: of the lane's entries in their signal, [H, H].
        factor: F with F F' = W' W, [H, H].
    """

    covariance: Matrix
    factor: Matrix


def reconstruction_gains(
    document: Document, trace: Trace, readers: Sequence[Reader], evidence: Evidence
) -> Matrix:
    """The share of the readers' variance that each unit explains when it is picked.

    Returns:
        One score per unit; within a lane they follow the order of picking.
    """
    scores = np.zeros(trace.units.count)
    for lanes in trace.units.lanes.values():
        for lane in lanes:
            scores[lane] = greedy_gains(list(_demands(document, readers, evidence, lane)))
    return scores


def greedy_gains(demands: Sequence[Demand]) -> Matrix:
    """Picks all units of a lane in turn; returns each one's share of what is explained, [H]."""
    size = len(demands[0].covariance)
    rest = [demand.covariance.copy() for demand in demands]
    missed = [demand.factor.T @ demand.covariance for demand in demands]
    floors = [_FLOOR * np.diag(own) + np.finfo(np.float64).tiny for own in rest]
    total = sum(float(np.sum(d.factor * (d.covariance @ d.factor))) for d in demands)
    gains = np.zeros(size)
    free = np.ones(size, dtype=bool)
    last = np.inf
    for _ in range(size):
        found = np.zeros(size)
        for own, part, floor in zip(rest, missed, floors, strict=True):
            spread = np.diag(own)
            found += np.where(spread > floor, (part**2).sum(axis=0) / np.maximum(spread, floor), 0)
        found[~free] = -1.0
        unit = int(found.argmax())
        free[unit] = False
        # Gains need not fall from pick to pick, but what was picked first matters more.
        last = min(last * (1 - 1e-12), float(found[unit]) / max(total, np.finfo(float).tiny))
        gains[unit] = last
        for own, part, floor, demand in zip(rest, missed, floors, demands, strict=True):
            if own[unit, unit] <= floor[unit]:
                continue
            column = own[:, unit] / np.sqrt(own[unit, unit])
            part -= np.outer(demand.factor.T @ column, column)
            own -= np.outer(column, column)
    return gains


def _demands(
    document: Document, readers: Iterable[Reader], evidence: Evidence, lane: Ids
) -> Iterable[Demand]:
    """The demands on one lane; readers of the same signal are taken together."""
    weights: list[Matrix] = []
    covariances: list[Matrix] = []
    for reader in readers:
        columns = columns_of(reader.labels, lane)
        if columns is None:
            continue
        for places in columns:
            covariance = evidence.moments[reader.name].covariance(places)
            gram = _gram(reader.weight(document), places, evidence.emphasis[reader.name])
            for number, known in enumerate(covariances):
                if np.array_equal(known, covariance):
                    weights[number] = weights[number] + gram
                    break
            else:
                covariances.append(covariance)
                weights.append(gram)
    for covariance, gram in zip(covariances, weights, strict=True):
        values, vectors = np.linalg.eigh(gram)
        yield Demand(covariance, vectors * np.sqrt(np.maximum(values, 0.0)))


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
