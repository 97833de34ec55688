"""Moments of the signals of readers; large matrices lie in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.matrices import LARGE, Matrix, MatrixFile, blocks
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.scratch import temporary_folder, trim, written_in


def _together(
    count: float, mean: Matrix, more: float, other: Matrix
) -> tuple[float, Matrix, Matrix, Matrix]:
    """Count and mean of two sets of samples, and the vectors whose outer product is the co-moment.

    That is, what their co-moment is larger by than the sum of both (Chan, Golub and LeVeque 1983,
    "Algorithms for computing the sample variance").
    """
    total, step = count + more, other - mean
    share = more / total if total else 0.0
    return total, mean + step * share, step, step * (count * share)


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and co-moment of samples of a vector.

    Merging is associative, so samples may be split between any number of workers.

    Attributes:
        count: number of samples, or the sum of their weights.
        mean: [n].
        comoment: sum of outer products of deviations from the mean, [n, n]; or [n, last] if only
            products with the last entries are wanted.
    """

    count: float
    mean: Matrix
    comoment: Matrix

    @staticmethod
    def of(
        samples: npt.NDArray[np.generic], last: int | None = None, weights: Matrix | None = None
    ) -> Moments:
        """The moments of samples, [N, n], optionally weighted, [N]."""
        return _Centred.of(samples, last, weights).moments()

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of samples together; consumes the arrays of `other`."""
        count, mean, step, gain = _together(self.count, self.mean, other.count, other.mean)
        comoment = other.comoment
        comoment += self.comoment
        last = gain[len(gain) - comoment.shape[1] :]
        for rows in blocks(len(step)):
            comoment[rows] += np.outer(step[rows], last)
        return Moments(count, mean, comoment)

    def covariance(self, places: npt.NDArray[np.int64]) -> Matrix:
        """The covariance of some entries, [places, places]."""
        return self.comoment[np.ix_(places, places)] / max(self.count, 1)

    @property
    def variance(self) -> Matrix:
        """[n]."""
        return np.diag(self.comoment) / max(self.count, 1)


@dataclass(frozen=True, eq=False)
class _Centred:
    """Centred samples, whose products give the moments.

    Attributes:
        count: number of samples, or the sum of their weights.
        mean: [n].
        left: [N, n].
        right: their last entries, times their weights, [N, last].
    """

    count: float
    mean: Matrix
    left: Array
    right: Array

    @staticmethod
    def of(
        samples: npt.NDArray[np.generic],
        last: int | None,
        weights: Matrix | None,
        dtype: npt.DTypeLike = np.float64,
    ) -> _Centred:
        """See `Moments.of`; `dtype` is the type of the products."""
        left: Array = np.array(samples, dtype=dtype)
        if not np.isfinite(left).all():
            raise PruneError(
                "signals of a recurrent layer become infinite or NaN on this data",
                where="calibration",
                remedy="check the data for bad values, or leave such feeds out",
            )
        shares = np.ones(len(left)) if weights is None else weights
        count = float(shares.sum())
        mean = np.einsum("n,ni->i", shares, left) / (count or 1.0)  # unlike @, copies nothing
        left -= mean.astype(dtype)
        right = left[:, 0 if last is None else len(mean) - last :]
        if weights is not None:
            right = right * weights[:, None].astype(dtype)
        return _Centred(count, mean, left, right)

    def moments(self) -> Moments:
        """Sums the products."""
        return Moments(self.count, self.mean, self.left.T @ self.right)


Lines = Callable[[slice], Matrix]
"""Reads some rows of a matrix."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Moments of a signal z of the original and of z', what became of its kept entries.

    Their co-moments may be too large to be in memory: a few rows are read at a time.

    Attributes:
        count: number of samples, or the sum of their weights.
        mean: of z and z' side by side, [n + k].
        size: n.
        lines: copies of rows of the sum of outer products of deviations from the mean, with z'
            only, [n + k, k]; a slice takes rows of z or of z', not of both.
    """

    count: float
    mean: Matrix
    size: int
    lines: Lines

    def merge(self, other: Pairs) -> Pairs:
        """The moments of both sets of samples together."""
        count, mean, step, gain = _together(self.count, self.mean, other.count, other.mean)

        def lines(rows: slice) -> Matrix:
            return self.lines(rows) + other.lines(rows) + np.outer(step[rows], gain[self.size :])

        return Pairs(count, mean, self.size, lines)


# Bytes from which on matrices go to a file.
_IN_FILE = 1 << 20
# Bytes from which on products are in single precision, and only their sums in double: with
# thousands of entries, there are only a few samples per entry, whose noise far exceeds rounding.
_SINGLE = 1 << 25
# Samples are summed up once they have so many bytes, and as many as the matrix that they are added
# to, or at most these; so many of all names together are too much.
_FEW, _MOST, _MANY = 1 << 20, 1 << 22, 1 << 24
# Large matrices are rewritten each time: for these, it is this share of their bytes.
_REWRITTEN = 6


@dataclass
class _Waiting:
    """Samples yet to be summed, with the arguments for that.

    Attributes:
        bytes: of the samples.
    """

    last: int | None
    parts: list[Array] = field(default_factory=list)
    weights: list[Matrix] = field(default_factory=list)
    bytes: int = 0

    @property
    def matrix(self) -> int:
        """Bytes of the matrix that they are added to."""
        width = int(self.parts[0].shape[1])
        return 8 * width * (self.last or width)


class MomentStore:
    """Moments by name; large matrices lie in a scratch folder, deleted with the store.

    Only one large matrix is in memory at a time.
    """

    def __init__(self) -> None:
        self._folder = temporary_folder()
        self._heads: dict[str, tuple[float, Matrix]] = {}
        self._files: dict[str, MatrixFile] = {}
        self._small: dict[str, Matrix] = {}
        self._waiting: dict[str, _Waiting] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._heads or name in self._waiting

    def __getitem__(self, name: str) -> Moments:
        """The moments of a name, as a copy for the caller."""
        self._complete(name)
        count, mean = self._heads[name]
        small = self._small.get(name)
        comoment = self._files[name].read() if small is None else small.copy()
        if comoment.nbytes > LARGE:
            trim()
        return Moments(count, mean, comoment)

    def pairs(self, name: str) -> Pairs:
        """Moments of z and z' side by side that were gathered with products with z' only."""
        lines = self._lines(name)
        count, mean = self._heads[name]
        size = len(mean) - lines(slice(0, 1)).shape[1]
        return Pairs(count, mean, size, lambda rows: np.array(lines(rows)))

    def teacher_pairs(self, name: str, stays: npt.NDArray[np.bool_]) -> Pairs:
        """Those of a signal z and its own entries that stay: both sides are the original's.

        Args:
            name: of the moments of z.
            stays: True for the kept entries of z, [n].
        """
        signal, size, places = self._lines(name), len(stays), np.flatnonzero(stays)
        count, mean = self._heads[name]

        def lines(rows: slice) -> Matrix:
            if rows.start < size:
                return signal(rows)[:, places]
            return signal(places[rows.start - size : rows.stop - size])[:, places]

        return Pairs(count, np.concatenate([mean, mean[places]]), size, lines)

    def _lines(self, name: str) -> Callable[[slice | npt.NDArray[np.intp]], Matrix]:
        """Some rows of a co-moment, to be copied: they may be of a mapped file."""
        self._complete(name)
        small = self._small.get(name)
        if small is not None:
            return lambda rows: small[rows]
        file = self._files[name]
        return lambda rows: file.mapped()[rows]

    def count(self, name: str) -> float:
        """The number of samples, or the sum of their weights."""
        self._settle(name)
        return self._heads[name][0]

    def variance(self, name: str) -> Matrix:
        """The variance of each entry, [n]."""
        self._settle(name)
        count, small = max(self._heads[name][0], 1), self._small.get(name)
        return np.diag(self._files[name].mapped() if small is None else small) / count

    def covariance(
        self, name: str, places: npt.NDArray[np.int64], dtype: npt.DTypeLike = np.float64
    ) -> Array:
        """The covariance of some entries, [places, places]; reads no others."""
        self._complete(name)
        count, small = max(self._heads[name][0], 1), self._small.get(name)
        if small is not None:
            return (small[np.ix_(places, places)] / count).astype(dtype, copy=False)
        result = np.empty((len(places), len(places)), dtype)
        for rows in blocks(len(places)):
            result[rows] = self._files[name].mapped()[places[rows]][:, places]
        result /= count
        return result

    def add(self, name: str, moments: Moments) -> None:
        """Merges moments into those of a name; consumes the given arrays."""
        comoment = moments.comoment
        if comoment.nbytes < _IN_FILE:
            if name in self._heads:
                moments = Moments(*self._heads[name], self._small[name]).merge(moments)
            self._heads[name] = moments.count, moments.mean
            self._small[name] = moments.comoment
            return
        self._add_rows(
            name, moments.count, moments.mean, comoment.shape[1], lambda *part: comoment[part]
        )
        if comoment.nbytes > LARGE:
            trim()

    def gather(
        self, name: str, signal: Array, cut: Array | None = None, weights: Matrix | None = None
    ) -> None:
        """Merges the moments of samples; small batches wait for more samples.

        Otherwise each call of a single step would cost as much as a sequence, and adding the
        products of a wide reader to a file would take longer than computing them.

        Args:
            name: of the moments.
            signal: samples of z, [N, n].
            cut: samples of z', [N, k]; if given, only products with these are wanted, see `Pairs`.
            weights: of the samples, [N].
        """
        last, sides = (None, [signal]) if cut is None else (cut.shape[1], [signal, cut])
        width = sum(side.shape[1] for side in sides)
        most = max(1, _MOST // max(1, signal.itemsize * width))
        for start in range(0, max(1, len(signal)), most):  # copies in double precision are larger
            rows = slice(start, start + most)
            samples = np.hstack([side[rows] for side in sides])
            self._wait(name, samples, last, None if weights is None else weights[rows])

    def _wait(self, name: str, samples: Array, last: int | None, weights: Matrix | None) -> None:
        waiting = self._waiting.setdefault(name, _Waiting(last))
        waiting.parts.append(samples)
        if weights is not None:
            waiting.weights.append(weights)
        waiting.bytes += samples.nbytes
        share = max(_MOST, waiting.matrix // _REWRITTEN)
        every = self._waiting.values()
        many = max(_MANY, sum(each.matrix for each in every) // _REWRITTEN)
        if waiting.bytes >= max(_FEW, min(waiting.matrix, share)):
            self._settle(name)
        elif sum(each.bytes for each in every) > many:
            self._settle(max(self._waiting, key=lambda each: self._waiting[each].bytes))

    def merge(self, other: MomentStore) -> None:
        """Merges all moments of another store into those of the same names."""
        for name in other._names():
            self.add(name, other[name])

    @staticmethod
    def of(moments: Mapping[str, Moments]) -> MomentStore:
        """A store of the given moments, which are consumed."""
        result = MomentStore()
        for name, found in moments.items():
            result.add(name, found)
        return result

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Moments]], MomentStore], tuple[object]]:
        """Pickles the moments, not the folder."""
        return MomentStore.of, ({name: self[name] for name in self._names()},)

    def _names(self) -> list[str]:
        return list(dict.fromkeys([*self._heads, *self._waiting]))

    def _complete(self, name: str) -> None:
        self._settle(name)
        if name in self._files:
            self._files[name].complete()

    def _settle(self, name: str) -> None:
        waiting = self._waiting.pop(name, None)
        if waiting is not None:
            first, *rest = waiting.parts
            joined = np.concatenate([first, *rest]) if rest else np.ascontiguousarray(first)
            weights = np.concatenate(waiting.weights) if waiting.weights else None
            dtype = np.float32 if waiting.matrix >= _SINGLE else np.float64
            known = _Centred.of(joined, waiting.last, weights, dtype)
            height, width = known.left.shape[1], known.right.shape[1]
            if 8 * height * width < _IN_FILE:
                self.add(name, known.moments())
                return
            self._add_rows(
                name, known.count, known.mean, width,
                lambda rows, columns: known.left[:, rows].T @ known.right[:, columns],
            )  # fmt: skip

    def _add_rows(
        self,
        name: str,
        count: float,
        mean: Matrix,
        last: int,
        part: Callable[[slice, slice], Matrix],
    ) -> None:
        """Like `add`, for a matrix in a file: adds block by block."""
        total, joint, step, gain = _together(*self._heads.get(name, (0, mean)), count, mean)
        ends = gain[len(gain) - last :]
        if name not in self._files:
            path = Path(self._folder.name) / str(len(self._files))
            with written_in(path.parent):
                path.touch()
            self._files[name] = MatrixFile(path, (len(mean), last))
        self._files[name].add(
            lambda rows, columns: part(rows, columns) + np.outer(step[rows], ends[columns])
        )
        self._heads[name] = total, joint
