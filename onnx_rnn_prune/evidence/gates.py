"""The gates of a recurrent layer as readers of its input and its own previous state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.evidence.readers import Lines, Lookup, Place, Taps
from onnx_rnn_prune.evidence.steps import ACTIVATIONS, Real, Steps, answers
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.labels import Labels, Mask
from onnx_rnn_prune.operators.layers import Layer

# Gates with less than this share of the largest emphasis do not count for which samples matter; and
# the least weight of a sample, relative to a typical one.
_FELT, _LEAST = 1e-9, 0.03
# States whose derivatives are computed at a time: there are a dozen for each.
_STATES = 1 << 19


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
        return [*wanted, self._made(lookup)]

    def signal(self, lookup: Lookup, taps: Taps) -> Array:
        steps = Steps(self.layer_of(lookup), self.direction, taps)
        parts = [_in_rows(self._source(name, steps), steps.valid) for name in self.sources]
        return np.concatenate(parts, axis=1)

    def emphasis(self, lookup: Lookup, taps: Taps) -> Matrix:
        total, count = np.zeros(len(self.gates) * self.layer_of(lookup).hidden), 0
        for _, _, squares in self._squares(lookup, taps):
            total += squares.sum(axis=0, dtype=np.float64)
            count += len(squares)
        return total / max(count, 1)

    def importance(self, lookup: Lookup, taps: Taps, emphasis: Matrix) -> Matrix:
        most = emphasis.max(initial=0.0)
        felt = emphasis > _FELT * most
        scale = np.divide(most, emphasis, out=np.zeros_like(emphasis), where=felt)
        length, _, batch, _ = taps[self._made(lookup)].shape
        shares, valid = np.zeros((length, batch)), np.zeros((length, batch), bool)
        for some, steps, squares in self._squares(lookup, taps):
            valid[:, some] = steps.valid
            shares[:, some][steps.valid] = squares @ scale.astype(squares.dtype)
        if not felt.any():
            return np.ones(np.count_nonzero(valid))
        weights: Matrix = shares[valid] / (most * np.count_nonzero(felt)) + _LEAST
        return weights

    def side_by_side(self, found: Mapping[str, Real], steps: Steps) -> Real:
        """Values by gate, each [T, B, H], in the layout of the outputs, [N, outputs]."""
        valid, letters = steps.valid, self._letters
        hidden = found[letters[0]].shape[-1]
        result = np.empty((np.count_nonzero(valid), len(letters) * hidden), found[letters[0]].dtype)
        for number, letter in enumerate(letters):
            result[:, number * hidden : (number + 1) * hidden] = _in_rows(found[letter], valid)
        return result

    @property
    def _letters(self) -> str:
        return "H" if self.sources == ("H",) else self.gates

    def _squares(self, lookup: Lookup, taps: Taps) -> Iterator[tuple[slice, Steps, Real]]:
        """Squared derivatives of future states by each output, [N, outputs]; ones if unknown.

        A few sequences of the batch at a time, with their steps.
        """
        layer, (length, _, batch, hidden) = self.layer_of(lookup), taps[self._made(lookup)].shape
        few = max(1, _STATES // max(1, length * hidden))
        for first in range(0, batch, few):
            some = slice(first, first + few)
            steps = Steps(layer, self.direction, taps, some)
            found = answers(layer, steps, self._letters)
            if found is None:
                shape = np.count_nonzero(steps.valid), len(self.gates) * hidden
                yield some, steps, np.ones(shape, steps.precision)
            else:
                squares = self.side_by_side(found, steps)
                yield some, steps, np.square(squares, out=squares)

    def _made(self, lookup: Lookup) -> str:
        """The name of Y, [T, D, B, H]."""
        output = self.layer_of(lookup).output("Y")
        assert output is not None
        return str(output.name)

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

    def _source(self, name: str, steps: Steps) -> Real:
        if name == "X":
            return steps.inputs
        if name == "H":
            return steps.states
        # No operator outputs the state times the reset gate.
        reset = steps.activation(0) or ACTIVATIONS["sigmoid"]
        return steps.states * reset(steps.gate("r"))


def _in_rows(values: Real, valid: Mask) -> Real:
    """Values of each step, [T, B, n], as rows; without a copy if all steps are valid."""
    return values.reshape(-1, values.shape[-1]) if valid.all() else values[valid]
