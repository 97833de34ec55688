"""The gates of a recurrent layer as readers of its input and its own previous state.

Their signals follow from the layer's outputs, without simulating it. How much an error in a gate's
pre-activation matters follows from the derivative of the next state, through the gate's slope. With
z, r, n and i, o, f, g the activated gates and ' the slopes, the derivatives of the new state are

    RNN   h = f(a)                        f'
    GRU   h = (1 - z) n + z h-            z: (h- - n) z'    n: (1 - z) n'
                                          r: (1 - z) n' (R h-)_n r' with linear_before_reset
                                             R_n' (1 - z) n' h- r' without, of which the root of
                                             the sum of squares over all units counts
    LSTM  h = o tanh(c), c = f c- + i g   o: tanh(c) o'     i, f, g: o tanh'(c) (g i', c- f', i g')

An error that reaches the state itself (h of a GRU, c of an LSTM) lasts: each step multiplies it by
z or f, so its squares over all steps add up to 1 / (1 - f^2) times the first. The emphasis of a
gate is the mean of the squared derivative times this factor, over calibration data. Half of the
units of a streaming denoiser (DTLN), with states carried over 600 calls, deviated on other speech
by 31.8 % without the factor and by 30.1 % with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.evidence.moments import Matrix, blocks
from onnx_rnn_prune.evidence.readers import Lines, Lookup, Place, Taps
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.labels import Labels
from onnx_rnn_prune.operators.layers import Layer


@dataclass(frozen=True)
class Function:
    """An activation.

    Attributes:
        of: the activation of pre-activations.
        slope: its derivative as a function of its value, not of the pre-activation.
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
    """The function at a place of the operator's list; None if it is not supported."""
    defaults = layer.cell.activations
    named = layer.node.attrs.get("activations") or defaults * layer.directions
    return ACTIVATIONS.get(str(named[direction * len(defaults) + place]).lower())


class Steps:
    """Inputs and previous states of one direction of a layer, in order of time.

    All gates follow from X and Y: a step starts from the output of the previous one.

    Args:
        layer: the layer.
        direction: which of its directions.
        taps: X [T, B, I], Y [T, D, B, H], and if given, sequence_lens [B] and initial states.

    Attributes:
        inputs: [T, B, I].
        states: the states that the steps start from, [T, B, H].
        left: number of steps left, each one included, [T, B]; infinite if a caller may continue
            from the last state.
        valid: False where a sequence has ended, [T, B].
        precision: their type in the runtime, or single precision.
        backward: whether time runs backwards.
    """

    def __init__(self, layer: Layer, direction: int, taps: Taps) -> None:
        self._layer, self._direction = layer, direction
        self._constant = cache(layer.constant)  # may have to be computed
        output = layer.output("Y")
        assert output is not None
        states = taps[output.name][:, direction].astype(np.float64)
        self.precision = np.result_type(taps[output.name].dtype, np.float32)
        steps, batch, _ = states.shape
        lengths = self._tap("sequence_lens", taps)
        ends = np.full(batch, steps)
        if lengths is not None:  # constant ones may exceed the steps given
            ends = np.minimum(ends, lengths.astype(np.int64))
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
        goes_on = first is not None and self._constant("initial_h") is None
        self.left = np.where(goes_on, np.inf, order + 1 if self.backward else ends[None, :] - order)
        self.left = np.maximum(self.left, 0)

    def gate(self, letter: str) -> Matrix:
        """The pre-activation W x + R h + Wb + Rb of a gate, [T, B, H]."""
        return self.input_part(letter) + self.state_part(letter)

    def input_part(self, letter: str) -> Matrix:
        """W x + Wb of a gate, [T, B, H]."""
        return self._part("W", letter, self.inputs, 0)

    def state_part(self, letter: str, states: Matrix | None = None) -> Matrix:
        """R h + Rb of a gate, [T, B, H]; for other states if given."""
        given = self.states if states is None else states
        return self._part("R", letter, given, len(self._layer.cell.gates))

    def activation(self, place: int) -> Function | None:
        """The function at a place of the operator's list; None if it is not supported."""
        return activation_of(self._layer, self._direction, place)

    def rows(self, name: str, letters: str) -> Array:
        """The rows of consecutive gates in W or R, in single precision at least."""
        weight = self._constant(name)
        assert weight is not None
        rows = slice(self._place(letters[0]).start, self._place(letters[-1]).stop)
        own = weight[self._direction][rows]
        return np.asarray(own, np.result_type(weight.dtype, np.float32))

    def forget(self) -> None:
        """Drops cached weights, of which each trajectory has a copy."""
        self._constant.cache_clear()

    def _place(self, letter: str) -> slice:
        first = self._layer.cell.gates.index(letter) * self._layer.hidden
        return slice(first, first + self._layer.hidden)

    def running_sum(self, factor: Matrix, term: Matrix) -> Matrix:
        """c before each step, with c_t = factor_t c_(t-1) + term_t from initial_c on."""
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
        layer, bias, block = self._layer, self._constant("B"), self.rows(name, letter)
        hidden = layer.hidden
        rows = self._place(letter)
        # One matrix product for all steps, in the runtime's precision.
        flat = signal.reshape(-1, signal.shape[-1]).astype(block.dtype, copy=False)
        total: Matrix = (flat @ block.T).astype(np.float64).reshape(*signal.shape[:-1], hidden)
        if bias is not None:
            first = first_block * hidden
            total += bias[self._direction][first + rows.start : first + rows.stop]
        return total


