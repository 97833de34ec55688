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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.evidence.matrices import InFile, Matrix, blocks, put_away
from onnx_rnn_prune.evidence.moments import MomentStore, Pairs
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
# Entries of a weight that are fitted at a time, in double precision.
_ENTRIES = 1 << 21
# Rows of the blocks by which matrices are factored.
_BLOCK = 128


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
    traced: TracedModel, keep: Mask, pairs: Callable[[Reader], Pairs], ridge: float
) -> dict[str, Fit]:
    """Fits all readers whose signals are cut.

    Args:
        traced: the model, at full width.
        keep: per unit, True where it stays.
        pairs: the moments of a reader's z and z'.
        ridge: lambda; infinity corrects biases only.
    """
    found: dict[str, Fit] = {}
    lookup = Lookup.of(traced.document)
    for reader in traced.readers:
        rows, columns = stays(reader, lookup, keep)
        if not columns.all():
            known = pairs(reader)
            if reader.places:
                found[reader.name] = _placed(reader, lookup, rows, most_alike(known, columns))
            else:
                fit = _fit(reader.lines(lookup), rows, columns, known, ridge)
                found[reader.name] = Fit(put_away(fit.weight), fit.bias)
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


def estimate_entries(pairs: Pairs, stays: Mask, ridge: float) -> tuple[Matrix, Matrix]:
    """All entries of a signal from the kept ones.

    Args:
        pairs: the moments of z and z'.
        stays: True for the kept entries of z, [n].
        ridge: lambda.

    Returns:
        E + A, [n, k], and a, [n].
    """
    every = np.arange(len(stays))

    def identity(rows: npt.NDArray[np.intp]) -> Array:
        return np.equal.outer(rows, every).astype(np.float64)

    fit = _fit(identity, np.ones(len(stays), bool), stays, pairs, ridge)
    return fit.weight, fit.bias


def most_alike(pairs: Pairs, stays: Mask) -> npt.NDArray[np.intp]:
    """For each entry of a signal, the one that stays that is itself, or most like it.

    Args:
        pairs: the moments of z and z'.
        stays: True for the kept entries of z, [n].

    Returns:
        Indices into the kept entries, [n].
    """
    size, width, count = len(stays), int(stays.sum()), max(pairs.count, 1)
    own = np.zeros(width)
    for rows in blocks(width):
        lines = pairs.lines(slice(size + rows.start, size + rows.stop))
        own[rows] = np.diagonal(lines, rows.start)
    before, after = pairs.mean[:size, None], pairs.mean[None, size:]
    chosen = np.zeros(size, np.intp)
    for rows in blocks(size):
        # E (z - z')^2, but for the variance of z, which is the same for all z'.
        error = (own - 2 * pairs.lines(rows)) / count + (before[rows] - after) ** 2
        chosen[rows] = error.argmin(axis=1)
    chosen[stays] = np.arange(width)
    return chosen


def teacher_fits(
    traced: TracedModel, keep: Mask, moments: MomentStore, ridge: float = RIDGE
) -> dict[str, Fit]:
    """Fits all readers whose signals are cut, with signals of the original on both sides."""

    def pairs(reader: Reader) -> Pairs:
        return moments.teacher_pairs(reader.pool, kept(reader.labels, keep))

    return fit_readers(traced, keep, pairs, ridge)


def stays(reader: Reader, lookup: Lookup, keep: Mask) -> tuple[Mask, Mask]:
    """Masks of the kept outputs of a reader, and of the kept entries of its signal."""
    return kept(reader.outputs(lookup), keep), kept(reader.labels, keep)


def _placed(reader: Reader, lookup: Lookup, rows: Mask, chosen: npt.NDArray[np.intp]) -> Fit:
    """A fit that selects: a single one in each row, at the chosen entry."""
    weight = reader.weight(lookup)
    placed = np.eye(chosen.max() + 1, dtype=weight.dtype)[chosen]
    return Fit(placed, np.zeros(rows.sum(), weight.dtype))


