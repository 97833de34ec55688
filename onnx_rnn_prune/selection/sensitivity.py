"""How the outputs suffer when one group of layers alone is cut, by how much of it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.evaluator import Evaluator
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.selection.allocation import Allocation, Urgency, choose

SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)


@dataclass(frozen=True, eq=False)
class Curve:
    """The error of the outputs as one group is cut.

    Attributes:
        layers: the group's layers.
        kept: numbers of units, rising; the last is all of them, [n].
        error: mean NRMSE on held-out feeds, with least squares as recovery; 0 for all units, [n].
    """

    layers: tuple[str, ...]
    kept: Matrix
    error: Matrix

    def slopes(self) -> Matrix:
        """What each further unit takes off the squared error: those of the lower convex hull, [H].

        A step that takes nothing off may have to be made on the way to one that does.
        """
        size = int(self.kept[-1])
        squared = np.interp(np.arange(size + 1), self.kept, self.error**2)
        slopes = np.zeros(size + 1)
        unit = 0
        while unit < size:
            ahead = (squared[unit] - squared[unit + 1 :]) / np.arange(1, size - unit + 1)
            stretch = int(ahead.argmax()) + 1
            slopes[unit : unit + stretch] = ahead[stretch - 1]
            unit += stretch
        return slopes


def sensitivity(
    evaluator: Evaluator, scores: Matrix, bounds: Allocation, progress: Progress
) -> tuple[Curve, ...]:
    """Cuts each group alone to several widths, and runs what is left.

    Args:
        evaluator: judges cuts of the model.
        scores: of the units, higher is kept.
        bounds: widths below its floor are left out.
        progress: is told how far the work is.
    """
    trace = evaluator.traced.trace
    curves = []
    for number, group in enumerate(trace.groups):
        progress("cutting layers one by one", number, len(trace.groups))
        widths = sorted({max(round(share * group.size), bounds.floor(group)) for share in SHARES})
        errors = []
        for width in widths:
            counts = [other.size for other in trace.groups]
            counts[number] = width
            errors.append(evaluator.quick_error(choose(trace, scores, counts)))
        rising = np.array([*errors, 0.0])
        curves.append(Curve(group.layers, np.array([*widths, group.size], float), rising))
    return tuple(curves)


def by_slopes(curves: Sequence[Curve]) -> Urgency:
    """The most urgent group is the one whose next unit takes most off the error."""
    slopes = [curve.slopes() for curve in curves]
    return lambda number, kept: float(slopes[number][kept])