# The most steps for which an error counts, as the length of sequences is not known.
_LONGEST = 100.0
# Gates with less than this share of the largest emphasis do not count for which samples matter; and
# the least weight of a sample, relative to a typical one.
_FELT, _LEAST = 1e-9, 0.03


@dataclass(frozen=True, eq=False)
class Slopes:
    """The derivatives of one step of a layer, each [T, B, H].

    Attributes:
        memory: of the memory (what the layer keeps from step to step), by each gate's sum.
        direct: of the state by each gate's sum, for gates that bypass the memory.
        shown: of the state by the memory.
        kept: of the memory by the previous one.
        loops: by letter, in the order of gates, the letter of the rows of R that lead back to it,
            and what scales the state before that; first those with nothing that does.
        scaling: for a gate that scales the state read by another one's rows of R, the other's
            letter, and the derivative of the scaled state.

    For a GRU with linear_before_reset, the letter H stands for the candidate's R h + Rb, which the
    reset gate scales.
    """

    memory: Mapping[str, Matrix]
    direct: Mapping[str, Matrix]
    shown: Matrix
    kept: Matrix
    loops: Mapping[str, tuple[str, Matrix | None]]
    scaling: Mapping[str, tuple[str, Matrix]] = field(default_factory=dict)


def slopes(layer: Layer, steps: Steps) -> Slopes | None:
    """The derivatives of each step; None if an activation is not supported."""
    functions = [steps.activation(place) for place in range(len(layer.cell.activations))]
    if any(function is None for function in functions):
        return None
    known = [function for function in functions if function is not None]
    return _CELLS[layer.cell.gates](layer, steps, known)


def answers(layer: Layer, steps: Steps, letters: str) -> dict[str, Matrix] | None:
    """The derivatives of future states by some gates' pre-activations, [T, B, H] by letter."""
    found = slopes(layer, steps)
    if found is None:
        return None
    through = _lasting(found.kept, steps) * found.shown
    memory = {name: through * found.memory[name] for name in letters if name in found.memory}
    return {**memory, **found.direct}


def _rnn(_: Layer, steps: Steps, functions: list[Function]) -> Slopes:
    own = functions[0].slope(functions[0](steps.gate("i")))
    nothing = np.zeros_like(own)
    return Slopes({}, {"i": own}, nothing, nothing, {"i": ("i", None)})


