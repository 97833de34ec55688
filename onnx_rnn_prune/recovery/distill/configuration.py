"""What a cut model learns by, how long and how fast, and how it went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onnx_rnn_prune.record import Record
from onnx_rnn_prune.recovery.distill.loss import Loss


@dataclass(frozen=True)
class Course:
    """What training aims at besides the original, and what it is limited to.

    Attributes:
        minutes: the longest that it may take.
        seed: of the order of lessons.
        loss: of labels, for feeds that have them.
        steps: of gradient descent at most; what learns fast has learnt all by then.
        rate: the highest learning rate, relative to the size of a weight's entries.
        norm: gradients are clipped to it.
        trials: how often what was learnt is judged.
        patience: after so many trials that are no better than one before, learning ends.
        until: the time by `time.monotonic` from which no other recovery is tried.
    """

    minutes: float = 10.0
    seed: int = 0
    loss: Loss | None = None
    steps: int = 10000
    rate: float = 0.02
    norm: float = 1.0
    trials: int = 30
    patience: int = 10
    until: float = math.inf


@dataclass(frozen=True, eq=False)
class Learning(Record):
    """How training went.

    Attributes:
        whole: whether all that stands behind the first pruned layer was trained as one; otherwise
            it was trained piece by piece, between the operators that are missing.
        missing: why nodes behind a pruned layer could not be computed with gradients, by node.
        weights: how many constants were trained.
        before: error on held-out feeds at the start, as candidates are judged.
        after: of the best weights.
        steps: of gradient descent.
        taken: the step at which the best weights were taken; 0 for those at the start.
        seconds: that it took.
    """

    whole: bool
    missing: Mapping[str, str]
    weights: int
    before: float
    after: float
    steps: int
    taken: int
    seconds: float
