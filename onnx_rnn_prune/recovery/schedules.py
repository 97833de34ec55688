"""Schedules: remove units at once, or fade them out while the others are refitted.

| schedule | units go |
| --- | --- |
| hard | at once; with several steps, chosen in as many rounds (see `selection.choice`) |
| soft | gradually: in step n of N, weights are n / N of the way to the cut model's |
| mixed | those that the kept ones explain best at once, the others gradually |

After each step, the kept weights are refitted on signals of the model as it is then (He et al.
2018, "Soft filter pruning", lets pruned filters recover in training; here they fade out, and the
fit is least squares). With one step, all schedules are the hard one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix, blocks
from onnx_rnn_prune.evidence.moments import MomentStore
from onnx_rnn_prune.model.constants import constant_value, is_float
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import replace_constant
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.operators.labels import Mask, kept
from onnx_rnn_prune.passes import Pass, Pipeline
from onnx_rnn_prune.passes.cut import Zero
from onnx_rnn_prune.recovery.least_squares import (
    RIDGE,
    Recover,
    estimate_entries,
    teacher_fits,
)
from onnx_rnn_prune.traced_model import TracedModel

FROM_WEIGHTS = ("merge", "lossless")
"""Recoveries without data; `lossless` goes with a plan that removes only what it can compensate."""


@dataclass(frozen=True)
class Schedule:
    """How units are removed, and in how many steps.

    Attributes:
        kind: one of `options.SCHEDULES`.
        steps: 1 or more.
    """

    kind: str = "hard"
    steps: int = 1

    @property
    def choices(self) -> int:
        """The number of steps in which units are chosen."""
        return self.steps if self.kind == "hard" else 1

    def shares(self, rounds: int) -> list[float]:
        """How far the model has moved to the cut one in each round of refits, up to 1.

        Args:
            rounds: number of refits on the cut model.
        """
        faded = [] if self.kind == "hard" else [n / self.steps for n in range(1, self.steps)]
        return [*faded, *[1.0] * rounds]


@dataclass(frozen=True, eq=False)
class Fading:
    """Blends of the original and the cut model.

    Attributes:
        traced: the model.
        keep: per unit, True if kept.
        start: the initial document.
    """

    traced: TracedModel
    keep: Mask
    start: Document

    @staticmethod
    def of(traced: TracedModel, keep: Mask, moments: MomentStore, schedule: Schedule) -> Fading:
        """The initial state of a schedule."""
        document = traced.document
        if schedule.kind == "mixed" and schedule.steps > 1:
            stays = ~_clear_losers(traced, keep, moments)
            fits = teacher_fits(traced, stays, moments)
            document = document.copy()
            Pipeline((Recover(traced.readers, stays, fits), Zero(traced.trace, stays)))(document)
        return Fading(traced, keep, document)

    def __call__(self, write: Pass, share: float) -> Document:
        """The model at full width, a share of the way to the cut one.

        Args:
            write: the recovery of the cut model.
            share: above 0, below 1.
        """
        cut, result = self.traced.document.copy(), self.start.copy()
        Pipeline((write, Zero(self.traced.trace, self.keep)))(cut)
        _blend(result, cut, share)
        return result


def _blend(document: Document, other: Document, share: float) -> None:
    """Moves every weight of a document towards that of another with the same nodes.

    Args:
        document: modified in place.
        other: the weights to move towards.
        share: the share of the other's values.
    """
    graph, opset = document.graph, document.graph.opset
    others = nodes_by_key(other.graph)
    found = []
    for key, node in nodes_by_key(graph).items():
        for slot, tensor in enumerate(node.inputs):
            here = constant_value(tensor, opset) if tensor.name else None
            there = None if here is None else constant_value(others[key].inputs[slot], opset)
            if here is None or there is None or not is_float(here.dtype):
                continue
            if here.shape == there.shape and not np.array_equal(here, there):
                mixed = (1 - share) * here + share * there
                found.append((node, slot, mixed.astype(here.dtype)))
    for node, slot, value in found:
        replace_constant(graph, node, slot, value)


def _clear_losers(traced: TracedModel, keep: Mask, moments: MomentStore) -> Mask:
    """The half of the removed units best explained by least squares on the kept ones."""
    unknown = _unexplained(traced, keep, moments)
    losers = np.flatnonzero(~keep)
    order = losers[np.argsort(unknown[losers], kind="stable")]
    clear = np.zeros(len(keep), dtype=bool)
    clear[order[: len(order) // 2]] = True
    return clear


def _unexplained(traced: TracedModel, keep: Mask, store: MomentStore) -> Matrix:
    """The share of each unit's variance not explained by the kept entries of its signals."""
    unknown = np.ones(len(keep))
    for reader in traced.readers:
        stays, variance = kept(reader.labels, keep), store.variance(reader.pool)
        pairs, known = store.teacher_pairs(reader.pool, stays), np.zeros(len(stays))
        spread, _ = estimate_entries(pairs, stays, RIDGE)
        for rows in blocks(len(stays)):
            known[rows] = np.einsum("ij,ij->i", spread[rows], pairs.lines(rows))
        known /= max(pairs.count, 1)
        left = 1.0 - known / np.where(variance > 0, variance, 1.0)
        units = reader.labels >= 0
        np.minimum.at(unknown, reader.labels[units], left[units])
    return unknown
