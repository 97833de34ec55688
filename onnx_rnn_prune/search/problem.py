"""What a search starts from: a model whose units are ranked, and those who try cuts of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.cost.cost import limit_of
from onnx_rnn_prune.cost.price import Price
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluator import Evaluator
from onnx_rnn_prune.evidence.evidence import Evidence, Tally, needed
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.options import Interface
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.search.costs import SizePrediction, predicted, time_layers
from onnx_rnn_prune.search.executor import Mapper, Work, Workers
from onnx_rnn_prune.search.goal import Goal
from onnx_rnn_prune.search.space import Ask, Counts, Space, Trial, Verdict
from onnx_rnn_prune.search.study import Study
from onnx_rnn_prune.search.worker_context import (
    Shard,
    WorkerContext,
    calibrated,
    calibrator,
    judge,
    judged,
)
from onnx_rnn_prune.selection.choice import score_units
from onnx_rnn_prune.selection.profitability import (
    ProfitableCuts,
    restores_width,
    unprofitable_layers,
)
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.traced_model import TracedModel, trace_model
from onnx_rnn_prune.validate.quality import Quality

# Into so many parts feeds are split to calibrate on, however many work at them: sums depend, by
# rounding, on how they are put together.
_SHARDS = 8


@dataclass(frozen=True, eq=False)
class Problem:
    """What a search starts from.

    Attributes:
        traced: what is known of the model.
        evaluator: recovers and judges cuts, in this process.
        scores: of the units; of a group, those with the highest stay.
        verdicts: makes and judges them, wherever that is.
        ms: what a run is predicted to take.
        size: parameters and bytes.
        profitable: leaves groups whole whose cut does not pay.
        study: remembers trials.
    """

    traced: TracedModel
    evaluator: Evaluator
    scores: Matrix
    verdicts: Mapper[Ask, Verdict]
    ms: Price
    size: SizePrediction
    profitable: ProfitableCuts
    study: Study

    @property
    def full(self) -> Counts:
        """All units."""
        return self.profitable.full

    @property
    def unpaid(self) -> list[str]:
        """Why the cut of some groups may not pay."""
        groups = self.traced.trace.groups
        names = [name for n in self.profitable.doubtful for name in groups[n].layers]
        if not names:
            return []
        return [
            f"restoring the states or outputs of {', '.join(names)} to full width costs more than"
            " small cuts save: allow more loss, or prune with --shrink-states"
        ]

    def attempts(self, asks: Sequence[Ask]) -> Iterator[Trial]:
        """Tries cuts; what they cost is told by this machine for all."""
        for ask, verdict in zip(asks, self.verdicts(asks), strict=True):
            counts = list(ask.counts)
            ms, params = self.ms(counts), self.size("params", counts)
            size = self.size("bytes", counts)
            yield Trial(*ask, *verdict[:-1], ms, params, size, verdict.seconds)

    def space(self, request: Request, goal: Goal, slack: float) -> Space:
        """The cuts that are within all that limits their cost.

        Args:
            request: with the bounds of all cuts.
            goal: with the limits.
            slack: times the longest time that is predicted.
        """
        trace, document = self.traced.trace, self.traced.opened.document
        limits = {budget.kind: limit_of(budget, document) for budget in goal.budgets}
        most = None if goal.speed is None else goal.speed.of(self.ms(self.full)) * slack

        def fits(counts: list[int]) -> bool:
            if most is not None and self.ms(counts) > most:
                return False
            return all(self.size(kind, counts) <= limit for kind, limit in limits.items())

        return Space(trace, self.scores, request.bounds, self.ms, fits, self.profitable)


def open_problem(
    opened: OpenedModel,
    data: Calibration,
    quality: Quality,
    request: Request,
    interface: Interface,
    workers: Workers,
    study: Study,
    pays: Sequence[str],
    progress: Progress,
) -> Problem:
    """Ranks the units, and tells workers how to judge cuts.

    Layers that no cut makes smaller are left whole, and so are those in each trial of which a cut
    does not save what it is to pay in: bytes, ms.

    Raises:
        PruneError: a glob matches nothing.
    """
    names = request.layers_of(opened)
    traced = trace_model(opened, names, data.calibration, interface, progress)
    never = unprofitable_layers(traced)
    if never:
        names = tuple(name for name in names if name not in never)
        traced = trace_model(opened, names, data.calibration, interface, progress)
    traced = replace(traced, left={**traced.left, **never})
    _check_cuttable(traced, request)
    model = study.key, opened.name, opened.model, opened.rolling is not None
    context = WorkerContext(*model, data, quality, request, tuple(names), interface)
    evidence = _calibrated(context, traced, workers, progress)
    traced.evidence[data.calibration] = evidence
    scores = score_units(traced, data, request, progress)
    times = study.recall("times", lambda: time_layers(traced, data))
    evaluator = Evaluator.of(traced, data, quality)
    groups = traced.trace.groups
    doubtful = tuple(n for n, group in enumerate(groups) if restores_width(traced, group))
    ms, size = predicted(traced, times), SizePrediction(traced, scores, doubtful)
    prices: dict[str, Price] = {"ms": ms, "bytes": partial(size, "bytes")}
    profitable = ProfitableCuts(
        tuple(g.size for g in groups), doubtful, [prices[kind] for kind in pays]
    )
    return Problem(
        traced=traced,
        evaluator=evaluator,
        scores=scores,
        verdicts=workers.send(
            Work(partial(judged, evaluator, scores), partial(judge, context, evidence, scores))
        ),
        ms=ms,
        size=size,
        profitable=profitable,
        study=study,
    )


def _check_cuttable(traced: TracedModel, request: Request) -> None:
    groups = traced.trace.groups
    whole = request.bounds.whole(groups)
    if len(whole) < len(groups):
        return
    names = ", ".join(name for group in whole for name in group.layers)
    bound = [f"{names}: {request.bounds} allow no fewer units"] if whole else []
    left = [f"{name}: {reason}" for name, reason in traced.left.items()]
    raise PruneError(
        "; ".join(["no layer can be cut", *bound, *left]),
        where=traced.opened.name,
        remedy="lower --align and --min-units" if whole else "look at it with inspect",
    )


def _calibrated(
    context: WorkerContext, traced: TracedModel, workers: Workers, progress: Progress
) -> Evidence:
    feeds = context.data.calibration
    streams = np.array(needed(traced.document, traced.readers, feeds))
    parts = np.array_split(streams, min(_SHARDS, len(streams)))
    shards: list[Shard] = [tuple(part.tolist()) for part in parts]
    work = Work(partial(calibrated, traced, feeds), partial(calibrator, context))
    sums = workers.send(work)(shards)

    def counted() -> Iterator[Tally]:
        for number in range(len(shards)):
            progress("calibrating", number, len(shards))
            yield next(sums)
        progress("calibrating", len(shards), len(shards))

    return reduce(Tally.merge, counted()).evidence()
