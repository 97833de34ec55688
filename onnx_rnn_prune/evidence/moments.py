"""Moments of what readers read; what is too large for memory lies in files."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Array, Feed
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
        values = np.asarray(samples, dtype=np.float64)
        if not np.isfinite(values).all():
            raise PruneError(
                "a recurrent layer's signals become infinite or not a number on this data",
                where="calibration",
                remedy="look for broken values in the data, or leave such feeds out",
            )
        mean = np.zeros(values.shape[1])
        if len(values):
            mean = np.average(values, axis=0, weights=weights)
        centred = values - mean
        right = centred[:, 0 if last is None else len(mean) - last :]
        if weights is None:
            return Moments(len(values), mean, centred.T @ right)
        return Moments(float(weights.sum()), mean, centred.T @ (right * weights[:, None]))

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


def blocks(rows: int) -> Iterator[slice]:
    """Cuts rows of a matrix into parts, so that what is made of one at a time stays small."""
    for start in range(0, rows, _BLOCK):
        yield slice(start, start + _BLOCK)


# Matrices of so many bytes are worth a file, and worth giving their memory back.
_IN_FILE, LARGE = 1 << 20, 1 << 23
# Samples are summed up once they have so many bytes, and as many as the matrix that they are added
# to, or at most these; so many of all names together are too much.
_FEW, _MOST, _MANY = 1 << 20, 1 << 23, 1 << 25
# What runs may take in files; what of them is so large is read when it is looked at.
_MOST_BYTES, _READ_LATE = 1 << 28, 1 << 14


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
        self._numbers: dict[str, int] = {}
        self._small: dict[str, Matrix] = {}
        self._waiting: dict[str, _Waiting] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._heads or name in self._waiting

    def __getitem__(self, name: str) -> Moments:
        """A copy of the caller's own."""
        self._settle(name)
        count, mean = self._heads[name]
        small = self._small.get(name)
        comoment = np.load(self._path(name)) if small is None else small.copy()
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
        comoment = np.load(self._path(name), mmap_mode="r") if small is None else small
        return np.diag(comoment) / count

    def covariance(
        self, name: str, places: npt.NDArray[np.int64], dtype: npt.DTypeLike = np.float64
    ) -> Array:
        """Of some entries, [places, places]; no more than they are read."""
        self._settle(name)
        count, small = max(self._heads[name][0], 1), self._small.get(name)
        if small is not None:
            return (small[np.ix_(places, places)] / count).astype(dtype, copy=False)
        result = np.empty((len(places), len(places)), dtype)
        for rows in blocks(len(places)):
            mapped = np.load(self._path(name), mmap_mode="r")
            result[rows] = mapped[places[rows]][:, places]
            del mapped  # what was looked at counts as memory while it is mapped
        result /= count
        return result

    def add(self, name: str, moments: Moments) -> None:
        """Merges moments into those of that name; the arrays given are used up."""
        if name in self:
            moments = self[name].merge(moments)
        self._heads[name] = moments.count, moments.mean
        if moments.comoment.nbytes < _IN_FILE:
            self._small[name] = moments.comoment
            return
        self._numbers.setdefault(name, len(self._numbers))
        with written_in(self._folder.name):
            np.save(self._path(name), moments.comoment)
        if moments.comoment.nbytes > LARGE:
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

    def _settle(self, name: str) -> None:
        waiting = self._waiting.pop(name, None)
        if waiting is not None:
            first, *rest = waiting.parts
            joined = np.concatenate([first, *rest]) if rest else np.ascontiguousarray(first)
            weights = np.concatenate(waiting.weights) if waiting.weights else None
            self.add(name, Moments.of(joined, waiting.last, weights))

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / f"{self._numbers[name]}.npy"


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


@dataclass(frozen=True)
class _Place:
    """An array at a place in a file; `numpy.asarray` reads it anew."""

    path: Path
    start: int
    kind: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.kind.itemsize * math.prod(self.shape)

    def of(self, lines: bytes, start: int) -> Array:
        """The array in what was read of the file from `start` on."""
        return np.ndarray(self.shape, self.kind, lines, self.start - start)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        found: Array = np.fromfile(self.path, self.kind, math.prod(self.shape), offset=self.start)
        return np.asarray(found.reshape(self.shape), dtype=dtype)


class Runs:
    """What one model gave for feeds, known by their names, so that each is run once.

    As many as fit are kept, those that come first, in a scratch file that goes when this does.
    """

    def __init__(self) -> None:
        self._folder = temporary_folder()
        self._path = Path(self._folder.name) / "runs"
        self._kept: dict[str, dict[str, _Place]] = {}
        self._left = _MOST_BYTES
        self._small: dict[tuple[str, str], Matrix | None] = {}

    def __call__(
        self, feed: Feed, names: Collection[str], run: Callable[[Feed], dict[str, Array]]
    ) -> Mapping[str, npt.ArrayLike]:
        """What the model gives for a feed; from a run, unless that is known.

        What is large stays in its file, for `numpy.asarray` to read.

        Args:
            feed: it is not known again without a name.
            names: of what is asked for, and of what `run` gives.
            run: runs the model.
        """
        label = str(getattr(feed, "name", ""))
        if label in self._kept and self._kept[label].keys() == set(names):
            return self._known(label)
        found = run(feed)
        self._left -= sum(value.nbytes for value in found.values())
        if label and label not in self._kept and self._left >= 0:
            self._keep(label, found)
            if sum(value.nbytes for value in found.values()) > LARGE and label in self._kept:
                found.clear()
                trim()
                return self._known(label)
        return found

    def recall(self, feed: Feed, what: str, make: Callable[[], Matrix | None]) -> Matrix | None:
        """Something small that follows from what the model gives for a feed; made once."""
        key = str(getattr(feed, "name", "")), what
        if key not in self._small:
            found = make()
            if not key[0]:
                return found
            self._small[key] = found
        return self._small[key]

    def _known(self, label: str) -> Mapping[str, npt.ArrayLike]:
        """What is small follows one another in the file, and is read at once."""
        places = self._kept[label]
        early = [place for place in places.values() if place.nbytes <= _READ_LATE]
        start = min((place.start for place in early), default=0)
        end = max((place.start + place.nbytes for place in early), default=0)
        with self._path.open("rb") as file:
            file.seek(start)
            lines = file.read(end - start)
        return {n: p if p.nbytes > _READ_LATE else p.of(lines, start) for n, p in places.items()}

    def __reduce__(self) -> tuple[type[Runs], tuple[()]]:
        """Another process runs feeds by itself: that takes less than to send what they gave."""
        return Runs, ()

    def _keep(self, label: str, found: Mapping[str, Array]) -> None:
        places: dict[str, _Place] = {}
        try:
            with self._path.open("ab") as file:
                for name in sorted(found, key=lambda name: found[name].nbytes > _READ_LATE):
                    value = found[name]
                    places[name] = _Place(self._path, file.tell(), value.dtype, value.shape)
                    file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        except (OSError, TypeError):  # a full disk, or texts: these are run again
            return
        self._kept[label] = places