def _gru(layer: Layer, steps: Steps, functions: list[Function]) -> Slopes:
    gate, candidate = functions
    z, r = gate(steps.gate("z")), gate(steps.gate("r"))
    linear = bool(layer.node.attrs.get("linear_before_reset", 0))
    recurrent = steps.state_part("h") if linear else steps.state_part("h", r * steps.states)
    n = candidate(steps.input_part("h") + (r * recurrent if linear else recurrent))
    through = (1.0 - z) * candidate.slope(n)
    memory = {"z": (steps.states - n) * gate.slope(z), "h": through, "H": through * r}
    loops: dict[str, tuple[str, Matrix | None]] = {"z": ("z", None), "r": ("r", None)}
    if linear:
        memory["r"] = through * recurrent * gate.slope(r)
        return Slopes(memory, {}, np.ones_like(z), z, {**loops, "H": ("h", None)})
    reset = steps.states * gate.slope(r)
    # All units feel it: the root of the sum of squares.
    rows, squares = steps.rows("R", "h"), through**2
    memory["r"] = np.empty_like(reset)
    for part in blocks(rows.shape[1]):
        memory["r"][..., part] = np.sqrt(squares @ rows[:, part] ** 2) * reset[..., part]
    loops["h"] = "h", r
    return Slopes(memory, {}, np.ones_like(z), z, loops, {"r": ("h", reset)})


def _lstm(_: Layer, steps: Steps, functions: list[Function]) -> Slopes:
    gate, cell, out = functions
    i, o, f = (gate(steps.gate(letter)) for letter in "iof")
    g = cell(steps.gate("c"))
    before = steps.running_sum(f, i * g)
    shown = out(f * before + i * g)
    memory = {"i": g * gate.slope(i), "f": before * gate.slope(f), "c": i * cell.slope(g)}
    loops: dict[str, tuple[str, Matrix | None]] = {letter: (letter, None) for letter in "iofc"}
    return Slopes(memory, {"o": shown * gate.slope(o)}, o * out.slope(shown), f, loops)


def _lasting(kept: Matrix, steps: Steps) -> Matrix:
    """The gain of a lasting error in a state over one that lasts a single step.

    If each step keeps a share f of it, its squares over n steps add up to (1 - f^2n) / (1 - f^2).
    """
    square = np.clip(kept**2, np.finfo(np.float64).tiny, 1.0 - 1.0 / _LONGEST)
    left = np.minimum(steps.left, _LONGEST)[..., None]
    # Powers that underflow would take 20 times as long.
    return np.asarray(np.sqrt(-np.expm1(left * np.log(square)) / (1.0 - square)))


_CELLS: dict[str, Callable[[Layer, Steps, list[Function]], Slopes]] = {
    "i": _rnn,
    "zrh": _gru,
    "iofc": _lstm,
}


