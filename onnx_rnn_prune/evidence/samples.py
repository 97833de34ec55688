"""A recurrent layer's steps as its outputs show them, without simulating it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.layers import Layer

Taps = Mapping[str, Array]


@dataclass(frozen=True)
class Function:
    """An activation.

    Attributes:
        of: the activation of sums.
        slope: its derivative where it has a value, which tells it here without the sum.
    """

    of: Callable[[Matrix], Matrix]
    slope: Callable[[Matrix], Matrix]

    def __call__(self, x: Matrix) -> Matrix:
        return self.of(x)


ACTIVATIONS: dict[str, Function] = {
    "hardsigmoid": Function(
        lambda x: np.clip(0.2 * x + 0.5, 0.0, 1.0),
        lambda y: np.where((y > 0.0) & (y < 1.0), 0.2, 0.0),
    ),
    "relu": Function(lambda x: np.maximum(x, 0.0), lambda y: (y > 0.0).astype(np.float64)),
    "sigmoid": Function(lambda x: 0.5 * (1.0 + np.tanh(0.5 * x)), lambda y: y * (1.0 - y)),
    "softsign": Function(lambda x: x / (1.0 + np.abs(x)), lambda y: (1.0 - np.abs(y)) ** 2),
    "tanh": Function(np.tanh, lambda y: 1.0 - y**2),
}


def activation_of(layer: Layer, direction: int, place: int) -> Function | None:
    """The function at a place of the operator's list; None where it is not known here."""
    defaults = layer.cell.activations
    named = layer.node.attrs.get("activations") or defaults * layer.directions
    return ACTIVATIONS.get(str(named[direction * len(defaults) + place]).lower())


class Steps:
    """Inputs and previous states of one direction of a layer, in the order of time.

    All gates follow from X and Y: a step starts from the output of the one before.

    Args:
        layer: the layer.
        direction: which of its directions.
        taps: X [T, B, I], Y [T, D, B, H], and where given sequence_lens [B] and initial states.

    Attributes:
        inputs: [T, B, I].
        states: the states that the steps start from, [T, B, H].
        left: how many steps there are from each one on, itself included, [T, B]; without end where
            a caller may go on from the last state.
        valid: False where a sequence has ended, [T, B].
        backward: whether time runs from the end.
    """

    def __init__(self, layer: Layer, direction: int, taps: Taps) -> None:
        self._layer, self._direction = layer, direction
        self._constant = cache(layer.constant)  # it may have to be computed
        output = layer.output("Y")
        assert output is not None
        states = taps[output.name][:, direction].astype(np.float64)
        steps, batch, _ = states.shape
        lengths = self._tap("sequence_lens", taps)
        ends = np.full(batch, steps) if lengths is None else lengths.astype(np.int64)
        self.backward = layer.direction == "reverse" or direction == 1
        self._begins = ends - 1 if self.backward else np.zeros(batch, dtype=np.int64)
        self._initial_c = self._tap("initial_c", taps)
        inputs = self._tap("X", taps)
        assert inputs is not None
        self.inputs: Matrix = inputs.astype(np.float64)
        self.states: Matrix = np.zeros_like(states)
        if self.backward:
            self.states[:-1] = states[1:]
        else:
            self.states[1:] = states[:-1]
        first = self._tap("initial_h", taps)
        if steps:
            self.states[self._begins, np.arange(batch)] = 0.0 if first is None else first[direction]
        order = np.arange(steps)[:, None]
        self.valid = order < ends[None, :]
        goes_on = first is not None and layer.constant("initial_h") is None
        self.left = np.where(goes_on, np.inf, order + 1 if self.backward else ends[None, :] - order)
        self.left = np.maximum(self.left, 0)

    def gate(self, letter: str) -> Matrix:
        """The sum W x + R h + Wb + Rb of a gate, [T, B, H]."""
        return self.input_part(letter) + self.state_part(letter)

    def input_part(self, letter: str) -> Matrix:
        """W x + Wb of a gate, [T, B, H]."""
        return self._part("W", letter, self.inputs, 0)

    def state_part(self, letter: str, states: Matrix | None = None) -> Matrix:
        """R h + Rb of a gate, [T, B, H]; of other states where they are given."""
        given = self.states if states is None else states
        return self._part("R", letter, given, len(self._layer.cell.gates))

    def activation(self, place: int) -> Function | None:
        """The function at a place of the operator's list; None where it is not known here."""
        return activation_of(self._layer, self._direction, place)

    def running_sum(self, factor: Matrix, term: Matrix) -> Matrix:
        """c with c_t = factor_t c_(t-1) + term_t, starting from initial_c: before each step."""
        result = np.zeros_like(term)
        steps = len(term)
        start = None if self._initial_c is None else self._initial_c[self._direction]
        state = np.zeros(term.shape[1:])
        for step in reversed(range(steps)) if self.backward else range(steps):
            begins = self._begins == step
            if begins.any():
                state[begins] = 0.0 if start is None else start[begins if len(start) > 1 else 0]
            result[step] = state
            state = factor[step] * state + term[step]
        return result

    def _tap(self, name: str, taps: Taps) -> Array | None:
        tensor = self._layer.input(name)
        if tensor is None:
            return None
        constant = self._constant(name)
        return taps[tensor.name] if constant is None else constant

    def _part(self, name: str, letter: str, signal: Matrix, first_block: int) -> Matrix:
        layer = self._layer
        hidden, place = layer.hidden, layer.cell.gates.index(letter)
        rows = slice(place * hidden, (place + 1) * hidden)
        weight, bias = self._constant(name), self._constant("B")
        assert weight is not None
        # One product of matrices for all steps, in the precision in which the runtime has it.
        block = weight[self._direction][rows].astype(np.result_type(weight.dtype, np.float32))
        flat = signal.reshape(-1, signal.shape[-1]).astype(block.dtype, copy=False)
        total: Matrix = (flat @ block.T).astype(np.float64).reshape(*signal.shape[:-1], hidden)
        if bias is not None:
            first = first_block * hidden
            total += bias[self._direction][first + rows.start : first + rows.stop]
        return total
