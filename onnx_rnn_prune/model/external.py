"""Weights in a file beside the graph, which onnxruntime maps into memory.

A session that is opened from one message holds the weights several times over while it loads: in
the message, in its own copy of it, and in tensors. Mapped weights are held once.
"""

from __future__ import annotations

from pathlib import Path

import onnx

# Smaller tensors stay in the message: shape inference looks at the values of some.
_LARGE = 1 << 12
# Mapping starts at a multiple of the system's page size, which is at most this.
_PAGE = 1 << 16


class WeightFile:
    """A file that takes the values of large tensors one by one.

    Args:
        path: the file, in the folder of the model that refers to it.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("wb")

    def take(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The tensor with a reference in place of its values; a small one as it is."""
        values = tensor.raw_data
        if len(values) < _LARGE:
            return tensor
        start = -(-self._file.tell() // _PAGE) * _PAGE
        self._file.seek(start)
        place = (self._name, start, self._file.write(values))
        result = onnx.TensorProto(
            name=tensor.name,
            dims=tensor.dims,
            data_type=tensor.data_type,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in zip(("location", "offset", "length"), place, strict=True):
            result.external_data.add(key=key, value=str(value))
        return result

    def close(self) -> None:
        """Writes out what is left."""
        self._file.close()


def without_weights(model: onnx.ModelProto, weights: WeightFile) -> onnx.ModelProto:
    """What it takes to run a model, with its large weights in a file."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    source, graph = model.graph, light.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    graph.initializer.extend(weights.take(tensor) for tensor in source.initializer)
    return light
