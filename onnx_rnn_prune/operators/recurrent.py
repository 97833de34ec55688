"""The recurrent operators as data: how gates, states and biases are laid out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_shape, constant_value
from onnx_rnn_prune.model.integers import MICROSOFT, set_weight, weight_value
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes, node_key, places


@dataclass(frozen=True)
class Cell:
    """The layout of one operator, in the letters of the ONNX specification.

    Attributes:
        op: the operator.
        gates: its gates in the order in which W, R and B stack them.
        inputs: names of its inputs.
        outputs: names of its outputs.
        activations: the default activation of each gate, and of an LSTM's state.
        sums: which gates sum which signals before their activation: X the input, H the state of
            the step before, rH that state times the reset gate. Signals that are summed without
            anything between them can stand in for one another.
        unit_axes: for each parameter, the axes along which units lie, each with the number of
            blocks of H entries on that axis.
        features: the axis of W along which the entries of X lie.
        domain: whose operator it is.
        scales: the parameters that say what the integers in W and R mean. A dead entry of theirs
            may hold anything, and keeps what it has; where there is one for each direction, they
            have no axis of units.
    """

    op: str
    gates: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    activations: tuple[str, ...]
    sums: tuple[tuple[str, tuple[str, ...]], ...]
    unit_axes: dict[str, tuple[tuple[int, int], ...]]
    features: int = 2
    domain: str = ""
    scales: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """The inputs that must be constants."""
        return tuple(name for name in self.unit_axes if not name.startswith("initial_"))


LSTM = Cell(
    op="LSTM",
    gates="iofc",
    inputs=("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    outputs=("Y", "Y_h", "Y_c"),
    activations=("Sigmoid", "Tanh", "Tanh"),
    sums=(("iofc", ("X", "H")),),
    unit_axes={
        "W": ((1, 4),),
        "R": ((1, 4), (2, 1)),
        "B": ((1, 8),),
        "P": ((1, 3),),
        "initial_h": ((2, 1),),
        "initial_c": ((2, 1),),
    },
)
GRU = Cell(
    op="GRU",
    gates="zrh",
    inputs=("X", "W", "R", "B", "sequence_lens", "initial_h"),
    outputs=("Y", "Y_h"),
    activations=("Sigmoid", "Tanh"),
    sums=(("zr", ("X", "H")), ("h", ("X", "rH"))),
    unit_axes={
        "W": ((1, 3),),
        "R": ((1, 3), (2, 1)),
        "B": ((1, 6),),
        "initial_h": ((2, 1),),
    },
)
RNN = Cell(
    op="RNN",
    gates="i",
    inputs=("X", "W", "R", "B", "sequence_lens", "initial_h"),
    outputs=("Y", "Y_h"),
    activations=("Tanh",),
    sums=(("i", ("X", "H")),),
    unit_axes={
        "W": ((1, 1),),
        "R": ((1, 1), (2, 1)),
        "B": ((1, 2),),
        "initial_h": ((2, 1),),
    },
)
_SCALES = ("W_scale", "W_zero_point", "R_scale", "R_zero_point")
QUANTIZED_LSTM = replace(
    LSTM,
    op="DynamicQuantizeLSTM",
    inputs=(*LSTM.inputs, *_SCALES),
    unit_axes={
        **LSTM.unit_axes,
        "W": ((2, 4),),
        "R": ((2, 4), (1, 1)),
        **dict.fromkeys(_SCALES, ((1, 4),)),
    },
    features=1,
    domain=MICROSOFT,
    scales=_SCALES,
)
CELLS = (LSTM, GRU, RNN, QUANTIZED_LSTM)
RECURRENT = frozenset(cell.op for cell in CELLS)

# Activations that are 0 at 0.
_ODD = frozenset(("elu", "leakyrelu", "relu", "scaledtanh", "softsign", "tanh"))

# With linear_before_reset, the reset gate multiplies R h, so that there X and H are not summed.
LINEAR_BEFORE_RESET_SUMS = (("zr", ("X", "H")), ("h", ("X",)), ("h", ("H",)))


@dataclass(frozen=True, eq=False)
class RecurrentLayer:
    """A typed view of one recurrent node.

    Attributes:
        node: the node; W and R are constants.
        cell: its layout.
        name: the node's name where that is unique in the graph, else its first output's.
        directions: D, 1 or 2.
        hidden: H, units per direction.
        input_size: I, the width of X.
        scope: the way down to its graph, as in `If_12.then_branch`; empty for the main graph.
    """

    node: gs.Node
    cell: Cell
    name: str
    directions: int
    hidden: int
    input_size: int
    scope: str

    @property
    def key(self) -> str:
        """Finds the layer again in a copy of its graph."""
        return node_key(self.node)

    @property
    def direction(self) -> str:
        """forward, reverse or bidirectional."""
        return str(self.node.attrs.get("direction", "forward"))

    def slot(self, name: str) -> int:
        """The position of an input."""
        return self.cell.inputs.index(name)

    def input(self, name: str) -> gs.Tensor | None:
        """An input by its specified name, or None where it is omitted."""
        if name not in self.cell.inputs:
            return None
        slot = self.slot(name)
        if slot >= len(self.node.inputs) or not self.node.inputs[slot].name:
            return None
        return self.node.inputs[slot]

    def constant(self, name: str) -> Array | None:
        """An input's value, or None where it is omitted or not constant.

        W and R are laid out as those of an LSTM, GRU or RNN, in real numbers, however a cell holds
        them.
        """
        tensor = self.input(name)
        if tensor is None or constant_shape(tensor) is None:
            return None
        if name in ("W", "R"):
            return self._turned(weight_value(self.node, self.slot(name)))
        return constant_value(tensor)

    def set_constant(self, graph: gs.Graph, name: str, value: Array) -> None:
        """Gives the layer another value for an input, in the layout of `constant`."""
        turned = self._turned(value) if name in ("W", "R") else value
        set_weight(graph, self.node, self.slot(name), turned)

    def _turned(self, weight: Array) -> Array:
        return weight if self.cell.features == 2 else np.swapaxes(weight, 1, 2)

    def output(self, name: str) -> gs.Tensor | None:
        """An output by its specified name, or None where nobody asked for it."""
        slot = self.cell.outputs.index(name)
        if slot >= len(self.node.outputs) or not self.node.outputs[slot].name:
            return None
        return self.node.outputs[slot]

    @property
    def sums(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """As in `Cell`, for this node's attributes."""
        if self.node.attrs.get("linear_before_reset", 0):
            return LINEAR_BEFORE_RESET_SUMS
        return self.cell.sums

    @property
    def rests_at_zero(self) -> bool:
        """Whether the state of a unit without weights and biases stays 0."""
        named = self.node.attrs.get("activations") or self.cell.activations
        defaults = self.cell.activations * self.directions
        return all(
            str(name).lower() in _ODD
            for name, default in zip(named, defaults, strict=False)
            if default == "Tanh"
        )

    def params(self, kept: int | None = None) -> int:
        """Number of weights with `kept` units (H by default)."""
        units = self.hidden if kept is None else kept
        gates = len(self.cell.gates)
        per_unit = gates * (self.input_size + units)
        per_unit += 2 * gates if self.input("B") is not None else 0
        per_unit += 3 if self.input("P") is not None else 0
        return self.directions * units * per_unit

    def flops(self) -> int:
        """Operations of the matrix products of one time step of one sequence.

        A multiplication and an addition for each entry of W and R: 2 D G H (I + H), where G is the
        number of gates.
        """
        products = len(self.cell.gates) * self.hidden * (self.input_size + self.hidden)
        return 2 * self.directions * products


