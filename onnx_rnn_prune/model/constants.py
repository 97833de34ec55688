"""Constants of a graph, however the exporter wrote them.

A weight may be an initializer, a Constant node, or computed from such by operators that move
entries, or that make real numbers of integers. All of these count as constants here; an edit
replaces the place that reads them, so that what else reads the same weight keeps it.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnx_rnn_prune.model.evaluate import evaluate
from onnx_rnn_prune.model.runner import Array

# Operators through which a constant stays one: exact for every type, so nothing is rounded.
_MOVING = {
    "Cast",
    "Concat",
    "ConstantOfShape",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Shape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}
# What stands between a weight in integers and its readers.
_KNOWN = _MOVING | {"DequantizeLinear"}
# It computes the same in older opsets, which the reference implementation does not know.
_DEQUANTIZE = 21
_LITERALS = ("value_int", "value_ints", "value_float", "value_floats")


def constant_value(tensor: gs.Tensor, opset: int | None = None) -> Array | None:
    """The value of a tensor that does not depend on any graph input, else None."""
    if isinstance(tensor, gs.Constant):
        held = tensor._values
        if isinstance(held, SparseValues):
            return np.asarray(held.load(), dtype=held.dtype)
        if isinstance(held, LazyValues):
            return np.asarray(numpy_helper.to_array(held.tensor))
        return np.asarray(held)
    if not tensor.inputs:
        return None
    node = tensor.inputs[0]
    if node.op == "Constant":
        return _literal(node)
    if node.op not in _KNOWN or node.domain:
        return None
    values = [constant_value(item, opset) if item.name else None for item in node.inputs]
    if any(value is None and item.name for value, item in zip(values, node.inputs, strict=True)):
        return None
    version = opset or _opset_of(node)
    if node.op == "DequantizeLinear":
        version = max(version, _DEQUANTIZE)
    outputs = evaluate(node, values, version)
    position = next(slot for slot, output in enumerate(node.outputs) if output is tensor)
    return outputs[position]


def require_constant(tensor: gs.Tensor, opset: int | None = None) -> Array:
    """The value of a tensor that is known to be constant."""
    value = constant_value(tensor, opset)
    assert value is not None, f"{tensor.name} is not constant"
    return value


def constant_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape of a constant, without reading the values of an initializer."""
    if isinstance(tensor, gs.Constant):
        return tuple(tensor.shape)
    node = tensor.inputs[0] if tensor.inputs else None
    if node is not None and node.op == "DequantizeLinear":
        shapes = [constant_shape(item) for item in node.inputs if item.name]
        return None if None in shapes else shapes[0]
    value = constant_value(tensor)
    return None if value is None else value.shape


def is_zero(tensor: gs.Tensor) -> bool:
    """Whether a tensor is provably zero, whatever its shape turns out to be."""
    if not isinstance(tensor, gs.Constant) and tensor.inputs:
        node = tensor.inputs[0]
        if node.op == "ConstantOfShape":
            fill = node.attrs.get("value")
            return fill is None or not np.any(constant_value(fill))
        if node.op == "Concat":
            return all(is_zero(item) for item in node.inputs)
        if node.op in _MOVING - {"Shape"}:
            return is_zero(node.inputs[0])
    value = constant_value(tensor)
    return value is not None and prod(value.shape) > 0 and not np.any(value)


def _opset_of(node: gs.Node) -> int:
    """An opset in which a moving operator has the form that it has here."""
    if "starts" in node.attrs:  # Slice
        return 9
    if "axes" in node.attrs or "split" in node.attrs:  # Squeeze, Unsqueeze, Split
        return 11
    return 18 if "num_outputs" in node.attrs else 17


def _literal(node: gs.Node) -> Array | None:
    value = node.attrs.get("value")
    if isinstance(value, gs.Tensor):
        return constant_value(value)
    for name in _LITERALS:
        if name in node.attrs:
            kind = np.int64 if "int" in name else np.float32
            return np.array(node.attrs[name], dtype=kind)
    return None
