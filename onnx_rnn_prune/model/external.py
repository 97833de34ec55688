"""A model in two files: the graph, and beside it the weights, which onnxruntime maps into memory.

A session that is opened from one message holds the weights several times over while it loads: in
the message, in its own copy of it, and in tensors. Mapped weights are held once.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx

# Smaller tensors stay in the message: shape inference looks at the values of some.
_LARGE = 1 << 12
# Mapping starts at a multiple of the system's page size, which is at most this.
_PAGE = 1 << 16


def save_apart(model: onnx.ModelProto, folder: Path) -> Path:
    """Writes what it takes to run a model; returns the path of the graph."""
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
    weights = folder / "weights"
    with weights.open("wb") as file:
        for tensor in source.initializer:
            values = tensor.raw_data
            if len(values) < _LARGE:
                graph.initializer.append(tensor)
            else:
                graph.initializer.append(_reference(tensor, weights.name, _write(file, values)))
    path = folder / "model.onnx"
    path.write_bytes(light.SerializeToString())
    return path


def _write(file: BinaryIO, values: bytes) -> tuple[int, int]:
    """Appends a tensor's bytes; returns where they start and how many they are."""
    start = -(-file.tell() // _PAGE) * _PAGE
    file.seek(start)
    return start, file.write(values)


def _reference(tensor: onnx.TensorProto, location: str, place: tuple[int, int]) -> onnx.TensorProto:
    """The message of a tensor whose bytes are in a file."""
    result = onnx.TensorProto(
        name=tensor.name,
        dims=tensor.dims,
        data_type=tensor.data_type,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    for key, value in zip(("location", "offset", "length"), (location, *place), strict=True):
        result.external_data.add(key=key, value=str(value))
    return result
