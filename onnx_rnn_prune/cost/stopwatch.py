"""How long the layers of a model take on this machine, by their width; each is timed once."""

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
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import STANDARD

STEPS = 64
_ROUNDS = 15
# Widths at which an operator is timed, as shares of its own; in between, time is interpolated.
_SHARES = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)


class Stopwatch:
    """Times of the layers of a model on random inputs: 64 steps, one thread.

    Args:
        layers: of the model; each is timed at a few widths.
        batch: sequences side by side.
    """

    def __init__(self, layers: Sequence[Layer], batch: int = 1) -> None:
        widths = {
            layer.name: sorted({max(1, round(share * layer.hidden)) for share in _SHARES})
            for layer in layers
        }
        operators = {
            layer.name: [
                Operator(_op(layer), layer.direction, _width(layer), units * layer.lanes, batch)
                for units in widths[layer.name]
            ]
            for layer in layers
        }
        flat = [each for own in operators.values() for each in own]
        times = dict(zip(flat, operator_times(flat, Timetable()), strict=True))
        self._curves = {
            # A wider operator that seems faster is noise, or a stroke of luck not to plan with.
            name: (np.array(widths[name], float), np.maximum.accumulate([times[o] for o in own]))
            for name, own in operators.items()
        }
        self._inputs = {layer.name: layer.input_size for layer in layers}
        self._loops = {layer.name: "R" in layer.cell.inputs for layer in layers}

    def __call__(self, name: str, units: int, input_size: int) -> float:
        """Milliseconds of a layer with so many units and inputs.

        Products with the input make up I / (I + H) of the time, as they do of the operations; all
        of it where nothing comes back.
        """
        widths, times = self._curves[name]
        back = units if self._loops[name] else 0
        share = (input_size + back) / (self._inputs[name] + back)
        return float(np.interp(units, widths, times)) * share


def _op(layer: Layer) -> str:
    """The operator in whose place a layer stands.

    DynamicQuantizeLSTM is timed as an LSTM, and layers without a state as products of matrices.
    """
    if not layer.sums:
        return "MatMul"
    return "LSTM" if layer.cell.features != 2 else layer.cell.op


def _width(layer: Layer) -> int:
    """What is summed for each unit; in a convolution, the taps of all channels."""
    weight = layer.constant("W")
    assert weight is not None
    return int(weight.shape[2])


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
    if operator.op in STANDARD:
        rows = len(STANDARD[operator.op].gates) * operator.units
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
