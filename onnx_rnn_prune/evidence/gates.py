"""The gates of a recurrent layer as readers of its input and of its own last state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.evidence.lookup import Lookup
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.evidence.readers import Place
from onnx_rnn_prune.evidence.samples import ACTIVATIONS, Steps, Taps
from onnx_rnn_prune.evidence.saturation import answers, mean_square
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.labels import Labels
from onnx_rnn_prune.operators.layers import Layer


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
        tensor = self._layer(lookup).input("X")
        assert tensor is not None
        name: str = tensor.name
        return name

    def taps(self, lookup: Lookup) -> list[str]:
        layer = self._layer(lookup)
        inputs = [layer.input(name) for name in ("X", "sequence_lens", "initial_h", "initial_c")]
        wanted = [tensor.name for tensor in inputs if tensor is not None]
        output = layer.output("Y")
        assert output is not None
        return [*wanted, output.name]

    def signal(self, lookup: Lookup, taps: Taps) -> Array:
        steps = Steps(self._layer(lookup), self.direction, taps)
        parts = [self._source(name, steps)[steps.valid] for name in self.sources]
        return np.concatenate(parts, axis=1)

    def emphasis(self, lookup: Lookup, taps: Taps) -> Matrix:
        layer = self._layer(lookup)
        steps = Steps(layer, self.direction, taps)
        found = answers(layer, steps)
        if found is None:
            return np.ones(len(self.gates) * layer.hidden)
        letters = "H" if self.sources == ("H",) else self.gates
        return np.concatenate([mean_square(found[letter], steps.valid) for letter in letters])

    def outputs(self, lookup: Lookup) -> Labels:
        return np.tile(self.lane, len(self.gates))

    def widths(self, lookup: Lookup) -> tuple[int, ...]:
        layer = self._layer(lookup)
        return tuple(layer.input_size if name == "X" else layer.hidden for name in self.sources)

    def weight(self, lookup: Lookup) -> Array:
        layer = self._layer(lookup)
        matrices = [self._matrix(layer, name) for name in self.sources]
        width, hidden = sum(self.widths(lookup)), layer.hidden
        result = np.empty((len(self.gates) * hidden, width), matrices[0].dtype)
        for number, gate in enumerate(self.gates):  # no more is copied at a time than is read
            first = layer.cell.gates.index(gate) * hidden
            parts = [matrix[first : first + hidden] for matrix in matrices]
            np.concatenate(parts, axis=1, out=result[number * hidden : (number + 1) * hidden])
        return result

    def store(self, lookup: Lookup, place: Place, weight: Array, bias: Array) -> None:
        layer = self._layer(lookup)
        lines, columns = place
        rows = self._rows(layer, 0)[lines]
        first = 0
        for source in self.sources:
            name = "W" if source == "X" else "R"
            value = lookup.own(_constant(layer, name))
            width = value.shape[2]
            inside = (columns >= first) & (columns < first + width)
            value[self.direction][np.ix_(rows, columns[inside] - first)] = weight[:, inside]
            layer.set_constant(lookup.graph, name, value)
            first += width
        if np.any(bias):
            value = _constant(layer, "B").copy()  # prepare makes room for it
            block = 0 if self.sources == ("X",) else len(layer.cell.gates)
            value[self.direction, self._rows(layer, block)[lines]] += bias
            layer.set_constant(lookup.graph, "B", value)

    def _layer(self, lookup: Lookup) -> Layer:
        return lookup.layers[self.layer]

    def _rows(self, layer: Layer, first_block: int) -> npt.NDArray[np.int64]:
        blocks = [first_block + layer.cell.gates.index(gate) for gate in self.gates]
        return np.concatenate([np.arange(layer.hidden) + block * layer.hidden for block in blocks])

    def _matrix(self, layer: Layer, source: str) -> Array:
        matrix: Array = _constant(layer, "W" if source == "X" else "R")[self.direction]
        return matrix

    def _source(self, name: str, steps: Steps) -> Matrix:
        if name == "X":
            return steps.inputs
        if name == "H":
            return steps.states
        # No operator puts out the state times the reset gate.
        reset = steps.activation(0) or ACTIVATIONS["sigmoid"]
        return steps.states * reset(steps.gate("r"))


def _constant(layer: Layer, name: str) -> Array:
    value = layer.constant(name)
    assert value is not None
    return value
