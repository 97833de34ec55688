"""Runs a strategy: the trials that it asks for are made within bounds and recorded.

A search turns a goal into a proven model: the best of its trials is picked and finished.
Sensitivities are measured by cutting each group of layers alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.errors import ConstraintError, PruneError
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.options import AS_BEFORE
from onnx_rnn_prune.pipeline import Planned, PruneResult, Treatment, finish
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.schedules import Schedule
from onnx_rnn_prune.report.schema import SensitivityReport
from onnx_rnn_prune.search.executor import Executor, Workers
from onnx_rnn_prune.search.goal import Goal
from onnx_rnn_prune.search.problem import Problem, open_problem
from onnx_rnn_prune.search.rows import search_rows, sensitivity_rows, tested_rows
from onnx_rnn_prune.search.study import Study, key_of
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.selection.profitability import worse
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.selection.space import FULL, QUICK, Aim, Ask, Space, Strategy, Trial
from onnx_rnn_prune.selection.strategies import STRATEGIES, beginning, curve_asks
from onnx_rnn_prune.trace.plan import Plan, fingerprint
from onnx_rnn_prune.validate.quality import Quality

# Makes several trials, in the order of the asks; each is recorded at once.
Attempts = Callable[[Sequence[Ask]], Iterable[Trial]]

# The longest of the last _LAST trials predicts the time of the next. A full recovery takes about
# _TIMES as long as a quick one, but at most _PART of the total time; so does finishing, plus
# _WRITING seconds to measure and write.
_LAST, _TIMES, _PART, _WRITING = 8, 16, 0.25, 4.0


@dataclass(frozen=True)
class SearchBounds:
    """Limits on the time and trials of a search.

    Attributes:
        trials: maximum number of trials.
        minutes: time limit, from the start of the search to its result.
        jobs: number of trials made in parallel.
        now: a clock, in seconds.
        start: start time of the search.
        kept: extra seconds reserved for finishing, beyond those predicted from trials.
    """

    trials: int
    minutes: float
    jobs: int = 1
    now: Callable[[], float] = time.monotonic
    start: float = field(default_factory=time.monotonic)
    kept: float = 0.0

    @property
    def end(self) -> float:
        """The time by which the result is due."""
        return self.start + 60.0 * self.minutes

    @property
    def longest(self) -> float:
        """Seconds that a full recovery may take."""
        return 60.0 * self.minutes * _PART

    def allow(self, ask: Ask, tried: Sequence[Trial], study: Study) -> bool:
        """Whether time is left for one more trial, and to finish the best.

        Args:
            ask: the cut to try.
            tried: trials so far.
            study: trials found in it count as if made now.
        """
        replayed = sum(t.seconds for t in tried if _key(Ask(t.counts, t.recovery)) in study.found)
        left = self.left(tried) - replayed / self.jobs
        return left >= self.expected(tried, ask.recovery)

    def left(self, tried: Sequence[Trial]) -> float:
        """Seconds until the best has to be finished."""
        return self.end - self.now() - self.finishing(tried) - self.kept

    def finishing(self, tried: Sequence[Trial]) -> float:
        """Seconds reserved for full recovery (bounded by `hasten`), proof and measurement.

        Enough at least for a recovery as quick as in trials.
        """
        quick = self.expected(tried, QUICK)
        full = min(self.expected(tried, FULL), self.longest)
        return max(full, 2 * quick) + quick + _WRITING

    def hasten(self, treatment: Treatment, tried: Sequence[Trial]) -> Treatment:
        """The treatment, limited to finish in time, with fewer candidates if necessary."""
        until = self.end - self.expected(tried, QUICK) - _WRITING
        training = treatment.training
        most = max((until - self.now()) / 60.0, 1.0 / 60.0)
        training = replace(training, until=until, minutes=min(training.minutes, most))
        return replace(treatment, training=training)

    def expected(self, tried: Sequence[Trial], recovery: str) -> float:
        """Predicted seconds of a trial, from previous ones."""
        own = [trial.seconds for trial in tried if trial.recovery == recovery][-_LAST:]
        others = [trial.seconds for trial in tried if trial.recovery == QUICK][-_LAST:]
        return max(own) if own else min(_TIMES * max(others, default=0.0), self.longest)


def run(
    strategy: Strategy,
    attempts: Attempts,
    study: Study,
    bounds: SearchBounds,
    progress: Progress,
    before: Sequence[Trial] = (),
) -> list[Trial]:
    """Runs a strategy; returns all trials in the order in which they were first asked for.

    Trials recorded before an interruption are not repeated, but count as if made now; so do those
    of another strategy before this one.
    """
    tried = {Ask(trial.counts, trial.recovery): trial for trial in before}
    asked: Sequence[Ask] = next(strategy, [])
    while asked:
        fresh = [ask for ask in dict.fromkeys(asked) if ask not in tried]
        wanted = fresh[: max(bounds.trials - len(tried), 0)]
        results = iter(attempts([ask for ask in wanted if _key(ask) not in study]))
        for ask in wanted:
            if _key(ask) not in study:
                if not bounds.allow(ask, list(tried.values()), study):
                    break
                study.keep(_key(ask), next(results).record())
            tried[ask] = Trial.of(study[_key(ask)])
            progress("searching", len(tried), bounds.trials)
        if any(ask not in tried for ask in fresh):
            break
        try:
            asked = strategy.send([tried[ask] for ask in asked])
        except StopIteration:
            break
    return list(tried.values())


def _key(ask: Ask) -> str:
    return f"trial {ask.recovery} {' '.join(map(str, ask.counts))}"


# The most cuts timed, how many of them time is reserved for, and how close to its prediction the
# last must come.
_TIMED, _KEPT, _NEAR = 10, 3, 0.03


@dataclass(frozen=True, eq=False)
class Search:
    """A search for the cut of a model that reaches a goal.

    Attributes:
        opened: the model.
        data: calibration, validation and test sets.
        goal: the goal.
        request: how units are ranked, and which layers may be cut.
        treatment: how the picked cut is finished.
        bounds: limits on time and trials.
        executor: number and kind of workers.
        study: a file that records trials, or None.
        strategy: one of STRATEGIES.
        pick: the number of the trial to finish; None for the best.
    """

    opened: OpenedModel
    data: Calibration
    goal: Goal
    request: Request
    treatment: Treatment
    bounds: SearchBounds
    executor: Executor
    study: Path | None
    strategy: str
    pick: int | None

    def __call__(self, progress: Progress) -> PruneResult:
        """Tries, picks and finishes.

        Raises:
            PruneError: there is no such trial.
            ConstraintError: no cut is within the limits.
        """
        with self.executor.open() as workers:
            return self._found(workers, progress)

    def _found(self, workers: Workers, progress: Progress) -> PruneResult:
        goal, request = self.goal, self.request
        study = Study(self.study, key_of(self.opened, self.data, goal.quality, request))
        problem = open_problem(
            self.opened, self.data, goal.quality, request, self.treatment.interface,
            workers, study, goal.pays, self.bounds.longest, progress,
        )  # fmt: skip
        problem, aim, trials = self._tried(problem, progress)
        picked = self._picked(problem, aim, trials)
        result = self._finished(problem, trials, picked, progress)
        evaluator = problem.evaluator
        tested, limits = tested_rows(evaluator, self.data, goal, result)
        idle = not (result.plan.cut() or result.report.stages or self.opened.rolled)
        if idle and self.pick is None:  # cutting did not pay
            raise self._nothing(problem)
        reason = worse(result.report, goal.pays)
        if reason is not None and self.pick is None:
            raise ConstraintError(
                f"for the best cut within {goal}, {reason}",
                where="search",
                remedy="; ".join(problem.unpaid) or "allow more loss",
            )
        seconds = self.bounds.now() - self.bounds.start
        rows = search_rows(evaluator, self.data, goal, aim, trials, picked, tested, limits, seconds)
        curves = sensitivity_rows(problem, self.data, trials)
        report = replace(result.report, search=rows, sensitivity=curves, seconds=seconds)
        return replace(result, report=report)

    def _tried(self, problem: Problem, progress: Progress) -> tuple[Problem, Aim, list[Trial]]:
        """Makes all trials; returns them, and the problem with the times measured meanwhile.

        Predictions near a limit on time may be far off: the best of a few cuts is timed, and
        predictions corrected by it, until one comes close to its prediction. The same is then done
        with the best of the strategy's trials, even if it ran out of time.
        """
        goal, trials, attempts = self.goal, list[Trial](), problem.attempts
        strategies = (
            [STRATEGIES[self.strategy]]
            if goal.speed is None
            else [beginning, STRATEGIES[self.strategy]]
        )
        took = 0.0
        for _ in range(_TIMED):
            space = problem.space(self.request, goal)
            aim, seed = self._aim(problem, space), self.request.seed
            bounds = replace(self.bounds, kept=self.bounds.kept + _KEPT * took)
            if space.fits(list(space.floor)):
                work = strategies[0](space, aim, seed)
                trials = run(work, attempts, problem.study, bounds, progress, trials)
            fitting = [trial for trial in trials if space.fits(list(trial.counts))]
            best = min(fitting, key=aim.rank).counts if fitting else space.floor
            if goal.speed is None or self.bounds.left(trials) < took:
                break
            expected, begun = problem.ms(best), self.bounds.now()
            problem = problem.timed(best, self.data)
            took = max(took, self.bounds.now() - begun)
            space = problem.space(self.request, goal)
            if not space.fits(list(best)):  # the strategy may have no time to look for another
                nearby = _one_by_one([[Ask(space.narrowed(best))]])
                trials = run(nearby, attempts, problem.study, bounds, progress, trials)
            elif abs(problem.ms(best) / expected - 1.0) < _NEAR:
                strategies.pop(0)
            if not strategies:
                break
        space = problem.space(self.request, goal)
        if not space.fits(list(space.floor)):
            raise ConstraintError(
                f"even with the fewest units allowed, the result misses {self.goal}",
                where="search",
                remedy="ask for less, or lower --align and --min-units",
            )
        trials = [replace(trial, ms=problem.ms(trial.counts)) for trial in trials]
        return problem, self._aim(problem, space), trials

    def _aim(self, problem: Problem, space: Space) -> Aim:
        drop, before = self.goal.drop, problem.evaluator.before(self.data.validation)
        if not math.isfinite(before):
            raise PruneError(
                f"it is {before} for the original, so nothing can be compared with it",
                where=f"--metric={self.goal.quality.name}",
                remedy="give --data on which the metric is finite",
            )
        return Aim(None if drop is None else drop.of(before), space.fits)

    def _picked(self, problem: Problem, aim: Aim, trials: Sequence[Trial]) -> Trial:
        if self.pick is not None:
            if not 1 <= self.pick <= len(trials):
                raise PruneError(
                    f"there is no candidate {self.pick}",
                    where="--pick",
                    remedy=f"choose one of 1 to {len(trials)}",
                )
            return trials[self.pick - 1]
        if not trials:
            raise ConstraintError(
                "time ran out before any cut was tried",
                where="search",
                remedy="allow more --minutes, or give less data",
            )
        timed = [trial for trial in trials if trial.counts in problem.ms.took and aim.meets(trial)]
        best = min(timed or trials, key=aim.rank)
        if aim.meets(best) and best.counts == problem.full and not self.opened.rolled:
            raise self._nothing(problem)
        if not aim.meets(best):
            raise ConstraintError(
                f"no candidate is within {self.goal}; the nearest has"
                f" {self.goal.quality.name} {best.value:.4g}",
                where="search",
                remedy="allow more loss, or more --trials and --minutes",
            )
        return best

    def _nothing(self, problem: Problem) -> ConstraintError:
        return ConstraintError(
            f"no candidate is within {self.goal} and better than the original",
            where="search",
            remedy="; ".join(problem.unpaid) or "allow more loss",
        )

    def _finished(
        self, problem: Problem, trials: Sequence[Trial], picked: Trial, progress: Progress
    ) -> PruneResult:
        traced = problem.traced
        keep = choose(traced.trace, problem.scores, list(picked.counts))
        plan = Plan.from_mask(fingerprint(self.opened.model), traced.trace, keep)
        plan = replace(plan, pinned=dict(traced.left))
        treatment = self.bounds.hasten(self.treatment, trials)
        ranked = self.request.criterion_for(self.data).name
        # Trials ignore labels and further options; with these, the cut is recovered anew.
        as_tried = treatment.recover == "auto" and treatment.schedule == Schedule()
        known = picked.recovery == FULL and as_tried and self.data.loss is None
        planned = Planned(
            plan,
            treatment,
            self.bounds.start,
            traced,
            criterion=ranked,
            allocate="search",
            recovered=problem.evaluator.recovered.get(keep.tobytes()) if known else None,
        )
        return finish(self.opened, self.data, planned, progress)


def measure_sensitivity(
    opened: OpenedModel,
    data: Calibration,
    quality: Quality,
    request: Request,
    executor: Executor,
    path: Path | None,
    progress: Progress,
) -> SensitivityReport:
    """Measures how cutting each group of layers alone affects the outputs and a quality.

    Args:
        opened: the model.
        data: calibration and validation sets.
        quality: measured in addition to the deviation of the outputs.
        request: how units are ranked, and which layers may be cut.
        executor: number and kind of workers.
        path: a file that records trials, or None; may be shared with a search.
        progress: progress callback.
    """
    start = time.perf_counter()
    study = Study(path, key_of(opened, data, quality, request))

    def tell(what: str, done: int, total: int | None) -> None:
        progress("pruning layers one by one", done, total)

    with executor.open() as workers:
        problem = open_problem(
            opened, data, quality, request, AS_BEFORE, workers, study, (), math.inf, progress
        )
        trace = problem.traced.trace
        space = Space(trace, problem.scores, request.bounds, problem.ms, lambda counts: True)
        asks = [own for own in curve_asks(space).values() if own]
        bounds = SearchBounds(trials=sum(map(len, asks)), minutes=math.inf)
        trials = run(_one_by_one(asks), problem.attempts, study, bounds, tell)
    notes = [f"{name} is not pruned: {why}" for name, why in problem.traced.left.items()]
    notes += request.bounds.notes(trace.groups)
    return sensitivity_rows(problem, data, trials, notes, start)


def _one_by_one(asks: Sequence[Sequence[Ask]]) -> Strategy:
    for number in range(len(asks)):
        yield asks[number]
