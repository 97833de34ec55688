"""Recovers cuts of a model and judges them: the best has the lowest validation error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.data.feeds import check_feed
from onnx_rnn_prune.evidence.evidence import SAMPLES, Evidence, Sampling, Tapped, let_go
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.evidence.moments import MomentStore, Pairs
from onnx_rnn_prune.evidence.readers import ProductReader, Reader
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import OURS, Array, Runner
from onnx_rnn_prune.operators.labels import Mask, kept
from onnx_rnn_prune.passes import Pass, Pipeline
from onnx_rnn_prune.passes.cut import Shrink
from onnx_rnn_prune.recovery.distill.configuration import Loss, TrainingSummary
from onnx_rnn_prune.recovery.least_squares import (
    RIDGE,
    RIDGES,
    Fit,
    Recover,
    fit_readers,
    place_states,
)
from onnx_rnn_prune.trace.judged import INDEX
from onnx_rnn_prune.trace.states import plain_outputs, state_inputs
from onnx_rnn_prune.traced_model import TracedModel
from onnx_rnn_prune.validate import Drift, drift
from onnx_rnn_prune.validate.quality import NRMSE, Quality, nrmse
from onnx_rnn_prune.validate.results import Outcome, Recorded, results

PairsOf = Callable[[Reader], Pairs]

CLEARLY = 0.95
"""The largest ratio of two validation errors at which the first counts as lower.

