"""How long the recurrent layers of a model take on this machine, by their width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_rnn_prune.cost.operators import Operator, operator_times
from onnx_rnn_prune.cost.timetable import Timetable
from onnx_rnn_prune.operators.layers import Layer

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
