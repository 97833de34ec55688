"""The recurrent operators as rows: the layout of gates, states and biases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_shape
from onnx_rnn_prune.model.integers import MICROSOFT
from onnx_rnn_prune.operators.layers import Cell, Layer, named_nodes

LSTM = Cell(
    op="LSTM",
    gates="iofc",
    inputs=("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    outputs=("Y", "Y_h", "Y_c"),
    places={"Y": (1, 3), "Y_h": (0, 2), "Y_c": (0, 2)},
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
    places={"Y": (1, 3), "Y_h": (0, 2)},
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
    places={"Y": (1, 3), "Y_h": (0, 2)},
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
STANDARD = {cell.op: cell for cell in CELLS if not cell.domain}
"""ONNX's own, by operator."""
_BY_OPERATOR = {(cell.domain, cell.op): cell for cell in CELLS}


def find_layers(graph: gs.Graph) -> list[Layer]:
    """The recurrent layers of a graph and its bodies, in graph order.

    Only those with constant parameters, and weights of the specified shapes, as in any model that
    runs.
    """
    views = (view(*found) for found in recurrent_nodes(graph))
    return [layer for layer in views if layer is not None]


def computed_parameters(graph: gs.Graph) -> dict[str, str]:
    """By name, recurrent nodes with a parameter computed at run time, and which one."""
    found = ((name, _computed(node, cell)) for node, cell, name, _ in recurrent_nodes(graph))
    return {name: letter for name, letter in found if letter is not None}


def _computed(node: gs.Node, cell: Cell) -> str | None:
    for letter, tensor in zip(cell.inputs, node.inputs, strict=False):
        if letter in cell.parameters and tensor.name and constant_shape(tensor) is None:
            return letter
    return None


def recurrent_nodes(graph: gs.Graph) -> Iterator[tuple[gs.Node, Cell, str, str]]:
    """Recurrent nodes, each with its cell, the name that users know and its scope."""
    for node, name, scope in named_nodes(graph, lambda node: recurrent_cell(node) is not None):
        cell = recurrent_cell(node)
        assert cell is not None
        yield node, cell, name, scope


def recurrent_cell(node: gs.Node) -> Cell | None:
    """The row of a recurrent operator; None for others."""
    return _BY_OPERATOR.get((node.domain or "", node.op))


def view(node: gs.Node, cell: Cell, name: str, scope: str) -> Layer | None:
    """The layer that a recurrent node is; None unless its parameters are fitting constants."""
    if _computed(node, cell) is not None:
        return None
    weight, recurrence = weight_shapes(node, cell)
    gates = len(cell.gates)
    directions, rows, hidden = recurrence if len(recurrence) == 3 else (0, 0, 0)
    if rows != gates * hidden or weight[:2] != (directions, rows) or not hidden:
        return None
    return Layer(node, cell, name, directions, hidden, int(weight[2]), scope)


def weight_shapes(node: gs.Node, cell: Cell) -> list[tuple[int, ...]]:
    """The shapes of W and R with features last, as in an LSTM, GRU or RNN."""
    shapes = [constant_shape(tensor) or () for tensor in node.inputs[1:3]]
    return [_in_order(shape, cell) for shape in [*shapes, (), ()][:2]]


def _in_order(shape: tuple[int, ...], cell: Cell) -> tuple[int, ...]:
    if len(shape) != 3:
        return shape
    directions, features, rows = (shape[axis] for axis in (0, cell.features, 3 - cell.features))
    return directions, rows, features
