"""Runs a strategy: makes the trials that it asks for, within bounds, and remembers them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from onnx_rnn_prune.flow.searching.memory import Memory
from onnx_rnn_prune.flow.searching.trial import Ask, Strategy, Trial
from onnx_rnn_prune.progress import Progress

# Makes several trials, in the order of the asks; each is remembered as it comes.
Attempts = Callable[[Sequence[Ask]], Iterable[Trial]]


@dataclass(frozen=True)
class Bounds:
    """What a search may cost.

    Attributes:
        trials: at most so many.
        minutes: no batch is begun once the trials before took so long, added up.
    """

    trials: int
    minutes: float


def run(
    strategy: Strategy, attempts: Attempts, memory: Memory, bounds: Bounds, progress: Progress
) -> list[Trial]:
    """All trials in the order in which they were asked for first.

    What was measured before an interruption is not measured again, and counts as if it were.
    """
    tried: dict[Ask, Trial] = {}
    asked: Sequence[Ask] = next(strategy, [])
    while asked:
        fresh = [ask for ask in dict.fromkeys(asked) if ask not in tried]
        spent = sum(trial.seconds for trial in tried.values())
        room = bounds.trials - len(tried)
        if fresh and (room <= 0 or spent >= 60.0 * bounds.minutes):
            break
        tried.update(_made(fresh[:room], attempts, memory))
        progress("searching", len(tried), bounds.trials)
        if len(fresh) > room:
            break
        try:
            asked = strategy.send([tried[ask] for ask in asked])
        except StopIteration:
            break
    return list(tried.values())


def _made(asks: Sequence[Ask], attempts: Attempts, memory: Memory) -> dict[Ask, Trial]:
    missing = [ask for ask in asks if _key(ask) not in memory]
    for ask, trial in zip(missing, attempts(missing), strict=True):
        memory.keep(_key(ask), trial.record())
    return {ask: Trial.of(memory[_key(ask)]) for ask in asks}


def _key(ask: Ask) -> str:
    return f"trial {ask.recovery} {' '.join(map(str, ask.counts))}"
