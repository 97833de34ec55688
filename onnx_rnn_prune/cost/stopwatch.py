"""Times the layers of a model on this machine, by width; each is timed once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnx_rnn_prune.cost.timetable import Timetable
from onnx_rnn_prune.model.constants import constant_shape
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import STANDARD

STEPS = 64
_ROUNDS = 15
# Slow operators are run less often: for about so many seconds each.
_FEWEST, _SECONDS = 3, 0.02
# Widths at which an operator is timed, as shares of its full width, interpolated in between.
_SHARES = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)


class Stopwatch:
    """Times of the layers of a model on random inputs: 64 steps, or all places, one thread.

    Args:
        layers: the model's layers; each is timed at a few widths.
        shapes: their output shapes, by name, for convolutions.
        batch: batch size.

    Attributes:
        operators: the operators at full width, by layer.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
        batch: int = 1,
    ) -> None:
        widths = {
            layer.name: sorted({max(1, round(share * layer.hidden)) for share in _SHARES})
            for layer in layers
        }
        self.operators = {layer.name: _operator(layer, shapes, batch) for layer in layers}
        operators = {
            layer.name: [
                replace(self.operators[layer.name], units=units * layer.lanes)
                for units in widths[layer.name]
            ]
            for layer in layers
        }
        flat = [each for own in operators.values() for each in own]
        times = dict(zip(flat, operator_times(flat, Timetable()), strict=True))
        self._curves = {
            # A wider operator that measures faster is noise, or luck not to plan with.
            name: (np.array(widths[name], float), np.maximum.accumulate([times[o] for o in own]))
            for name, own in operators.items()
        }
        self._inputs = {layer.name: layer.input_size for layer in layers}
        self._loops = {layer.name: "R" in layer.cell.inputs for layer in layers}

    def __call__(self, name: str, units: int, input_size: int) -> float:
        """Milliseconds of a layer with the given numbers of units and inputs.

        Products with the input are taken to make up I / (I + H) of the time, as of the operations;
        all of it without recurrence.
        """
        widths, times = self._curves[name]
        back = units if self._loops[name] else 0
        share = (input_size + back) / (self._inputs[name] + back)
        return float(np.interp(units, widths, times)) * share


def _operator(layer: Layer, shapes: Mapping[str, Sequence[int]], batch: int) -> Operator:
    """The operator to time in place of a layer.

    DynamicQuantizeLSTM is timed as an LSTM, integer convolutions as float ones, and other layers
    without a state as matrix products, as are convolutions whose output shape is unknown.
    """
    weight = layer.held("W")
    op = "LSTM" if layer.cell.features != 2 else layer.cell.op
    made = layer.output("Y")
    if layer.sums:
        return Operator(op, layer.direction, int(weight.shape[2]), layer.hidden, batch)
    if not layer.cell.spatial or made is None or made.name not in shapes:
        return Operator("MatMul", layer.direction, int(weight.shape[2]), layer.hidden, batch)
    held = constant_shape(layer.node.inputs[layer.slot("W")]) or ()
    attributes = layer.node.attrs
    places = shapes[made.name][2:]
    strides = tuple(attributes.get("strides") or (1,) * len(places))
    turned = layer.cell.op == "ConvTranspose"
    scaled = zip(places, strides, strict=True)
    space = tuple(max(n // by if turned else n * by, 1) for n, by in scaled)
    return Operator(
        op="ConvTranspose" if turned else "Conv",
        direction=layer.direction,
        inputs=layer.input_size,
        units=layer.hidden,
        batch=1,
        groups=int(attributes.get("group", 1)),
        kernel=tuple(held[2:]),
        strides=strides,
        space=space,
    )


@dataclass(frozen=True)
class Operator:
    """A recurrent operator, product or convolution, with all that its time depends on.

    Attributes:
        op: LSTM, GRU, RNN, MatMul, Conv or ConvTranspose.
        direction: forward, reverse or bidirectional.
        inputs: width of X.
        units: per direction, or in all lanes.
        batch: batch size.
        groups: for convolutions, as are the next three.
        kernel: kernel size.
        strides: along each axis.
        space: spatial size of X.
    """

    op: str
    direction: str
    inputs: int
    units: int
    batch: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    space: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, astuple(self)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of X."""
        return (1, self.inputs, *self.space) if self.space else (STEPS, self.batch, self.inputs)


def operator_times(operators: Sequence[Operator], table: Timetable) -> list[float]:
    """Median milliseconds of each on random inputs: 64 steps, or all places, one thread."""
    named = {f"operator {operator}": operator for operator in operators}
    found = table(list(named), lambda names: _timed([named[name] for name in names]))
    times = dict(zip(named.values(), map(float, found), strict=True))
    return [times[operator] for operator in operators]


def _timed(operators: Sequence[Operator]) -> list[float]:
    runners = [_alone(operator) for operator in operators]
    rng = np.random.default_rng(0)
    feeds = [{"X": rng.normal(size=each.shape).astype(np.float32)} for each in operators]
    times: list[list[float]] = [[] for _ in operators]
    begun = time.perf_counter()
    for number in range(_ROUNDS):
        if number >= _FEWEST and time.perf_counter() - begun > _SECONDS * len(operators):
            break
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
    if operator.space:
        channels = operator.inputs, operator.units
        least = channels if operator.op == "ConvTranspose" else channels[::-1]
        shapes = {"W": (least[0], least[1] // operator.groups, *operator.kernel)}
        pads = [size // 2 for size in operator.kernel]
        attributes = {"group": operator.groups, "strides": operator.strides, "pads": pads * 2}
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    node = helper.make_node(operator.op, ["X", *shapes], ["Y"], **attributes)
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, None, *operator.shape[2:]])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "alone", [x], [y], weights)
    return Runner(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    )
