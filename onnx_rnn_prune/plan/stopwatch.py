"""How long recurrent operators take on this machine, by their width."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnx_rnn_prune.cells import RecurrentLayer
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.score.moments import Matrix

_STEPS = 64
_ROUNDS = 15
# Widths at which an operator is timed, as shares of its own; in between, time is interpolated.
_SHARES = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)


class Stopwatch:
    """Times of the layers of a model on random inputs: 64 steps of one sequence, one thread.

    Args:
        layers: of the model; each is timed at a few widths, in turns.
    """

    def __init__(self, layers: Sequence[RecurrentLayer]) -> None:
        self._curves = {layer.name: _curve(layer) for layer in layers}
        self._layers = {layer.name: layer for layer in layers}

    def __call__(self, name: str, units: int, input_size: int) -> float:
        """Milliseconds of a layer with so many units and inputs.

        Products with the input make up I / (I + H) of the time, as they do of the operations.
        """
        widths, times = self._curves[name]
        full = self._layers[name].input_size
        share = (input_size + units) / (full + units)
        return float(np.interp(units, widths, times)) * share


def _curve(layer: RecurrentLayer) -> tuple[Matrix, Matrix]:
    widths = sorted({max(1, round(share * layer.hidden)) for share in _SHARES})
    runners = [_alone(layer, units) for units in widths]
    rng = np.random.default_rng(0)
    feed = {"X": rng.normal(size=(_STEPS, 1, layer.input_size)).astype(np.float32)}
    times: list[list[float]] = [[] for _ in widths]
    for _ in range(_ROUNDS):
        for own, runner in zip(times, runners, strict=True):
            start = time.perf_counter()
            runner(feed)
            own.append((time.perf_counter() - start) * 1000.0)
    medians = [statistics.median(own) for own in times]
    # A wider operator that seems faster is noise, or a stroke of luck not to plan with.
    return np.array(widths, float), np.maximum.accumulate(medians)


def _alone(layer: RecurrentLayer, units: int) -> Runner:
    """The layer's operator with random weights and so many units."""
    op = "LSTM" if layer.cell.features != 2 else layer.cell.op
    gates, rng = len(layer.cell.gates), np.random.default_rng(units)
    shapes = {"W": (gates * units, layer.input_size), "R": (gates * units, units)}
    weights = [
        numpy_helper.from_array(
            rng.normal(0, 0.1, (layer.directions, *shape)).astype(np.float32), name
        )
        for name, shape in shapes.items()
    ]
    node = helper.make_node(
        op, ["X", "W", "R"], ["Y"], hidden_size=units, direction=layer.direction
    )
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "B", layer.input_size])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "alone", [x], [y], weights)
    return Runner(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    )
