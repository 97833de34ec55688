"""Where recoveries are fitted and judged: what runs best on feeds that were not fitted is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.evidence.evidence import SAMPLES, Evidence, Tapped
from onnx_rnn_prune.evidence.moment_store import Shelf
from onnx_rnn_prune.evidence.moments import Moments
from onnx_rnn_prune.evidence.readers import ProductReader, Reader
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import OURS, Runner
from onnx_rnn_prune.operators.labels import Mask, kept
from onnx_rnn_prune.passes.base import Pass, Pipeline
from onnx_rnn_prune.passes.cut import Shrink
from onnx_rnn_prune.recovery.distill.configuration import Loss, TrainingSummary
from onnx_rnn_prune.recovery.least_squares import (
    Fit,
    Recover,
    fit_readers,
    place_states,
    teacher_pairs,
)
from onnx_rnn_prune.trace.judged import INDEX, Judged
from onnx_rnn_prune.trace.states import plain_outputs
from onnx_rnn_prune.traced_model import TracedModel
from onnx_rnn_prune.validate import Drift, drift
from onnx_rnn_prune.validate.results import Recorded

Pairs = Callable[[Reader], Moments]


@dataclass(frozen=True, eq=False)
class Recovered:
    """What was chosen to make up for the cut units.

    Attributes:
        used: none, bias, lstsq or distill.
        write: puts it into the document of full width.
        ridge: lambda of lstsq.
        error: on held-out feeds, as the bench judges.
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
class Bench:
    """What candidates are fitted and judged with.

    Attributes:
        traced: the model, at full width and not recovered.
        keep: per unit, True where it stays.
        readers: all that read units.
        evidence: moments of the original's signals.
        calibration: feeds to fit on.
        validation: feeds to judge by.
        original: what outputs are compared with.
        judged: what outputs are judged by.
        loss: of labels; candidates are judged by the mean of that and of the difference, if any.
    """

    traced: TracedModel
    keep: Mask
    readers: list[Reader]
    evidence: Evidence
    calibration: Feeds
    validation: Feeds
    original: Recorded
    judged: Judged
    loss: Loss | None = None

    @staticmethod
    def of(traced: TracedModel, data: Calibration, keep: Mask) -> Bench:
        """A bench for a model, where there is data."""
        evidence, opened = data.evidence(traced), traced.original
        assert evidence is not None
        return Bench(
            traced=traced,
            keep=keep,
            readers=traced.readers,
            evidence=evidence,
            calibration=data.calibration,
            validation=data.validation,
            original=Recorded(opened.watched()),
            judged=opened.judged,
        )

    def with_units(self, keep: Mask) -> Bench:
        """The same for other units."""
        return replace(self, keep=keep)

    def judged_by(self, loss: Loss | None) -> Bench:
        """The same with a loss of labels, where held-out feeds have some."""
        known = loss is not None and any(feed.labels is not None for feed in self.validation)
        return replace(self, loss=loss if known else None)

    @property
    def measure(self) -> str:
        """What candidates are judged by."""
        return "error" if self.loss is None else f"mean of error and {self.loss.name}"

    def recover(self, fits: Mapping[str, Fit]) -> Pass:
        """What writes fits."""
        return Recover(self.readers, self.keep, fits)

    def plain(self) -> Pass:
        """What leaves all weights as they are."""
        return self.recover(place_states(self.traced.document, self.readers, self.keep))

    @property
    def hands_back(self) -> bool:
        """Whether it is measured what becomes of states that are brought to full width."""
        return bool(self.validation.states) and any(reader.places for reader in self.readers)

    def with_states_fitted(self) -> Bench:
        """The same with states that are only handed back computed like any other signal."""
        readers = [
            replace(r, places=False) if isinstance(r, ProductReader) else r for r in self.readers
        ]
        return replace(self, readers=readers)

    def shrunk(self, write: Pass) -> Document:
        """What is left once something was written and the units are cut."""
        result = self.traced.document.copy()
        Pipeline((write, Shrink(self.traced.trace, self.keep)))(result)
        return result

    def judge(self, write: Pass) -> float:
        """Mean NRMSE of the outputs, running freely on held-out feeds; with a loss, (both) / 2."""
        candidate = self.runner(self.shrunk(write))
        outputs = plain_outputs(self.traced.document)  # states matter for what comes of them
        found = drift(self.original, candidate, self.validation)
        names = [name for name in self.judged.numbers(outputs) if name in found]
        errors = [_error(found[name], self.judged.kinds.get(name)) for name in names]
        # Without an output that can be computed, all are as good.
        error = float(np.mean(errors or [0.0])) if all(map(math.isfinite, errors)) else math.inf
        if self.loss is None:
            return error
        return (error + self.loss.of_runs(candidate, self.validation, outputs)) / 2

    def runner(self, document: Document) -> Runner:
        """Loads a candidate, with what its outputs are judged by."""
        outputs, drawn = self.judged.watched, self.judged.drawn
        return Runner(document, outputs=outputs, also=drawn, name="a candidate", remedy=OURS)

    def candidate(self, used: str, pairs: Pairs, ridge: float, rounds: int = 0) -> Recovered:
        """Fitted and judged."""
        given = None if math.isinf(ridge) else ridge
        write = self.fitted(pairs, ridge)

        def refit(feeds: Feeds) -> Pass:
            """With all that `pairs` knows by then, signals of later rounds included."""
            further = Shelf()
            self.free_pairs(self.traced.document, feeds, further)
            if rounds:
                self.free_pairs(self.shrunk(write), feeds, further)
            return self.fitted(lambda reader: pairs(reader).merge(further[reader.pool]), ridge)

        return Recovered(used, write, given, self.judge(write), rounds, refit=refit)

    def fitted(self, pairs: Pairs, ridge: float) -> Pass:
        """What writes least squares; biases only where the ridge is infinite."""
        return self.recover(
            fit_readers(self.traced.document, self.readers, self.keep, pairs, ridge)
        )

    def pairs(self, reader: Reader) -> Moments:
        """Moments of what a reader of the original reads, and of the kept part of the same."""
        return teacher_pairs(self.evidence.moments[reader.pool], kept(reader.labels, self.keep))

    def sample(self, turn: int) -> Feeds:
        """As many streams as a refit needs, each turn others; all where there are not so many."""
        size, moments = self.calibration.streams, self.evidence.moments
        shares = [
            SAMPLES * len(reader.labels) / max(moments[reader.pool].count, 1)
            for reader in self.readers
        ]
        count = math.ceil(self.evidence.streams * min(1.0, max(shares, default=1.0)))
        return self.calibration.take([(turn * count + number) % size for number in range(count)])

    def free_pairs(self, document: Document, feeds: Feeds, seen: Shelf) -> None:
        """Adds moments of what the original's readers read, and of what stays of it in a document.

        Args:
            document: a cut one, or one of full width in which the cut units are on their way out.
            feeds: what both run on.
            seen: what the moments are added to.
        """
        student = Tapped(document, self.readers, feeds.states)
        runs = self.evidence.runs
        teacher = Tapped(self.traced.document, self.readers, feeds.states, runs)
        for feed in feeds:
            wanted, real = teacher(feed), student(feed)
            for reader in self.readers:
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
