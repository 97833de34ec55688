"""Where recoveries are fitted and judged: what runs best on feeds that were not fitted is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.flow.answers import Answers
from onnx_rnn_prune.flow.feeding import Data
from onnx_rnn_prune.flow.opening import Opened
from onnx_rnn_prune.flow.studying import Studied
from onnx_rnn_prune.learn.course import Learning
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import OURS, Runner
from onnx_rnn_prune.passes.base import Pass, Pipeline
from onnx_rnn_prune.passes.cut import Shrink
from onnx_rnn_prune.passes.prepared import Prepared
from onnx_rnn_prune.passes.recover import Fit, Recover, fit_readers, teacher_pairs
from onnx_rnn_prune.score.evidence import Evidence, Tapped
from onnx_rnn_prune.score.moments import Moments
from onnx_rnn_prune.score.readers import Reader
from onnx_rnn_prune.score.shelf import Shelf
from onnx_rnn_prune.trace.labels import Mask, kept
from onnx_rnn_prune.trace.states import state_outputs
from onnx_rnn_prune.validate import deviations

Pairs = Callable[[Reader], Moments]


@dataclass(frozen=True, eq=False)
class Recovered:
    """What was chosen to make up for the cut units.

    Attributes:
        used: none, bias, lstsq or distill.
        write: puts it into the document of full width.
        ridge: lambda of lstsq.
        error: mean NRMSE of the outputs on held-out feeds.
        rounds: refits on the cut model's own signals.
        learning: how distill went, also where it was not chosen.
    """

    used: str
    write: Pass
    ridge: float | None
    error: float
    rounds: int = 0
    learning: Learning | None = None


@dataclass(frozen=True, eq=False)
class Bench:
    """What candidates are fitted and judged with.

    Attributes:
        prepared: the model, at full width and not recovered.
        keep: per unit, True where it stays.
        readers: all that read units.
        evidence: moments of the original's signals.
        fitting: feeds to fit on.
        answers: feeds to judge by, with what the original gives for them.
    """

    prepared: Prepared
    keep: Mask
    readers: list[Reader]
    evidence: Evidence
    fitting: Feeds
    answers: Answers

    @staticmethod
    def of(opened: Opened, data: Data, studied: Studied, keep: Mask) -> Bench:
        """A bench for a model of which data was seen."""
        assert studied.evidence is not None
        return Bench(
            prepared=studied.prepared,
            keep=keep,
            readers=studied.readers,
            evidence=studied.evidence,
            fitting=data.fitting,
            answers=Answers(opened.run, data.held_out),
        )

    def with_units(self, keep: Mask) -> Bench:
        """The same for other units."""
        return replace(self, keep=keep)

    def recover(self, fits: Mapping[str, Fit]) -> Pass:
        """What writes fits."""
        return Recover(self.readers, self.keep, fits)

    def shrunk(self, write: Pass) -> Document:
        """What is left once something was written and the units are cut."""
        result = self.prepared.document.copy()
        Pipeline((write, Shrink(self.prepared.trace, self.keep)))(result)
        return result

    def judge(self, write: Pass) -> float:
        """Mean NRMSE of the outputs, running freely on held-out feeds."""
        candidate = Runner(self.shrunk(write), name="a candidate", remedy=OURS)
        found = deviations(self.answers, candidate, "the original and a candidate")
        states = state_outputs(self.prepared.document)
        errors = [values.nrmse for name, values in found.items() if name not in states]
        # What a state holds matters only for what comes of it.
        errors = errors or [values.nrmse for values in found.values()]
        return float(np.mean(errors)) if all(map(math.isfinite, errors)) else math.inf

    def candidate(self, used: str, pairs: Pairs, ridge: float, rounds: int = 0) -> Recovered:
        """Fitted and judged."""
        fits = fit_readers(self.prepared.document, self.readers, self.keep, pairs, ridge)
        given = None if math.isinf(ridge) else ridge
        write = self.recover(fits)
        return Recovered(used, write, given, self.judge(write), rounds)

    def pairs(self, reader: Reader) -> Moments:
        """Moments of what a reader of the original reads, and of the kept part of the same."""
        return teacher_pairs(self.evidence.moments[reader.pool], kept(reader.labels, self.keep))

    def free_pairs(self, document: Document, seen: Shelf) -> None:
        """Adds moments of what the original's readers read, and of what stays of it in a document.

        Args:
            document: a cut one, or one of full width in which the cut units are on their way out.
            seen: what the moments are added to.
        """
        student = Tapped(document, self.readers)
        teacher = Tapped(self.prepared.document, self.readers)
        for feed in self.fitting:
            wanted, real = teacher(feed), student(feed)
            for reader in self.readers:
                read, stays = student.signal(reader, real), kept(reader.labels, self.keep)
                if read.shape[1] == len(stays):
                    read = read[:, stays]
                pair = np.concatenate([teacher.signal(reader, wanted), read], axis=1)
                seen.add(reader.pool, Moments.of(pair, last=read.shape[1]))
