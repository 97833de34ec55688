"""The gates of a recurrent layer as readers of its input and of its own last state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.cells import RecurrentLayer, find_layers
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import add_constant, set_input
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.score.moments import Matrix
from onnx_rnn_prune.score.readers import Taps
from onnx_rnn_prune.trace.labels import Labels

_ACTIVATIONS: dict[str, Callable[[Matrix], Matrix]] = {
    "Sigmoid": lambda x: 0.5 * (1.0 + np.tanh(0.5 * x)),
    "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0.0, 1.0),
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0.0),
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
    """

    layer: str
    direction: int
    gates: str
    sources: tuple[str, ...]
    labels: Labels

    @property
    def name(self) -> str:
        return f"{self.layer}#{self.direction}{self.gates}{'+'.join(self.sources)}"

    def taps(self, document: Document) -> list[str]:
        layer = self._layer(document)
        inputs = [layer.input(name) for name in ("X", "sequence_lens", "initial_h")]
        wanted = [tensor.name for tensor in inputs if tensor is not None]
        output = layer.output("Y")
        assert output is not None
        return [*wanted, output.name]

    def signal(self, document: Document, taps: Taps) -> Array:
        layer = self._layer(document)
        steps = _Steps(layer, self.direction, taps)
        parts = [getattr(self, f"_signal_{name}")(layer, steps) for name in self.sources]
        return np.concatenate(parts, axis=1)

    def weight(self, document: Document) -> Matrix:
        layer = self._layer(document)
        rows = self._rows(layer, 0)
        return np.concatenate(
            [self._matrix(layer, name)[rows] for name in self.sources], axis=1
        ).astype(np.float64)

    def store(self, document: Document, weight: Matrix, bias: Matrix) -> None:
        layer = self._layer(document)
        rows = self._rows(layer, 0)
        first = 0
        for source in self.sources:
            name = "W" if source == "X" else "R"
            value = _constant(layer, name).copy()
            width = value.shape[2]
            value[self.direction, rows] = weight[:, first : first + width]
            _set(document, layer, name, value)
            first += width
        if np.any(bias):
            shape = (layer.directions, 2 * len(layer.cell.gates) * layer.hidden)
            old = layer.constant("B")
            value = np.zeros(shape, _constant(layer, "W").dtype) if old is None else old.copy()
            block = 0 if self.sources == ("X",) else len(layer.cell.gates)
            value[self.direction, self._rows(layer, block)] += bias.astype(value.dtype)
            _set(document, layer, "B", value)

    def _layer(self, document: Document) -> RecurrentLayer:
        return next(item for item in find_layers(document.graph) if item.name == self.layer)

    def _rows(self, layer: RecurrentLayer, first_block: int) -> npt.NDArray[np.int64]:
        blocks = [first_block + layer.cell.gates.index(gate) for gate in self.gates]
        return np.concatenate([np.arange(layer.hidden) + block * layer.hidden for block in blocks])

    def _matrix(self, layer: RecurrentLayer, source: str) -> Array:
        matrix: Array = _constant(layer, "W" if source == "X" else "R")[self.direction]
        return matrix

    def _signal_X(self, layer: RecurrentLayer, steps: _Steps) -> Matrix:
        return steps.inputs

    def _signal_H(self, layer: RecurrentLayer, steps: _Steps) -> Matrix:
        return steps.states

    def _signal_rH(self, layer: RecurrentLayer, steps: _Steps) -> Matrix:
        """The state times the reset gate, which is computed here: no operator puts it out."""
        hidden, d = layer.hidden, self.direction
        rows = np.arange(hidden) + layer.cell.gates.index("r") * hidden
        total = steps.inputs @ _constant(layer, "W")[d][rows].T.astype(np.float64)
        total += steps.states @ _constant(layer, "R")[d][rows].T.astype(np.float64)
        bias = layer.constant("B")
        if bias is not None:
            total += bias[d][rows] + bias[d][rows + len(layer.cell.gates) * hidden]
        gate: Matrix = steps.states * _activation(layer, d)(total)
        return gate


class _Steps:
    """Inputs and previous states of all valid steps of one direction, rows in the same order.

    Args:
        layer: the layer.
        direction: which of its directions.
        taps: X [T, B, I], Y [T, D, B, H], and where given sequence_lens [B], initial_h [D, B, H].
    """

    def __init__(self, layer: RecurrentLayer, direction: int, taps: Taps) -> None:
        def tap(name: str) -> Array | None:
            tensor = layer.input(name)
            if tensor is None:
                return None
            constant = layer.constant(name)
            return taps[tensor.name] if constant is None else constant

        inputs, lengths, first = tap("X"), tap("sequence_lens"), tap("initial_h")
        output = layer.output("Y")
        assert inputs is not None and output is not None
        states = taps[output.name][:, direction].astype(np.float64)
        steps, batch, _ = states.shape
        ends = np.full(batch, steps) if lengths is None else np.asarray(lengths, dtype=np.int64)
        previous = np.zeros_like(states)
        start = 0.0 if first is None else first[direction]
        if layer.direction == "reverse" or direction == 1:
            previous[:-1] = states[1:]
            begins = ends - 1
        else:
            previous[1:] = states[:-1]
            begins = np.zeros(batch, dtype=np.int64)
        if steps:
            previous[begins, np.arange(batch)] = start
        valid = np.arange(steps)[:, None] < ends[None, :]
        self.inputs: Matrix = inputs[valid].astype(np.float64)
        self.states: Matrix = previous[valid]


def _activation(layer: RecurrentLayer, direction: int) -> Callable[[Matrix], Matrix]:
    """The function of the first gates; Sigmoid unless the node says otherwise."""
    named = layer.node.attrs.get("activations") or layer.cell.activations * layer.directions
    name = str(named[direction * len(layer.cell.activations)])
    known = {key.lower(): function for key, function in _ACTIVATIONS.items()}
    return known.get(name.lower(), _ACTIVATIONS["Sigmoid"])


def _constant(layer: RecurrentLayer, name: str) -> Array:
    value = layer.constant(name)
    assert value is not None
    return value


def _set(document: Document, layer: RecurrentLayer, name: str, value: Array) -> None:
    slot = layer.slot(name)
    wanted = f"{layer.name}_{name}_fit"
    set_input(layer.node, slot, add_constant(document.graph, wanted, value))
