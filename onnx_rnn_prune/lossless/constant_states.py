"""States that never change, of units whose gates sum nothing but their biases.

With fixed gates a step is s' = a s + b (of an LSTM's cell state; else of the state itself):

    RNN   a = 0   b = f(i)           GRU   a = z   b = (1 - z) n         LSTM   a = f   b = i g

The first step goes from the initial state to s; all others stay there if s = a s + b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.evidence.samples import Function, activation_of
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.trace.trace import Trace

# Far below the rounding of single precision.
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Held:
    """States that never change.

    Attributes:
        known: whether a unit's state is one number after every step, [units].
        from_start: whether it is that before the first step, too, [units].
        state: the number, [units].
        reset: what the reset gate of a GRU makes of it, [units].
    """

    known: Mask
    from_start: Mask
    state: Matrix
    reset: Matrix


def held_states(trace: Trace, layers: Sequence[Layer], still: Mask) -> Held:
    """The states of units whose gates read nothing that changes.

    Args:
        trace: of the units.
        layers: their layers.
        still: which units are so, [units].
    """
    count = trace.units.count
    known, from_start = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    state, reset = np.zeros(count), np.zeros(count)
    for layer in layers:
        for direction, lane in enumerate(trace.units.lanes[layer.name]):
            found = _held(layer, direction) if still[lane].any() else None
            if found is not None:
                known[lane] = found.known & still[lane]
                from_start[lane] = found.from_start & known[lane]
                state[lane], reset[lane] = found.state, found.reset
    return Held(known, from_start, state, reset)


def _held(layer: Layer, direction: int) -> Held | None:
    """What the biases of one direction hold; None where that cannot be told."""
    names = layer.cell.activations
    functions = [activation_of(layer, direction, place) for place in range(len(names))]
    known = [function for function in functions if function is not None]
    starts = [_start(layer, name, direction) for name in ("initial_h", "initial_c")]
    shown = layer.input("sequence_lens") is not None  # behind its end, a sequence shows zeros
    altered = layer.node.attrs.get("clip") or layer.node.attrs.get("input_forget")
    if shown or altered or layer.input("P") is not None or len(known) < len(names):
        return None
    if any(start is None for start in starts) or layer.cell.gates not in _CELLS:
        return None
    bias, gates = layer.constant("B"), len(layer.cell.gates)
    sums = np.zeros((2, gates, layer.hidden))
    if bias is not None:
        sums = bias[direction].astype(np.float64).reshape(sums.shape)
    start_h, start_c = (start for start in starts if start is not None)
    return _CELLS[layer.cell.gates](layer, sums, known, start_h, start_c)


def _start(layer: Layer, name: str, direction: int) -> Matrix | None:
    """The initial state of all sequences, [H]; None where it is not known, or not the same."""
    if layer.input(name) is None:
        return np.zeros(layer.hidden)
    value = layer.constant(name)
    if value is None or not value.shape[1] or np.any(value != value[:, :1]):
        return None
    return np.asarray(value[direction, 0], dtype=np.float64)


def _settled(factor: Matrix, term: Matrix, start: Matrix) -> tuple[Matrix, Mask]:
    """The state after the first step of s' = a s + b, and whether it stays there."""
    state = factor * start + term
    left = (1.0 - factor) * _TOLERANCE * np.maximum(1.0, np.abs(state))
    return state, np.abs(term - (1.0 - factor) * state) <= left


def _rnn(_: Layer, sums: Matrix, functions: list[Function], start: Matrix, __: Matrix) -> Held:
    state = functions[0](sums[:, 0].sum(axis=0))
    return Held(np.ones(len(state), dtype=bool), _same(state, start), state, np.zeros_like(state))


def _gru(layer: Layer, sums: Matrix, functions: list[Function], start: Matrix, _: Matrix) -> Held:
    gate, candidate = functions
    z, r = gate(sums[:, 0].sum(axis=0)), gate(sums[:, 1].sum(axis=0))
    linear = layer.node.attrs.get("linear_before_reset", 0)
    new = candidate(sums[0, 2] + (r if linear else 1.0) * sums[1, 2])
    state, known = _settled(z, (1.0 - z) * new, start)
    return Held(known, _same(state, start), state, r * state)


def _lstm(_: Layer, sums: Matrix, functions: list[Function], start: Matrix, cell: Matrix) -> Held:
    gate, new, out = functions
    i, o, f = (gate(sums[:, place].sum(axis=0)) for place in range(3))
    inner, known = _settled(f, i * new(sums[:, 3].sum(axis=0)), cell)
    state = o * out(inner)
    return Held(known, _same(state, start), state, np.zeros_like(state))


def _same(state: Matrix, start: Matrix) -> Mask:
    """Whether a number is what it was before, in single precision."""
    return np.abs(state - start) <= 1e-7 * np.maximum(1.0, np.abs(state))


_CELLS: dict[str, Callable[[Layer, Matrix, list[Function], Matrix, Matrix], Held]] = {
    "i": _rnn,
    "zrh": _gru,
    "iofc": _lstm,
}
