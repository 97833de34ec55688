"""Weights outside the message, in files, or as sparse tensors: read in place.

While a model is processed, a weight that was in a file stays there: its message refers to the file
by an absolute path, and values are memory-mapped on access. So a model may be larger than memory,
and than the 2 GB limit of one message.

onnxruntime loads weights from files, too. A session opened from a single message holds them several
times while it loads: in the message, in its own copy of that, and in tensors. Mapped weights are
held once.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.writing import copy_fields, local_initializers

# Smaller tensors stay in the message: shape inference looks at the values of some.
LEAST = 1 << 10
# Sessions of larger models are opened from files, which takes less memory.
LARGE = 1 << 20
# Mapping starts at a multiple of the system's page size, which is at most this.
_PAGE = 1 << 16
# Alignment of tensors in a weights file, so that mapped values can be used directly.
_ALIGNMENT = 1 << 6
_CHUNK = 1 << 24
# The size limit of protocol buffers; everything but weights is small.
_MOST = (1 << 31) - (1 << 24)
# Bits of types that are packed several to a byte.
_NARROW = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}

Put = Callable[[int, onnx.TensorProto], None]


@dataclass(frozen=True)
class Location:
    """The place of a tensor's values in a file."""

    path: str
    offset: int
    length: int


def is_reference(tensor: onnx.TensorProto) -> bool:
    """Whether the values of a tensor are in a file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def reference_path(tensor: onnx.TensorProto) -> Path:
    """The file that a reference points to."""
    return Path(_place(tensor).path)


def referring(tensor: onnx.TensorProto, path: str) -> onnx.TensorProto:
    """The same reference under another file name."""
    result = deepcopy(tensor)
    refer(result, replace(_place(tensor), path=path))
    return result


def is_apart(model: onnx.ModelProto) -> bool:
    """Whether a model has weights in files."""
    return any(map(is_reference, model.graph.initializer))


def tensor_values(tensor: onnx.TensorProto) -> npt.NDArray[Any]:
    """The values of a tensor, memory-mapped if they are in a file."""
    if not is_reference(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    place, kind = _place(tensor), _dtype(tensor)
    stored = kind if sys.byteorder == "little" else kind.newbyteorder("<")
    shape = tuple(tensor.dims)
    if not place.length:
        return np.zeros(shape, kind)
    mapped = np.memmap(place.path, np.uint8, "r", place.offset, (place.length,))
    return np.asarray(mapped).view(stored).reshape(shape)


def raw_length(tensor: onnx.TensorProto) -> int:
    """The number of bytes that a tensor takes in a file; 0 if it is not stored as raw bytes.

    Accessing the bytes themselves would copy them.
    """
    if is_reference(tensor):
        return _place(tensor).length
    if not tensor.HasField("raw_data") or tensor.data_type == onnx.TensorProto.STRING:
        return 0
    return int(-(-prod(tensor.dims) * bits(tensor) // 8))


def raw_chunks(tensor: onnx.TensorProto) -> Iterator[bytes]:
    """The bytes of a tensor, piece by piece if they are in a file."""
    if not is_reference(tensor):
        yield tensor.raw_data
        return
    place = _place(tensor)
    with open(place.path, "rb") as file:
        file.seek(place.offset)
        left = place.length
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise too_short(tensor, place.path)
            left -= len(chunk)
            yield chunk


def without_values(tensor: onnx.TensorProto, most: int = 0) -> onnx.TensorProto:
    """A tensor without its values, unless the message holds at most `most` of them."""
    if prod(tensor.dims) <= most and not is_reference(tensor):
        return tensor
    return onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)


def take_in(tensor: onnx.TensorProto) -> None:
    """Loads the values of a tensor from a file into its message."""
    tensor.raw_data = b"".join(raw_chunks(tensor))
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


class WeightsFile:
    """Lays out large tensors one after another in a weights file.

    Args:
        name: of the file, as in references.
        put: writes the bytes of a tensor at an offset; may do nothing if only sizes matter.
    """

    def __init__(self, name: str, put: Put | None = None, alignment: int = _ALIGNMENT) -> None:
        self._name, self._put, self._alignment = name, put, alignment
        self.size = 0

    def take(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The tensor with a reference in place of its values; a small one unchanged."""
        length = raw_length(tensor)
        if length < LEAST:
            return tensor
        start = self.reserve(length)
        if self._put is not None:
            self._put(start, tensor)
        result = _without_bytes(tensor)
        refer(result, Location(self._name, start, length))
        return result

    def reserve(self, length: int) -> int:
        """The offset for the next `length` bytes."""
        start = -(-self.size // self._alignment) * self._alignment
        self.size = start + length
        return start


class SessionWeights:
    """Weights as a session reads them: those in files stay there, others go to a new file.

    A session accepts paths below one folder only, without links out of it. That is the folder of
    the model's own weight files if it has any, else that of the new one; nothing else can be read,
    whatever the model names. Weights outside it are passed to the session as values.
    """

    def __init__(self, path: Path, file: BinaryIO, source: onnx.ModelProto) -> None:
        self._path, self._file = path, file
        self._weights = WeightsFile(str(path), self._put, _PAGE)
        homes = {reference_path(t).parent for t in source.graph.initializer if is_reference(t)}
        self.folder = Path(os.path.commonpath(homes or {path.parent}))
        # Only initializers of the main graph can be passed as values.
        self._local = local_initializers(source.graph)

    def take(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The tensor to write in place of a weight."""
        if not is_reference(tensor):
            outside = self.folder != self._path.parent
            if outside and (tensor.name in self._local or not _is_given(tensor)):
                return tensor
            tensor = self._weights.take(tensor)
        if not is_reference(tensor) or not self._within(tensor):
            return tensor
        return referring(tensor, str(reference_path(tensor).relative_to(self.folder)))

    def make(self, values: npt.NDArray[Any], name: str) -> onnx.TensorProto:
        """An initializer for a value; a large one goes to the new file without being copied."""
        known = values.dtype.kind in "fiub" and values.dtype.isnative
        if values.nbytes < LARGE or self.folder != self._path.parent or not known:
            return numpy_helper.from_array(values, name)
        start = self._weights.reserve(values.nbytes)
        self._file.seek(start)
        self._file.write(values.reshape(-1).view(np.uint8).data)
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = onnx.TensorProto(name=name, dims=values.shape, data_type=kind)
        refer(tensor, Location(str(self._path), start, values.nbytes))
        return tensor

    def given(self, light: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
        """The values of weights outside the folder, memory-mapped."""
        return {
            tensor.name: tensor_values(tensor)
            for tensor in light.graph.initializer
            if is_reference(tensor) and reference_path(tensor).is_absolute()
        }

    def _within(self, tensor: onnx.TensorProto) -> bool:
        return self.folder in reference_path(tensor).parents

    def _put(self, start: int, tensor: onnx.TensorProto) -> None:
        self._file.seek(start)
        self._file.writelines(raw_chunks(tensor))


def _is_given(tensor: onnx.TensorProto) -> bool:
    """Whether a session accepts values of this type; not for types that NumPy lacks."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).kind in "biuf"


def weights_name(name: str, digest: str) -> str:
    """The name of a model's weights file; the digest is that of its content."""
    return f"{name}.{digest[:12]}.data"


def stored_bytes(model: onnx.ModelProto, like: onnx.ModelProto) -> int:
    """The size of a model's files, including a weights file.

    Args:
        like: a model with external weights if the model's will be external. The size is then as if
            the file were named `model.onnx`, since each reference holds a name.
    """
    if not is_apart(like):
        return _message_bytes(model)
    weights = WeightsFile(weights_name("model.onnx", 12 * "0"))
    return int(with_weights(model, weights.take).ByteSize()) + weights.size


def _message_bytes(model: onnx.ModelProto) -> int:
    """The size of a message, without serializing it, which would double the memory."""
    light = with_weights(model, _hollow)
    before = graph = int(light.graph.ByteSize())
    for tensor, hollow in zip(model.graph.initializer, light.graph.initializer, strict=True):
        length = raw_length(tensor) if tensor.HasField("raw_data") else 0
        if length >= LEAST:
            held = hollow.ByteSize()
            whole = held + 1 + _digits(length) + length  # a tag, the length, and the bytes
            graph += whole - held + _digits(whole) - _digits(held)
    return int(light.ByteSize()) + graph - before + _digits(graph) - _digits(before)


def _hollow(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A large tensor without its bytes."""
    large = raw_length(tensor) >= LEAST and tensor.HasField("raw_data")
    return _without_bytes(tensor) if large else tensor


def _without_bytes(tensor: onnx.TensorProto) -> onnx.TensorProto:
    result = onnx.TensorProto()
    copy_fields(tensor, result, {"raw_data"})
    return result


def _digits(number: int) -> int:
    """The bytes of a varint: 7 bits of the number in each."""
    return max(1, -(-number.bit_length() // 7))


def compressed_bytes(model: onnx.ModelProto) -> int:
    """The download size of a model under zlib or gzip compression."""
    squeeze, size = zlib.compressobj(), 0
    apart = [tensor for tensor in model.graph.initializer if is_reference(tensor)]
    for part in ((model.SerializeToString(),), *map(raw_chunks, apart)):
        size += sum(len(squeeze.compress(chunk)) for chunk in part)
    return size + len(squeeze.flush())


def with_weights(
    model: onnx.ModelProto, store: Callable[[onnx.TensorProto], onnx.TensorProto]
) -> onnx.ModelProto:
    """A copy of a model with other initializers.

    Args:
        store: maps each initializer to the one to write.
    """
    result = onnx.ModelProto()
    copy_fields(model, result, {"graph"})
    copy_fields(model.graph, result.graph, {"initializer"})
    result.graph.initializer.extend(map(store, model.graph.initializer))
    return result


def whole_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with all its weights in its message.

    Raises:
        PruneError: it is too large for one message.
    """
    if not is_apart(model):
        return model
    if sum(map(raw_length, model.graph.initializer)) > _MOST:
        raise PruneError(
            "its weights are larger than the 2 GB limit of a protobuf message",
            where="the model",
            remedy="save it to a file",
        )
    result = with_weights(model, lambda tensor: tensor)
    for tensor in result.graph.initializer:
        if is_reference(tensor):
            take_in(tensor)
    return result


def packed(tensor: onnx.TensorProto) -> bool:
    """Whether several entries of a tensor share a byte, so that they cannot be mapped."""
    return bits(tensor) != 8 * _dtype(tensor).itemsize


def _dtype(tensor: onnx.TensorProto) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))


def bits(tensor: onnx.TensorProto) -> int:
    """The bits per entry in a file.

    Raises:
        KeyError, TypeError, ValueError: the type is unknown, or never stored in files.
    """
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if name == "STRING":
        raise TypeError("texts lie in no files")
    return _NARROW.get(name, 8 * _dtype(tensor).itemsize)


def _place(tensor: onnx.TensorProto) -> Location:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Location(entries["location"], int(entries["offset"]), int(entries["length"]))


def refer(tensor: onnx.TensorProto, place: Location) -> None:
    """Makes a tensor refer to a place in a file for its values."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=place.path)
    tensor.external_data.add(key="offset", value=str(place.offset))
    tensor.external_data.add(key="length", value=str(place.length))


def too_short(tensor: onnx.TensorProto, name: str) -> PruneError:
    """The error for a file that is shorter than a tensor in it."""
    return PruneError(
        f"it refers to '{name}', but that file is too short",
        where=f"weight '{tensor.name}'",
        remedy="check that the file is complete",
    )


# The first IR version with sparse initializers.
_SPARSE_VERSION = 6


def sparse_values(tensor: onnx.SparseTensorProto) -> npt.NDArray[Any]:
    """The dense values of a sparse initializer."""
    values = numpy_helper.to_array(tensor.values)
    places = numpy_helper.to_array(tensor.indices)
    result = np.zeros(tuple(tensor.dims), values.dtype)
    if places.ndim == 1:
        result.reshape(-1)[places] = values
    else:
        result[tuple(places.T)] = values
    return result


def with_sparse(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that stores float32 initializers as sparse tensors where that is smaller.

    Indices count through the flattened tensor and are stored as varints, so those below 2 million
    take at most 3 bytes. A float32 and its index take less room than the dense values once more
    than about 2 in 5 are zero; which of the two forms is smaller is measured.

    External weights and defaults of inputs stay as they are.
    """
    if model.ir_version < _SPARSE_VERSION:
        return model
    ports = {port.name for port in model.graph.input}
    result = with_weights(model, lambda tensor: tensor)
    del result.graph.initializer[:]
    for tensor in model.graph.initializer:
        sparse = None if tensor.name in ports else _as_sparse(tensor)
        if sparse is None:
            result.graph.initializer.append(tensor)
        else:
            result.graph.sparse_initializer.append(sparse)
    return result


def _as_sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto | None:
    """A tensor in sparse form; None if that is no smaller, or impossible."""
    if tensor.data_type != onnx.TensorProto.FLOAT or is_reference(tensor):
        return None
    value = np.asarray(numpy_helper.to_array(tensor))
    if value.nbytes < LEAST:
        return None
    entries = value.reshape(-1)
    places = np.flatnonzero(entries)
    if (value.itemsize + 1) * len(places) >= value.nbytes:
        return None
    make, count = onnx.helper.make_tensor, [len(places)]
    values = make(tensor.name, tensor.data_type, count, entries[places])
    indices = make("", onnx.TensorProto.INT64, count, places)
    result = onnx.helper.make_sparse_tensor(values, indices, value.shape)
    return result if result.ByteSize() < tensor.ByteSize() else None
