"""How differences are spread: a histogram that is counted without knowing its range beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.record import Record
from onnx_rnn_prune.validate.outputs import Numbers

# Bins are a power of 3, so that three of them make one of a range three times as wide, and one has
# its middle at 0.
_FINE = 3**7
_SHOWN = 41
_WITHIN = 0.995
# A power of 3 that a float still holds.
_LEAST = -640


@dataclass(frozen=True, eq=False)
class Histogram(Record):
    """How many entries differ by how much: the other's less the original's.

    Attributes:
        edges: of bins of equal width, around 0; one more than there are bins.
        counts: entries in each bin.
        outside: entries that differ by more than the edges; at most half a percent.
    """

    edges: list[float]
    counts: list[int]
    outside: int


@dataclass
class Spread:
    """A histogram around 0 whose range grows by threes with what is added."""

    power: int | None = None  # bins are 3 ** power wide
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_FINE, np.int64))
    largest: float = 0.0

    def add(self, differences: Numbers) -> None:
        """Counts differences of any shape; those that are not numbers are left out."""
        values = differences[np.isfinite(differences)]
        if values.size == 0:
            return
        self.largest = max(self.largest, float(np.abs(values).max()))
        self._make_room()
        # As long as all are zero, any width will do.
        width = 1.0 if self.power is None else 3.0**self.power
        places = np.floor(values / width + 0.5).astype(np.int64) + _FINE // 2
        self.counts += np.bincount(places, minlength=_FINE)

    def _make_room(self) -> None:
        if self.largest == 0.0:
            return
        wanted = math.ceil(math.log(self.largest, 3) - math.log(_FINE // 2, 3))
        wanted = max(wanted, _LEAST)
        if self.power is None:
            self.power = wanted  # what was counted before is zero, and in the middle
        while self.power < wanted:
            thirds = self.counts.reshape(-1, 3).sum(axis=1)
            self.counts = np.zeros(_FINE, np.int64)
            start = (_FINE - thirds.size) // 2
            self.counts[start : start + thirds.size] = thirds
            self.power += 1

    def histogram(self) -> Histogram | None:
        """Bins wide enough for nearly all differences; None where nothing differs."""
        if self.power is None:
            return None
        middle, total = _FINE // 2, int(self.counts.sum())
        # Entries within so many bins of the middle one, in both directions.
        around = self.counts[middle:] + self.counts[middle::-1]
        around[0] = self.counts[middle]
        reach = int(np.searchsorted(np.cumsum(around), _WITHIN * total))
        # An odd number of fine bins in each shown one, so that one has its middle at 0.
        each = max(1, math.ceil((2 * reach + 1) / _SHOWN))
        each += 1 - each % 2
        half = (_SHOWN * each) // 2
        padded = np.pad(self.counts, max(0, half - middle))
        center = padded.size // 2
        shown = padded[center - half : center + half + 1].reshape(_SHOWN, each).sum(axis=1)
        width = each * 3.0**self.power
        edges = [(number - _SHOWN / 2) * width for number in range(_SHOWN + 1)]
        return Histogram(edges, shown.tolist(), total - int(shown.sum()))
