"""From a goal to a proven model: cuts are tried, the best is picked and finished."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.errors import PruneError, Unmet
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.pipeline.finish import finish
from onnx_rnn_prune.pipeline.planning import Asked
from onnx_rnn_prune.pipeline.result import PruneResult
from onnx_rnn_prune.pipeline.treatment import Treatment
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.search.driver import Bounds, run
from onnx_rnn_prune.search.executor import Crew
from onnx_rnn_prune.search.goal import Aim, Goal
from onnx_rnn_prune.search.identity import key_of
from onnx_rnn_prune.search.memory import Memory
from onnx_rnn_prune.search.rows import search_rows, sensitivity_rows, tested_rows
from onnx_rnn_prune.search.setting import Setting, open_setting, space_of
from onnx_rnn_prune.search.strategies import STRATEGIES
from onnx_rnn_prune.search.trial import Trial
from onnx_rnn_prune.search.workers import Workers
from onnx_rnn_prune.selection.profitability import worse
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.trace.plan import Plan, fingerprint

# How often the limit on predicted time is tightened where the real file takes longer, and by how
# much more than it takes longer.
_ROUNDS = 3
_PART = 0.97


@dataclass(frozen=True, eq=False)
class Search:
    """A search for the cut of a model that a goal asks for.

    Attributes:
        opened: the model.
        data: feeds to calibrate with, to select by and to report on.
        goal: what is asked for.
        request: how units are ranked, and which layers may be cut.
        treatment: what is done to the cut that is picked.
        bounds: what the search may cost.
        crew: how many make trials, and where.
        memory: a file that remembers trials, or None.
        strategy: who says what is tried next, one of STRATEGIES.
        pick: the number of the trial to finish; None for the best.
    """

    opened: OpenedModel
    data: Calibration
    goal: Goal
    request: Request
    treatment: Treatment
    bounds: Bounds
    crew: Crew
    memory: Path | None
    strategy: str
    pick: int | None

    def __call__(self, progress: Progress) -> PruneResult:
        """Tries, picks and finishes.

        Raises:
            PruneError: there is no such trial.
            Unmet: no cut is within the limits.
        """
        with self.crew.open() as workers:
            return self._found(workers, progress)

    def _found(self, workers: Workers, progress: Progress) -> PruneResult:
        goal, request = self.goal, self.request
        key = key_of(self.opened, self.data, goal.quality, request)
        memory = Memory(self.memory, key)
        setting = open_setting(
            self.opened, self.data, goal.quality, request, self.treatment.interface,
            workers, memory, goal.pays, progress,
        )  # fmt: skip
        lab, slack = setting.lab, 1.0
        for _ in range(_ROUNDS):
            aim, trials = self._tried(setting, memory, slack, progress)
            begun = self.bounds.now()
            picked = self._picked(setting, aim, trials)
            result = self._finished(setting, trials, picked, progress)
            tested = tested_rows(lab, self.data, goal, self.opened, result)
            slow = [row for row in tested.limits if row.name == "speed" and not row.met]
            late = 2.0 * self.bounds.now() - begun > self.bounds.end
            if not slow or late or self.pick is not None:
                break
            slack *= _PART * slow[0].asked / slow[0].reached
        reason = worse(result.report, goal.pays)
        if reason is not None and self.pick is None:
            raise Unmet(
                f"with the best cut within {goal}, {reason}",
                where="search",
                remedy="; ".join(setting.unpaid) or "allow more loss",
            )
        seconds = self.bounds.now() - self.bounds.start
        rows = search_rows(lab, self.data, goal, aim, trials, picked, tested, seconds)
        curves = sensitivity_rows(setting, self.data, trials)
        report = replace(result.report, search=rows, sensitivity=curves, seconds=seconds)
        return replace(result, report=report)

    def _tried(
        self, setting: Setting, memory: Memory, slack: float, progress: Progress
    ) -> tuple[Aim, list[Trial]]:
        space = space_of(setting, self.request, self.goal, slack)
        if not space.fits(list(space.floor)):
            raise Unmet(
                f"not even the fewest units that may stay are within {self.goal}",
                where="search",
                remedy="ask for less, or lower --align and --min-units",
            )
        drop, lab = self.goal.drop, setting.lab
        before = lab.before(lab.evaluator.data.validation)
        if not math.isfinite(before):
            raise PruneError(
                f"of the original it is {before}, so nothing can be compared with it",
                where=f"--metric={self.goal.quality.name}",
                remedy="give --data on which the metric is finite",
            )
        most = None if drop is None else drop.of(before)
        aim = Aim(most, space.fits)
        strategy = STRATEGIES[self.strategy](space, aim, self.request.seed)
        return aim, run(strategy, setting.attempts, memory, self.bounds, progress)

    def _picked(self, setting: Setting, aim: Aim, trials: Sequence[Trial]) -> Trial:
        if self.pick is not None:
            if not 1 <= self.pick <= len(trials):
                raise PruneError(
                    f"there is no candidate {self.pick}",
                    where="--pick",
                    remedy=f"choose one of 1 to {len(trials)}",
                )
            return trials[self.pick - 1]
        if not trials:
            raise Unmet(
                "time ran out before any cut was tried",
                where="search",
                remedy="allow more --minutes, or give less data",
            )
        best = min(trials, key=aim.rank)
        if aim.meets(best) and best.counts == setting.full:
            raise Unmet(
                f"no cut that was tried is within {self.goal} and better than the original",
                where="search",
                remedy="; ".join(setting.unpaid) or "allow more loss",
            )
        if not aim.meets(best):
            raise Unmet(
                f"no cut that was tried is within {self.goal}; the nearest has"
                f" {self.goal.quality.name} {best.value:.4g}",
                where="search",
                remedy="allow more loss, or give it more --trials and --minutes",
            )
        return best

    def _finished(
        self, setting: Setting, trials: Sequence[Trial], picked: Trial, progress: Progress
    ) -> PruneResult:
        traced, lab = setting.traced, setting.lab
        plan = Plan.from_mask(fingerprint(self.opened.model), lab.trace, lab.keep(picked.counts))
        plan = replace(plan, pinned=dict(traced.left))
        treatment = self.bounds.hasten(self.treatment, trials)
        ranked = self.request.criterion_for(self.data).name
        asked = Asked(self.bounds.start, criterion=ranked, allocate="search")
        return finish(self.opened, self.data, plan, traced, treatment, asked, progress)
