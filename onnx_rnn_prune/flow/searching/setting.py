"""What a search starts from: a model whose units are ranked, and those who try cuts of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.flow.choosing.request import Request
from onnx_rnn_prune.flow.choosing.scoring import score_units
from onnx_rnn_prune.flow.choosing.sharing import cost_of_cuts
from onnx_rnn_prune.flow.feeding import Data
from onnx_rnn_prune.flow.interface import Interface
from onnx_rnn_prune.flow.opening import Opened
from onnx_rnn_prune.flow.searching.goal import Goal
from onnx_rnn_prune.flow.searching.laboratory import Laboratory
from onnx_rnn_prune.flow.searching.memory import Memory
from onnx_rnn_prune.flow.searching.site import Calibrate, Judge, Shard, Site, calibrated
from onnx_rnn_prune.flow.searching.space import Space
from onnx_rnn_prune.flow.searching.speed import predicted, time_layers
from onnx_rnn_prune.flow.searching.trial import Ask, Trial, Verdict
from onnx_rnn_prune.flow.searching.workers import Mapper, Work, Workers
from onnx_rnn_prune.flow.studying import Studied, study
from onnx_rnn_prune.flow.worth import never_worth
from onnx_rnn_prune.passes.prepared import Prepared, choose_layers
from onnx_rnn_prune.plan.cost import Cost, limit_of
from onnx_rnn_prune.plan.price import Price
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.score.evidence import Evidence, Tally, needed
from onnx_rnn_prune.validate.quality import Quality

# Into so many parts feeds are split to calibrate on, however many work at them: sums depend, by
# rounding, on how they are put together.
_SHARDS = 8


@dataclass(frozen=True, eq=False)
class Setting:
    """What a search starts from.

    Attributes:
        studied: what is known of the model.
        lab: where cuts are made in this process.
        verdicts: makes and judges them, wherever that is.
        ms: what a run is predicted to take.
        cost: parameters and bytes.
    """

    studied: Studied
    lab: Laboratory
    verdicts: Mapper[Ask, Verdict]
    ms: Price
    cost: Cost

    def attempts(self, asks: Sequence[Ask]) -> Iterator[Trial]:
        """Tries cuts; what they cost is told by this machine for all."""
        for ask, verdict in zip(asks, self.verdicts(asks), strict=True):
            counts = list(ask.counts)
            cost = self.cost("params", counts), self.cost("bytes", counts)
            yield Trial.made(ask, verdict, self.ms(counts), *cost)


def open_setting(
    opened: Opened,
    data: Data,
    quality: Quality,
    request: Request,
    interface: Interface,
    workers: Workers,
    memory: Memory,
    progress: Progress,
) -> Setting:
    """Ranks the units, and tells workers how to judge cuts.

    Layers that no cut makes smaller are left whole.

    Raises:
        PruneError: a glob matches nothing.
    """
    names = choose_layers(opened.layers, request.only, request.skip)
    studied = study(opened, names, data, interface, progress)
    never = never_worth(opened, data, studied)
    if never:
        names = tuple(name for name in names if name not in never)
        studied = study(opened, names, data, interface, progress)
    left = {**studied.prepared.left, **never}
    studied = replace(studied, prepared=replace(studied.prepared, left=left))
    _check_cuttable(opened, studied.prepared, request)
    site = Site(
        memory.key, opened.name, opened.model, data, quality, request, tuple(names), interface
    )
    evidence = _calibrated(site, studied, workers, progress)
    studied = replace(studied, evidence=evidence)
    scores, studied = score_units(studied, data, request, progress)
    times = memory.recall("times", lambda: time_layers(opened, studied, data))
    lab = Laboratory.of(opened, data, studied, evidence, scores, quality)
    return Setting(
        studied=studied,
        lab=lab,
        verdicts=workers.send(Work(lab.judge, Judge(site, evidence, scores))),
        ms=predicted(studied, times),
        cost=cost_of_cuts(studied, scores, refits=True),
    )


def _check_cuttable(opened: Opened, prepared: Prepared, request: Request) -> None:
    groups = prepared.trace.groups
    whole = request.bounds.whole(groups)
    if len(whole) < len(groups):
        return
    names = ", ".join(name for group in whole for name in group.layers)
    bound = [f"{names}: {request.bounds} allow no fewer units"] if whole else []
    left = [f"{name}: {reason}" for name, reason in prepared.left.items()]
    raise PruneError(
        "; ".join(["no layer can be cut", *bound, *left]),
        where=opened.name,
        remedy="lower --align and --min-units" if whole else "look at it with inspect",
    )


def space_of(opened: Opened, setting: Setting, request: Request, goal: Goal, slack: float) -> Space:
    """The cuts that are within all that limits their cost.

    Args:
        opened: the model.
        setting: where they are made.
        request: with the bounds of all cuts.
        goal: with the limits.
        slack: times the longest time that is predicted.
    """
    trace = setting.lab.trace
    limits = {budget.kind: limit_of(budget, opened.document) for budget in goal.budgets}
    full = [group.size for group in trace.groups]
    most = None if goal.speed is None else goal.speed.of(setting.ms(full)) * slack

    def fits(counts: list[int]) -> bool:
        if most is not None and setting.ms(counts) > most:
            return False
        return all(setting.cost(kind, counts) <= limit for kind, limit in limits.items())

    return Space(trace, setting.lab.scores, request.bounds, setting.ms, fits)


def _calibrated(site: Site, studied: Studied, workers: Workers, progress: Progress) -> Evidence:
    feeds = site.data.fitting
    prepared = studied.prepared
    shards = _shards(needed(prepared.document, studied.readers, feeds))
    sums = workers.send(Work(partial(calibrated, studied, feeds), Calibrate(site)))(shards)

    def counted() -> Iterator[Tally]:
        for number in range(len(shards)):
            progress("calibrating", number, len(shards))
            yield next(sums)
        progress("calibrating", len(shards), len(shards))

    return reduce(Tally.merge, counted()).evidence()


def _shards(streams: Sequence[int]) -> list[Shard]:
    parts = np.array_split(np.array(streams), min(_SHARDS, len(streams)))
    return [tuple(part.tolist()) for part in parts]
