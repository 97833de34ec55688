"""Written-out recurrences in reports: those that were rolled, and those that were not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx_rnn_prune.record import Record
from onnx_rnn_prune.roll.rolling import Rolled, Rolling
from onnx_rnn_prune.trace.decomposed import DecomposedRecurrence
from onnx_rnn_prune.validate import Latency


@dataclass(frozen=True, eq=False)
class WrittenRow(DecomposedRecurrence):
    """A recurrence that an exporter wrote out, a sentence on it, and whether it can be pruned."""

    text: str
    in_place: bool


@dataclass(frozen=True, eq=False)
class LeftRow(Record):
    """A recurrence that stays written out, and why; `at` as of those that are rolled."""

    at: str
    reason: str


@dataclass(frozen=True, eq=False)
class RollingRow(Record):
    """What was written out and is a layer now, by which a run is `speedup` times faster.

    What is `left` is as it was; the speedup is None where nothing was timed.
    """

    rolled: Sequence[Rolled]
    left: Sequence[LeftRow]
    speedup: float | None


@dataclass(frozen=True, eq=False)
class RollReport(Record):
    """What `roll` did.

    Attributes:
        max_abs_diff: the largest difference of an output on `feeds` feeds, relative to the output's
            largest value where that is above 1.
        latency: where something was rolled.
        timed_on: shapes of the inputs that were timed.
    """

    model: str
    rolled: Sequence[Rolled]
    left: Sequence[LeftRow]
    feeds: int
    max_abs_diff: float
    bytes_before: int
    bytes_after: int
    nodes_before: int
    nodes_after: int
    latency: Latency | None
    timed_on: Mapping[str, Sequence[int]]
    seconds: float
    command: str | None = None


def rolling_row(rolling: Rolling, speedup: float | None) -> RollingRow:
    """What became of recurrences that were written out."""
    left = [LeftRow(at, reason) for at, reason in rolling.left.items()]
    return RollingRow(rolling.rolled, left, speedup)
