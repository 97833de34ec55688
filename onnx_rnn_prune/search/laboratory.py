"""Where cuts of one model are made, run and judged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.data.feeds import check_feed
from onnx_rnn_prune.evaluator import Evaluator, recover_units
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.runner import Array, Feed
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig
from onnx_rnn_prune.recovery.schedules import Schedule
from onnx_rnn_prune.search.space import FULL, Ask, Counts, Verdict
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.trace.states import plain_outputs, state_inputs
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.traced_model import TracedModel
from onnx_rnn_prune.validate.quality import NRMSE, Quality, nrmse
from onnx_rnn_prune.validate.results import Outcome, Recorded, Result, results

# Parts of the validation feeds that each give a loss of their own, for the standard error.
_FOLDS = 8


@dataclass(frozen=True, eq=False)
class Laboratory:
    """Where cuts of one model are made, run and judged.

    Attributes:
        evaluator: recovers cuts of the model.
        scores: of the units; of a group, those with the highest stay.
        quality: how good a cut is.
        original: makes what is right of feeds.
        check: makes a feed of what a metric runs the model on.
        known: how good the original is on feeds that were looked at before.
    """

    evaluator: Evaluator
    scores: Matrix
    quality: Quality
    original: Recorded
    check: Callable[[object], Feed]
    known: dict[tuple[int, ...], float] = field(default_factory=dict)

    @staticmethod
    def of(traced: TracedModel, data: Calibration, scores: Matrix, quality: Quality) -> Laboratory:
        """A laboratory for a model."""
        opened = traced.opened
        evaluator = Evaluator.of(traced, data)
        ports, states = signature.inputs(opened.model), state_inputs(opened.document)
        check = partial(check_feed, ports=ports, states=states, where=f"metric {quality.name}")
        return Laboratory(evaluator, scores, quality, evaluator.original, check)

    def of_others(self) -> Laboratory:
        """The same for other feeds, which may have the names of those that were looked at."""
        return replace(self, original=Recorded(self.evaluator.traced.original.watched()), known={})

    def judge(self, ask: Ask) -> Verdict:
        """Makes a cut and judges it."""
        start = time.perf_counter()
        return Verdict(*self._judged(ask), time.perf_counter() - start)

    @property
    def trace(self) -> Trace:
        """Of the model."""
        return self.evaluator.traced.trace

    def keep(self, counts: Counts) -> Mask:
        """Per unit, whether it stays."""
        return choose(self.trace, self.scores, list(counts))

    def cuts(self, counts: Counts) -> bool:
        """Whether anything goes."""
        return counts != tuple(group.size for group in self.trace.groups)

    def before(self, feeds: Feeds) -> float:
        """The original's own quality."""
        if feeds.numbers not in self.known:
            self.known[feeds.numbers] = self.quality.measure(self.outputs(self.original, feeds))
        return self.known[feeds.numbers]

    def _judged(self, ask: Ask) -> tuple[float, float, float, float]:
        """The quality, the loss of it and its standard error, and the NRMSE."""
        feeds = self.evaluator.data.validation
        if not self.cuts(ask.counts):
            return self.before(feeds), 0.0, 0.0, 0.0
        cut = self.evaluator.candidate(self.keep(ask.counts))
        if ask.recovery == FULL:
            write = recover_units(cut, "auto", Schedule(), TrainingConfig(), silent)[0].write
        else:
            write = cut.quick()
        model = Recorded(self.evaluator.runner(cut.shrunk(write)))
        measure, folds = self.quality.measure, min(_FOLDS, feeds.streams)
        value = measure(self.outputs(model, feeds))
        losses = []
        for fold in range(folds):
            part = feeds.take(range(fold, feeds.streams, folds))
            losses.append(self.quality.loss(self.before(part), measure(self.outputs(model, part))))
        spread = float(np.std(losses, ddof=1) / math.sqrt(folds)) if folds > 1 else 0.0
        error = value if self.quality == NRMSE else nrmse(self._numbers(model, feeds))
        loss = self.quality.loss(self.before(feeds), value)
        return value, loss, spread if math.isfinite(spread) else math.inf, error

    def outputs(self, model: Recorded, feeds: Feeds) -> Outcome:
        """What a model makes of feeds.

        Without states, unless there is nothing else: they matter for what comes of them.
        """
        plain, judged = (
            plain_outputs(self.evaluator.traced.document),
            self.evaluator.traced.original.judged,
        )
        names = judged.numbers(plain) if self.quality == NRMSE else judged.repeatable(plain)
        return Outcome(
            lambda: self._results(model, feeds, names), lambda feed: self._run(model, feed)
        )

    def _numbers(self, model: Recorded, feeds: Feeds) -> Iterator[Result]:
        plain = plain_outputs(self.evaluator.traced.document)
        return self._results(model, feeds, self.evaluator.traced.original.judged.numbers(plain))

    def _run(self, model: Recorded, feed: object) -> dict[str, Array]:
        """All outputs of a feed that a metric makes, drawn ones included."""
        return model.runner(self.check(feed), self.evaluator.traced.original.judged.outputs)

    def _results(self, model: Recorded, feeds: Feeds, outputs: Sequence[str]) -> Iterator[Result]:
        names = [name for name in outputs if name in model.outputs]
        for found in results(self.original, model, feeds):
            wanted, own = ({n: side[n] for n in names} for side in (found.wanted, found.found))
            yield replace(found, wanted=wanted, found=own)
