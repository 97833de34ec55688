"""Moments of what readers read; what is too large for memory lies in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.scratch import temporary_folder, trim, written_in

Matrix = npt.NDArray[np.float64]

_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and co-moment of samples of a vector.

    Merging is associative, so samples may be split between any number of workers (Chan, Golub and
    LeVeque 1983, "Algorithms for computing the sample variance").

    Attributes:
        count: number of samples, or the sum of their weights.
        mean: [n].
        comoment: sum of outer products of deviations from the mean, [n, n]; or [n, last] where only
            the products with the last entries are wanted.
    """

    count: float
    mean: Matrix
    comoment: Matrix

    @staticmethod
    def of(
        samples: npt.NDArray[np.generic], last: int | None = None, weights: Matrix | None = None
    ) -> Moments:
        """The moments of samples, shape [N, n]; of each as many as its weight says, if any, [N]."""
        return _Centred.of(samples, last, weights).moments()

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


@dataclass(frozen=True, eq=False)
class _Centred:
    """Samples without their mean, of whose products moments are made.

    Attributes:
        count: number of samples, or the sum of their weights.
        mean: [n].
        left: [N, n].
        right: their last entries, times their weights, [N, last].
    """

    count: float
    mean: Matrix
    left: Matrix
    right: Matrix

    @staticmethod
    def of(samples: npt.NDArray[np.generic], last: int | None, weights: Matrix | None) -> _Centred:
        """See `Moments.of`."""
        values = np.asarray(samples, dtype=np.float64)
        if not np.isfinite(values).all():
            raise PruneError(
                "signals of a recurrent layer become infinite or NaN on this data",
                where="calibration",
                remedy="check the data for bad values, or leave such feeds out",
            )
        mean = np.zeros(values.shape[1])
        if len(values):
            mean = np.average(values, axis=0, weights=weights)
        left = values - mean
        right = left[:, 0 if last is None else len(mean) - last :]
        if weights is None:
            return _Centred(len(values), mean, left, right)
        return _Centred(float(weights.sum()), mean, left, right * weights[:, None])

    def moments(self) -> Moments:
        """Sums of products."""
        return Moments(self.count, self.mean, self.left.T @ self.right)


def blocks(rows: int) -> Iterator[slice]:
    """Cuts rows of a matrix into parts, so that what is made of one at a time stays small."""
    for start in range(0, rows, _BLOCK):
        yield slice(start, start + _BLOCK)


# Matrices of so many bytes are worth a file, and worth giving their memory back.
_IN_FILE, LARGE = 1 << 20, 1 << 23
# Samples are summed up once they have so many bytes, and as many as the matrix that they are added
# to, or at most these; so many of all names together are too much.
_FEW, _MOST, _MANY = 1 << 20, 1 << 24, 1 << 25


@dataclass
class _MatrixFile:
    """A matrix in a file, of which a block of rows at a time is in memory.

    Attributes:
        path: of the file.
        shape: of the matrix.
        half: whether blocks below the diagonal are yet to be copied from above it.
    """

    path: Path
    shape: tuple[int, int]
    half: bool = False

    def read(self) -> Matrix:
        """All of it."""
        return np.fromfile(self.path).reshape(self.shape)

    def mapped(self) -> Matrix:
        """All of it, to look at; what is looked at counts as memory while it is mapped."""
        return np.memmap(self.path, np.float64, "r", shape=self.shape)

    def add(self, part: Callable[[slice, slice], Matrix]) -> None:
        """Adds a matrix block by block.

        Args:
            part: gives a block of some rows and columns. A square matrix is symmetric: only blocks
                on and above the diagonal are asked for.
        """
        height, width = self.shape
        self.half = height == width

        def sums(rows: slice) -> Matrix:
            columns = slice(rows.start if self.half else 0, width)
            lines = self._lines(rows)
            lines[:, columns] += part(rows, columns)
            return lines

        self._rewrite(sums)

    def complete(self) -> None:
        """Copies what is above the diagonal to below it."""

        def whole(rows: slice) -> Matrix:
            lines = self._lines(rows)
            lines[:, : rows.start] = self.mapped()[: rows.start, rows].T
            return lines

        if self.half:
            self._rewrite(whole)
            self.half = False

    def _lines(self, rows: slice) -> Matrix:
        height, width = self.shape
        count = min(rows.stop, height) - rows.start
        if self.path.stat().st_size <= 8 * rows.start * width:  # nothing was added yet
            return np.zeros((count, width))
        lines = np.fromfile(self.path, count=count * width, offset=8 * rows.start * width)
        return lines.reshape(count, width)

    def _rewrite(self, lines: Callable[[slice], Matrix]) -> None:
        # A file that is mapped to be written ends the process when the disk is full.
        with written_in(self.path.parent), self.path.open("r+b") as file:
            for rows in blocks(self.shape[0]):
                file.write(lines(rows).data)
                file.flush()


