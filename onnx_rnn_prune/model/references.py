"""Which files a model may name: the one check that all of its tensors go through.

ONNX can place the values of any tensor in a file: of initializers, attributes, sparse values and
their indices, in functions, bodies and training graphs. A model may come from anyone, so none of
them may lead out of its folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.checks import messages, parts
from onnx_rnn_prune.model.external import (
    LEAST,
    Place,
    Shelves,
    bits,
    is_reference,
    packed,
    raw_chunks,
    raw_length,
    refer,
    reference_path,
    referring,
    take_in,
    tensor_values,
    too_short,
)
from onnx_rnn_prune.model.writing import local_initializers

# Mapping starts at a multiple of the system's page size, which is at most this.
_PAGE = 1 << 16


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """All tensors in a message of ONNX, at any depth."""
    return messages(message, onnx.TensorProto)


def inner_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Those of a model without the initializers of the main graph."""
    outside = ((name, part) for name, part in parts(model, onnx.TensorProto) if name != "graph")
    inside = parts(model.graph, onnx.TensorProto)
    inside = ((name, part) for name, part in inside if name != "initializer")
    for _, part in chain(outside, inside):
        yield from tensors(part)


def find_weights(model: onnx.ModelProto, path: Path) -> None:
    """Makes sure that weights in files are there; takes in what is small or hard to refer to.

    Only large initializers of the main graph go on lying in files.

    Args:
        model: as its file holds it; it is changed.
        path: of that file.

    Raises:
        PruneError: a file is missing, too short, or in another folder.
    """
    for tensor in tensors(model):
        if is_reference(tensor):
            anchor(tensor, path)
    for tensor in model.graph.initializer:
        if is_reference(tensor) and (raw_length(tensor) < LEAST or packed(tensor)):
            take_in(tensor)
    for tensor in inner_tensors(model):
        if is_reference(tensor):
            take_in(tensor)


def anchor(tensor: onnx.TensorProto, holder: Path) -> None:
    """Makes a reference one that holds wherever its message goes.

    Args:
        tensor: a reference as it stands in a file.
        holder: that file. Where it is a link, what lies beside the file itself counts, too: caches
            of models link each of their files by itself.

    Raises:
        PruneError: the file is missing, too short, no plain file, or in another folder.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    path = _beside(name, holder)
    if path is None:
        raise PruneError(
            f"it refers to '{name}', which is outside the folder of the model",
            where=f"weight '{tensor.name}'",
            remedy="put that file beside the model, and refer to it there",
        )
    if not path.is_file():
        raise PruneError(
            f"it refers to '{name}', and there is no such file",
            where=f"weight '{tensor.name}'",
            remedy="put that file beside the model",
        )
    try:
        size = path.stat().st_size
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or size - offset)
        needed = -(-prod(tensor.dims) * bits(tensor) // 8)
    except (KeyError, TypeError, ValueError) as error:
        raise PruneError(
            f"its reference to '{name}' cannot be read ({error})",
            where=f"weight '{tensor.name}'",
            remedy="export the model again",
        ) from error
    if min(offset, needed, *tensor.dims) < 0 or length < needed or offset + needed > size:
        raise too_short(tensor, name)
    refer(tensor, Place(str(path), offset, needed))


def real_path(path: str | Path) -> Path:
    """Where a path leads, links followed; as far as they can be, where they lead in a circle."""
    return Path(os.path.realpath(path))


def _beside(name: str, holder: Path) -> Path | None:
    """The file of a name beside another, links followed; None where that is in no folder of its.

    Nothing is opened.
    """
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    homes = {real_path(holder.parent), real_path(holder).parent}
    path = real_path(holder.parent / name)
    return path if homes.intersection(path.parents) else None


def weight_files(path: str | Path) -> list[Path]:
    """The files beside a model that hold its weights; none where it cannot be read."""
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, OSError):
        return []
    names = {
        entry.value
        for tensor in tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
        and isinstance(entry.value, str)  # bytes that are no UTF-8 are not
    }
    found = (_beside(name, Path(path)) for name in sorted(names))
    return [file for file in found if file is not None]


class SessionWeights:
    """Weights as a session reads them: those in files where they lie, others in a new file.

    A session takes names below one folder only, and no links out of it. That is the folder of the
    model's own files, where it has any, or else that of the new one; no other can be read, whatever
    the model names. What lies outside it is given to the session as values.

    Args:
        path: of the new file.
        file: the same, open.
        source: the model as read.
    """

    def __init__(self, path: Path, file: BinaryIO, source: onnx.ModelProto) -> None:
        self._path, self._file = path, file
        self._shelves = Shelves(str(path), self._put, _PAGE)
        homes = {reference_path(t).parent for t in source.graph.initializer if is_reference(t)}
        self.folder = Path(os.path.commonpath(homes or {path.parent}))
        # Only those of the main graph can be given.
        self._local = local_initializers(source.graph)

    def take(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """What is written in place of a weight."""
        if not is_reference(tensor):
            outside = self.folder != self._path.parent
            if outside and (tensor.name in self._local or not _is_given(tensor)):
                return tensor
            tensor = self._shelves.take(tensor)
        if not is_reference(tensor) or not self._within(tensor):
            return tensor
        return referring(tensor, str(reference_path(tensor).relative_to(self.folder)))

    def given(self, light: onnx.ModelProto) -> dict[str, ort.OrtValue]:
        """The values of weights that lie outside the folder, mapped."""
        return {
            tensor.name: ort.OrtValue.ortvalue_from_numpy(tensor_values(tensor))
            for tensor in light.graph.initializer
            if is_reference(tensor) and reference_path(tensor).is_absolute()
        }

    def _within(self, tensor: onnx.TensorProto) -> bool:
        return self.folder in reference_path(tensor).parents

    def _put(self, start: int, tensor: onnx.TensorProto) -> None:
        self._file.seek(start)
        self._file.writelines(raw_chunks(tensor))


def _is_given(tensor: onnx.TensorProto) -> bool:
    """Whether a session takes values of such a type; those that NumPy itself lacks it does not."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).kind in "biuf"
