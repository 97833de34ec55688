"""Removing weights so that those that stay make up for them: the optimal brain surgeon.

A product W x with second moment H = E[x x'] of its input misses tr(D H D') once W becomes W + D.
Without the weight w_j of one row, and with the best change of the others, it misses

    w_j^2 / [H^-1]_jj,   and the others change by   - w_j [H^-1]_j / [H^-1]_jj

(Hassibi and Stork 1993). Rows share H, but each loses other weights, and would need an inverse of
its own. So columns are settled from left to right, and only those to the right of one change with
it (Frantar and Alistarh 2023, SparseGPT): then the rows of the Cholesky factor U of H^-1 = U' U
hold all that is needed. What goes is chosen block by block, by the scores of all columns that are
not settled, so that a share holds for the whole matrix and not for each block. At the end, the
weights that stay descend along conjugate gradients to the least error that their places allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnx_rnn_prune.compression.patterns import Pattern, starts
from onnx_rnn_prune.evidence.moments import Matrix, Moments, blocks
from onnx_rnn_prune.operators.labels import Mask

_BLOCK = 128
# Of the diagonal of H; and of its mean, for inputs that are always 0.
_RIDGE, _FLOOR = 1e-2, 1e-6
_DESCENTS = 20


def second_moment(moments: Moments) -> Matrix:
    """E[x x'], [n, n]."""
    return moments.comoment / max(moments.count, 1) + np.outer(moments.mean, moments.mean)


def missed(change: Matrix, second: Matrix) -> float:
    """E |D x|^2 for a change D of a weight, [outputs, n]."""
    return float(np.sum((change @ second) * change))


def by_magnitude(weight: Matrix, pattern: Pattern, widths: Sequence[int]) -> Matrix:
    """The weight with its smallest entries zero, and the others as they were."""
    return np.where(pattern.keep(weight, weight**2, widths), weight, 0.0)


def by_surgeon(
    weight: Matrix, second: Matrix, pattern: Pattern, widths: Sequence[int], ridge: float = _RIDGE
) -> Matrix:
    """The weight with zeros where they cost least, and the others changed to make up for them.

    Args:
        weight: [outputs, n].
        second: E[x x'], [n, n].
        pattern: which entries may go.
        widths: of the signals that are laid side by side in its columns.
        ridge: lambda: H is `second` with so much more of its diagonal.

    Returns:
        [outputs, n]; where magnitude chooses better places on `second`, with zeros in those.
    """
    plain = by_magnitude(weight, pattern, widths)
    damped = second.copy()
    diagonal = np.diag(second)
    floor = _FLOOR * float(diagonal.mean()) + np.finfo(np.float64).tiny
    damped[np.diag_indices_from(damped)] += ridge * diagonal + floor
    settled, _ = settle_columns(weight, damped, pattern, widths)
    found = _refit(settled, weight, damped), _refit(plain.copy(), weight, damped), plain
    return min(found, key=lambda other: missed(other - weight, second))


def settle_columns(
    weight: Matrix, hessian: Matrix, pattern: Pattern, widths: Sequence[int], block: int = _BLOCK
) -> tuple[Matrix, Mask]:
    """Removes weights from left to right, and makes up for them on the right.

    Args:
        weight: [outputs, n].
        hessian: H, [n, n], positive definite.
        pattern: which entries may go.
        widths: of the signals that are laid side by side in its columns.
        block: how many columns, about, are chosen from at a time.

    Returns:
        The changed weight, and where it is not zero.
    """
    inverse = np.linalg.inv(hessian)
    factor = np.linalg.cholesky((inverse + inverse.T) / 2.0).T
    result, keep = weight.copy(), np.ones(weight.shape, dtype=bool)
    scores = np.zeros(weight.shape)
    for first, last in _blocks(starts(widths, pattern.step).tolist(), weight.shape[1], block):
        free = np.sum(factor[first:, first:] ** 2, axis=0)  # [H^-1]_jj of what is not settled
        scores[:, first:] = result[:, first:] ** 2 / free
        keep[:, first:last] = pattern.keep(weight, scores, widths)[:, first:last]
        scores[:, first:last] = np.where(keep[:, first:last], np.inf, -np.inf)
        errors = np.zeros((len(weight), last - first))
        for column in range(first, last):
            gone = np.where(keep[:, column], 0.0, result[:, column])
            errors[:, column - first] = gone / factor[column, column]
            row = factor[column, column:last]
            result[:, column:last] -= np.outer(errors[:, column - first], row)
        result[:, last:] -= errors @ factor[first:last, last:]
    return np.where(keep, result, 0.0), keep


def _blocks(firsts: Sequence[int], width: int, block: int) -> Iterator[tuple[int, int]]:
    """Runs of whole groups of columns."""
    first = 0
    for end in (*firsts[1:], width):
        if end - first >= block or end == width:
            yield first, end
            first = end


def _refit(result: Matrix, weight: Matrix, hessian: Matrix) -> Matrix:
    """The weight that misses least with zeros where a result has them, as far as steps lead."""
    for rows in blocks(len(result)):
        result[rows] = _descend(result[rows], weight[rows], hessian)
    return result


def _descend(start: Matrix, weight: Matrix, hessian: Matrix) -> Matrix:
    """Conjugate gradients on tr(D H D') over the weights that are not zero, all rows at once."""
    result, keep = start, start != 0
    scale = 1.0 / np.diag(hessian)
    residual = np.where(keep, (weight - result) @ hessian, 0.0)
    step = residual * scale
    size = np.sum(residual * step, axis=1)
    for _ in range(_DESCENTS):
        bent = np.where(keep, step @ hessian, 0.0)
        curve = np.sum(step * bent, axis=1)
        length = np.divide(size, curve, out=np.zeros_like(size), where=curve > 0)[:, None]
        result = result + length * step
        residual = residual - length * bent
        ready = residual * scale
        before, size = size, np.sum(residual * ready, axis=1)
        turn = np.divide(size, before, out=np.zeros_like(size), where=before > 0)[:, None]
        step = ready + turn * step
    return result
