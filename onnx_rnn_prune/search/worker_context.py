"""Recreates model, data and evaluator in a worker process."""

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
from onnx_rnn_prune.evidence.matrices import Matrix
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
    """What a worker needs to recreate the traced model and its data.

    Attributes:
        key: the key of the search; equal keys mean equal contexts.
        name: the model's name in errors.
        model: the model as read.
        rolls: whether unrolled recurrences are rolled into layers.
        data: the feeds.
        quality: measure of quality.
        request: how units are ranked.
        names: the layers that may be cut.
        interface: whether states stay at full width.
        longest: seconds after which a full recovery settles for the best so far.
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
    """The function that tallies a shard of the feeds in this process."""
    return partial(calibrated, _traced(context), context.data.calibration)


def judge(context: WorkerContext, evidence: Evidence, scores: Matrix) -> Callable[[Ask], Verdict]:
    """The function that makes and judges cuts in this process.

    Args:
        context: the model and its data.
        evidence: from calibration.
        scores: one per unit.
    """
    traced, data = _traced(context), context.data
    traced.evidence.clear()  # of a previous search
    traced.evidence[data.calibration] = evidence
    return partial(judged, Evaluator.of(traced, data, context.quality), scores, context.longest)


def judged(evaluator: Evaluator, scores: Matrix, longest: float, ask: Ask) -> Verdict:
    """Makes, recovers and judges a cut; each group keeps the units with the highest scores."""
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
    """Tallies a shard of the feeds."""
    return tally(traced.document, traced.trace, traced.readers, feeds, shard, silent)


# A worker first calibrates and then judges, and opens the model once for both. The cached model
# depends on the argument alone, and at most one is kept.
@lru_cache(maxsize=1)
def _traced(context: WorkerContext) -> TracedModel:
    """The traced model, the same as in the process that sent the context.

    Raises:
        PruneError: this process finds other data, or runs another version.
    """
    opened = follow(context.model, context.name, context.request.layers, context.rolls)
    if key_of(opened, context.data, context.quality, context.request) != context.key:
        raise PruneError(
            "a worker reads different data, or has a different version of onnx_rnn_prune",
            where=context.data.calibration.source,
            remedy="use the same version, and the same files at the same paths, on all workers",
        )
    return trace_model(opened, context.names, context.data.calibration, context.interface)
