"""Trials: cuts that were made, run and judged."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

# How many units each group keeps.
Counts = tuple[int, ...]

# How a cut is made up for while it is tried: least squares with one lambda, or all that the final
# one gets.
QUICK, FULL = "quick", "full"


class Ask(NamedTuple):
    """A cut that is to be tried."""

    counts: Counts
    recovery: str = QUICK


@dataclass(frozen=True)
class Verdict:
    """The part of a trial that takes a cut to know; its attributes are as there."""

    value: float
    loss: float
    spread: float
    nrmse: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """What came of a cut.

    Attributes:
        counts: units that the groups keep.
        recovery: how it was made up for.
        value: its quality on the validation feeds.
        loss: by how much that is worse than the original's.
        spread: the standard error of the loss, from parts of these feeds.
        nrmse: of the output that deviates most.
        ms: what a run is predicted to take.
        params: of the model.
        bytes: of the file, at most.
        seconds: that the trial took.
    """

    counts: Counts
    recovery: str
    value: float
    loss: float
    spread: float
    nrmse: float
    ms: float
    params: int
    bytes: int
    seconds: float

    @staticmethod
    def made(ask: Ask, verdict: Verdict, ms: float, params: int, size: int) -> Trial:
        """Of what was asked, how good it is and what it costs."""
        return Trial(
            **asdict(verdict),
            counts=ask.counts, recovery=ask.recovery, ms=ms, params=params, bytes=size,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)

    @staticmethod
    def of(record: dict[str, Any]) -> Trial:
        """From a record."""
        return Trial(**{**record, "counts": tuple(record["counts"])})


# Asks for batches of trials, and is sent what came of them. What it asks must follow from what it
# was sent alone, so that a search that goes on where it stopped ends as one left alone.
Strategy = Generator[Sequence[Ask], Sequence[Trial], None]
