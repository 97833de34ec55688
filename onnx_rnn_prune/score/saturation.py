"""How strongly a layer's next state answers each gate: little where the gate is saturated.

An error in what a gate sums reaches the next state through the gate's slope. With z, r, n and
i, o, f, g the activated gates and ' the slopes, the derivatives of the new state are

    RNN   h = f(a)                        f'
    GRU   h = (1 - z) n + z h-            z: (h- - n) z'    n: (1 - z) n'
                                          r: (1 - z) n' (R h-)_n r'
    LSTM  h = o tanh(c), c = f c- + i g   o: tanh(c) o'     i, f, g: o tanh'(c) (g i', c- f', i g')

and the emphasis of a gate is the root of the mean square over calibration data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_rnn_prune.cells import RecurrentLayer
from onnx_rnn_prune.score.moments import Matrix
from onnx_rnn_prune.score.steps import Function, Steps
from onnx_rnn_prune.trace.labels import Mask

_STEP = 1e-4


def answers(layer: RecurrentLayer, steps: Steps) -> dict[str, Matrix] | None:
    """The derivative of the new state by what each gate sums, [T, B, H] by letter.

    For a GRU with linear_before_reset, the letter H stands for the candidate's R h + Rb, which the
    reset gate scales. None where an activation is not known.
    """
    functions = [steps.activation(place) for place in range(len(layer.cell.activations))]
    if any(function is None for function in functions):
        return None
    known = [function for function in functions if function is not None]
    return _CELLS[layer.cell.gates](layer, steps, known)


def _rnn(_: RecurrentLayer, steps: Steps, functions: list[Function]) -> dict[str, Matrix]:
    return {"i": _slope(functions[0], steps.gate("i"))}


def _gru(layer: RecurrentLayer, steps: Steps, functions: list[Function]) -> dict[str, Matrix]:
    gate, candidate = functions
    z_sum, r_sum = steps.gate("z"), steps.gate("r")
    z, r = gate(z_sum), gate(r_sum)
    linear = bool(layer.node.attrs.get("linear_before_reset", 0))
    recurrent = steps.state_part("h") if linear else steps.state_part("h", r * steps.states)
    total = steps.input_part("h") + (r * recurrent if linear else recurrent)
    through = (1.0 - z) * _slope(candidate, total)
    return {
        "z": (steps.states - candidate(total)) * _slope(gate, z_sum),
        "r": through * recurrent * _slope(gate, r_sum),
        "h": through,
        "H": through * r,
    }


def _lstm(_: RecurrentLayer, steps: Steps, functions: list[Function]) -> dict[str, Matrix]:
    gate, cell, out = functions
    sums = {letter: steps.gate(letter) for letter in "iofc"}
    i, o, f, g = gate(sums["i"]), gate(sums["o"]), gate(sums["f"]), cell(sums["c"])
    before = steps.running_sum(f, i * g)
    now = f * before + i * g
    through = o * _slope(out, now)
    return {
        "i": through * g * _slope(gate, sums["i"]),
        "o": out(now) * _slope(gate, sums["o"]),
        "f": through * before * _slope(gate, sums["f"]),
        "c": through * i * _slope(cell, sums["c"]),
    }


_CELLS: dict[str, Callable[[RecurrentLayer, Steps, list[Function]], dict[str, Matrix]]] = {
    "i": _rnn,
    "zrh": _gru,
    "iofc": _lstm,
}


def _slope(function: Function, x: Matrix) -> Matrix:
    return (function(x + _STEP) - function(x - _STEP)) / (2.0 * _STEP)


def mean_square(values: Matrix, valid: Mask) -> Matrix:
    """Of [T, B, H] over the valid steps, [H]."""
    inside = values[valid]
    return np.zeros(values.shape[-1]) if not len(inside) else np.mean(inside**2, axis=0)
