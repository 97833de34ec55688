"""How units leave: at once, or fading out while the others learn to do without them.

| schedule | units go |
| --- | --- |
| hard | at once; with several steps, they are chosen in so many (see `selection.steps`) |
| soft | all by degrees: in step n of N, weights have gone n / N of the way to the cut model's |
| mixed | those that the kept ones explain best at once, the others by degrees |

The kept weights are refitted after each step on signals of the model as it is then (He et al. 2018,
"Soft filter pruning", keeps pruned filters in play while training goes on; here they lose weight,
and what learns is least squares). One step of any schedule is the hard one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.evaluation.bench import Bench
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.operators.labels import Mask, kept
from onnx_rnn_prune.passes.base import Pass, Pipeline
from onnx_rnn_prune.passes.cut import Zero
from onnx_rnn_prune.recovery.blend import Blend
from onnx_rnn_prune.recovery.least_squares import (
    RIDGE,
    Recover,
    estimate_entries,
    teacher_fits,
    teacher_pairs,
)

SCHEDULES = ("hard", "soft", "mixed")


@dataclass(frozen=True)
class Schedule:
    """How units leave, and in how many steps.

    Attributes:
        kind: one of SCHEDULES.
        steps: from 1 on.
    """

    kind: str = "hard"
    steps: int = 1

    @property
    def choices(self) -> int:
        """In how many steps units are chosen."""
        return self.steps if self.kind == "hard" else 1

    def shares(self, rounds: int) -> list[float]:
        """How far the model has gone towards the cut one in each round of refits.

        Args:
            rounds: of refits on the cut model.
        """
        faded = [] if self.kind == "hard" else [n / self.steps for n in range(1, self.steps)]
        return [*faded, *[1.0] * rounds]


@dataclass(frozen=True, eq=False)
class Fading:
    """The model on its way to the cut one.

    Attributes:
        bench: of the model.
        start: from where the way starts.
    """

    bench: Bench
    start: Document

    @staticmethod
    def of(bench: Bench, schedule: Schedule) -> Fading:
        """The way that a schedule goes."""
        document = bench.traced.document
        if schedule.kind == "mixed" and schedule.steps > 1:
            stays = ~_clear_losers(bench)
            document = document.copy()
            Pipeline((_without(bench, stays), Zero(bench.traced.trace, stays)))(document)
        return Fading(bench, document)

    def __call__(self, write: Pass, share: float) -> Document:
        """The model after a share of the way; the cut one itself at the end of it.

        Args:
            write: the recovery of the cut model.
            share: above 0, at most 1.
        """
        if share == 1.0:
            return self.bench.shrunk(write)
        cut, result = self.bench.traced.document.copy(), self.start.copy()
        Pipeline((write, Zero(self.bench.traced.trace, self.bench.keep)))(cut)
        Blend(cut, share)(result)
        return result


def _without(bench: Bench, stays: Mask) -> Pass:
    """The recovery of a model that loses other units than the bench's."""
    moments = bench.evidence.moments
    fits = teacher_fits(bench.traced.document, bench.readers, stays, moments)
    return Recover(bench.readers, stays, fits)


def _clear_losers(bench: Bench) -> Mask:
    """Of the units that go, the half that least squares on those that stay explains best."""
    unknown = _unexplained(bench)
    losers = np.flatnonzero(~bench.keep)
    order = losers[np.argsort(unknown[losers], kind="stable")]
    clear = np.zeros(len(bench.keep), dtype=bool)
    clear[order[: len(order) // 2]] = True
    return clear


def _unexplained(bench: Bench) -> Matrix:
    """The share of each unit's variance that the kept entries of a signal with it leave open."""
    unknown = np.ones(len(bench.keep))
    for reader in bench.readers:
        moments = bench.evidence.moments[reader.pool]
        stays = kept(reader.labels, bench.keep)
        variance = moments.variance
        covariance = moments.covariance(np.arange(len(stays)))
        spread, _ = estimate_entries(teacher_pairs(moments, stays), stays, RIDGE)
        known = np.einsum("ij,ij->i", spread, covariance[:, stays])
        left = 1.0 - known / np.where(variance > 0, variance, 1.0)
        units = reader.labels >= 0
        np.minimum.at(unknown, reader.labels[units], left[units])
    return unknown
