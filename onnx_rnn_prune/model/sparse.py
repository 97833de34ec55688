"""Constants as lists of their entries that are not zero: ONNX's sparse initializers.

Places are counted through the whole tensor, and written as varints, so that one below 2 million
takes 3 bytes at most. A float32 and its place take less room than the float32s between two of them
once more than 2 in 5 are zero, or so; which of the two forms is smaller is measured.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_rnn_prune.model.external import is_reference, with_weights
from onnx_rnn_prune.model.runner import Array

# The first version of ONNX's messages that has sparse initializers.
_IR_VERSION = 6
# Smaller ones stay as they are: shape inference looks at the values of some.
_LEAST = 1 << 10


def sparse_values(tensor: onnx.SparseTensorProto) -> Array:
    """The values of a sparse initializer, at full size."""
    values = numpy_helper.to_array(tensor.values)
    places = numpy_helper.to_array(tensor.indices)
    result = np.zeros(tuple(tensor.dims), values.dtype)
    if places.ndim == 1:
        result.reshape(-1)[places] = values
    else:
        result[tuple(places.T)] = values
    return result


def with_sparse(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with sparse initializers in the place of the float32 ones that get smaller so.

    Weights in other files, and the defaults of inputs, stay as they are.
    """
    if model.ir_version < _IR_VERSION:
        return model
    result = with_weights(model, lambda tensor: tensor)
    ports = {port.name for port in model.graph.input}
    kept = []
    for tensor in result.graph.initializer:
        sparse = None if tensor.name in ports else _as_sparse(tensor)
        if sparse is None:
            kept.append(tensor)
        else:
            result.graph.sparse_initializer.append(sparse)
    if len(kept) < len(result.graph.initializer):
        kept = [_copy(tensor) for tensor in kept]
        del result.graph.initializer[:]
        result.graph.initializer.extend(kept)
    return result


def _as_sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto | None:
    """The same in the other form; None where that is no smaller, or not to be had."""
    if tensor.data_type != onnx.TensorProto.FLOAT or is_reference(tensor):
        return None
    value = np.asarray(numpy_helper.to_array(tensor))
    if value.nbytes < _LEAST:
        return None
    entries = value.reshape(-1)
    places = np.flatnonzero(entries)
    if (value.itemsize + 1) * len(places) >= value.nbytes:
        return None
    result = onnx.SparseTensorProto(dims=value.shape)
    result.values.name = tensor.name
    result.values.data_type = tensor.data_type
    result.values.dims.append(len(places))
    result.values.float_data.extend(entries[places].tolist())
    result.indices.data_type = onnx.TensorProto.INT64
    result.indices.dims.append(len(places))
    result.indices.int64_data.extend(places.tolist())
    return result if result.ByteSize() < tensor.ByteSize() else None


def _copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    result = onnx.TensorProto()
    result.CopyFrom(tensor)
    return result
