"""Feed-forward operators as rows: layers without a loop, whose units are entries or channels.

| operator | units | weight |
| --- | --- | --- |
| MatMul | columns of x W, rows of W x | one matrix |
| Gemm | columns | one matrix, transposed or not; a constant bias |
| Conv | channels, one lane per group | kernels; a constant bias |
| ConvTranspose | channels | kernels of one group; a constant bias |
| MatMulInteger | columns of x W | one integer matrix, its scales behind the product |
| ConvInteger | channels, as of Conv | integer kernels, their scale behind the product |
| DynamicQuantizeMatMul | columns of x W | one integer matrix; a constant bias |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_shape, is_float
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.integers import APART, MICROSOFT, scaled
from onnx_rnn_prune.operators.layers import Cell, Layer, named_nodes
from onnx_rnn_prune.operators.recurrent import RECURRENT, recurrent_cell, view


def _cell(op: str, units: int, features: int, place: int, first: bool = False) -> Cell:
    """A row of the table.

    Args:
        op: the operator.
        units: the axis of the weight along which units lie.
        features: the axis that is contracted.
        place: the axis of the output along which units lie.
        first: whether the weight comes before the data.
    """
    biases: Mapping[str, tuple[tuple[int, int], ...]]
    biases = {} if op == "MatMul" else {"B": ((-1, 1),)}
    return Cell(
        op=op,
        gates="y",
        inputs=("W", "X") if first else ("X", "W", *biases),
        outputs=("Y",),
        places={"Y": (None, place)},
        activations=(),
        sums=(),
        unit_axes={"W": ((units, 1),), **biases},
        features=features,
        stacked=False,
        attribute="",
        restores=False,
        spatial=op.startswith("Conv"),
    )


_COLUMNS = _cell("MatMul", units=1, features=0, place=-1)
_ROWS = _cell("MatMul", units=0, features=1, place=-2, first=True)
_GEMM = _cell("Gemm", units=1, features=0, place=1)
_GEMM_TURNED = _cell("Gemm", units=0, features=1, place=1)
_CONV = _cell("Conv", units=0, features=1, place=1)
_CONV_TRANSPOSE = _cell("ConvTranspose", units=1, features=0, place=1)
_ZERO = ("W_zero_point",)
_INTEGER, _CONV_INTEGER = (
    replace(
        row,
        op=f"{row.op}Integer",
        inputs=("X", "W", "X_zero_point", *_ZERO),
        unit_axes={"W": row.unit_axes["W"], **dict.fromkeys(_ZERO, ((-1, 1),))},
        scales=_ZERO,
    )
    for row in (_COLUMNS, _CONV)
)
_SCALES = ("W_scale", *_ZERO)
_QUANTIZED = replace(
    _COLUMNS,
    op="DynamicQuantizeMatMul",
    inputs=("X", "W", *_SCALES, "B"),
    unit_axes={**_COLUMNS.unit_axes, **dict.fromkeys((*_SCALES, "B"), ((-1, 1),))},
    domain=MICROSOFT,
    scales=_SCALES,
)


def all_layers(graph: gs.Graph) -> list[Layer]:
    """The recurrent and feed-forward layers of a graph and its bodies, in graph order."""
    found = []
    for node, name, scope in named_nodes(graph, _may_be_one):
        recurrent = recurrent_cell(node)
        if recurrent is not None:
            layer = view(node, recurrent, name, scope)
            found += [layer] if layer is not None else []
            continue
        cell = _cell_of(node)
        if cell is None:
            continue
        shape = constant_shape(node.inputs[cell.inputs.index("W")]) or ()
        units = shape[cell.unit_axes["W"][0][0]]
        groups = int(node.attrs.get("group", 1))
        found.append(Layer(node, cell, name, 1, units, groups * shape[cell.features], scope))
    return found


def _may_be_one(node: gs.Node) -> bool:
    return node.op in _OPERATORS and len(node.outputs) > 0


def _cell_of(node: gs.Node) -> Cell | None:
    """The row of a node; None if it has none or its parameters are not constant."""
    row = _OF.get(node.op)
    if row is None or (node.domain or "") != row.domain or len(node.inputs) < 2:
        return None
    if node.name.startswith(OWN):
        return None
    weight = constant_shape(node.inputs[1])
    if node.op == "MatMul" and weight is None:
        first = constant_shape(node.inputs[0])
        return _ROWS if first is not None and _is_weight(node.inputs[0], first, 2) else None
    least = 3 if node.op.startswith("Conv") else 2
    if weight is None or not _is_weight(node.inputs[1], weight, least):
        return None
    groups = int(node.attrs.get("group", 1))
    if constant_shape(node.inputs[0]) is not None:
        return None
    if groups > 1 and (node.op == "ConvTranspose" or weight[1] == 1):
        return None  # a depthwise convolution passes units on
    if row.scales:
        given = [tensor for tensor in node.inputs[2:] if tensor.name]
        apart = node.op in APART
        known = all(constant_shape(tensor) is not None for tensor in given[apart:])
        return row if known and (not apart or scaled(node) is not None) else None
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    cell = _GEMM_TURNED if node.op == "Gemm" and node.attrs.get("transB", 0) else _OF[node.op]
    sizes = (1, weight[cell.unit_axes["W"][0][0]])
    if bias is not None and prod(constant_shape(bias) or (0,)) not in sizes:
        return None  # computed, or different in each row
    return cell


_ROWS_OF_OPERATORS = (
    *(_COLUMNS, _GEMM, _CONV, _CONV_TRANSPOSE),
    *(_INTEGER, _CONV_INTEGER, _QUANTIZED),
)
_OF = {cell.op: cell for cell in _ROWS_OF_OPERATORS}
FEED_FORWARD = tuple(_OF)
CONVOLUTIONS = (_CONV.op, _CONV_INTEGER.op)
"""Those whose units lie on the first axis of the weight, in groups."""
_OPERATORS = RECURRENT | _OF.keys()


def _is_weight(tensor: gs.Tensor, shape: tuple[int, ...], least: int) -> bool:
    """Whether a constant is a floating-point matrix or kernel that can be refitted."""
    rank = len(shape) >= least if least > 2 else len(shape) == 2
    dtype = getattr(tensor, "dtype", None)
    if isinstance(dtype, int):  # types that NumPy lacks come as numbers
        dtype = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    number = dtype is None or is_float(dtype) or np.dtype(dtype).itemsize == 1
    return rank and 0 not in shape and number
