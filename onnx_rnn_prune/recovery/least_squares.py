"""Least-squares recovery: kept units stand in for removed ones, in closed form.

A reader computes W z + b for a signal z of the original. In the cut model it only gets z', the
kept entries S of that signal as they are now. With E z' as z' put back in its places, ridge
regression estimates what is missing:

    z - E z' ~ A z' + a,   A = Cov(z - E z', z') (C' + lambda diag C')^-1,   C' = Cov(z')
    W' = W (E + A),        b' = b + W a,   with a from the means

With signals of the original on both sides (z' = z_S), that estimates the removed entries from the
kept ones. With z' from the cut model itself, it also pulls the cut model back towards the original.
The kept weights are not shrunk: lambda = infinity leaves only a, the recovery called bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.evidence.moments import (
    InFile,
    Matrix,
    Moments,
    MomentStore,
    blocks,
    put_away,
)
from onnx_rnn_prune.evidence.readers import Lines, Lookup, Reader
from onnx_rnn_prune.model.constants import require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes
from onnx_rnn_prune.operators.labels import Mask, kept
from onnx_rnn_prune.traced_model import TracedModel

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Lambdas to choose from, ascending."""
RIDGE = 1e-2
"""The default lambda, where none is searched for; suits most models."""
# Lower bound of variances, as a share of the mean variance: an entry that hardly varies would get
# large weights, and their rounding would drown what it tells.
_FLOOR = 1e-5


@dataclass(frozen=True, eq=False)
class Fit:
    """The fitted weights of a reader for its kept outputs and entries.

    Attributes:
        weight: of the kept outputs and entries, [rows, k].
        bias: added to the bias of the kept outputs, [rows].
    """

    weight: Array | InFile
    bias: Array


@dataclass(frozen=True, eq=False)
class Recover:
    """Writes fits into the kept entries; removed ones keep their values.

    Attributes:
        readers: all readers of units.
        keep: per unit, True if kept.
        fits: by reader name.
    """

    readers: Sequence[Reader]
    keep: Mask
    fits: Mapping[str, Fit]

    def __call__(self, document: Document) -> bool:
        lookup = Lookup.of(document)
        shared = _shared(document.graph)
        for reader in self.readers:
            if reader.name in self.fits:
                rows, columns = stays(reader, lookup, self.keep)
                place = np.flatnonzero(rows), np.flatnonzero(columns)
                fit = self.fits[reader.name]
                reader.store(lookup, place, np.asarray(fit.weight), fit.bias)
        for tensor, places in shared:
            _share(tensor, places, document.graph.opset)
        return bool(self.fits)


Places = list[tuple[gs.Node, int]]


def _shared(graph: gs.Graph) -> list[tuple[gs.Tensor, Places]]:
    """Tensors that several inputs read, with these inputs; they may be constants."""
    found: dict[int, tuple[gs.Tensor, Places]] = {}
    for node in all_nodes(graph):
        for slot, tensor in enumerate(node.inputs):
            made = tensor.inputs[0].op if tensor.inputs else ""
            if isinstance(tensor, gs.Constant) or made in ("Constant", "Cast", "DequantizeLinear"):
                found.setdefault(id(tensor), (tensor, []))[1].append((node, slot))
    return [item for item in found.values() if len(item[1]) > 1]


def _share(tensor: gs.Tensor, places: Places, opset: int) -> None:
    """Lets inputs that used to share a constant share it again if their new ones are equal."""
    now = {id(node.inputs[slot]): node.inputs[slot] for node, slot in places}
    if len(now) == 1:
        return
    order = sorted(now.values(), key=lambda item: item is not tensor)
    values = [(item, require_constant(item, opset)) for item in order]
    for node, slot in places:
        own = next(value for item, value in values if item is node.inputs[slot])
        node.inputs[slot] = next(item for item, value in values if np.array_equal(value, own))


def fit_readers(
    traced: TracedModel, keep: Mask, pairs: Callable[[Reader], Moments], ridge: float
) -> dict[str, Fit]:
    """Fits all readers whose signals are cut.

    Args:
        traced: the model, at full width.
        keep: per unit, True if kept.
        pairs: the moments of a reader's z and z' side by side, [n + k], with products with z' only.
        ridge: lambda; infinity corrects biases only.
    """
    found: dict[str, Fit] = {}
    lookup = Lookup.of(traced.document)
    for reader in traced.readers:
        rows, columns = stays(reader, lookup, keep)
        if not columns.all():
            if reader.places:
                found[reader.name] = _placed(
                    reader, lookup, rows, most_alike(pairs(reader), columns)
                )
                continue
            known = _estimate(pairs(reader), columns, ridge)
            found[reader.name] = _apply(reader.lines(lookup), rows, columns, known)
    return found


def place_states(traced: TracedModel, keep: Mask) -> dict[str, Fit]:
    """Fits for states that callers only hand back, for when nothing else is fitted.

    Layers read only the entries of their own units from such a state, so the others may hold the
    value of any kept unit, and a single Gather restores full width.
    """
    lookup, found = Lookup.of(traced.document), {}
    for reader in traced.readers:
        rows, columns = stays(reader, lookup, keep)
        if reader.places and columns.any() and not columns.all():
            own = np.where(columns, np.cumsum(columns) - 1, 0)
            found[reader.name] = _placed(reader, lookup, rows, own)
    return found


