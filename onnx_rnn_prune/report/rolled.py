"""Decomposed recurrences in reports: those that were rolled, and those that were not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx_rnn_prune.record import Record
from onnx_rnn_prune.roll.rolling import Rolled, Rolling
from onnx_rnn_prune.trace.decomposed import DecomposedRecurrence
from onnx_rnn_prune.validate import Latency


@dataclass(frozen=True, eq=False)
class WrittenRow(DecomposedRecurrence):
    """A decomposed recurrence, described in `text`, and whether it can be pruned as it is."""

    text: str
    in_place: bool


@dataclass(frozen=True, eq=False)
class LeftRow(Record):
    """A recurrence that was not rolled, and why; `at` as in `Rolled`."""

    at: str
    reason: str


@dataclass(frozen=True, eq=False)
class RollingRow(Record):
    """The recurrences that were rolled, the others, and the speedup, None if unknown."""

    rolled: Sequence[Rolled]
    left: Sequence[LeftRow]
    speedup: float | None


@dataclass(frozen=True, eq=False)
class RollReport(Record):
    """The result of `roll`.

    Attributes:
        max_abs_diff: the largest difference of an output on so many `feeds`, relative to the
            output's largest value if that is above 1.
        latency: None if nothing was rolled.
        timed_on: the shapes of the inputs used for timing.
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
    """A rolling as a row of a report."""
    left = [LeftRow(at, reason) for at, reason in rolling.left.items()]
    return RollingRow(rolling.rolled, left, speedup)