Validation sets are small, so the order of close errors is chance. On NSNet2 calibrated on 30 s and
validated on two recordings, lambda 1 beat 0.1 by 2 %, and was 1.1 dB worse on 60 s of other speech.
"""

# Folds of the validation set, each with a loss, for the standard error; a quick fit chooses lambda
# on one in _PART streams, but on at least that many.
_FOLDS, _PART = 8, 4
# Samples per signal entry in each round of refits: rounds add up.
_SAMPLES = SAMPLES // 4
# The number of recoveries cached: fits and their moments are large.
_REMEMBERED = 4


@dataclass(frozen=True, eq=False)
class Recovered:
    """The recovery of a cut.

    Attributes:
        used: none, bias, lstsq or distill.
        write: writes it into the full-width document.
        ridge: lambda of lstsq.
        error: validation error, see `Evaluator.error`.
        rounds: number of refits on the cut model's own signals.
        learning: how distill went, even if it was not chosen.
        refit: repeats the fit with further feeds added; None if that is not possible.
    """

    used: str
    write: Pass
    ridge: float | None
    error: float
    rounds: int = 0
    learning: TrainingSummary | None = None
    refit: Callable[[Feeds], Pass] | None = None


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Recovers cuts of a model and judges them on the validation set.

    Attributes:
        traced: the model, at full width and not recovered.
        data: calibration and validation sets.
        evidence: from calibration.
        original: runs the original, for comparison.
        quality: measure of quality, in a search.
        loss: loss on labels; if any, recoveries are judged by the mean of it and the error.
        errors: cached errors of cuts, see `quick_error`.
        known: cached qualities of the original, by feeds.
        recovered: the last few full recoveries, each with the reason; see `remember`.
    """

    traced: TracedModel
    data: Calibration
    evidence: Evidence
    original: Recorded
    quality: Quality = NRMSE
    loss: Loss | None = None
    errors: dict[bytes, float] = field(default_factory=dict)
    known: dict[tuple[int, ...], float] = field(default_factory=dict)
    recovered: dict[bytes, tuple[Recovered, str]] = field(default_factory=dict)

    @staticmethod
    def of(
        traced: TracedModel,
        data: Calibration,
        quality: Quality = NRMSE,
        loss: Loss | None = None,
    ) -> Evaluator:
        """An evaluator of cuts of a model; the loss counts if validation feeds have labels."""
        evidence = data.evidence(traced)
        assert evidence is not None
        known = loss is not None and any(feed.labels is not None for feed in data.validation)
        original = Recorded(traced.original.watched)
        return Evaluator(traced, data, evidence, original, quality, loss if known else None)

    @property
    def measure(self) -> str:
        """The name of the measure that cuts are judged by."""
        return "error" if self.loss is None else f"mean of error and {self.loss.name}"

    def runner(self, document: Document) -> Runner:
        """Loads a cut, with the signals that its outputs are judged by."""
        judged = self.traced.original.judged
        outputs, drawn = judged.watched, judged.drawn
        return Runner(document, outputs=outputs, also=drawn, name="a candidate", remedy=OURS)

    def error(self, document: Document, feeds: Feeds | None = None) -> float:
        """Mean NRMSE of the outputs of a cut, or the mean of that and the loss.

        Args:
            feeds: the validation set by default.
        """
        feeds = feeds or self.data.validation
        candidate, judged = self.runner(document), self.traced.original.judged
        outputs = self._judged(feeds)
        found = drift(self.original, candidate, feeds)
        self.original.rest()  # the outputs to compare with are recorded
        names = [name for name in judged.numbers(outputs) if name in found]
        errors = [_error(found[name], judged.kinds.get(name)) for name in names]
        # Without comparable outputs, all cuts are equally good.
        error = float(np.mean(errors or [0.0])) if all(map(math.isfinite, errors)) else math.inf
        if self.loss is None:
            return error
        return (error + self.loss.of_runs(candidate, feeds, outputs)) / 2

    def quick_error(self, keep: Mask) -> float:
        """The error of a cut with quick least squares, cached."""
        known, cut = keep.tobytes(), self.candidate(keep)
        if known not in self.errors:
            self.errors[known] = cut.error(cut.quick())
        return self.errors[known]

    def remember(self, keep: Mask, found: tuple[Recovered, str]) -> None:
        """Caches a recovery and the reason for it; drops the oldest of many."""
        self.recovered[keep.tobytes()] = found
        while len(self.recovered) > _REMEMBERED:
            del self.recovered[next(iter(self.recovered))]

    def of_others(self) -> Evaluator:
        """The same for other feeds, whose names may clash with those of cached ones."""
        return replace(self, original=Recorded(self.traced.original.watched), known={})

    def before(self, feeds: Feeds) -> float:
        """The original's quality."""
        if feeds.numbers not in self.known:
            self.known[feeds.numbers] = self.measured(self.original, feeds)
        return self.known[feeds.numbers]

    def measured(self, model: Recorded, feeds: Feeds) -> float:
        """The quality of a model on feeds; states count only if there are no other outputs."""
        plain, judged = self._judged(feeds), self.traced.original.judged
        names = judged.numbers(plain) if self.quality == NRMSE else judged.repeatable(plain)

        def run(feed: object) -> dict[str, Array]:
            """All outputs, random ones included, for a feed made by a metric."""
            return model.runner(check_feed(feed, *self._ports), judged.outputs)

        found = Outcome(lambda: results(self.original, model, feeds, names), run)
        return self.quality.measure(found)

    def judge(self, document: Document) -> tuple[float, float, float, float]:
        """The quality of a cut, its loss of quality with standard error, and its NRMSE."""
        feeds, model = self.data.validation, Recorded(lambda: self.runner(document))
        value = self.measured(model, feeds)
        folds, losses = min(_FOLDS, feeds.streams), []
        for fold in range(folds):
            part = feeds.take(range(fold, feeds.streams, folds))
            losses.append(self.quality.loss(self.before(part), self.measured(model, part)))
        spread = float(np.std(losses, ddof=1) / math.sqrt(folds)) if folds > 1 else 0.0
        loss, error = self.quality.loss(self.before(feeds), value), value
        if self.quality != NRMSE:
            names = self.traced.original.judged.numbers(self._judged(feeds))
            error = nrmse(results(self.original, model, feeds, names))
        return value, loss, spread if math.isfinite(spread) else math.inf, error

    def _judged(self, feeds: Feeds) -> Sequence[str]:
        """The outputs except states, which matter only through later outputs."""
        plain, states = plain_outputs(self.traced.document), set(feeds.states.values())
        return [name for name in plain if name not in states] or plain

    @cached_property
    def _ports(self) -> tuple[Sequence[signature.Port], frozenset[str], str]:
        opened = self.traced.opened
        states = state_inputs(opened.document)
        return signature.inputs(opened.model), states, f"metric {self.quality.name}"

    def candidate(self, keep: Mask) -> CandidateCut:
        """The cut that keeps the given units."""
        return CandidateCut(self, self.traced, keep)


