"""Which weights of a matrix go: patterns of zeros, as users write them.

| text | meaning |
| --- | --- |
| `50%`, `0.5` | so many weights of each matrix go, wherever they are |
| `2:4` | of every 4 weights next to each other along the input, at most 2 stay |
| `block=4x1:50%` | so many blocks of 4 outputs x 1 input go as wholes |
| `threshold=1e-3` | weights whose absolute value is below go |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.operators.labels import Mask

_FORMS = "give 50%, 2:4, block=4x1:50% or threshold=1e-3"


class Pattern(Protocol):
    """A choice of weights by their scores."""

    @property
    def step(self) -> int:
        """How many columns next to each other are decided on together."""

    def keep(self, weight: Matrix, scores: Matrix, widths: Sequence[int]) -> Mask:
        """True where a weight stays, [outputs, n].

        Args:
            weight: the matrix, [outputs, n].
            scores: what it costs to remove each weight; infinite where that is settled.
            widths: of the signals that are laid side by side in its columns; what is decided on
                together lies in one of them.
        """


@dataclass(frozen=True)
class Tiles:
    """The cheapest tiles go; tiles of one weight are the pattern that is called unstructured.

    At the edges of a matrix, tiles may be smaller; what counts is the mean score of their weights.

    Attributes:
        rows: outputs in a tile.
        columns: inputs in a tile.
        share: how many of the tiles go, 0 to 1.
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
    """N:M: of every `of` weights next to each other along the input, at most `most` stay.

    Attributes:
        most: N.
        of: M.
    """

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
    """Weights whose absolute value is below a limit go, whatever they are worth.

    Attributes:
        limit: above 0.
    """

    limit: float

    @property
    def step(self) -> int:
        return 1

    def keep(self, weight: Matrix, scores: Matrix, widths: Sequence[int]) -> Mask:
        return np.abs(weight) >= self.limit


def starts(widths: Sequence[int], step: int) -> npt.NDArray[np.int64]:
    """Where groups of `step` columns begin; none reaches from one signal into the next."""
    firsts = np.cumsum([0, *widths[:-1]])
    return np.concatenate(
        [np.arange(first, first + n, step) for first, n in zip(firsts, widths, strict=True)]
    ).astype(np.int64)


def parse_pattern(text: object) -> Pattern:
    """Reads `--sparsify`.

    Raises:
        PruneError: the text is none of the forms, or its numbers mean nothing.
    """
    for form, make in _READERS:
        given = text.strip() if isinstance(text, str) else ""
        found = re.fullmatch(form, given, re.IGNORECASE)
        pattern = make(*found.groups()) if found else None
        if pattern is not None:
            return pattern
    raise PruneError(f"'{text}' is no pattern of zeros", where="--sparsify", remedy=_FORMS)


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
