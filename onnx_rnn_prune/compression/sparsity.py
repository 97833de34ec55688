"""Zeros in place of single weights: their pattern, their choice, and their storage.

| text | meaning |
| --- | --- |
| `50%`, `0.5` | this share of each matrix's weights goes, wherever they are |
| `2:4` | of every 4 adjacent weights along the input, at most 2 stay |
| `block=4x1:50%` | this share of whole blocks of 4 outputs x 1 input goes |
| `threshold=1e-3` | weights with smaller absolute values go |

The optimal brain surgeon removes weights and adjusts the others to compensate. When W becomes W +
D, a product W x with second moment H = E[x x'] of its input has the squared error tr(D H D').
Removing the weight w_j of a row, with the best change of the others, has the error

    w_j^2 / [H^-1]_jj,   and the others change by   - w_j [H^-1]_j / [H^-1]_jj

(Hassibi and Stork 1993). Rows share H, but each loses different weights, and would need its own
inverse. So columns are settled from left to right, and each changes only those to its right
(Frantar and Alistarh 2023, SparseGPT): then the rows of the Cholesky factor U of H^-1 = U' U
suffice. Weights to remove are chosen block by block, by the scores of all columns not settled yet,
so a share holds for the whole matrix and not for each block. In the end, conjugate gradients bring
the remaining weights to the least error that the pattern allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.compression import Stage
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.evidence import collect
from onnx_rnn_prune.evidence.matrices import Matrix, blocks
from onnx_rnn_prune.evidence.moments import Moments, MomentStore
from onnx_rnn_prune.evidence.products import find_products
from onnx_rnn_prune.evidence.readers import Lookup, Reader
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import with_sparse
from onnx_rnn_prune.model.runner import OURS, Runner
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.passes import Pipeline
from onnx_rnn_prune.passes.cleanup import ShareDuplicates
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.trace.observe import observe
from onnx_rnn_prune.trace.trace import trace
from onnx_rnn_prune.validate import oracle

_FORMS = "give 50%, 2:4, block=4x1:50% or threshold=1e-3"


class Pattern(Protocol):
    """Chooses weights by their scores."""

    @property
    def step(self) -> int:
        """How many adjacent columns are decided on together."""

    def keep(self, weight: Matrix, scores: Matrix, widths: Sequence[int]) -> Mask:
        """True where a weight stays, [outputs, n].

        Args:
            weight: the matrix, [outputs, n].
            scores: the cost of removing each weight; infinite where settled.
            widths: of the signals concatenated in its columns; joint decisions stay within one.
        """


@dataclass(frozen=True)
class Tiles:
    """The cheapest tiles go; tiles of a single weight are unstructured sparsity.

    Tiles at the edges may be smaller; the mean score of their weights counts.

    Attributes:
        rows: outputs in a tile.
        columns: inputs in a tile.
        share: the share of tiles that go, 0 to 1.
    """

    rows: int
    columns: int
    share: float

    @property
    def step(self) -> int:
        return self.columns

    def keep(self, weight: Matrix, scores: Matrix, widths: Sequence[int]) -> Mask:
        rows, columns = starts([len(scores)], self.rows), starts(widths, self.columns)
        heights, lengths = np.diff([*rows, len(scores)]), np.diff([*columns, scores.shape[1]])
        sums = np.add.reduceat(np.add.reduceat(scores, rows, axis=0), columns, axis=1)
        means = (sums / np.outer(heights, lengths)).reshape(-1)
        stays, count = np.ones(means.size, dtype=bool), round(self.share * means.size)
        stays[np.argpartition(means, max(count - 1, 0))[:count]] = False
        tiles = stays.reshape(sums.shape)
        return np.repeat(np.repeat(tiles, heights, axis=0), lengths, axis=1)


@dataclass(frozen=True)
class Grouped:
    """N:M: of every `of` adjacent weights along the input, at most `most` stay."""

    most: int
    of: int

    @property
    def step(self) -> int:
        return self.of

    def keep(self, weight: Matrix, scores: Matrix, widths: Sequence[int]) -> Mask:
        stays = np.zeros(scores.shape, dtype=bool)
        for group in np.split(np.arange(scores.shape[1]), starts(widths, self.of)[1:]):
            best = np.argsort(-scores[:, group], axis=1, kind="stable")[:, : self.most]
            np.put_along_axis(stays, group[best], True, axis=1)
        return stays


@dataclass(frozen=True)
class Small:
    """Weights with an absolute value below a limit go, whatever their score."""

    limit: float

    @property
    def step(self) -> int:
        return 1

    def keep(self, weight: Matrix, scores: Matrix, widths: Sequence[int]) -> Mask:
        return np.abs(weight) >= self.limit


def starts(widths: Sequence[int], step: int) -> npt.NDArray[np.int64]:
    """Where groups of `step` columns begin; no group spans two signals."""
    firsts = np.cumsum([0, *widths[:-1]])
    return np.concatenate(
        [np.arange(first, first + n, step) for first, n in zip(firsts, widths, strict=True)]
    ).astype(np.int64)


def parse_pattern(text: object) -> Pattern:
    """Parses `--sparsify`.

    Raises:
        PruneError: the text has none of the forms, or its numbers make no sense.
    """
    for form, make in _READERS:
        given = text.strip() if isinstance(text, str) else ""
        found = re.fullmatch(form, given, re.IGNORECASE)
        pattern = make(*found.groups()) if found else None
        if pattern is not None:
            return pattern
    raise PruneError(f"'{text}' is not a sparsity pattern", where="--sparsify", remedy=_FORMS)


def _tiles(rows: str, columns: str, number: str, percent: str | None) -> Pattern | None:
    share = float(number) / (100.0 if percent else 1.0)
    sizes = int(rows), int(columns)
    return Tiles(*sizes, share) if 0.0 <= share < 1.0 and all(sizes) else None


def _grouped(most: str, of: str) -> Pattern | None:
    return Grouped(int(most), int(of)) if 0 < int(most) <= int(of) else None


def _small(limit: str) -> Pattern | None:
    return Small(float(limit)) if 0.0 < float(limit) < np.inf else None


_NUMBER = r"(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})"
_SHARE = rf"({_NUMBER})(%)?"
_READERS: tuple[tuple[str, Callable[..., Pattern | None]], ...] = (
    (_SHARE, lambda number, percent: _tiles("1", "1", number, percent)),
    (r"([0-9]{1,6}):([0-9]{1,6})", _grouped),
    (rf"block=([0-9]{{1,6}})x([0-9]{{1,6}}):{_SHARE}", _tiles),
    (rf"threshold=({_NUMBER}(?:e[+-]?[0-9]{{1,3}})?)", _small),
)


_BLOCK = 128
# As a share of the diagonal of H; and of its mean, for inputs that are always 0.
_RIDGE, _FLOOR = 1e-2, 1e-6
_DESCENTS = 20


def second_moment(moments: Moments) -> Matrix:
    """E[x x'], [n, n]."""
    return moments.comoment / max(moments.count, 1) + np.outer(moments.mean, moments.mean)


def missed(change: Matrix, second: Matrix) -> float:
    """The squared error E |D x|^2 of a change D of a weight, [outputs, n]."""
    return float(np.sum((change @ second) * change))


def by_magnitude(weight: Matrix, pattern: Pattern, widths: Sequence[int]) -> Matrix:
    """The weight with its smallest entries zeroed, and the others unchanged."""
    return np.where(pattern.keep(weight, weight**2, widths), weight, 0.0)


def by_surgeon(
    weight: Matrix, second: Matrix, pattern: Pattern, widths: Sequence[int], ridge: float = _RIDGE
) -> Matrix:
    """The weight with zeros where they cost least, and the others adjusted to compensate.

    Args:
        weight: [outputs, n].
        second: E[x x'], [n, n].
        pattern: which entries may go.
        widths: of the signals that are laid side by side in its columns.
        ridge: lambda: H is `second` plus this share of its diagonal.

    Returns:
        [outputs, n]; with magnitude's zeros if those turn out better on `second`.
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
    """Removes weights from left to right, compensating on the right.

    Args:
        weight: [outputs, n].
        hessian: H, [n, n], positive definite.
        pattern: which entries may go.
        widths: of the signals that are laid side by side in its columns.
        block: about how many columns to choose from at a time.

    Returns:
        The changed weight, and the mask of nonzero entries.
    """
    inverse = np.linalg.inv(hessian)
    factor = np.linalg.cholesky((inverse + inverse.T) / 2.0).T
    result, keep = weight.copy(), np.ones(weight.shape, dtype=bool)
    scores = np.zeros(weight.shape)
    for first, last in _blocks(starts(widths, pattern.step).tolist(), weight.shape[1], block):
        free = np.sum(factor[first:, first:] ** 2, axis=0)  # [H^-1]_jj of the unsettled columns
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
    """Ranges of whole groups of columns."""
    first = 0
    for end in (*firsts[1:], width):
        if end - first >= block or end == width:
            yield first, end
            first = end


def _refit(result: Matrix, weight: Matrix, hessian: Matrix) -> Matrix:
    """The weight with the same zeros as a result and the least error that the steps reach."""
    for rows in blocks(len(result)):
        result[rows] = _descend(result[rows], weight[rows], hessian)
    return result


def _descend(start: Matrix, weight: Matrix, hessian: Matrix) -> Matrix:
    """Conjugate gradients on tr(D H D') over the nonzero weights, all rows at once."""
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


@dataclass(frozen=True, eq=False)
class Sparsify:
    """Zeroes weights of products by a pattern; shapes stay the same.

    Attributes:
        moments: of the readers' inputs; None to decide by magnitude, which also decides for a
            product whose branch was never taken, so that there are no samples.
    """

    readers: Sequence[Reader]
    pattern: Pattern
    moments: MomentStore | None

    def __call__(self, document: Document) -> bool:
        lookup = Lookup.of(document)
        for reader in self.readers:
            held = reader.weight(lookup)
            weight, widths = held.astype(np.float64), reader.widths(lookup)
            known = None if self.moments is None else self.moments[reader.pool]
            if known is None or not known.count:
                after = by_magnitude(weight, self.pattern, widths)
            else:
                after = by_surgeon(weight, second_moment(known), self.pattern, widths)
            rows, columns = map(np.arange, held.shape)
            none = np.zeros(len(rows), held.dtype)
            reader.store(lookup, (rows, columns), after.astype(held.dtype), none)
        return bool(self.readers)


_NO_FASTER = (
    "onnxruntime multiplies by zeros like any other number: the file compresses better but runs"
    " no faster"
)


@dataclass(frozen=True)
class Zeros:
    """Zeroes weights in the gates of all recurrent layers, and in the readers of their units.

    Attributes:
        text: the pattern as the user wrote it.
        by: magnitude, or obs for those that the others can compensate for.
    """

    text: str
    pattern: Pattern
    by: str

    @property
    def name(self) -> str:
        return f"zeros {self.text} by {self.by}"

    def __call__(self, document: Document, data: Calibration, progress: Progress) -> Document:
        layers = find_layers(document.graph)
        followed = trace(document, layers, observe(document, layers, data.calibration))
        readers = find_products(document, followed)
        moments = None
        if self.by == "obs":
            moments = collect(document, followed, readers, data.calibration, progress).moments
        Pipeline((Sparsify(readers, self.pattern, moments), ShareDuplicates()))(document)
        return document


@dataclass(frozen=True)
class SparseStorage:
    """Stores weights as sparse tensors where that is smaller."""

    name: str = "sparse initializers"

    def __call__(self, document: Document, data: Calibration, progress: Progress) -> Document:
        """Leaves the model unchanged if onnxruntime cannot load the result or computes another."""
        dense = document.write()
        stored = with_sparse(dense)
        if not stored.graph.sparse_initializer:
            return document
        before = Runner(dense, name="the model", remedy=OURS)
        try:
            after = Runner(stored, name="the model with sparse initializers", remedy=OURS)
            feeds = [next(iter(data.test))]
            same = oracle(before, after, feeds, original=before)
        except PruneError:
            return document
        return Document.read(stored) if same else document


def read_zeros(sparsify: object, by: str | None, given: bool) -> Stage:
    """The stage that zeroes weights.

    Args:
        sparsify: the pattern as text.
        by: one of `options.SPARSIFIERS`; None for obs with data, magnitude without.

    Raises:
        PruneError: the pattern makes no sense.
    """
    pattern = parse_pattern(sparsify)
    return Zeros(str(sparsify), pattern, by or ("obs" if given else "magnitude"))


def notes_on(stages: Sequence[Stage]) -> list[str]:
    """Notes for the user about some stages."""
    return [_NO_FASTER] if any(isinstance(stage, Zeros) for stage in stages) else []