@dataclass(frozen=True, eq=False)
class GateReader:
    """Some gates of one direction: W x + R h + bias, before the activation.

    Attributes:
        layer: the layer's name.
        direction: 0 or 1.
        gates: the letters of the gates.
        sources: the signals that they sum: X, H and rH as in `Cell.sums`.
        labels: the unit behind each entry of the signals laid side by side.
        lane: the unit behind each hidden state, [H].
        twin: the first layer with the same weights whose signal is of the same units.
    """

    layer: str
    direction: int
    gates: str
    sources: tuple[str, ...]
    labels: Labels
    lane: Labels
    twin: str

    @property
    def name(self) -> str:
        return f"{self.layer}#{self._part}"

    @property
    def pool(self) -> str:
        return f"{self.twin}#{self._part}"

    @property
    def places(self) -> bool:
        return False

    @property
    def _part(self) -> str:
        return f"{self.direction}{self.gates}{'+'.join(self.sources)}"

    def source(self, lookup: Lookup) -> str:
        tensor = self.layer_of(lookup).input("X")
        assert tensor is not None
        return str(tensor.name)

    def taps(self, lookup: Lookup) -> list[str]:
        layer = self.layer_of(lookup)
        inputs = [layer.input(name) for name in ("X", "sequence_lens", "initial_h", "initial_c")]
        wanted = [tensor.name for tensor in inputs if tensor is not None]
        output = layer.output("Y")
        assert output is not None
        return [*wanted, output.name]

    def signal(self, lookup: Lookup, taps: Taps) -> Array:
        steps = Steps(self.layer_of(lookup), self.direction, taps)
        parts = [self._source(name, steps)[steps.valid] for name in self.sources]
        return np.concatenate(parts, axis=1, dtype=steps.precision, casting="same_kind")

    def emphasis(self, lookup: Lookup, taps: Taps) -> Matrix:
        squares = self._squares(lookup, taps)
        return squares.mean(axis=0) if len(squares) else np.zeros(squares.shape[1])

    def importance(self, lookup: Lookup, taps: Taps, emphasis: Matrix) -> Matrix:
        felt = emphasis > _FELT * emphasis.max(initial=0.0)
        squares = self._squares(lookup, taps)[:, felt]
        if not felt.any():
            return np.ones(len(squares))
        share: Matrix = squares @ (1.0 / emphasis[felt]) / np.count_nonzero(felt)
        return share + _LEAST

    def side_by_side(self, found: Mapping[str, Matrix], steps: Steps) -> Matrix:
        """Values by gate, each [T, B, H], in the layout of the outputs, [N, outputs]."""
        return np.concatenate([found[letter][steps.valid] for letter in self._letters], axis=1)

    @property
    def _letters(self) -> str:
        return "H" if self.sources == ("H",) else self.gates

    def _squares(self, lookup: Lookup, taps: Taps) -> Matrix:
        """Squared derivatives of future states by each output, [N, outputs]; ones if unknown."""
        layer = self.layer_of(lookup)
        steps = Steps(layer, self.direction, taps)
        found = answers(layer, steps, self._letters)
        if found is None:
            return np.ones((np.count_nonzero(steps.valid), len(self.gates) * layer.hidden))
        squares = self.side_by_side(found, steps)
        return np.square(squares, out=squares)

    def outputs(self, lookup: Lookup) -> Labels:
        return np.tile(self.lane, len(self.gates))

    def widths(self, lookup: Lookup) -> tuple[int, ...]:
        layer = self.layer_of(lookup)
        return tuple(layer.input_size if name == "X" else layer.hidden for name in self.sources)

    def weight(self, lookup: Lookup) -> Array:
        layer = self.layer_of(lookup)
        matrices = [self._matrix(layer, name) for name in self.sources]
        width, hidden = sum(self.widths(lookup)), layer.hidden
        result = np.empty((len(self.gates) * hidden, width), matrices[0].dtype)
        for number, gate in enumerate(self.gates):  # copies no more at a time than it reads
            first = layer.cell.gates.index(gate) * hidden
            parts = [matrix[first : first + hidden] for matrix in matrices]
            np.concatenate(parts, axis=1, out=result[number * hidden : (number + 1) * hidden])
        return result

    def lines(self, lookup: Lookup) -> Lines:
        layer = self.layer_of(lookup)
        own, matrices = self._rows(layer, 0), [self._matrix(layer, name) for name in self.sources]
        return lambda rows: np.concatenate([matrix[own[rows]] for matrix in matrices], axis=1)

    def store(self, lookup: Lookup, place: Place, weight: Array, bias: Array) -> None:
        layer = self.layer_of(lookup)
        lines, columns = place
        rows = self._rows(layer, 0)[lines]
        first = 0
        for source in self.sources:
            name = "W" if source == "X" else "R"
            value = lookup.own(layer.held(name))
            width = value.shape[2]
            inside = (columns >= first) & (columns < first + width)
            value[self.direction][np.ix_(rows, columns[inside] - first)] = weight[:, inside]
            layer.set_constant(lookup.graph, name, value)
            first += width
        if np.any(bias):
            value = layer.held("B").copy()  # prepare makes room for it
            block = 0 if self.sources == ("X",) else len(layer.cell.gates)
            value[self.direction, self._rows(layer, block)[lines]] += bias
            layer.set_constant(lookup.graph, "B", value)

    def layer_of(self, lookup: Lookup) -> Layer:
        return lookup.layers[self.layer]

    def _rows(self, layer: Layer, first_block: int) -> npt.NDArray[np.int64]:
        blocks = [first_block + layer.cell.gates.index(gate) for gate in self.gates]
        return np.concatenate([np.arange(layer.hidden) + block * layer.hidden for block in blocks])

    def _matrix(self, layer: Layer, source: str) -> Array:
        return np.asarray(layer.held("W" if source == "X" else "R")[self.direction])

    def _source(self, name: str, steps: Steps) -> Matrix:
        if name == "X":
            return steps.inputs
        if name == "H":
            return steps.states
        # No operator outputs the state times the reset gate.
        reset = steps.activation(0) or ACTIVATIONS["sigmoid"]
        return steps.states * reset(steps.gate("r"))
