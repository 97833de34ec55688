"""Choosing how to recover: what is accepted is what runs best on feeds that were not fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.passes.cut import Shrink, Zero
from onnx_rnn_prune.passes.prepared import Prepared
from onnx_rnn_prune.passes.recover import Recover, teacher_pairs
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.score.evidence import Evidence, Tapped
from onnx_rnn_prune.score.moments import Moments
from onnx_rnn_prune.score.readers import Reader
from onnx_rnn_prune.trace.labels import Mask, kept
from onnx_rnn_prune.trace.states import state_outputs
from onnx_rnn_prune.validate import drift

RECOVERIES = ("none", "bias", "lstsq")

_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class Recovered:
    """A document whose kept weights make up for the cut ones, at full width.

    Attributes:
        document: cutting it gives the pruned model.
        used: none, bias or lstsq.
        ridge: lambda of lstsq.
        error: mean NRMSE of the outputs on held-out feeds.
        rounds: refits on the cut model's own signals.
    """

    document: Document
    used: str
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
        original: what outputs are compared with.
    """

    prepared: Prepared
    keep: Mask
    readers: list[Reader]
    evidence: Evidence
    fitting: Feeds
    held_out: Feeds
    original: Runner

    def judge(self, document: Document) -> float:
        """Mean NRMSE of a recovered document's outputs, running freely on held-out feeds."""
        cut = document.copy()
        Shrink(self.prepared.trace, self.keep)(cut)
        found = drift(self.original, Runner(cut.write(), name="a candidate"), self.held_out)
        states = state_outputs(self.prepared.document)
        errors = [values.nrmse for name, values in found.items() if name not in states]
        # What a state holds matters only for what comes of it.
        errors = errors or [values.nrmse for values in found.values()]
        return float(np.mean(errors)) if all(map(math.isfinite, errors)) else math.inf

    def candidate(self, used: str, moments: Mapping[str, Moments], ridge: float) -> Recovered:
        """A fitted and judged document."""
        document = self.prepared.document.copy()
        Recover(self.readers, moments, self.keep, ridge)(document)
        given = None if math.isinf(ridge) else ridge
        return Recovered(document, used, given, self.judge(document))

    def pairs(self) -> dict[str, Moments]:
        """Moments of what the original's readers read, and of the kept part of the same."""
        return {
            reader.name: teacher_pairs(
                self.evidence.moments[reader.name], kept(reader.labels, self.keep)
            )
            for reader in self.readers
        }

    def free_pairs(self, document: Document) -> dict[str, Moments]:
        """Moments of what the original's readers read, and of what a cut model's do."""
        cut = document.copy()
        Zero(self.prepared.trace, self.keep)(cut)
        teacher = Tapped(self.prepared.document, self.readers)
        student = Tapped(cut, self.readers)
        found: dict[str, Moments] = {}
        for feed in self.fitting:
            wanted, real = teacher(feed), student(feed)
            for reader in self.readers:
                stays = kept(reader.labels, self.keep)
                pair = [teacher.signal(reader, wanted), student.signal(reader, real)[:, stays]]
                moments = Moments.of(np.concatenate(pair, axis=1), last=int(stays.sum()))
                known = found.get(reader.name)
                found[reader.name] = moments if known is None else known.merge(moments)
        return found


def recover_units(bench: Bench, asked: str, progress: Progress) -> tuple[Recovered, str]:
    """The best recovery up to the one that was asked for, and why it is that one."""
    plain = Recovered(bench.prepared.document, "none", None, bench.judge(bench.prepared.document))
    if asked == "none":
        return plain, "asked for"
    pairs = bench.pairs()
    shifted = bench.candidate("bias", pairs, math.inf)
    errors = {"none": plain.error, "bias": shifted.error}
    best = _better(plain, shifted)
    del shifted  # one document at a time is held beside the best
    if asked == "lstsq":
        total = len(_RIDGES) + _ROUNDS
        fitted: Recovered | None = None
        for number, ridge in enumerate(_RIDGES):
            progress("recovering", number, total)
            candidate = bench.candidate("lstsq", pairs, ridge)
            fitted = candidate if fitted is None else _better(fitted, candidate)
        assert fitted is not None
        fitted = _refit(bench, fitted, pairs, progress)
        progress("recovering", total, total)
        errors["lstsq"] = fitted.error
        best = _better(best, fitted)
    return best, _reason(best, asked, errors)


def _better(simpler: Recovered, other: Recovered) -> Recovered:
    """The one with the lower error; the simpler one where they are equal."""
    return other if other.error < simpler.error else simpler


def _refit(
    bench: Bench, start: Recovered, pairs: dict[str, Moments], progress: Progress
) -> Recovered:
    """Refits on the signals that the cut model really has, as long as that gets better.

    Each round adds the signals of the last one to those of all before it: fitting to the last alone
    swings from one error to the opposite (Ross et al. 2011, DAgger).
    """
    assert start.ridge is not None
    best, last = start, start
    for number in range(_ROUNDS):
        progress("recovering", len(_RIDGES) + number, len(_RIDGES) + _ROUNDS)
        seen = bench.free_pairs(last.document)
        pairs = {name: moments.merge(seen[name]) for name, moments in pairs.items()}
        fitted = bench.candidate("lstsq", pairs, start.ridge)
        last = Recovered(fitted.document, "lstsq", start.ridge, fitted.error, number + 1)
        if last.error < best.error:
            best = last
        elif number > 0:
            break
    return best


def _reason(best: Recovered, asked: str, errors: Mapping[str, float]) -> str:
    text = ", ".join(f"{name} {error:.3g}" for name, error in errors.items())
    if best.used == asked:
        return f"lowest error on held-out feeds ({text})"
    return f"{asked} ran worse on held-out feeds ({text})"
