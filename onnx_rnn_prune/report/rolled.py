"""What reports hold of recurrences that are written out, or were and became operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx_rnn_prune.record import Record
from onnx_rnn_prune.roll.rolling import Rolling
from onnx_rnn_prune.trace.decomposed import DecomposedRecurrence
from onnx_rnn_prune.validate import Latency


@dataclass(frozen=True, eq=False)
class WrittenRow(DecomposedRecurrence):
    """A recurrence that an exporter wrote out, and a sentence on it."""

    text: str


@dataclass(frozen=True, eq=False)
class RolledRow(Record):
    """A recurrence that was written out and became an operator.

    Attributes:
        name: of the operator.
        op: LSTM, GRU or RNN, of so many `units`.
        kind: what it was: unrolled, single step, loop or scan.
        at: where it was: the first of its nodes, or the one that carries the body.
        steps: how many were written; 1 where a body repeats them.
    """

    name: str
    op: str
    units: int
    kind: str
    at: str
    steps: int

    def __str__(self) -> str:
        article = "a" if self.op == "GRU" else "an"
        how = {
            "loop": f"in the Loop {self.at}",
            "scan": f"in the Scan {self.at}",
            "single step": f"as a single step at {self.at}",
        }.get(self.kind, f"over {self.steps} steps from {self.at} on")
        return f"{article} {self.op} of {self.units} units that was written out {how}"


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

    rolled: Sequence[RolledRow]
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
    rolled: Sequence[RolledRow]
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
    rolled = [RolledRow(r.name, r.op, r.units, r.kind, r.at, r.steps) for r in rolling.rolled]
    left = [LeftRow(at, reason) for at, reason in rolling.left.items()]
    return RollingRow(rolled, left, speedup)
