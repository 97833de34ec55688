"""A cache of a model's results, so that each feed runs once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.evidence.matrices import LARGE, Matrix
from onnx_rnn_prune.model.runner import Array, Feed
from onnx_rnn_prune.model.scratch import temporary_folder, trim

# Bytes of cached results in files; and from how many on an array is read only when accessed.
_MOST_BYTES, _READ_LATE = 1 << 28, 1 << 14


@dataclass(frozen=True)
class _Place:
    """An array at an offset in a file; `numpy.asarray` reads it anew."""

    path: Path
    start: int
    kind: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.kind.itemsize * math.prod(self.shape)

    def of(self, lines: bytes, start: int) -> Array:
        """The array, from bytes of the file read from `start` on."""
        return np.ndarray(self.shape, self.kind, lines, self.start - start)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        found: Array = np.fromfile(self.path, self.kind, math.prod(self.shape), offset=self.start)
        return np.asarray(found.reshape(self.shape), dtype=dtype)


class Runs:
    """A cache of one model's results by name of the feed, so that each feed runs once.

    The first results, as many as fit, are kept in a scratch file, deleted with this object.
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
        """The results for a feed, from the cache or from a run.

        Large arrays stay in the file, for `numpy.asarray` to read.

        Args:
            feed: not cached if it has no name.
            names: names of the results wanted, and of those that `run` returns.
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
        """Something small derived from the results for a feed; made once."""
        key = str(getattr(feed, "name", "")), what
        if key not in self._small:
            found = make()
            if not key[0]:
                return found
            self._small[key] = found
        return self._small[key]

    def _known(self, label: str) -> Mapping[str, npt.ArrayLike]:
        """The cached results of a feed; small ones are adjacent in the file and read at once."""
        places = self._kept[label]
        early = [place for place in places.values() if place.nbytes <= _READ_LATE]
        start = min((place.start for place in early), default=0)
        end = max((place.start + place.nbytes for place in early), default=0)
        with self._path.open("rb") as file:
            file.seek(start)
            lines = file.read(end - start)
        return {n: p if p.nbytes > _READ_LATE else p.of(lines, start) for n, p in places.items()}

    def __reduce__(self) -> tuple[type[Runs], tuple[()]]:
        """Pickles an empty cache: running feeds again takes less than sending the results."""
        return Runs, ()

    def _keep(self, label: str, found: Mapping[str, Array]) -> None:
        places: dict[str, _Place] = {}
        try:
            with self._path.open("ab") as file:
                for name in sorted(found, key=lambda name: found[name].nbytes > _READ_LATE):
                    value = found[name]
                    places[name] = _Place(self._path, file.tell(), value.dtype, value.shape)
                    file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        except (OSError, TypeError):  # a full disk, or strings: these are run again
            return
        self._kept[label] = places
