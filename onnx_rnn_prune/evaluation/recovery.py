"""Choosing how to recover: what is accepted is what runs best on feeds that were not fitted."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

from onnx_rnn_prune.arguments import above_zero, one_of, whole
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluation.bench import Bench, Recovered
from onnx_rnn_prune.evaluation.schedules import Fading, Schedule
from onnx_rnn_prune.evidence.moment_store import Shelf
from onnx_rnn_prune.evidence.moments import Moments
from onnx_rnn_prune.evidence.readers import Reader
from onnx_rnn_prune.lossless.unit_merging import equal_units, fit_stand_ins, nearest_units
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.passes.base import Pass, Pipeline
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig, require_torch
from onnx_rnn_prune.recovery.least_squares import Recover, place_states
from onnx_rnn_prune.traced_model import TracedModel

RECOVERIES = ("none", "bias", "lstsq", "distill", "merge")
# Those that need no data; `lossless` goes with a plan that removes just what it can make up for.
FROM_WEIGHTS = {"merge": nearest_units, "lossless": equal_units}

_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
_ROUNDS = 4
# The most that the error may be of what it is otherwise, for states to be computed.
_WORTH = 0.9


def recovery(value: object) -> str:
    """A recovery, or auto for the best that the data allows.

    Raises:
        PruneError: there is no such recovery.
    """
    return "auto" if value is None else one_of(value, (*RECOVERIES, "auto"), "--recover")


def course(recover: object, minutes: object, seed: object) -> TrainingConfig:
    """How long a recovery may learn, if it does.

    Raises:
        PruneError: a value means nothing, or PyTorch is missing, which the recovery needs.
    """
    if recovery(recover) == "distill":
        require_torch("--recover=distill")
    return TrainingConfig(above_zero(minutes, "--distill-minutes"), whole(seed, "--seed", 0))


def recover_from_weights(traced: TracedModel, keep: Mask, asked: str) -> Recovered:
    """What the weights alone say of the removed units, written into their readers."""
    stand_ins = FROM_WEIGHTS[asked](traced.document, traced.trace, keep)
    fits = fit_stand_ins(traced.document, traced.readers, keep, stand_ins)
    return Recovered(asked, Recover(traced.readers, keep, fits), None, 0.0)


def leave_units(traced: TracedModel, keep: Mask) -> Recovered:
    """Nothing stands in for the removed units."""
    fits = place_states(traced.document, traced.readers, keep)
    return Recovered("none", Recover(traced.readers, keep, fits), None, 0.0)


def recover_units(
    bench: Bench, asked: str, schedule: Schedule, course: TrainingConfig, progress: Progress
) -> tuple[Recovered, str]:
    """The recovery that was asked for, or for auto the best that is quick; and why it is that one.

    Raises:
        PruneError: with what was asked for, the outputs are no numbers.
    """
    nothing = bench.plain()
    plain = Recovered("none", nothing, None, bench.judge(nothing))
    errors = {"none": plain.error}
    last = bench.candidate("bias", bench.pairs, math.inf)
    best = _tried(errors, plain, last)
    if asked != "bias":
        del last  # what is not the best is let go of
        last = _best_ridge(bench, course.until, progress)
        last = _refit(bench, schedule, last, course.until, progress)
        if bench.hands_back and asked != "distill":  # what is placed is learnt from at once
            last = _with_states(bench, schedule, last, course.until, progress)
        best = _tried(errors, best, last)
    if asked == "distill":
        last = _distilled(bench, best, course, progress)
        best = _tried(errors, best, last)
    chosen = best if asked == "auto" else last
    if math.isinf(chosen.error) and not math.isinf(best.error):
        raise PruneError(
            f"with {asked}, outputs are not finite on held-out feeds",
            where="--recover",
            remedy="leave it out to get the best one",
        )
    return chosen, _reason(chosen, errors, bench.measure)


def refitted(bench: Bench, found: Recovered, until: float) -> Recovered:
    """The same fit on calibration and validation feeds together, once the latter have chosen it.

    It stays as it was where training went on from the fit, where none was chosen, where calibration
    left feeds out because it had enough, where the time is over, and where the new fit runs worse
    on feeds that it has seen.

    Args:
        bench: on which it was chosen.
        found: what was chosen.
        until: when there is no time left, see `TrainingConfig`.
    """
    enough = bench.evidence.streams < bench.calibration.streams
    if found.refit is None or enough or time.monotonic() > until:
        return found
    write = found.refit(bench.validation)
    better = bench.judge(write) <= found.error
    return replace(found, write=write, refit=None) if better else found


def _distilled(
    bench: Bench, start: Recovered, course: TrainingConfig, progress: Progress
) -> Recovered:
    """What comes of training from the best so far; PyTorch is imported only here."""
    from onnx_rnn_prune.recovery.distill.distill import Student, distill

    traced = bench.traced
    pupil = Student(traced.document, traced.trace, bench.keep, bench.shrunk(start.write))

    def judge(write: Pass) -> float:
        return bench.judge(Pipeline((start.write, write)))

    learnt, learning = distill(pupil, bench.calibration, judge, course, progress)
    write = Pipeline((start.write, learnt))
    refit = None if learning.taken else start.refit
    return Recovered("distill", write, start.ridge, learning.after, start.rounds, learning, refit)


def _tried(errors: dict[str, float], simpler: Recovered, other: Recovered) -> Recovered:
    """The better one; what is not is let go of, since fits are large."""
    errors[other.used] = other.error
    return _better(simpler, other)


def _best_ridge(bench: Bench, until: float, progress: Progress) -> Recovered:
    best: Recovered | None = None
    for number, ridge in enumerate(_RIDGES):
        if best is not None and time.monotonic() > until:
            break
        progress("recovering", number, len(_RIDGES) + _ROUNDS)
        candidate = bench.candidate("lstsq", bench.pairs, ridge)
        if best is None or candidate.error < best.error:
            best = candidate
        del candidate  # fits are large
    assert best is not None
    return best


def _better(simpler: Recovered, other: Recovered) -> Recovered:
    """The one with the lower error.

    Where errors are equal, and there are some, they cannot tell: what makes up for more is likelier
    to be better on other feeds.
    """
    equal = other.error == simpler.error and 0.0 < other.error < math.inf
    return other if equal or other.error < simpler.error else simpler


def _refit(
    bench: Bench, schedule: Schedule, start: Recovered, until: float, progress: Progress
) -> Recovered:
    """Refits on the signals that the cut model really has, as long as that gets better.

    Each round adds the signals of the last one to those of all before it: fitting to the last alone
    swings from one error to the opposite (Ross et al. 2011, DAgger). In the first rounds of a soft
    schedule the model is not cut yet, but on its way.
    """
    assert start.ridge is not None
    best, last = start, start
    seen, fading = Shelf(), Fading.of(bench, schedule)

    def pairs(reader: Reader) -> Moments:
        return bench.pairs(reader).merge(seen[reader.pool])

    shares = schedule.shares(_ROUNDS)
    for number, share in enumerate(shares):
        if time.monotonic() > until:
            break
        progress("recovering", len(_RIDGES) + number, len(_RIDGES) + len(shares))
        bench.free_pairs(fading(last.write, share), bench.sample(number), seen)
        last = bench.candidate("lstsq", pairs, start.ridge, number + 1)
        if last.error < best.error:
            best = last
        elif number > 0 and share == 1.0:
            break
    progress("recovering", len(_RIDGES) + len(shares), len(_RIDGES) + len(shares))
    return best


def _with_states(
    bench: Bench, schedule: Schedule, placed: Recovered, until: float, progress: Progress
) -> Recovered:
    """The fit in which states are computed, too, if that is worth the products that it takes."""
    assert placed.ridge is not None
    computing = bench.with_states_fitted()
    start = computing.candidate("lstsq", computing.pairs, placed.ridge)
    fitted = _refit(computing, schedule, start, until, progress)
    return fitted if fitted.error < _WORTH * placed.error else placed


def _reason(chosen: Recovered, errors: Mapping[str, float], measure: str) -> str:
    text = ", ".join(f"{name} {error:.3g}" for name, error in errors.items())
    lowest = min(errors.values())
    if len(set(errors.values())) == 1:
        return f"all have the same {measure} on held-out feeds ({text})"
    if chosen.error > lowest:
        return f"asked for, though not the lowest {measure} on held-out feeds ({text})"
    return f"lowest {measure} on held-out feeds ({text})"
