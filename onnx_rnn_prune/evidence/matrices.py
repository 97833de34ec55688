"""Matrices that may be too large for memory: in files, and block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.scratch import temporary_folder, written_in

Matrix = npt.NDArray[np.float64]

LARGE = 1 << 23
"""Bytes from which on freed memory is worth giving back."""
_BLOCK = 256


def blocks(rows: int) -> Iterator[slice]:
    """Splits the rows of a matrix into blocks, so that temporaries stay small."""
    for start in range(0, rows, _BLOCK):
        yield slice(start, min(start + _BLOCK, rows))


@dataclass
class MatrixFile:
    """A matrix in a file, with one block of rows in memory at a time.

    Attributes:
        path: path of the file.
        shape: shape of the matrix.
        half: whether blocks below the diagonal are yet to be mirrored from above it.
    """

    path: Path
    shape: tuple[int, int]
    half: bool = False

    def read(self) -> Matrix:
        """Reads the whole matrix."""
        return np.fromfile(self.path).reshape(self.shape)

    def mapped(self) -> Matrix:
        """Maps the whole matrix read-only; pages read count as memory while it is mapped."""
        return np.memmap(self.path, np.float64, "r", shape=self.shape)

    def add(self, part: Callable[[slice, slice], Matrix]) -> None:
        """Adds a matrix block by block.

        Args:
            part: returns a block of rows and columns. A square matrix is symmetric: only blocks on
                and above the diagonal are requested.
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
        """Mirrors blocks above the diagonal to below it."""

        def whole(rows: slice) -> Matrix:
            lines = self._lines(rows)
            for above in blocks(rows.start):  # one at a time is mapped
                lines[:, above] = self.mapped()[above, rows].T
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
        # Writing through a memory map would kill the process when the disk is full.
        with written_in(self.path.parent), self.path.open("r+b") as file:
            for rows in blocks(self.shape[0]):
                file.write(lines(rows).data)
                file.flush()


class InFile:
    """An array in a scratch file, deleted with this object; `numpy.asarray` reads it anew."""

    def __init__(self, values: Array) -> None:
        self._folder = temporary_folder()
        self._path = Path(self._folder.name) / "values.npy"
        with written_in(self._folder.name):
            np.save(self._path, values, allow_pickle=False)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.asarray(np.load(self._path, allow_pickle=False), dtype=dtype)

    def __reduce__(self) -> tuple[type[InFile], tuple[Array]]:
        """Pickles the values: another process has its own files."""
        return InFile, (np.asarray(self),)


def put_away(values: Array) -> Array | InFile:
    """Stores an array for long; in a file if it is large."""
    return InFile(values) if values.nbytes > LARGE else values
