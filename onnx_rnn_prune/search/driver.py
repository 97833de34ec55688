"""Runs a strategy: makes the trials that it asks for, within bounds, and remembers them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from onnx_rnn_prune.pipeline.treatment import Treatment
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.search.memory import Memory
from onnx_rnn_prune.search.trial import FULL, QUICK, Ask, Strategy, Trial

# Makes several trials, in the order of the asks; each is remembered as it comes.
Attempts = Callable[[Sequence[Ask]], Iterable[Trial]]

# Of those made last, the longest trial tells what the next one takes. A recovery in full makes
# about so many candidates; so does finishing, which measures, too, and writes.
_LAST, _CANDIDATES, _WRITING = 8, 8, 4.0


@dataclass(frozen=True)
class Bounds:
    """What a search may cost.

    Attributes:
        trials: at most so many.
        minutes: from the start of the search to its result.
        jobs: how many trials are made at a time.
        now: a clock, in seconds.
        start: when the search was begun.
        kept: seconds that finishing may take beyond what trials tell.
    """

    trials: int
    minutes: float
    jobs: int = 1
    now: Callable[[], float] = time.monotonic
    start: float = field(default_factory=time.monotonic)
    kept: float = 0.0

    @property
    def end(self) -> float:
        """When the result is to be there."""
        return self.start + 60.0 * self.minutes

    def allow(self, ask: Ask, tried: Sequence[Trial], replayed: float) -> bool:
        """Whether time is left for one more trial, and to finish the best.

        Args:
            ask: what is to be tried.
            tried: what was.
            replayed: seconds of trials that were remembered; they count as if made now.
        """
        left = self.end - self.now() - replayed / self.jobs
        return left >= expected(tried, ask.recovery) + finishing(tried) + self.kept

    def hasten(self, treatment: Treatment, tried: Sequence[Trial]) -> Treatment:
        """A treatment of the best that is done in time, if need be with fewer candidates."""
        until = self.end - expected(tried, QUICK) - _WRITING
        course = treatment.course
        most = max((until - self.now()) / 60.0, 1.0 / 60.0)
        course = replace(course, until=until, minutes=min(course.minutes, most))
        return replace(treatment, course=course)


def expected(tried: Sequence[Trial], recovery: str) -> float:
    """Seconds that a trial takes, as those before tell."""
    own = [trial.seconds for trial in tried if trial.recovery == recovery][-_LAST:]
    others = [trial.seconds for trial in tried if trial.recovery == QUICK][-_LAST:]
    return max(own) if own else _CANDIDATES * max(others, default=0.0)


def finishing(tried: Sequence[Trial]) -> float:
    """Seconds that it takes to recover the best in full, to prove and to measure it."""
    return expected(tried, FULL) + expected(tried, QUICK) + _WRITING


def run(
    strategy: Strategy, attempts: Attempts, memory: Memory, bounds: Bounds, progress: Progress
) -> list[Trial]:
    """All trials in the order in which they were asked for first.

    What was measured before an interruption is not measured again, and counts as if it were.
    """
    tried: dict[Ask, Trial] = {}
    replayed = 0.0
    asked: Sequence[Ask] = next(strategy, [])
    while asked:
        fresh = [ask for ask in dict.fromkeys(asked) if ask not in tried]
        wanted = fresh[: max(bounds.trials - len(tried), 0)]
        results = iter(attempts([ask for ask in wanted if _key(ask) not in memory]))
        for ask in wanted:
            if _key(ask) in memory.found:
                replayed += memory[_key(ask)]["seconds"]
            elif _key(ask) not in memory:
                if not bounds.allow(ask, list(tried.values()), replayed):
                    break
                memory.keep(_key(ask), next(results).record())
            tried[ask] = Trial.of(memory[_key(ask)])
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