@dataclass
class _Waiting:
    """Samples that are yet to be summed up, and how that is done."""

    last: int | None
    parts: list[Array] = field(default_factory=list)
    weights: list[Matrix] = field(default_factory=list)
    bytes: int = 0


class MomentStore:
    """Moments by name; large matrices lie in a scratch folder that goes when the store does.

    Of all readers, only one with a large matrix at a time is in memory.
    """

    def __init__(self) -> None:
        self._folder = temporary_folder()
        self._heads: dict[str, tuple[float, Matrix]] = {}
        self._files: dict[str, _MatrixFile] = {}
        self._small: dict[str, Matrix] = {}
        self._waiting: dict[str, _Waiting] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._heads or name in self._waiting

    def __getitem__(self, name: str) -> Moments:
        """A copy of the caller's own."""
        self._complete(name)
        count, mean = self._heads[name]
        small = self._small.get(name)
        comoment = self._files[name].read() if small is None else small.copy()
        if comoment.nbytes > LARGE:
            trim()
        return Moments(count, mean, comoment)

    def count(self, name: str) -> float:
        """The number of samples, or the sum of their weights."""
        self._settle(name)
        return self._heads[name][0]

    def variance(self, name: str) -> Matrix:
        """Of each entry, [n]."""
        self._settle(name)
        count, small = max(self._heads[name][0], 1), self._small.get(name)
        return np.diag(self._files[name].mapped() if small is None else small) / count

    def covariance(
        self, name: str, places: npt.NDArray[np.int64], dtype: npt.DTypeLike = np.float64
    ) -> Array:
        """Of some entries, [places, places]; no more than they are read."""
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
        """Merges moments into those of that name; the arrays given are used up."""
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
        self, name: str, samples: Array, last: int | None = None, weights: Matrix | None = None
    ) -> None:
        """Merges the moments of samples, see `Moments.of`; few samples wait for others of the name.

        Calls of a single step would otherwise each cost as much as a sequence does, and products of
        a wide reader less than what it takes to add them to a matrix in a file.
        """
        waiting = self._waiting.setdefault(name, _Waiting(last))
        waiting.parts.append(samples)
        if weights is not None:
            waiting.weights.append(weights)
        waiting.bytes += samples.nbytes
        width = samples.shape[1]
        if waiting.bytes >= max(_FEW, min(8 * width * (last or width), _MOST)):
            self._settle(name)
        elif sum(other.bytes for other in self._waiting.values()) > _MANY:
            self._settle(max(self._waiting, key=lambda each: self._waiting[each].bytes))

    def merge(self, other: MomentStore) -> None:
        """Merges all moments of another store into those of the same names."""
        for name in other._names():
            self.add(name, other[name])

    @staticmethod
    def of(moments: Mapping[str, Moments]) -> MomentStore:
        """A store with some moments, which are used up."""
        result = MomentStore()
        for name, found in moments.items():
            result.add(name, found)
        return result

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Moments]], MomentStore], tuple[object]]:
        """What another process is sent: the moments, not the folder."""
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
            known = _Centred.of(joined, waiting.last, weights)
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
        """The same as `add` where the matrix lies in a file, to which it is added part by part."""
        before, old = self._heads.get(name, (0, mean))
        total, step = before + count, mean - old
        share = count / total if total else 0.0
        ends = step[len(step) - last :] * (before * share)
        if name not in self._files:
            path = Path(self._folder.name) / str(len(self._files))
            with written_in(path.parent):
                path.touch()
            self._files[name] = _MatrixFile(path, (len(mean), last))
        self._files[name].add(
            lambda rows, columns: part(rows, columns) + np.outer(step[rows], ends[columns])
        )
        self._heads[name] = total, old + step * share


class InFile:
    """An array in a scratch file that goes when this does; `numpy.asarray` reads it anew."""

    def __init__(self, values: Array) -> None:
        self._folder = temporary_folder()
        self._path = Path(self._folder.name) / "values.npy"
        with written_in(self._folder.name):
            np.save(self._path, values, allow_pickle=False)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.asarray(np.load(self._path, allow_pickle=False), dtype=dtype)

    def __reduce__(self) -> tuple[type[InFile], tuple[Array]]:
        """Another process has files of its own."""
        return InFile, (np.asarray(self),)


def put_away(values: Array) -> Array | InFile:
    """An array that is to be kept for long; in a file where it is large."""
    return InFile(values) if values.nbytes > LARGE else values
