"""The report's part on a search."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.cost.cost import limit_of
from onnx_rnn_prune.errors import Note
from onnx_rnn_prune.evaluator import Evaluator
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.pipeline import PruneResult
from onnx_rnn_prune.report.schema import (
    Candidate,
    Curve,
    Limit,
    Point,
    PruneReport,
    SearchRows,
    SensitivityReport,
    Splits,
    Tested,
)
from onnx_rnn_prune.search.goal import Goal
from onnx_rnn_prune.search.problem import Problem
from onnx_rnn_prune.selection.space import QUICK, Aim, Trial
from onnx_rnn_prune.validate.quality import NRMSE
from onnx_rnn_prune.validate.results import Recorded


def search_rows(
    evaluator: Evaluator,
    data: Calibration,
    goal: Goal,
    aim: Aim,
    trials: Sequence[Trial],
    picked: Trial,
    tested: Tested,
    limits: Sequence[Limit],
    seconds: float,
) -> SearchRows:
    """The report's part on how a cut was found."""
    worst = None
    if aim.most is not None:
        before = evaluator.before(evaluator.data.validation)
        worst = before - aim.most if goal.quality.higher else before + aim.most
    return SearchRows(
        goal=str(goal),
        quality=goal.quality.name,
        higher_is_better=goal.quality.higher,
        quality_limit=worst,
        candidates=candidate_rows(evaluator, aim, trials, picked),
        picked=trials.index(picked) + 1,
        splits=split_rows(data),
        test=tested,
        limits=limits,
        met=all(limit.met for limit in limits),
        seconds=seconds,
    )


def split_rows(data: Calibration) -> Splits:
    """The sizes of the calibration, validation and test sets."""
    counts = len(data.calibration), len(data.validation), len(data.test)
    return Splits(*counts, " ".join(data.warnings))


def sensitivity_rows(
    problem: Problem,
    data: Calibration,
    trials: Sequence[Trial],
    notes: Sequence[str] = (),
    begun: float | None = None,
) -> SensitivityReport:
    """The sensitivity of each group of layers: all trials that cut it alone.

    Groups that were never cut alone are left out.

    Args:
        problem: the problem.
        data: the feeds.
        trials: all trials.
        notes: notes for the user.
        begun: start of the measurement; None to add up the seconds of the trials.
    """
    evaluator, trace = problem.evaluator, problem.traced.trace
    groups = trace.groups
    full = [group.size for group in groups]
    named = evaluator.quality != NRMSE
    before = evaluator.before(evaluator.data.validation) if named else None
    ms = problem.ms.predicted
    rows, seconds = [], 0.0
    for number, group in enumerate(groups):
        alone = {t.counts[number]: t for t in trials if _cut_by(t, full) == [number]}
        seconds += sum(trial.seconds for trial in alone.values())
        lanes = trace.lanes_of(group)
        points = [
            Point(kept * lanes, trial.nrmse, trial.value if named else None, ms(trial.counts))
            for kept, trial in sorted(alone.items())
        ]
        points.append(Point(group.size * lanes, 0.0, before, ms(full)))
        if alone:
            rows.append(Curve(list(group.layers), group.size * lanes, points))
    return SensitivityReport(
        metric=evaluator.quality.name if named else None,
        layers=rows,
        splits=split_rows(data),
        streams=data.streams,
        warnings=[Note(text) for text in (*data.warnings, *notes)],
        seconds=seconds if begun is None else time.perf_counter() - begun,
    )


def _cut_by(trial: Trial, full: Sequence[int]) -> list[int]:
    """The groups that a trial cuts; none if its recovery is not the one used for curves."""
    pairs = enumerate(zip(trial.counts, full, strict=True))
    return [n for n, (count, size) in pairs if count < size and trial.recovery == QUICK]


def tested_rows(
    evaluator: Evaluator, data: Calibration, goal: Goal, result: PruneResult
) -> tuple[Tested, list[Limit]]:
    """The written model's results on the test set, compared with the limits asked for."""
    opened, evaluator = evaluator.traced.original, evaluator.of_others()
    before = evaluator.before(data.test)
    runner = opened.beside(result.written, "the pruned model")
    after = evaluator.measured(Recorded(lambda: runner), data.test)
    loss = evaluator.quality.loss(before, after)
    limits = list(_limits(goal, opened, result.report, loss, before))
    return Tested(after, before, loss), limits


def candidate_rows(
    evaluator: Evaluator, aim: Aim, trials: Sequence[Trial], picked: Trial
) -> list[Candidate]:
    """A row for each trial; the Pareto frontier of time and quality is marked."""
    best, trace = frontier(trials), evaluator.traced.trace
    lanes = {layer.name: layer.lanes for layer in trace.layers}
    return [
        Candidate(
            number=number,
            recovery=trial.recovery,
            kept={
                name: count * lanes[name]
                for group, count in zip(trace.groups, trial.counts, strict=True)
                for name in group.layers
            },
            params=trial.params,
            bytes=trial.bytes,
            ms=trial.ms,
            quality=trial.value,
            spread=trial.spread,
            meets=aim.meets(trial),
            frontier=trial in best,
            picked=trial is picked,
        )
        for number, trial in enumerate(trials, start=1)
    ]


def frontier(trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto frontier: no other trial is as fast and as good, and better in one of the two."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.ms, t.loss)):
        if not found or trial.loss < found[-1].loss:
            found.append(trial)
    return found


def _limits(
    goal: Goal, opened: OpenedModel, report: PruneReport, loss: float, before: float
) -> Iterator[Limit]:
    if goal.drop is not None:
        asked = goal.drop.of(before)
        # Tolerates rounding: one answer of 52 is 0.02 x 50 / 52.
        yield Limit("quality", asked, loss, loss <= asked or math.isclose(loss, asked))
    if goal.speed is not None:
        latency = report.latency
        asked, reached = goal.speed.of(latency.before_ms), latency.after_ms
        if goal.speed.share is not None:  # the ratio is that of interleaved runs
            reached = latency.before_ms / latency.speedup
        yield Limit("speed", asked, reached, reached <= asked)
    for budget in goal.budgets:
        most = limit_of(budget, opened.document, opened.find_counted)
        has = report.totals[f"{budget.kind}_after"]
        yield Limit(budget.kind, most, has, has <= most)
