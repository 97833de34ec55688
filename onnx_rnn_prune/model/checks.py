"""What a model must be for anything to make sense of it, checked before anything tries.

A message of ONNX can hold any number where a type, a size or a length is meant, any bytes where a
name is, and fewer values than it says.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod
from typing import Any, TypeVar, cast

import onnx

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.external import bits, is_reference

Message = TypeVar("Message")

_TYPES = frozenset(onnx.TensorProto.DataType.values())
_ATTRIBUTES = frozenset(onnx.AttributeProto.AttributeType.values())
_REMEDY = "export the model again, or get the whole file"
# Where numbers that take other room lie in a message, so many of them in one entry.
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def messages(message: Any, kind: type[Message]) -> Iterator[Message]:
    """All messages of a kind in a message of ONNX, at any depth."""
    waiting = [message]
    while waiting:
        item = waiting.pop()
        if isinstance(item, kind):
            yield item
        waiting.extend([part for _, part in parts(item, kind)][::-1])


def parts(message: Any, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """The messages right in one in which those of a kind can lie, with the names of their fields.

    It follows from what ONNX declares, so that no place can be forgotten, nor one that is yet to
    come.
    """
    leading = _leading(message.DESCRIPTOR, kind.DESCRIPTOR)
    if not leading:
        return
    for field, value in message.ListFields():
        if field.name in leading:
            for part in value if hasattr(value, "extend") else (value,):
                yield field.name, part


@cache
def _leading(kind: Any, wanted: Any) -> frozenset[str]:
    """The fields of a kind of message through which one that is wanted can be reached."""
    names = (field.name for field in kind.fields if _leads(field.message_type, wanted, set()))
    return frozenset(names)


def _leads(kind: Any, wanted: Any, seen: set[Any]) -> bool:
    """Whether a kind of message (None: the field holds no message) is or can hold the wanted."""
    if kind is None or kind in seen:
        return False
    seen.add(kind)
    return kind is wanted or any(_leads(field.message_type, wanted, seen) for field in kind.fields)


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, if it can be made sense of; names in other encodings are text in it.

    Raises:
        PruneError: it cannot.
    """
    if not all(_is_text(value) for _, _, value in _texts(model)):
        original, model = model, onnx.ModelProto()
        model.CopyFrom(original)
        _decode(model)
    for tensor in messages(model, onnx.TensorProto):
        _check_tensor(tensor)
    for info in messages(model, onnx.ValueInfoProto):
        for kind in messages(info.type, onnx.TypeProto.Tensor):
            _require(
                kind.elem_type in _TYPES, f"tensor '{info.name}'", "its type is none of ONNX's"
            )
    for node in messages(model, onnx.NodeProto):
        for attribute in node.attribute:
            where = f"node '{node.name or node.op_type}'"
            known = attribute.type in _ATTRIBUTES
            _require(known, where, f"the type of its '{attribute.name}' is none of ONNX's")
    return model


def _check_tensor(tensor: onnx.TensorProto) -> None:
    where = f"weight '{tensor.name}'"
    known = tensor.data_type in _TYPES and tensor.data_type != onnx.TensorProto.UNDEFINED
    _require(known, where, f"its type is none of ONNX's ({tensor.data_type})")
    _require(min(tensor.dims, default=0) >= 0, where, f"its shape is {list(tensor.dims)}")
    if is_reference(tensor):
        return
    count = prod(tensor.dims)
    if tensor.HasField("raw_data"):
        texts = tensor.data_type == onnx.TensorProto.STRING
        held, needed = len(tensor.raw_data), 0 if texts else -(-count * bits(tensor) // 8)
        what = f"its shape takes {needed} bytes, and it has {held}"
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        several = 8 // bits(tensor) if field == "int32_data" and bits(tensor) < 8 else 1
        held = len(getattr(tensor, field)) * several // (1 + (tensor.data_type in _COMPLEX))
        needed = -(-count // several) * several
        what = f"its shape takes {count} values, and it has {held}"
    _require(held == needed, where, what)


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise PruneError(what, where=where, remedy=_REMEDY)


def _decode(model: onnx.ModelProto) -> None:
    """Makes text of what is none: bytes that no UTF-8 has become escapes, everywhere alike.

    Raises:
        PruneError: it is the name of an input or output, which is not ours to change.
    """
    for port in (*model.graph.input, *model.graph.output):
        _require(isinstance(port.name, str), f"port {port.name!r}", "its name is not UTF-8")
    for holder, name, value in list(_texts(model)):
        if isinstance(value, bytes):
            setattr(holder, name, _decoded(value))
        elif not isinstance(value, str):
            decoded = [_decoded(text) if isinstance(text, bytes) else text for text in value]
            value[:] = decoded


def _decoded(text: bytes) -> str:
    return text.decode(errors="backslashreplace")


def _is_text(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return isinstance(value, str)
    return not any(isinstance(text, bytes) for text in value)


def _texts(model: onnx.ModelProto) -> Iterator[tuple[Any, str, Any]]:
    """All texts in a model, and lists of such, each behind what holds it and the field's name.

    Those that are no UTF-8 are bytes.
    """
    waiting: list[Any] = [model]
    while waiting:
        item = waiting.pop()
        for field, value in _fields(item):
            if field.type == field.TYPE_STRING:
                yield item, field.name, value
            elif field.message_type is not None:
                waiting.extend(value if hasattr(value, "extend") else (value,))


def _fields(message: Any) -> list[tuple[Any, Any]]:
    """The fields that are set; of a tensor without its values, which would be copied."""
    if not isinstance(message, onnx.TensorProto):
        return cast(list[tuple[Any, Any]], message.ListFields())
    kinds = message.DESCRIPTOR.fields_by_name
    names = ("name", "doc_string", "external_data", "metadata_props")
    return [(kinds[name], getattr(message, name)) for name in names if name in kinds]
