"""The search problem: a model with ranked units, the cost of cuts, and workers to try them."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.cost.budget import Budget, Kind
from onnx_rnn_prune.cost.cost import Cost, limit_of
from onnx_rnn_prune.cost.price import Price, layer_times, node_parts
from onnx_rnn_prune.cost.timetable import Timetable
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluator import Evaluator
from onnx_rnn_prune.evidence.evidence import Evidence, Tally, needed
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.model.runner import OURS, Feed, Runner
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.options import Interface
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.search.executor import Mapper, Work, Workers
from onnx_rnn_prune.search.goal import Goal
from onnx_rnn_prune.search.study import Study
from onnx_rnn_prune.search.worker_context import (
    WorkerContext,
    calibrated,
    calibrator,
    judge,
    judged,
)
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.selection.choice import score_units
from onnx_rnn_prune.selection.profitability import (
    ProfitableCuts,
    restores_width,
    sample_cut,
    unprofitable_layers,
)
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.selection.sharing import cost_of_cuts
from onnx_rnn_prune.selection.space import Ask, Counts, Space, Trial, Verdict
from onnx_rnn_prune.trace.plan import Plan, fingerprint
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.traced_model import TracedModel, trace_model
from onnx_rnn_prune.validate import timings
from onnx_rnn_prune.validate.quality import Quality
from onnx_rnn_prune.validate.timing import node_times

# Seconds for timing one cut; and the least share of the time that a cut is predicted to take.
_SECONDS, _LEAST = 1.5, 0.005
# Shares of all layers that the timed files keep; 0 stands for a single unit.
_FILES = (0.0, 0.125, 0.25, 0.5)


def time_layers(traced: TracedModel, data: Calibration) -> dict[str, Any]:
    """Times a run of the original, and the share of each node with units in it.

    Measured once on this machine with inputs shaped like the first feed, on one thread. A few files
    with equal shares of all layers are timed as well, except layers whose states or outputs are
    brought to full width. Those are cut to half: the time of such a file beyond the prediction is
    the cost of restoring full width.
    """
    feed = next(iter(data.validation))
    trace, opened = traced.trace, traced.opened
    keys = {layer.name: layer.key for layer in opened.layers if layer.name in trace.units.lanes}
    doubtful = [n for n, group in enumerate(trace.groups) if restores_width(traced, group)]
    shapes = " ".join(f"{name} {list(value.shape)}" for name, value in sorted(feed.items()))
    name = f"files {fingerprint(opened.model)} {shapes} {sorted(keys)} {doubtful}"

    def measured(names: Sequence[str]) -> list[dict[str, Any]]:
        original = timings([opened.run()], feed)[0].ms
        whole = original
        if opened.rolled:  # cuts are relative to the rolled model, limits to the original
            rolled = Runner(opened.document, name="the rolled model", remedy=OURS)
            whole = timings([rolled], feed)[0].ms
        present = nodes_by_key(opened.document.graph)
        others = [key for key in node_parts(traced.document, trace) if key in present]
        nodes = node_times(opened.document, [*keys.values(), *others], [feed], opened.name).nodes
        shares = {name: nodes[key].share for name, key in keys.items() if key in nodes}
        rest = {key: nodes[key].share for key in others if key in nodes}
        found: dict[str, Any] = {"original": original, "ms": whole, "shares": shares, "more": {}}
        cuts = [shares_of(trace, share, doubtful) for share in _FILES]
        cuts = [cut for cut in cuts if cut != shares_of(trace, 1.0, doubtful)]
        files = [(cut, original / _speedup(traced, cut, feed)) for cut in cuts]
        found |= {"others": rest, "files": files}
        price = predicted(traced, found)
        for number in doubtful:
            half = halved(trace, number)
            took = original / _speedup(traced, half, feed)
            found["more"][str(number)] = max(took - price(half), 0.0)
        return [found]

    (found,) = Timetable()([name], measured)
    return dict(found)


def shares_of(trace: Trace, share: float, whole: Container[int]) -> list[int]:
    """Counts that keep the same share of all groups, and some groups whole."""
    return [
        group.size if n in whole else max(round(share * group.size), 1)
        for n, group in enumerate(trace.groups)
    ]


def halved(trace: Trace, number: int) -> list[int]:
    """Counts with half of the units of one group, and all of the others."""
    return [
        (group.size + 1) // 2 if n == number else group.size for n, group in enumerate(trace.groups)
    ]


def _speedup(traced: TracedModel, counts: Sequence[int], feed: Feed) -> float:
    """The speedup of a file with the given counts, as prune would write it."""
    trace, opened = traced.trace, traced.opened
    keep = choose(trace, np.zeros(trace.units.count), list(counts))
    plan = Plan.from_mask(fingerprint(opened.model), trace, keep)
    model = sample_cut(traced, plan).write()
    pair = [opened.run(), Runner(model, name="a cut model", remedy=OURS)]
    # Short runs are preempted less often than long ones, but then for longer than they take.
    before, after = (time.busy_ms for time in timings(pair, feed, seconds=_SECONDS))
    return before / after


def predicted(traced: TracedModel, times: Mapping[str, Any]) -> Price:
    """Predicts the milliseconds of a run by the counts of the groups.

    Interpolates between the timed files by the sum of the parts: a layer's share of the time
    shrinks as that of its operator alone, the share of other nodes with the units in their inputs
    and outputs. Restoring full width takes as long as measured in a file.
    """
    trace = traced.trace
    alone, shares = layer_times(traced.document, trace), dict[Price, float]()
    full = [group.size for group in trace.groups]
    for name, share in times["shares"].items():
        whole = max(alone[name](full), 1e-9)
        shares[alone[name]] = shares.get(alone[name], 0.0) + share / whole
    more = {int(number): ms for number, ms in times.get("more", {}).items()}
    of_nodes = node_parts(traced.document, trace)
    none = np.zeros(len(full))
    rest = sum((share * of_nodes[key] for key, share in times["others"].items()), start=none)

    # On a busy machine, the parts may measure longer than the whole.
    total = max(sum(times["shares"].values()) + sum(times["others"].values()), 1.0)

    def of_parts(counts: Sequence[int]) -> float:
        left = sum(share * layer(counts) for layer, share in shares.items())
        saved = sum(times["shares"].values()) - left + rest @ np.subtract(full, counts)
        return float(times["ms"] * max(1.0 - saved / total, _LEAST))

    files = [*times.get("files", ()), (full, times["ms"])]
    parts = [of_parts(cut) for cut, _ in files]
    known = np.log(np.maximum.accumulate(parts))
    # A file that measures slower than one with more units was disturbed, and so was one that saves
    # less than half of what the parts predict: in a tiny model, nothing may seem to save anything.
    spent = [
        min(ms, math.sqrt(part * parts[-1])) for (_, ms), part in zip(files, parts, strict=True)
    ]
    took = np.log(np.minimum.accumulate(spent[::-1])[::-1])

    def price(counts: Sequence[int]) -> float:
        part = math.log(of_parts(counts))
        ms = math.exp(float(np.interp(part, known, took)) + min(part - float(known[0]), 0.0))
        return float(ms + sum(m for n, m in more.items() if counts[n] < full[n]))

    return price


# Margin, as a timed file may take longer when timed again.
_PART = 0.97


@dataclass(frozen=True, eq=False)
class Times:
    """Milliseconds of a run: as timed, else the prediction corrected by the last timed cut.

    Attributes:
        predicted: predicted time by counts.
        took: times of the cuts that were timed.
        rate: the time of the last timed cut, relative to its prediction.
    """

    predicted: Price
    took: Mapping[Counts, float] = field(default_factory=dict)
    rate: float = 1.0

    def __call__(self, counts: Sequence[int]) -> float:
        known = self.took.get(tuple(counts))
        return self.rate * self.predicted(counts) if known is None else known

    def with_timed(self, counts: Counts, ms: float) -> Times:
        """The same with one more timed cut."""
        return Times(self.predicted, {**self.took, counts: ms}, ms / self.predicted(counts))


class SizePrediction:
    """Predicts parameters and bytes of the written file by the counts of the groups.

    A group that keeps all units is not prepared for a cut, and adds no nodes to restore full width.

    Args:
        traced: the model, with the layers that may be cut.
        scores: one per unit.
        doubtful: indices of groups whose states or outputs are brought to full width.
    """

    def __init__(self, traced: TracedModel, scores: Matrix, doubtful: Sequence[int]) -> None:
        self._traced = traced
        self._groups, self._doubtful = traced.trace.groups, doubtful
        every = tuple(range(len(self._groups)))
        self._known = {every: (cost_of_cuts(traced, scores, refits=True), every)}

    def __call__(self, kind: Kind, counts: Sequence[int]) -> int:
        left = [n for n, group in enumerate(self._groups) if counts[n] < group.size]
        if not left:
            opened = self._traced.opened
            return limit_of(Budget(kind, share=1.0), opened.document, opened.find_counted)
        whole = {n for n in self._doubtful if n not in left}
        cut = tuple(n for n in range(len(self._groups)) if n not in whole)
        cost, order = self._cost(cut)
        return cost(kind, [counts[n] for n in order])

    def _cost(self, cut: tuple[int, ...]) -> tuple[Cost, tuple[int, ...]]:
        """The cost of cuts of some groups, and the order of its counts."""
        if cut not in self._known:
            numbers = {self._groups[n].layers: n for n in cut}
            names = [name for n in cut for name in self._groups[n].layers]
            whole = self._traced
            traced = trace_model(whole.opened, names, whole.feeds, whole.interface)
            trace = traced.trace
            cost = cost_of_cuts(traced, np.zeros(trace.units.count), refits=True)
            self._known[cut] = cost, tuple(numbers[group.layers] for group in trace.groups)
        return self._known[cut]


# The number of shards for calibration, regardless of the number of workers: rounding makes sums
# depend on how they are split.
_SHARDS = 8


@dataclass(frozen=True, eq=False)
class Problem:
    """The problem that a search solves.

    Attributes:
        traced: the model.
        evaluator: recovers and judges cuts in this process.
        scores: one per unit; a group keeps those with the highest.
        verdicts: makes and judges cuts on the workers.
        ms: predicted time of a run.
        original_ms: time of a run of the original.
        size: predicted parameters and bytes.
        profitable: leaves groups whole if cutting them does not pay.
        study: records trials.
    """

    traced: TracedModel
    evaluator: Evaluator
    scores: Matrix
    verdicts: Mapper[Ask, Verdict]
    ms: Times
    original_ms: float
    size: SizePrediction
    profitable: ProfitableCuts
    study: Study

    @property
    def full(self) -> Counts:
        """The counts of the original."""
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
            " small cuts save; allow more loss"
        ]

    def attempts(self, asks: Sequence[Ask]) -> Iterator[Trial]:
        """Tries cuts; their cost is always predicted by this process."""
        for ask, verdict in zip(asks, self.verdicts(asks), strict=True):
            counts = list(ask.counts)
            ms, params = self.ms(counts), self.size("params", counts)
            size = self.size("bytes", counts)
            yield Trial(*ask, *verdict[:-1], ms, params, size, verdict.seconds)

    def timed(self, counts: Counts, data: Calibration) -> Problem:
        """The same after timing a cut; the time is recorded."""
        feed = next(iter(data.validation))
        name = f"speedup {' '.join(map(str, counts))}"
        ratio = self.study.recall(name, lambda: _speedup(self.traced, counts, feed))
        return replace(self, ms=self.ms.with_timed(counts, self.original_ms / ratio))

    def space(self, request: Request, goal: Goal) -> Space:
        """The search space: the cuts within all limits on cost.

        Args:
            request: has the bounds of all cuts.
            goal: has the limits.
        """
        trace, opened = self.traced.trace, self.traced.opened
        limits = {
            budget.kind: limit_of(budget, opened.document, opened.find_counted)
            for budget in goal.budgets
        }
        most = None if goal.speed is None else _PART * goal.speed.of(self.original_ms)

        def fits(counts: list[int]) -> bool:
            if most is not None and self.ms(counts) > most:
                return False
            return all(self.size(kind, counts) <= limit for kind, limit in limits.items())

        kernels = {layer.name for layer in trace.layers if layer.cell.spatial}
        eights = frozenset(
            n for n, g in enumerate(trace.groups) if not kernels.isdisjoint(g.layers)
        )
        timed = goal.drop is not None or goal.speed is not None or not goal.budgets
        price = self.ms.predicted if timed else partial(self.size, goal.budgets[0].kind)
        return Space(trace, self.scores, request.bounds, price, fits, self.profitable, eights)


def open_problem(
    opened: OpenedModel,
    data: Calibration,
    quality: Quality,
    request: Request,
    interface: Interface,
    workers: Workers,
    study: Study,
    pays: Sequence[str],
    longest: float,
    progress: Progress,
) -> Problem:
    """Ranks the units, and sends workers what they need to judge cuts.

    Layers that no cut makes smaller are left whole, and in each trial also those whose cut does not
    save what it must (`pays`: bytes, ms). A full recovery may take `longest` seconds.

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
    model = study.key, opened.name, opened.model, opened.rolled
    context = WorkerContext(*model, data, quality, request, tuple(names), interface, longest)
    evidence = _calibrated(context, traced, workers, progress)
    traced.evidence[data.calibration] = evidence
    scores = score_units(traced, data, request, progress)
    times = study.recall("times", lambda: time_layers(traced, data))
    evaluator = Evaluator.of(traced, data, quality)
    groups = traced.trace.groups
    doubtful = tuple(n for n, group in enumerate(groups) if restores_width(traced, group))
    ms, size = Times(predicted(traced, times)), SizePrediction(traced, scores, doubtful)
    prices: dict[str, Price] = {"ms": ms, "bytes": partial(size, "bytes")}
    profitable = ProfitableCuts(
        tuple(g.size for g in groups), doubtful, [prices[kind] for kind in pays]
    )
    return Problem(
        traced=traced,
        evaluator=evaluator,
        scores=scores,
        verdicts=workers.send(
            Work(
                partial(judged, evaluator, scores, longest),
                partial(judge, context, evidence, scores),
            )
        ),
        ms=ms,
        original_ms=float(times["original"]),
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
        "; ".join(["no layer can be pruned", *bound, *left]),
        where=traced.opened.name,
        remedy="lower --align and --min-units" if whole else "run inspect on the model for details",
    )


def _calibrated(
    context: WorkerContext, traced: TracedModel, workers: Workers, progress: Progress
) -> Evidence:
    feeds = context.data.calibration
    sampling = needed(traced.document, traced.readers, feeds)
    streams = np.array(sampling.streams)
    parts = np.array_split(streams, min(_SHARDS, len(streams)))
    shards = [replace(sampling, streams=tuple(part.tolist())) for part in parts]
    work = Work(partial(calibrated, traced, feeds), partial(calibrator, context))
    sums = workers.send(work)(shards)

    def counted() -> Iterator[Tally]:
        for number in range(len(shards)):
            progress("calibrating", number, len(shards))
            yield next(sums)
        progress("calibrating", len(shards), len(shards))

    return reduce(Tally.merge, counted()).evidence()