@dataclass(frozen=True, eq=False)
class _Weights:
    """W', [rows, k], and W a, [rows]."""

    weight: Matrix
    bias: Matrix


def _fit(weight: Lines, rows: Mask, columns: Mask, pairs: Pairs, ridge: float) -> _Weights:
    """The weight of the kept outputs, applied to the estimate of all entries.

    Args:
        weight: W, [outputs, n].
        rows: the outputs that stay.
        columns: the entries of z that stay.
        pairs: the moments of z and z'.
        ridge: lambda; infinity leaves the kept weights as they are.
    """
    lines, stays, size = np.flatnonzero(rows), np.flatnonzero(columns), len(columns)
    dtype = weight(lines[:0]).dtype
    fitted = np.empty((len(lines), len(stays)), dtype)
    bias = np.empty(len(lines), dtype)
    solves = len(stays) > 0 and not math.isinf(ridge)
    if solves:
        own = np.empty((len(stays), len(stays)))
        for some in blocks(len(stays)):
            own[some] = pairs.lines(slice(size + some.start, size + some.stop))
        _damp(own, ridge)
        _factor(own)
    few = max(1, _ENTRIES // size)
    for first in range(0, len(lines), few):
        part = slice(first, first + few)
        exact = weight(lines[part]).astype(np.float64)
        estimated = exact[:, stays]
        if solves:  # what W multiplies comes first: E + A itself may be larger than the model
            missed = np.zeros(estimated.shape)
            for places, rest in _missed(pairs, columns):
                missed += exact[:, places] @ rest
            _divide(missed, own)
            estimated += missed
        fitted[part] = estimated
        bias[part] = exact @ pairs.mean[:size] - estimated @ pairs.mean[size:]
    return _Weights(fitted, bias)


def _missed(pairs: Pairs, stays: Mask) -> Iterator[tuple[npt.NDArray[np.intp], Matrix]]:
    """Rows of Cov(z - E z', z') that are not 0, and where they are.

    With signals of the original on both sides, kept entries miss nothing. Factors of 1 / count are
    left out, since they cancel.
    """
    size, before = len(stays), 0
    for rows in blocks(size):
        own, rest = stays[rows], pairs.lines(rows)
        after = before + int(own.sum())
        rest[own] -= pairs.lines(slice(size + before, size + after))
        before = after
        told = rest.any(axis=1)
        yield rows.start + np.flatnonzero(told), rest[told]


def _damp(own: Matrix, ridge: float) -> None:
    """Adds lambda diag C to C, [k, k], in its place; it keeps C well conditioned."""
    scale = np.diag(own).copy()
    floor = _FLOOR * float(scale.mean()) + np.finfo(np.float64).tiny
    own[np.diag_indices_from(own)] += ridge * scale + floor


def _factor(matrix: Matrix) -> None:
    """Factors a symmetric positive definite matrix by blocks as L D L', in its place, [k, k].

    The diagonal blocks become the inverses of D's; those below are L D (Golub and Van Loan, "Matrix
    Computations", 4.1). That takes a quarter of the time of an inverse, and no second matrix.
    """
    for start in range(0, len(matrix), _BLOCK):
        end = start + _BLOCK
        inner, below = matrix[start:end, start:end], matrix[end:, start:end]
        inner[:] = np.linalg.inv(inner)
        for first in range(0, len(below), _BLOCK):
            last = first + _BLOCK
            rest = matrix[end + first : end + last, end : end + last]
            rest -= (below[first:last] @ inner) @ below[:last].T


def _divide(rows: Matrix, factored: Matrix) -> None:
    """Multiplies rows, [m, k], by the inverse of what `_factor` factored, in their place."""
    starts = range(0, len(factored), _BLOCK)
    for start in starts:
        end = start + _BLOCK
        rows[:, start:end] = rows[:, start:end] @ factored[start:end, start:end]
        rows[:, end:] -= rows[:, start:end] @ factored[end:, start:end].T
    for start in reversed(starts):
        end = start + _BLOCK
        behind = rows[:, end:] @ factored[end:, start:end]
        rows[:, start:end] -= behind @ factored[start:end, start:end]
