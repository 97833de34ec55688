"""Choosing a recovery: accepted is what runs best on feeds that were not fitted."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluator import CandidateCut, Pairs, Recovered
from onnx_rnn_prune.evidence.evidence import Sampling
from onnx_rnn_prune.evidence.moments import Moments, MomentStore
from onnx_rnn_prune.evidence.readers import Reader
from onnx_rnn_prune.passes import Pass, Pipeline
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig
from onnx_rnn_prune.recovery.least_squares import (
    RIDGE,
    RIDGES,
)
from onnx_rnn_prune.recovery.schedules import Fading, Schedule

_ROUNDS = 4
# The most that the error may be of the lowest one for a refit to be taken. Refits nearly always
# come closer to the original on other data, also where a few validation feeds do not show it.
_TOLERATED = 1.1
# The most that the error may be of what it is otherwise, for states to be computed.
_WORTH_COMPUTING = 0.9


def recover_units(
    cut: CandidateCut, asked: str, schedule: Schedule, training: TrainingConfig, progress: Progress
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
        last = _best_nearby(cut, cut.pairs, cut.fitted(cut.pairs, RIDGE), training.until)
        begun = time.monotonic()
        last = _refit(cut, schedule, last, training.until, progress)
        again = 2 * time.monotonic() - begun  # once states are computed, too
        # What is placed is learnt from at once.
        if cut.hands_back and asked != "distill" and again <= training.until:
            last = _with_states(cut, schedule, last, training.until, progress)
        best = _tried(errors, best, last)
    if asked == "distill":
        last = _distilled(cut, best, training, progress)
        best = _tried(errors, best, last)
    chosen = best if asked == "auto" else last
    if math.isinf(chosen.error) and not math.isinf(best.error):
        raise PruneError(
            f"{asked} makes outputs infinite or NaN on the validation feeds",
            where="--recover",
            remedy="leave it out to use the best one",
        )
    return chosen, _reason(chosen, errors, cut.evaluator.measure)


def refitted(cut: CandidateCut, found: Recovered, until: float) -> Recovered:
    """The same fit on calibration and validation feeds together, if that is seen to be better.

    Fits that take in half of the validation feeds are judged by the other half, and the other way
    round. It stays as it was where training went on from the fit, where none was chosen, where
    calibration left feeds out because it had enough, and where the time is over.

    Args:
        cut: for which it was chosen.
        found: what was chosen.
        until: when there is no time left, see `TrainingConfig`.
    """
    data = cut.evaluator.data
    whole = Sampling.whole(data.calibration, cut.traced.readers)
    enough = cut.evaluator.evidence.sampling != whole
    few = data.validation.streams < 2
    if found.refit is None or enough or few or time.monotonic() > until:
        return found
    halves = [data.validation.take(range(n, data.validation.streams, 2)) for n in (0, 1)]
    before = sum(cut.error(found.write, half) for half in halves)
    after = sum(
        cut.error(found.refit(fitted), judged) for fitted, judged in (halves, reversed(halves))
    )
    write = found.refit(data.validation) if after < before else found.write
    better = after < before and cut.error(write) <= found.error
    return replace(found, write=write, refit=None) if better else found


def _distilled(
    cut: CandidateCut, start: Recovered, training: TrainingConfig, progress: Progress
) -> Recovered:
    """What comes of training from the best so far; PyTorch is imported only here."""
    from onnx_rnn_prune.recovery.distill.distill import Student, distill

    traced = cut.traced
    student = Student(traced.document, traced.trace, cut.keep, cut.shrunk(start.write))

    def judge(write: Pass) -> float:
        return cut.error(Pipeline((start.write, write)))

    write_back, learning = distill(
        student, cut.evaluator.data.calibration, judge, training, progress
    )
    write = Pipeline((start.write, write_back))
    refit = None if learning.taken else start.refit
    return Recovered("distill", write, start.ridge, learning.after, start.rounds, learning, refit)


def _tried(errors: dict[str, float], simpler: Recovered, other: Recovered) -> Recovered:
    """The better one; what is not is let go of, since fits are large."""
    errors[other.used] = other.error
    return _better(simpler, other)


def _best_nearby(cut: CandidateCut, pairs: Pairs, start: Recovered, until: float) -> Recovered:
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
    cut: CandidateCut, schedule: Schedule, start: Recovered, until: float, progress: Progress
) -> Recovered:
    """Refits on the signals that the cut model really has, unless that gets clearly worse.

    Each round adds the signals of the last one to those of the original and of all before it:
    fitting to the last alone swings from one error to the opposite (Ross et al. 2011, DAgger).
    Samples count by how much comes of an error in them. In the first rounds of a soft schedule the
    model is not cut yet, but on its way.
    """
    assert start.ridge is not None
    evidence, feeds = cut.evaluator.evidence, cut.evaluator.data.calibration
    first = cut.sampling(0)
    share = len(first.streams) / len(evidence.sampling.streams)
    begun, took = time.monotonic(), evidence.seconds * share
    if begun + took > until:
        return start
    best, last = start, start
    seen, fading = (
        MomentStore(),
        Fading.of(cut.traced, cut.keep, evidence.moments, schedule),
    )

    def pairs(reader: Reader) -> Moments:
        return seen[reader.pool]

    cut.free_pairs(cut.traced.document, feeds, first, seen, evidence.emphasis)
    shares, lowest = schedule.shares(_ROUNDS), start.error
    for number, share in enumerate(shares):
        # A round takes as long as the one before, and the first one at least as the original.
        begun, took = time.monotonic(), time.monotonic() - begun
        if begun + took > until:
            break
        progress("recovering", number, len(shares))
        on_its_way = cut.shrunk(last.write) if share == 1.0 else fading(last.write, share)
        cut.free_pairs(on_its_way, feeds, cut.sampling(number), seen, evidence.emphasis)
        last = cut.fitted(pairs, start.ridge, number + 1)
        if last.error < _TOLERATED * lowest:
            best, lowest = last, min(lowest, last.error)
        elif number > 0 and share == 1.0:
            break
    progress("recovering", len(shares), len(shares))
    return best if best is start else _best_nearby(cut, pairs, best, until)


def _with_states(
    cut: CandidateCut, schedule: Schedule, placed: Recovered, until: float, progress: Progress
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
        return f"all have the same {measure} on the validation feeds ({text})"
    if chosen.error > lowest:
        return f"requested, though not the lowest {measure} on the validation feeds ({text})"
    return f"lowest {measure} on the validation feeds ({text})"