def find_layers(graph: gs.Graph) -> list[RecurrentLayer]:
    """The recurrent layers of a graph and its bodies, in its order.

    Those whose parameters are constants; and whose weights are of the specified shapes, which is so
    in a model that runs.
    """
    computed = computed_parameters(graph)
    views = (_view(*found) for found in recurrent_nodes(graph) if found[2] not in computed)
    return [layer for layer in views if layer is not None]


def computed_parameters(graph: gs.Graph) -> dict[str, str]:
    """Recurrent nodes with a parameter that is known only while the model runs: by name, which."""
    found: dict[str, str] = {}
    for node, cell, name, _ in recurrent_nodes(graph):
        for slot, letter in enumerate(cell.inputs):
            given = slot < len(node.inputs) and node.inputs[slot].name
            if letter in cell.parameters and given and constant_shape(node.inputs[slot]) is None:
                found.setdefault(name, letter)
    return found


def recurrent_nodes(graph: gs.Graph) -> Iterator[tuple[gs.Node, Cell, str, str]]:
    """Recurrent nodes with their cells, the names by which users know them, and scopes."""
    cells = {(cell.domain, cell.op): cell for cell in CELLS}
    nodes = [node for node in all_nodes(graph) if (node.domain or "", node.op) in cells]
    names = Counter(node.name for node in all_nodes(graph))
    homes = [(place.scope, place.graph.nodes) for place in places(graph)]
    scopes = {id(node): scope for scope, inside in homes for node in inside}
    for node in nodes:
        cell = cells[node.domain or "", node.op]
        name = node.name
        if not name or names[name] > 1:
            key = node_key(node)  # another node may be called what this one's output is
            name = key if key not in names else f"{node.op}:{key}"
        yield node, cell, name, scopes[id(node)]


def _view(node: gs.Node, cell: Cell, name: str, scope: str) -> RecurrentLayer | None:
    weight, recurrence = weight_shapes(node, cell)
    gates = len(cell.gates)
    directions, rows, hidden = recurrence if len(recurrence) == 3 else (0, 0, 0)
    if rows != gates * hidden or weight[:2] != (directions, rows) or not hidden:
        return None
    return RecurrentLayer(node, cell, name, directions, hidden, int(weight[2]), scope)


def weight_shapes(node: gs.Node, cell: Cell) -> list[tuple[int, ...]]:
    """The shapes of W and R with the features last, as an LSTM, GRU or RNN has them."""
    shapes = [constant_shape(tensor) or () for tensor in node.inputs[1:3]]
    return [_in_order(shape, cell) for shape in [*shapes, (), ()][:2]]


def _in_order(shape: tuple[int, ...], cell: Cell) -> tuple[int, ...]:
    if len(shape) != 3:
        return shape
    directions, features, rows = (shape[axis] for axis in (0, cell.features, 3 - cell.features))
    return directions, rows, features
