"""The same model, data and evaluator in another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import onnx

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluator import Evaluator
from onnx_rnn_prune.evidence.evidence import Evidence, Sampling, Tally, tally
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.opened_model import follow
from onnx_rnn_prune.options import Interface
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig
from onnx_rnn_prune.recovery.schedules import Schedule
from onnx_rnn_prune.recovery_choice import recover_units
from onnx_rnn_prune.search.study import key_of
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.selection.space import FULL, Ask, Verdict
from onnx_rnn_prune.traced_model import TracedModel, trace_model
from onnx_rnn_prune.validate.quality import Quality


@dataclass(frozen=True)
class WorkerContext:
    """What another process needs to come to know a model as this one does.

    Attributes:
        key: of the search; the same key means the same context.
        name: how errors call the model.
        model: as read.
        rolls: whether recurrences that are written out are layers.
        data: feeds.
        quality: how good a cut is.
        request: how units are ranked.
        names: the layers that may be cut.
        interface: whether states stay at full width.
        longest: seconds after which a recovery in full makes do with what it has.
    """

    key: str
    name: str = field(compare=False)
    model: onnx.ModelProto = field(compare=False, repr=False)
    rolls: bool = field(compare=False)
    data: Calibration = field(compare=False)
    quality: Quality = field(compare=False)
    request: Request = field(compare=False)
    names: tuple[str, ...] = field(compare=False)
    interface: Interface = field(compare=False)
    longest: float = field(compare=False)


def calibrator(context: WorkerContext) -> Callable[[Sampling], Tally]:
    """What sums up a shard of the feeds in this process."""
    return partial(calibrated, _traced(context), context.data.calibration)


def judge(context: WorkerContext, evidence: Evidence, scores: Matrix) -> Callable[[Ask], Verdict]:
    """What makes cuts and judges them in this process.

    Args:
        context: the model and its data.
        evidence: what the data showed.
        scores: of the units.
    """
    traced, data = _traced(context), context.data
    traced.evidence.clear()  # of a search before this one
    traced.evidence[data.calibration] = evidence
    return partial(judged, Evaluator.of(traced, data, context.quality), scores, context.longest)


def judged(evaluator: Evaluator, scores: Matrix, longest: float, ask: Ask) -> Verdict:
    """Makes a cut, recovers and judges it; of each group, units with the highest scores stay."""
    start, trace = time.perf_counter(), evaluator.traced.trace
    if ask.counts == tuple(group.size for group in trace.groups):
        value = evaluator.before(evaluator.data.validation)
        return Verdict(value, 0.0, 0.0, 0.0, time.perf_counter() - start)
    cut = evaluator.candidate(choose(trace, scores, list(ask.counts)))
    if ask.recovery == FULL:
        hurried = TrainingConfig(until=time.monotonic() + longest)
        found = recover_units(cut, "auto", Schedule(), hurried, silent)
        evaluator.remember(cut.keep, found)
        write = found[0].write
    else:
        write = cut.quick()
    return Verdict(*evaluator.judge(cut.shrunk(write)), time.perf_counter() - start)


def calibrated(traced: TracedModel, feeds: Feeds, shard: Sampling) -> Tally:
    """Sums over some of the feeds."""
    return tally(traced.document, traced.trace, traced.readers, feeds, shard, silent)


# A worker is told first to calibrate and then to judge, and opens the model once for both. What is
# kept follows from the argument alone, and it is one model at most.
@lru_cache(maxsize=1)
def _traced(context: WorkerContext) -> TracedModel:
    """As the process knows it that sent the context.

    Raises:
        PruneError: this one finds other data, or is of another version.
    """
    opened = follow(context.model, context.name, context.request.layers, context.rolls)
    if key_of(opened, context.data, context.quality, context.request) != context.key:
        raise PruneError(
            "a worker reads different data, or has a different version of onnx_rnn_prune",
            where=context.data.calibration.source,
            remedy="use the same version, and the same files at the same paths, on all workers",
        )
    return trace_model(opened, context.names, context.data.calibration, context.interface)