@dataclass(frozen=True, eq=False)
class CandidateCut:
    """A cut of a model, yet to be recovered.

    Attributes:
        evaluator: judges it.
        traced: the model, with the readers to fit.
        keep: per unit, True if kept.
    """

    evaluator: Evaluator
    traced: TracedModel
    keep: Mask

    def shrunk(self, write: Pass) -> Document:
        """The cut model, with a recovery written into it."""
        result = self.traced.document.copy()
        Pipeline((write, Shrink(self.traced.trace, self.keep)))(result)
        return result

    def error(self, write: Pass, feeds: Feeds | None = None) -> float:
        """The error of the cut model with a recovery, see `Evaluator.error`."""
        return self.evaluator.error(self.shrunk(write), feeds)

    def writing(self, fits: Mapping[str, Fit]) -> Pass:
        """The pass that writes fits."""
        return Recover(self.traced.readers, self.keep, fits)

    def plain(self) -> Pass:
        """The pass that leaves all weights as they are."""
        return self.writing(place_states(self.traced, self.keep))

    @property
    def hands_back(self) -> bool:
        """Whether validation runs streams whose states are brought to full width."""
        placed = any(reader.places for reader in self.traced.readers)
        return bool(self.evaluator.data.validation.states) and placed

    def with_states_fitted(self) -> CandidateCut:
        """The same, but states that are only handed back are fitted like any other signal."""
        readers = [
            replace(r, places=False) if isinstance(r, ProductReader) else r
            for r in self.traced.readers
        ]
        return replace(self, traced=replace(self.traced, readers=readers))

    def least_squares(self, pairs: PairsOf, ridge: float) -> Pass:
        """What writes least squares; biases only where the ridge is infinite."""
        return self.writing(fit_readers(self.traced, self.keep, pairs, ridge))

    def quick(self) -> Pass:
        """Quick least squares, to compare cuts by: the default lambda, or a stronger one.

        Few samples determine poorly how kept units predict the others. A recurrence fitted to them
        may diverge from the original, which stronger lambdas prevent. A part of the validation set
        shows which is needed.
        """
        moments = self.evaluator.evidence.moments
        if all(moments.count(r.pool) >= SAMPLES * len(r.labels) for r in self.traced.readers):
            return self.least_squares(self.pairs, RIDGE)
        data, stronger = self.evaluator.data, [ridge for ridge in RIDGES if ridge > RIDGE]
        streams = data.validation.streams
        part = data.validation.take(range(0, streams, max(1, min(_PART, streams // _PART))))
        cut = replace(self, evaluator=replace(self.evaluator, data=replace(data, validation=part)))
        return cut.best_of(cut.fitted(cut.pairs, RIDGE), cut.pairs, stronger).write

    def best_of(
        self, start: Recovered, pairs: PairsOf, ridges: Iterable[float], until: float = math.inf
    ) -> Recovered:
        """Line search over lambdas: the last fit that is clearly better, while errors fall.

        Args:
            start: a fit with a lambda next to the first of these.
            pairs: the moments to fit.
            ridges: ascending or descending.
            until: deadline, see `TrainingConfig`.
        """
        best, lowest = start, start.error
        for ridge in ridges:
            if time.monotonic() > until:
                break
            other = self.fitted(pairs, ridge, start.rounds)
            if lowest <= other.error and math.isfinite(lowest):
                break
            lowest = other.error
            if lowest < CLEARLY * best.error:
                best = other
        return best

    def fitted(self, pairs: PairsOf, ridge: float, rounds: int = 0) -> Recovered:
        """Fitted and judged."""
        bias_only = math.isinf(ridge)
        write = self.least_squares(pairs, ridge)

        def refit(feeds: Feeds) -> Pass:
            """Adds feeds to all moments of `pairs`, those of later rounds included."""
            further, weighed = MomentStore(), self.evaluator.evidence.emphasis if rounds else {}
            whole = Sampling.whole(feeds, self.traced.readers)
            self.free_pairs(self.traced.document, feeds, whole, further, weighed)
            if rounds:
                self.free_pairs(self.shrunk(write), feeds, whole, further, weighed)
            return self.least_squares(
                lambda reader: pairs(reader).merge(further.pairs(reader.pool)), ridge
            )

        return Recovered(
            used="bias" if bias_only else "lstsq",
            write=write,
            ridge=None if bias_only else ridge,
            error=self.error(write),
            rounds=rounds,
            refit=refit,
        )

    def pairs(self, reader: Reader) -> Pairs:
        """Moments of what a reader of the original reads, and of the kept part of the same."""
        moments = self.evaluator.evidence.moments
        return moments.teacher_pairs(reader.pool, kept(reader.labels, self.keep))

    def sampling(self, turn: int) -> Sampling:
        """The part of the calibration set for one round of refits: other streams each turn.

        All rounds together need no more than one fit; if there is less, each gets all.
        """
        evidence, size = self.evaluator.evidence, self.evaluator.data.calibration.streams
        before, moments = evidence.sampling, evidence.moments
        wanted = {
            reader.pool: min(
                1.0, _SAMPLES * len(reader.labels) / max(moments.count(reader.pool), 1)
            )
            for reader in self.traced.readers
        }
        most = max(wanted.values(), default=1.0)
        count = math.ceil(len(before.streams) * most)
        streams = tuple((turn * count + number) % size for number in range(count))
        shares = {pool: before.shares[pool] * share / most for pool, share in wanted.items()}
        return Sampling(streams, shares)

    def free_pairs(
        self,
        document: Document,
        feeds: Feeds,
        sampling: Sampling,
        seen: MomentStore,
        emphasis: Mapping[str, Matrix],
    ) -> None:
        """Adds moments of signals in the original, next to their kept entries in another document.

        Args:
            document: a cut model, or one at full width whose removed units are fading out.
            feeds: the feeds that both run on.
            sampling: the part of them to use.
            seen: the moments are added to it.
            emphasis: of readers' outputs, by pool, to weight samples by the effect of errors.
        """
        readers, runs = self.traced.readers, self.evaluator.evidence.runs
        teacher = Tapped(self.traced.document, readers, feeds.states, runs)
        student = teacher
        if document is not self.traced.document:
            student = Tapped(document, readers, feeds.states)
        known = [(reader, kept(reader.labels, self.keep)) for reader in readers]
        for number, feed in enumerate(feeds.take(sampling.streams)):
            wanted = teacher(feed)
            real = wanted if student is teacher else student(feed)
            for reader, stays in known:
                full = teacher.signal(reader, wanted)
                read = full if student is teacher else student.signal(reader, real)
                if read.shape[1] == len(stays):
                    read = read[:, stays]
                rows = sampling.rows(reader.pool, len(full), number)
                weights, felt = None, emphasis.get(reader.pool)
                if felt is not None:
                    weigh = partial(teacher.importance, reader, wanted, felt)
                    weights = runs.recall(feed, reader.name, weigh)
                weights = None if weights is None else weights[rows]
                seen.gather(reader.pool, full[rows], read[rows], weights)
            let_go(wanted)
            let_go(real)


def _error(drift: Drift, kind: str | None) -> float:
    """The error of an output; for indices, the share that differ."""
    if kind == INDEX and drift.top1_agreement is not None:
        return 1.0 - drift.top1_agreement
    return drift.nrmse