def estimate_entries(moments: Moments, stays: Mask, ridge: float) -> tuple[Matrix, Matrix]:
    """Estimates all entries of a signal from the kept ones.

    Args:
        moments: of z and z' side by side, [n + k], with products with z' only; overwritten.
        stays: True for the kept entries of z, [n].
        ridge: lambda.

    Returns:
        E + A, [n, k], and a, [n].
    """
    known = _estimate(moments, stays, ridge)
    spread = np.zeros((len(stays), len(moments.mean) - len(stays)))
    spread[known.places] = known.spread
    spread[np.flatnonzero(stays), np.arange(spread.shape[1])] += 1.0
    return spread, known.offset


@dataclass(frozen=True, eq=False)
class _Estimate:
    """The estimate of z from z'.

    Attributes:
        places: the entries whose rows of A are not zero, [m].
        spread: these rows, [m, k].
        offset: a, [n].
    """

    places: npt.NDArray[np.intp]
    spread: Matrix
    offset: Matrix


def _estimate(moments: Moments, stays: Mask, ridge: float) -> _Estimate:
    """Fits A and a, see `estimate_entries`; large matrices are computed in place."""
    size = len(stays)
    missed, own, mean = moments.comoment[:size], moments.comoment[size:], moments.mean[size:]
    places, spread = np.zeros(0, np.intp), missed[:0]
    if stays.any() and not math.isinf(ridge):
        # Factors of 1 / count cancel out.
        inverse = _damped_inverse(own, ridge)
        missed[stays] -= own
        places = np.flatnonzero(
            missed.any(axis=1)
        )  # kept entries of the original are known exactly
        spread = missed[: len(places)]
        for part in blocks(len(places)):  # each row moves to its own place or further up
            spread[part] = missed[places[part]] @ inverse
    offset = moments.mean[:size].copy()
    offset[stays] -= mean
    offset[places] -= spread @ mean
    return _Estimate(places, spread, offset)


def most_alike(moments: Moments, stays: Mask) -> npt.NDArray[np.intp]:
    """For each entry of a signal, the kept one that is closest to it: itself if it is kept.

    Args:
        moments: of z and z' side by side, [n + k], with products with z' only.
        stays: True for the kept entries of z, [n].

    Returns:
        Indices into the kept entries, [n].
    """
    size, count = len(stays), max(moments.count, 1)
    before, after = moments.mean[:size, None], moments.mean[None, size:]
    own = np.diagonal(moments.comoment[size:])
    # E (z - z')^2 without the variance of z, which is the same for all z'.
    error = (own - 2 * moments.comoment[:size]) / count + (before - after) ** 2
    chosen: npt.NDArray[np.intp] = error.argmin(axis=1)
    chosen[stays] = np.arange(len(own))
    return chosen


def teacher_fits(
    traced: TracedModel, keep: Mask, moments: MomentStore, ridge: float = RIDGE
) -> dict[str, Fit]:
    """Fits all readers whose signals are cut, with signals of the original on both sides."""

    def pairs(reader: Reader) -> Moments:
        return teacher_pairs(moments[reader.pool], kept(reader.labels, keep))

    return fit_readers(traced, keep, pairs, ridge)


def teacher_pairs(moments: Moments, stays: Mask) -> Moments:
    """Moments of (z, z_S) from those of z: both sides are the original's signals."""
    places = np.concatenate([np.arange(len(stays)), np.flatnonzero(stays)])
    comoment = moments.comoment[np.ix_(places, places[len(stays) :])]
    return Moments(moments.count, moments.mean[places], comoment)


def stays(reader: Reader, lookup: Lookup, keep: Mask) -> tuple[Mask, Mask]:
    """Masks of the kept outputs of a reader, and of the kept entries of its signal."""
    return kept(reader.outputs(lookup), keep), kept(reader.labels, keep)


def _placed(reader: Reader, lookup: Lookup, rows: Mask, chosen: npt.NDArray[np.intp]) -> Fit:
    """A fit that selects: a single one in each row, at the chosen entry."""
    weight = reader.weight(lookup)
    placed = np.eye(chosen.max() + 1, dtype=weight.dtype)[chosen]
    return Fit(placed, np.zeros(rows.sum(), weight.dtype))


def _apply(weight: Lines, rows: Mask, columns: Mask, known: _Estimate) -> Fit:
    """The weight of the kept outputs, applied to the estimate of all entries."""
    lines, stays = np.flatnonzero(rows), np.flatnonzero(columns)
    dtype = weight(lines[:0]).dtype
    fitted = np.empty((len(lines), len(stays)), dtype)
    bias = np.empty(len(lines), dtype)
    for part in blocks(len(lines)):
        exact = weight(lines[part]).astype(np.float64)
        fitted[part] = exact[:, stays] + exact[:, known.places] @ known.spread
        bias[part] = exact @ known.offset
    return Fit(put_away(fitted), bias)


def _damped_inverse(own: Matrix, ridge: float) -> Matrix:
    """(C + lambda diag C)^-1, [k, k]; lambda keeps it well conditioned."""
    scale = np.diag(own)
    floor = _FLOOR * float(scale.mean()) + np.finfo(np.float64).tiny
    damped = own.copy()
    damped[np.diag_indices_from(damped)] += ridge * scale + floor
    return np.asarray(np.linalg.inv(damped), dtype=np.float64)
