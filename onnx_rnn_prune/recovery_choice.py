"""Chooses the recovery with the lowest validation error."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluator import CandidateCut, PairsOf, Recovered
from onnx_rnn_prune.evidence.evidence import Sampling
from onnx_rnn_prune.evidence.moments import MomentStore, Pairs
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
# A refit is accepted up to this multiple of the lowest error. Refits nearly always come closer to
# the original on other data, even if a small validation set does not show it.
_TOLERATED = 1.1
# States are computed only if the error is at most this share of the error without.
_WORTH_COMPUTING = 0.9


def recover_units(
    cut: CandidateCut, asked: str, schedule: Schedule, training: TrainingConfig, progress: Progress
) -> tuple[Recovered, str]:
    """The recovery asked for, or the best quick one for auto; and the reason for it.

    Raises:
        PruneError: the recovery asked for leads to NaN or infinite outputs.
    """
    nothing = cut.plain()
    plain = Recovered("none", nothing, None, cut.error(nothing))
    errors = {"none": plain.error}
    last = cut.fitted(cut.pairs, math.inf)
    best = _tried(errors, plain, last)
    if asked != "bias":
        del last  # frees it unless it is the best
        last = _best_nearby(cut, cut.pairs, cut.fitted(cut.pairs, RIDGE), training.until)
        begun = time.monotonic()
        last = _refit(cut, schedule, last, training.until, progress)
        again = 2 * time.monotonic() - begun  # estimate with computed states
        # Distillation starts from placed states.
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
    """Refits a recovery on calibration and validation sets together, if that proves better.

    Two-fold check: fits with half of the validation set added are judged on the other half, and
    vice versa. The recovery is returned unchanged if it was trained further or is none, if
    calibration left out feeds because it had enough, and if time is up.

    Args:
        cut: the cut.
        found: the recovery chosen for it.
        until: deadline, see `TrainingConfig`.
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
    """Distillation, starting from the best so far; PyTorch is imported only here."""
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
    """Records the other's error and returns the better one; the worse, which is large, is freed."""
    errors[other.used] = other.error
    return _better(simpler, other)


def _best_nearby(cut: CandidateCut, pairs: PairsOf, start: Recovered, until: float) -> Recovered:
    """The best of fits to the same signals: with stronger lambdas, or else with weaker ones.

    A recurrence fitted too closely to the original's trajectory may diverge when it continues from
    its own states; one fitted too loosely does not follow it.
    """
    place = RIDGES.index(start.ridge or RIDGE)
    best = cut.best_of(start, pairs, RIDGES[place + 1 :], until)
    return best if best is not start else cut.best_of(start, pairs, RIDGES[:place][::-1], until)


def _better(simpler: Recovered, other: Recovered) -> Recovered:
    """The recovery with the lower error.

    If both errors are equal and not zero, the stronger recovery is likelier to be better on other
    feeds.
    """
    equal = other.error == simpler.error and 0.0 < other.error < math.inf
    return other if equal or other.error < simpler.error else simpler


def _refit(
    cut: CandidateCut, schedule: Schedule, start: Recovered, until: float, progress: Progress
) -> Recovered:
    """Refits on the cut model's own signals, unless that gets clearly worse.

    Each round adds the signals of the previous model to those of the original and of all earlier
    rounds: fitting to the last alone oscillates (Ross et al. 2011, DAgger). Samples are weighted by
    the effect of errors in them. In the first rounds of a soft schedule the units are still fading.
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

    def pairs(reader: Reader) -> Pairs:
        return seen.pairs(reader.pool)

    cut.free_pairs(cut.traced.document, feeds, first, seen, evidence.emphasis)
    shares, lowest = schedule.shares(_ROUNDS), start.error
    for number, share in enumerate(shares):
        # A round takes as long as the previous one, the first at least as long as the original's.
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
    """The fit with states computed as well, if that is worth the extra products."""
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
