"""Which files a model may name: the one check that all of its tensors go through.

ONNX can place the values of any tensor in a file: of initializers, attributes, sparse values and
their indices, in functions, bodies and training graphs. A model may come from anyone, so none of
them may lead out of its folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.external import (
    LEAST,
    Place,
    bits,
    is_reference,
    packed,
    raw_length,
    refer,
    take_in,
    too_short,
)


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """All tensors in a message of ONNX, at any depth."""
    waiting = [message]
    while waiting:
        item = waiting.pop()
        if isinstance(item, onnx.TensorProto):
            yield item
        else:
            waiting.extend([part for _, part in _parts(item)][::-1])


def inner_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The same without the initializers of the main graph."""
    outside = ((name, part) for name, part in _parts(model) if name != "graph")
    inside = ((name, part) for name, part in _parts(model.graph) if name != "initializer")
    for _, part in chain(outside, inside):
        yield from tensors(part)


def _parts(message: Any) -> Iterator[tuple[str, Any]]:
    """The messages within one in which tensors can lie, each with the name of its field."""
    leading = _leading(message.DESCRIPTOR)
    for field, value in message.ListFields():
        if field.name in leading:
            for part in value if hasattr(value, "extend") else (value,):
                yield field.name, part


@cache
def _leading(kind: Any) -> frozenset[str]:
    """The fields of a kind of message through which a tensor can be reached.

    It follows from what ONNX declares, so that no place can be forgotten, nor one that is yet to
    come.
    """
    return frozenset(field.name for field in kind.fields if _leads(field.message_type, set()))


def _leads(kind: Any, seen: set[Any]) -> bool:
    """Whether a kind of message (None: the field holds no message) can hold a tensor."""
    if kind is None or kind in seen:
        return False
    seen.add(kind)
    return kind is onnx.TensorProto.DESCRIPTOR or any(
        _leads(field.message_type, seen) for field in kind.fields
    )


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
            f"its values are said to lie in '{name}', outside the folder of the model",
            where=f"weight '{tensor.name}'",
            remedy="put that file beside the model, and name it there",
        )
    if not path.is_file():
        raise PruneError(
            f"its values are said to lie in '{name}', and there is no such file",
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
            f"where its values lie in '{name}' cannot be read ({error})",
            where=f"weight '{tensor.name}'",
            remedy="export the model again",
        ) from error
    if min(offset, needed, *tensor.dims) < 0 or length < needed or offset + needed > size:
        raise too_short(tensor, name)
    refer(tensor, Place(str(path), offset, needed))


def _beside(name: str, holder: Path) -> Path | None:
    """The file of a name beside another, links followed; None where that is in no folder of its.

    Nothing is opened.
    """
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    try:
        homes = {holder.parent.resolve(), holder.resolve().parent}
        path = (holder.parent / name).resolve()
    except (OSError, RuntimeError):  # links that lead in a circle
        return None
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
    }
    found = (_beside(name, Path(path)) for name in sorted(names))
    return [file for file in found if file is not None]
