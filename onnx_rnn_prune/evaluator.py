"""Recovering cuts of a model and judging them: best is what runs best on feeds not fitted on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.evidence import SAMPLES, Evidence, Tapped
from onnx_rnn_prune.evidence.moments import Moments, MomentStore
from onnx_rnn_prune.evidence.readers import ProductReader, Reader
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import OURS, Runner
from onnx_rnn_prune.operators.labels import Mask, kept
from onnx_rnn_prune.passes.base import Pass, Pipeline
from onnx_rnn_prune.passes.cut import Shrink
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.distill.configuration import Loss, TrainingConfig, TrainingSummary
from onnx_rnn_prune.recovery.least_squares import (
    RIDGE,
    RIDGES,
    Fit,
    Recover,
    fit_readers,
    place_states,
    teacher_pairs,
)
from onnx_rnn_prune.recovery.schedules import Fading, Schedule
from onnx_rnn_prune.trace.judged import INDEX
from onnx_rnn_prune.trace.states import plain_outputs
from onnx_rnn_prune.traced_model import TracedModel
from onnx_rnn_prune.validate import Drift, drift
from onnx_rnn_prune.validate.results import Recorded

Pairs = Callable[[Reader], Moments]

_ROUNDS = 4
# The most that the error may be of what it is otherwise, for states to be computed.
_WORTH_COMPUTING = 0.9


@dataclass(frozen=True, eq=False)
class Recovered:
    """What was chosen to make up for the cut units.

    Attributes:
        used: none, bias, lstsq or distill.
        write: puts it into the document of full width.
        ridge: lambda of lstsq.
        error: on held-out feeds, as `Evaluator.error` judges.
        rounds: refits on the cut model's own signals.
        learning: how distill went, also where it was not chosen.
        refit: fits the same on further feeds as well; None where that is not possible.
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
    """Recovers cuts of a model and judges them on validation feeds.

    Attributes:
        traced: the model, at full width and not recovered.
        data: feeds to fit on and to judge by.
        evidence: what the former show.
        original: what outputs are compared with.
        loss: of labels; cuts are judged by the mean of that and of the difference, if any.
        errors: of cuts that were judged before, see `quick_error`.
    """

    traced: TracedModel
    data: Calibration
    evidence: Evidence
    original: Recorded
    loss: Loss | None = None
    errors: dict[bytes, float] = field(default_factory=dict)

    @staticmethod
    def of(traced: TracedModel, data: Calibration, loss: Loss | None = None) -> Evaluator:
        """An evaluator of cuts of a model, where there is data.

        Args:
            traced: the model.
            data: feeds.
            loss: counts where validation feeds have labels.
        """
        evidence = data.evidence(traced)
        assert evidence is not None
        known = loss is not None and any(feed.labels is not None for feed in data.validation)
        original = Recorded(traced.original.watched())
        return Evaluator(traced, data, evidence, original, loss if known else None)

    @property
    def measure(self) -> str:
        """What cuts are judged by."""
        return "error" if self.loss is None else f"mean of error and {self.loss.name}"

    def runner(self, document: Document) -> Runner:
        """Loads a cut, with what its outputs are judged by."""
        judged = self.traced.original.judged
        outputs, drawn = judged.watched, judged.drawn
        return Runner(document, outputs=outputs, also=drawn, name="a candidate", remedy=OURS)

    def error(self, document: Document) -> float:
        """Mean NRMSE of the outputs, running freely on held-out feeds; with a loss, (both) / 2."""
        candidate, judged = self.runner(document), self.traced.original.judged
        outputs = plain_outputs(self.traced.document)  # states matter for what comes of them
        found = drift(self.original, candidate, self.data.validation)
        names = [name for name in judged.numbers(outputs) if name in found]
        errors = [_error(found[name], judged.kinds.get(name)) for name in names]
        # Without an output that can be computed, all are as good.
        error = float(np.mean(errors or [0.0])) if all(map(math.isfinite, errors)) else math.inf
        if self.loss is None:
            return error
        return (error + self.loss.of_runs(candidate, self.data.validation, outputs)) / 2

    def quick_error(self, keep: Mask) -> float:
        """Of the cut that keeps some units, with quick least squares; judged once."""
        known, cut = keep.tobytes(), self.candidate(keep)
        if known not in self.errors:
            self.errors[known] = cut.error(cut.quick())
        return self.errors[known]

    def candidate(self, keep: Mask) -> Candidate:
        """The cut that keeps some units."""
        return Candidate(self, self.traced, keep)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One cut of a model, yet to be recovered.

    Attributes:
        evaluator: judges it.
        traced: the model, with the readers that are fitted.
        keep: per unit, True where it stays.
    """

    evaluator: Evaluator
    traced: TracedModel
    keep: Mask

    def shrunk(self, write: Pass) -> Document:
        """What is left once something was written and the units are cut."""
        result = self.traced.document.copy()
        Pipeline((write, Shrink(self.traced.trace, self.keep)))(result)
        return result

    def error(self, write: Pass) -> float:
        """Of what is left, see `Evaluator.error`."""
        return self.evaluator.error(self.shrunk(write))

    def writing(self, fits: Mapping[str, Fit]) -> Pass:
        """What writes fits."""
        return Recover(self.traced.readers, self.keep, fits)

    def plain(self) -> Pass:
        """What leaves all weights as they are."""
        return self.writing(place_states(self.traced, self.keep))

    @property
    def hands_back(self) -> bool:
        """Whether it is measured what becomes of states that are brought to full width."""
        placed = any(reader.places for reader in self.traced.readers)
        return bool(self.evaluator.data.validation.states) and placed

    def with_states_fitted(self) -> Candidate:
        """The same with states that are only handed back computed like any other signal."""
        readers = [
            replace(r, places=False) if isinstance(r, ProductReader) else r
            for r in self.traced.readers
        ]
        return replace(self, traced=replace(self.traced, readers=readers))

    def least_squares(self, pairs: Pairs, ridge: float) -> Pass:
        """What writes least squares; biases only where the ridge is infinite."""
        return self.writing(fit_readers(self.traced, self.keep, pairs, ridge))

    def quick(self) -> Pass:
        """Least squares with the usual lambda, to compare cuts by.

        From few samples it is badly known what the kept units say of the others. A recurrence that
        is fitted to that may run away from the original, which stronger lambdas prevent.
        """
        moments = self.evaluator.evidence.moments
        if all(moments.count(r.pool) >= SAMPLES * len(r.labels) for r in self.traced.readers):
            return self.least_squares(self.pairs, RIDGE)
        stronger = [ridge for ridge in RIDGES if ridge > RIDGE]
        return self.best_of(self.fitted(self.pairs, RIDGE), self.pairs, stronger).write

    def best_of(
        self, start: Recovered, pairs: Pairs, ridges: Iterable[float], until: float = math.inf
    ) -> Recovered:
        """The last of fits with these lambdas, in turn, that still runs better than those before.

        Args:
            start: a fit with a lambda beside the first of these.
            pairs: what is fitted.
            ridges: rising or falling.
            until: when there is no time left, see `TrainingConfig`.
        """
        best = start
        for ridge in ridges:
            if time.monotonic() > until:
                break
            other = self.fitted(pairs, ridge, start.rounds)
            if best.error <= other.error < math.inf:
                break
            best = other
        return best

    def fitted(self, pairs: Pairs, ridge: float, rounds: int = 0) -> Recovered:
        """Fitted and judged."""
        bias_only = math.isinf(ridge)
        write = self.least_squares(pairs, ridge)

        def refit(feeds: Feeds) -> Pass:
            """With all that `pairs` knows by then, signals of later rounds included."""
            further = MomentStore()
            self.free_pairs(self.traced.document, feeds, further)
            if rounds:
                self.free_pairs(self.shrunk(write), feeds, further)
            return self.least_squares(
                lambda reader: pairs(reader).merge(further[reader.pool]), ridge
            )

        return Recovered(
            used="bias" if bias_only else "lstsq",
            write=write,
            ridge=None if bias_only else ridge,
            error=self.error(write),
            rounds=rounds,
            refit=refit,
        )

    def pairs(self, reader: Reader) -> Moments:
        """Moments of what a reader of the original reads, and of the kept part of the same."""
        moments = self.evaluator.evidence.moments[reader.pool]
        return teacher_pairs(moments, kept(reader.labels, self.keep))

    def sample(self, turn: int) -> Feeds:
        """As many streams as a refit needs, each turn others; all where there are not so many."""
        evidence, feeds = self.evaluator.evidence, self.evaluator.data.calibration
        size, moments = feeds.streams, evidence.moments
        shares = [
            SAMPLES * len(reader.labels) / max(moments.count(reader.pool), 1)
            for reader in self.traced.readers
        ]
        count = math.ceil(evidence.streams * min(1.0, max(shares, default=1.0)))
        return feeds.take([(turn * count + number) % size for number in range(count)])

    def free_pairs(self, document: Document, feeds: Feeds, seen: MomentStore) -> None:
        """Adds moments of what the original's readers read, and of what stays of it in a document.

        Args:
            document: a cut one, or one of full width in which the cut units are on their way out.
            feeds: what both run on.
            seen: what the moments are added to.
        """
        readers, runs = self.traced.readers, self.evaluator.evidence.runs
        student = Tapped(document, readers, feeds.states)
        teacher = Tapped(self.traced.document, readers, feeds.states, runs)
        for feed in feeds:
            wanted, real = teacher(feed), student(feed)
            for reader in readers:
                read, stays = student.signal(reader, real), kept(reader.labels, self.keep)
                if read.shape[1] == len(stays):
                    read = read[:, stays]
                width = read.shape[1]
                read = np.concatenate([teacher.signal(reader, wanted), read], axis=1)
                seen.gather(reader.pool, read, last=width)


def _error(drift: Drift, kind: str | None) -> float:
    """How far an output is off; of indices, the share that are others."""
    if kind == INDEX and drift.top1_agreement is not None:
        return 1.0 - drift.top1_agreement
    return drift.nrmse


def recover_units(
    cut: Candidate, asked: str, schedule: Schedule, course: TrainingConfig, progress: Progress
) -> tuple[Recovered, str]:
    """The recovery that was asked for, or for auto the best that is quick; and why it is that one.

    Raises:
        PruneError: with what was asked for, the outputs are no numbers.
    """
    nothing = cut.plain()
    plain = Recovered("none", nothing, None, cut.error(nothing))
    errors = {"none": plain.error}
    last = cut.fitted(cut.pairs, math.inf)
    best = _tried(errors, plain, last)
    if asked != "bias":
        del last  # what is not the best is let go of
        last = _best_nearby(cut, cut.pairs, cut.fitted(cut.pairs, RIDGE), course.until)
        last = _refit(cut, schedule, last, course.until, progress)
        if cut.hands_back and asked != "distill":  # what is placed is learnt from at once
            last = _with_states(cut, schedule, last, course.until, progress)
        best = _tried(errors, best, last)
    if asked == "distill":
        last = _distilled(cut, best, course, progress)
        best = _tried(errors, best, last)
    chosen = best if asked == "auto" else last
    if math.isinf(chosen.error) and not math.isinf(best.error):
        raise PruneError(
            f"with {asked}, outputs are not finite on held-out feeds",
            where="--recover",
            remedy="leave it out to get the best one",
        )
    return chosen, _reason(chosen, errors, cut.evaluator.measure)


def refitted(cut: Candidate, found: Recovered, until: float) -> Recovered:
    """The same fit on calibration and validation feeds together, once the latter have chosen it.

    It stays as it was where training went on from the fit, where none was chosen, where calibration
    left feeds out because it had enough, where the time is over, and where the new fit runs worse
    on feeds that it has seen.

    Args:
        cut: for which it was chosen.
        found: what was chosen.
        until: when there is no time left, see `TrainingConfig`.
    """
    enough = cut.evaluator.evidence.streams < cut.evaluator.data.calibration.streams
    if found.refit is None or enough or time.monotonic() > until:
        return found
    write = found.refit(cut.evaluator.data.validation)
    better = cut.error(write) <= found.error
    return replace(found, write=write, refit=None) if better else found


def _distilled(
    cut: Candidate, start: Recovered, course: TrainingConfig, progress: Progress
) -> Recovered:
    """What comes of training from the best so far; PyTorch is imported only here."""
    from onnx_rnn_prune.recovery.distill.distill import Student, distill

    traced = cut.traced
    pupil = Student(traced.document, traced.trace, cut.keep, cut.shrunk(start.write))

    def judge(write: Pass) -> float:
        return cut.error(Pipeline((start.write, write)))

    learnt, learning = distill(pupil, cut.evaluator.data.calibration, judge, course, progress)
    write = Pipeline((start.write, learnt))
    refit = None if learning.taken else start.refit
    return Recovered("distill", write, start.ridge, learning.after, start.rounds, learning, refit)


def _tried(errors: dict[str, float], simpler: Recovered, other: Recovered) -> Recovered:
    """The better one; what is not is let go of, since fits are large."""
    errors[other.used] = other.error
    return _better(simpler, other)


def _best_nearby(cut: Candidate, pairs: Pairs, start: Recovered, until: float) -> Recovered:
    """The best of fits to the same signals: with stronger lambdas, or else with weaker ones.

    A recurrence that is fitted too closely to how the original went may run away from it when it
    goes on from its own states; one that is fitted too loosely does not follow it.
    """
    place = RIDGES.index(start.ridge or RIDGE)
    best = cut.best_of(start, pairs, RIDGES[place + 1 :], until)
    return best if best is not start else cut.best_of(start, pairs, RIDGES[:place][::-1], until)


def _better(simpler: Recovered, other: Recovered) -> Recovered:
    """The one with the lower error.

    Where errors are equal, and there are some, they cannot tell: what makes up for more is likelier
    to be better on other feeds.
    """
    equal = other.error == simpler.error and 0.0 < other.error < math.inf
    return other if equal or other.error < simpler.error else simpler


def _refit(
    cut: Candidate, schedule: Schedule, start: Recovered, until: float, progress: Progress
) -> Recovered:
    """Refits on the signals that the cut model really has, as long as that gets better.

    Each round adds the signals of the last one to those of all before it: fitting to the last alone
    swings from one error to the opposite (Ross et al. 2011, DAgger). In the first rounds of a soft
    schedule the model is not cut yet, but on its way.
    """
    assert start.ridge is not None
    best, last = start, start
    seen, fading = (
        MomentStore(),
        Fading.of(cut.traced, cut.keep, cut.evaluator.evidence.moments, schedule),
    )

    def pairs(reader: Reader) -> Moments:
        return cut.pairs(reader).merge(seen[reader.pool])

    shares = schedule.shares(_ROUNDS)
    for number, share in enumerate(shares):
        if time.monotonic() > until:
            break
        progress("recovering", number, len(shares))
        on_its_way = cut.shrunk(last.write) if share == 1.0 else fading(last.write, share)
        cut.free_pairs(on_its_way, cut.sample(number), seen)
        last = cut.fitted(pairs, start.ridge, number + 1)
        if last.error < best.error:
            best = last
        elif number > 0 and share == 1.0:
            break
    if last is not start:
        last = _best_nearby(cut, pairs, last, until)
    progress("recovering", len(shares), len(shares))
    return last if last.error < best.error else best


def _with_states(
    cut: Candidate, schedule: Schedule, placed: Recovered, until: float, progress: Progress
) -> Recovered:
    """The fit in which states are computed, too, if that is worth the products that it takes."""
    assert placed.ridge is not None
    computing = cut.with_states_fitted()
    start = computing.fitted(computing.pairs, placed.ridge)
    fitted = _refit(computing, schedule, start, until, progress)
    return fitted if fitted.error < _WORTH_COMPUTING * placed.error else placed


def _reason(chosen: Recovered, errors: Mapping[str, float], measure: str) -> str:
    text = ", ".join(f"{name} {error:.3g}" for name, error in errors.items())
    lowest = min(errors.values())
    if len(set(errors.values())) == 1:
        return f"all have the same {measure} on held-out feeds ({text})"
    if chosen.error > lowest:
        return f"asked for, though not the lowest {measure} on held-out feeds ({text})"
    return f"lowest {measure} on held-out feeds ({text})"
