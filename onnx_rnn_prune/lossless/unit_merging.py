"""Replaces removed units by kept units and constants, from the weights alone.

A removed unit is approximated as h = share * (a kept unit) + (a number). Its readers add its
column, times the share, to that of the kept unit, and the contribution of the number to their bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.evidence.gates import GateReader
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.evidence.readers import Lookup, Reader
from onnx_rnn_prune.lossless.superfluous import find_superfluous
from onnx_rnn_prune.operators.labels import Labels, Mask, occurrences
from onnx_rnn_prune.recovery.least_squares import Fit, stays
from onnx_rnn_prune.trace.units import Ids
from onnx_rnn_prune.traced_model import TracedModel


def own_rows(traced: TracedModel) -> Matrix:
    """[W R B] of each unit, gate after gate, [units, widest]; zeros if a layer has fewer."""
    found: list[tuple[np.ndarray, Matrix]] = []
    trace = traced.trace
    for layer in traced.layers:
        parts = []
        for name in ("W", "R", "B"):
            value = layer.constant(name)
            if value is not None:
                full = value.astype(np.float64).reshape(layer.directions, -1, layer.hidden, 1)
                if name != "B":
                    full = full.reshape(*full.shape[:1], -1, layer.hidden, value.shape[2])
                parts.append(np.moveaxis(full, 2, 1).reshape(layer.directions, layer.hidden, -1))
        found.append((trace.units.lanes[layer.name], np.concatenate(parts, axis=2)))
    result = np.zeros((trace.units.count, max((rows.shape[2] for _, rows in found), default=0)))
    for lanes, rows in found:
        result[lanes, : rows.shape[2]] = rows
    return result


@dataclass(frozen=True, eq=False)
class StandIns:
    """The replacement for each unit once it is removed.

    Attributes:
        unit: a kept unit, [units].
        share: of its state, [units].
        state: a number added to that, [units].
        reset: that number times a GRU's reset gate, [units].
    """

    unit: Ids
    share: Matrix
    state: Matrix
    reset: Matrix


def equal_units(traced: TracedModel, keep: Mask) -> StandIns:
    """Lossless stand-ins: the first of its kind for a duplicate, its value for a constant.

    Args:
        keep: per unit, True where it stays; `find_superfluous` says which need not.
    """
    found = find_superfluous(traced)
    held = np.where(found.constant, found.held.state, 0.0)
    reset = np.where(found.constant, found.held.reset, 0.0)
    return StandIns(found.first, found.duplicate.astype(np.float64), held, reset)


def nearest_units(traced: TracedModel, keep: Mask) -> StandIns:
    """For each unit, the kept one whose weights W, R and B have the most similar direction.

    The share is the cosine between them, so a duplicate is merged exactly and a unit like no other
    contributes nothing (after Srinivas and Babu 2015, "Data-free parameter pruning").
    """
    trace = traced.trace
    rows = own_rows(traced)
    unit, share = np.arange(trace.units.count), np.zeros(trace.units.count)
    for group in trace.groups:
        for atoms in group.atoms:
            lines = np.concatenate([rows[column] for column in atoms.T], axis=1)
            length = np.linalg.norm(lines, axis=1, keepdims=True)
            lines = np.divide(lines, length, out=np.zeros_like(lines), where=length > 0)
            kept = np.flatnonzero(keep[atoms[:, 0]])
            alike = lines @ lines[kept].T
            unit[atoms] = atoms[kept[alike.argmax(axis=1)]]
            share[atoms] = np.maximum(alike.max(axis=1), 0.0)[:, None]
    nothing = np.zeros(trace.units.count)
    return StandIns(unit, share, nothing, nothing)


def fit_stand_ins(traced: TracedModel, keep: Mask, stand_ins: StandIns) -> dict[str, Fit]:
    """New weights and biases for all readers that stand-ins change.

    Args:
        traced: the model, at full width.
        stand_ins: the replacements of removed units.
    """
    found: dict[str, Fit] = {}
    lookup = Lookup.of(traced.document)
    for reader in traced.readers:
        rows, columns = stays(reader, lookup, keep)
        held = reader.weight(lookup)
        weight = held.astype(np.float64)
        total = weight.copy()
        # For a state that is just fed back, entries are placed and not computed.
        share = np.rint(stand_ins.share) if reader.places else stand_ins.share
        for column, other in _pairs(reader.labels, columns, stand_ins.unit):
            total[:, other] += share[reader.labels[column]] * weight[:, column]
        bias = weight[:, ~columns] @ _numbers(reader, lookup, stand_ins)[~columns]
        if np.any(total[:, columns] != weight[:, columns]) or np.any(bias):
            place = np.ix_(rows, columns)
            found[reader.name] = Fit(total[place].astype(held.dtype), bias[rows].astype(held.dtype))
    return found


def _pairs(labels: Labels, columns: Mask, unit: Ids) -> list[tuple[int, int]]:
    """Each removed column, with the column that reads its stand-in at the same place."""
    places = occurrences(labels)
    known = {pair: n for n, pair in enumerate(zip(labels.tolist(), places.tolist(), strict=True))}
    found = []
    for column in np.flatnonzero(~columns).tolist():
        other = known.get((int(unit[labels[column]]), int(places[column])))
        if other is not None and columns[other]:
            found.append((column, other))
    return found


def _numbers(reader: Reader, lookup: Lookup, stand_ins: StandIns) -> Matrix:
    """The constant that each column contributes, [n]."""
    numbers = stand_ins.state[reader.labels]
    if isinstance(reader, GateReader) and "rH" in reader.sources:
        own = np.arange(len(numbers)) >= reader.widths(lookup)[0]
        numbers = np.where(own, stand_ins.reset[reader.labels], numbers)
    return numbers
