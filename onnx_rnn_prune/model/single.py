"""A twin in single precision, for types of numbers of which onnxruntime has no recurrent kernels.

Those are double and bfloat16. The twin has the same nodes and names, so what one shows of its
tensors holds for the other to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.external import tensor_values, with_weights

_UNKNOWN = {onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
_RECURRENT = {"LSTM", "GRU", "RNN"}
# Attributes that name a type.
_TYPES = {"to", "dtype", "output_dtype"}


def unknown_type(model: onnx.ModelProto) -> str:
    """The type in which a recurrent layer computes that onnxruntime has no kernel for, or ''."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types.update((port.name, port.type.tensor_type.elem_type) for port in model.graph.input)
    for node in model.graph.node:
        named = [a.i if a.name == "to" else a.t.data_type for a in node.attribute if _names(a)]
        # What computes or moves weights gives the type that it takes.
        taken = [types[name] for name in node.input if name in types]
        kind = named[0] if named else taken[0] if taken else onnx.TensorProto.UNDEFINED
        types.update((name, kind) for name in node.output)
        if node.op_type in _RECURRENT and kind in _UNKNOWN:
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name
    return ""


def as_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in single precision what a model computes in such a type."""
    result = with_weights(model, _single)
    _convert(result.graph)
    for function in result.functions:
        _convert_nodes(function.node)
    return result


def _names(attribute: onnx.AttributeProto) -> bool:
    return attribute.name == "to" or (attribute.name == "value" and attribute.HasField("t"))


def _single(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type not in _UNKNOWN:
        return tensor
    values = narrowed(tensor_values(tensor), f"weight '{tensor.name}'")
    return numpy_helper.from_array(values, tensor.name)


def narrowed(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.float32]:
    """Numbers in single precision.

    Raises:
        PruneError: one is too large for it, and the twin would compute something else.
    """
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    if not np.array_equal(np.isinf(result), np.isinf(values)):
        raise PruneError(
            "it holds numbers beyond the range of float32, in which the model is run because"
            " onnxruntime has no kernels for its own type",
            where=where,
            remedy="scale them, and what reads them, or train in float32",
        )
    return result


def _convert(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        _convert_type(info.type)
    for tensor in graph.initializer:
        tensor.CopyFrom(_single(tensor))
    _convert_nodes(graph.node)


def _convert_type(kind: onnx.TypeProto) -> None:
    if kind.HasField("tensor_type"):
        if kind.tensor_type.elem_type in _UNKNOWN:
            kind.tensor_type.elem_type = onnx.TensorProto.FLOAT
    elif kind.HasField("sequence_type"):
        _convert_type(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        _convert_type(kind.optional_type.elem_type)


def _convert_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.i in _UNKNOWN:
                attribute.i = onnx.TensorProto.FLOAT
            if attribute.HasField("t"):
                attribute.t.CopyFrom(_single(attribute.t))
            if attribute.HasField("g"):
                _convert(attribute.g)
