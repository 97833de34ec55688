"""Choosing how to recover: what is accepted is what runs best on feeds that were not fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import OURS, Runner
from onnx_rnn_prune.passes.cut import Shrink
from onnx_rnn_prune.passes.prepared import Prepared
from onnx_rnn_prune.passes.recover import Fit, Recover, fit_readers, teacher_pairs
from onnx_rnn_prune.passes.stand_in import equal_units, fit_stand_ins, nearest_units
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.score.evidence import Evidence, Tapped
from onnx_rnn_prune.score.moments import Moments
from onnx_rnn_prune.score.readers import Reader
from onnx_rnn_prune.score.shelf import Shelf
from onnx_rnn_prune.trace.labels import Mask, kept
from onnx_rnn_prune.trace.states import state_outputs
from onnx_rnn_prune.validate import drift

RECOVERIES = ("none", "bias", "lstsq", "merge")
# Those that need no data; `lossless` goes with a plan that removes just what it can make up for.
FROM_WEIGHTS = {"merge": nearest_units, "lossless": equal_units}

_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
_ROUNDS = 4

Pairs = Callable[[Reader], Moments]


@dataclass(frozen=True, eq=False)
class Recovered:
    """What was chosen to make up for the cut units.

    Attributes:
        used: none, bias or lstsq, or what needs no data.
        fits: by reader name; empty for none.
        ridge: lambda of lstsq.
        error: mean NRMSE of the outputs on held-out feeds.
        rounds: refits on the cut model's own signals.
    """

    used: str
    fits: Mapping[str, Fit]
    ridge: float | None
    error: float
    rounds: int = 0


@dataclass(frozen=True, eq=False)
class Bench:
    """What candidates are fitted and judged with.

    Attributes:
        prepared: the model, at full width and not recovered.
        keep: per unit, True where it stays.
        readers: all that read units.
        evidence: moments of the original's signals.
        fitting: feeds to fit on.
        held_out: feeds to judge by.
        original: loads what outputs are compared with.
    """

    prepared: Prepared
    keep: Mask
    readers: list[Reader]
    evidence: Evidence
    fitting: Feeds
    held_out: Feeds
    original: Callable[[], Runner]

    def document(self, fits: Mapping[str, Fit]) -> Document:
        """A document of full width whose kept units stand in for the others."""
        result = self.prepared.document.copy()
        Recover(self.readers, self.keep, fits)(result)
        return result

    def shrunk(self, fits: Mapping[str, Fit]) -> Document:
        """What is left of it once the units are cut."""
        result = self.document(fits)
        Shrink(self.prepared.trace, self.keep)(result)
        return result

    def judge(self, fits: Mapping[str, Fit]) -> float:
        """Mean NRMSE of the outputs, running freely on held-out feeds."""
        candidate = Runner(self.shrunk(fits), name="a candidate", remedy=OURS)
        found = drift(self.original(), candidate, self.held_out)
        states = state_outputs(self.prepared.document)
        errors = [values.nrmse for name, values in found.items() if name not in states]
        # What a state holds matters only for what comes of it.
        errors = errors or [values.nrmse for values in found.values()]
        return float(np.mean(errors)) if all(map(math.isfinite, errors)) else math.inf

    def candidate(self, used: str, pairs: Pairs, ridge: float, rounds: int = 0) -> Recovered:
        """Fitted and judged."""
        fits = fit_readers(self.prepared.document, self.readers, self.keep, pairs, ridge)
        given = None if math.isinf(ridge) else ridge
        return Recovered(used, fits, given, self.judge(fits), rounds)

    def pairs(self, reader: Reader) -> Moments:
        """Moments of what a reader of the original reads, and of the kept part of the same."""
        return teacher_pairs(self.evidence.moments[reader.pool], kept(reader.labels, self.keep))

    def free_pairs(self, fits: Mapping[str, Fit], seen: Shelf) -> None:
        """Adds moments of what the original's readers read, and of what a cut model's do."""
        student = Tapped(self.shrunk(fits), self.readers)
        teacher = Tapped(self.prepared.document, self.readers)
        for feed in self.fitting:
            wanted, real = teacher(feed), student(feed)
            for reader in self.readers:
                read = student.signal(reader, real)
                pair = np.concatenate([teacher.signal(reader, wanted), read], axis=1)
                seen.add(reader.pool, Moments.of(pair, last=read.shape[1]))


def recover_from_weights(
    prepared: Prepared, keep: Mask, readers: list[Reader], asked: str
) -> Recovered:
    """What the weights alone say of the removed units, written into their readers."""
    stand_ins = FROM_WEIGHTS[asked](prepared.document, prepared.trace, keep)
    return Recovered(asked, fit_stand_ins(prepared.document, readers, keep, stand_ins), None, 0.0)


def recover_units(bench: Bench, asked: str, progress: Progress) -> tuple[Recovered, str]:
    """The best recovery up to the one that was asked for, and why it is that one."""
    plain = Recovered("none", {}, None, bench.judge({}))
    errors = {"none": plain.error}
    best = _tried(errors, plain, bench.candidate("bias", bench.pairs, math.inf))
    if asked == "lstsq":
        fitted = _refit(bench, _best_ridge(bench, progress), progress)
        best = _tried(errors, best, fitted)
    return best, _reason(best, asked, errors)


def _tried(errors: dict[str, float], simpler: Recovered, other: Recovered) -> Recovered:
    """The better one; what is not is let go of, since fits are large."""
    errors[other.used] = other.error
    return _better(simpler, other)


def _best_ridge(bench: Bench, progress: Progress) -> Recovered:
    best: Recovered | None = None
    for number, ridge in enumerate(_RIDGES):
        progress("recovering", number, len(_RIDGES) + _ROUNDS)
        candidate = bench.candidate("lstsq", bench.pairs, ridge)
        best = candidate if best is None else _better(best, candidate)
    assert best is not None
    return best


def _better(simpler: Recovered, other: Recovered) -> Recovered:
    """The one with the lower error; the simpler one where they are equal."""
    return other if other.error < simpler.error else simpler


def _refit(bench: Bench, start: Recovered, progress: Progress) -> Recovered:
    """Refits on the signals that the cut model really has, as long as that gets better.

    Each round adds the signals of the last one to those of all before it: fitting to the last alone
    swings from one error to the opposite (Ross et al. 2011, DAgger).
    """
    assert start.ridge is not None
    best, last = start, start
    seen = Shelf()

    def pairs(reader: Reader) -> Moments:
        return bench.pairs(reader).merge(seen[reader.pool])

    for number in range(_ROUNDS):
        progress("recovering", len(_RIDGES) + number, len(_RIDGES) + _ROUNDS)
        bench.free_pairs(last.fits, seen)
        last = bench.candidate("lstsq", pairs, start.ridge, number + 1)
        if last.error < best.error:
            best = last
        elif number > 0:
            break
    progress("recovering", len(_RIDGES) + _ROUNDS, len(_RIDGES) + _ROUNDS)
    return best


def _reason(best: Recovered, asked: str, errors: Mapping[str, float]) -> str:
    text = ", ".join(f"{name} {error:.3g}" for name, error in errors.items())
    if best.used == asked:
        return f"lowest error on held-out feeds ({text})"
    return f"{asked} ran worse on held-out feeds ({text})"
