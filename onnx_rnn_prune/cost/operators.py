"""How long recurrent operators take on this machine: measured once, and kept in a file."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnx_rnn_prune.cost.timetable import Timetable
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.operators.recurrent import CELLS

STEPS = 64
_ROUNDS = 15
_GATES = {cell.op: len(cell.gates) for cell in CELLS if not cell.domain}


@dataclass(frozen=True)
class Operator:
    """A recurrent operator by what its time depends on.

    Attributes:
        op: LSTM, GRU, RNN or MatMul.
        direction: forward, reverse or bidirectional.
        inputs: width of X.
        units: of each direction.
        batch: sequences side by side.
    """

    op: str
    direction: str
    inputs: int
    units: int
    batch: int

    def __str__(self) -> str:
        return " ".join(map(str, astuple(self)))


def operator_times(operators: Sequence[Operator], table: Timetable) -> list[float]:
    """Milliseconds of each on random inputs: 64 steps, one thread, the median."""
    named = {f"operator {operator}": operator for operator in operators}
    found = table(list(named), lambda names: _timed([named[name] for name in names]))
    times = dict(zip(named.values(), map(float, found), strict=True))
    return [times[operator] for operator in operators]


def _timed(operators: Sequence[Operator]) -> list[float]:
    runners = [_alone(operator) for operator in operators]
    rng = np.random.default_rng(0)
    feeds = [
        {"X": rng.normal(size=(STEPS, each.batch, each.inputs)).astype(np.float32)}
        for each in operators
    ]
    times: list[list[float]] = [[] for _ in operators]
    for _ in range(_ROUNDS):
        for own, runner, feed in zip(times, runners, feeds, strict=True):
            start = time.perf_counter()
            runner(feed)
            own.append((time.perf_counter() - start) * 1000.0)
    return [statistics.median(own) for own in times]


def _alone(operator: Operator) -> Runner:
    """An operator with random weights."""
    rng = np.random.default_rng(operator.units)
    shapes: dict[str, tuple[int, ...]] = {"W": (operator.inputs, operator.units)}
    attributes: dict[str, Any] = {}
    if operator.op in _GATES:
        rows = _GATES[operator.op] * operator.units
        directions = 2 if operator.direction == "bidirectional" else 1
        shapes = {"W": (directions, rows, operator.inputs), "R": (directions, rows, operator.units)}
        attributes = {"hidden_size": operator.units, "direction": operator.direction}
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    node = helper.make_node(operator.op, ["X", *shapes], ["Y"], **attributes)
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "B", operator.inputs])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "alone", [x], [y], weights)
    return Runner(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    )
