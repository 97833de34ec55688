"""Checks that a model is well-formed, before anything else reads it.

An ONNX message can hold any number as a type, size or length, any bytes as a name, and fewer values
than it claims. Any tensor's values can be in a file: those of initializers, attributes, and sparse
tensors with their indices, in functions, bodies and training graphs. A model may come from anyone,
so no such file may be outside its folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from functools import cache, partial
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, cast

import onnx
from google.protobuf.message import DecodeError

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.external import (
    LEAST,
    Location,
    bits,
    is_reference,
    packed,
    raw_length,
    refer,
    take_in,
    too_short,
    with_weights,
    without_values,
)
from onnx_rnn_prune.model.walk import messages, parts

_TYPES = frozenset(onnx.TensorProto.DataType.values())
_ATTRIBUTES = dict(onnx.AttributeProto.AttributeType.items())
# By attribute type, the field of its single message.
_HOLDERS = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    onnx.AttributeProto.TYPE_PROTO: "tp",
}
_ONNX = {"", "ai.onnx"}  # how the domain of ONNX's own operators is written
_REMEDY = "export the model again, or check that the file is complete"
_MOST_NODES = 1 << 22
_FEW = 64  # entries of constants that may be shapes
_MOST_ENTRIES = 1 << 28  # of an input; onnxruntime plans memory by declared shapes
# Types that take two numbers per entry.
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, if it is well-formed; names in other encodings are converted to text.

    Raises:
        PruneError: it is not well-formed.
    """
    if not all(_is_text(value) for _, _, value in _texts(model)):
        model = deepcopy(model)
        _decode(model)
    _require(len(model.graph.output) > 0, "the model", "it has no outputs")
    # Without an opset version for ONNX's operators, runtimes guess different ones.
    versions = {entry.domain for entry in model.opset_import}
    nodes = messages(model.graph, onnx.NodeProto)
    told = versions & _ONNX or all(node.domain not in _ONNX for node in nodes)
    _require(bool(told), "the model", "it does not declare its ONNX opset version")
    for tensor in messages(model, onnx.TensorProto):
        _check_tensor(tensor)
    for info in messages(model, onnx.ValueInfoProto):
        for kind in messages(info.type, onnx.TypeProto.Tensor):
            _require(
                kind.elem_type in _TYPES, f"tensor '{info.name}'", "its type is not an ONNX type"
            )
    for port in model.graph.input:
        sizes = [max(dim.dim_value, 1) for dim in port.type.tensor_type.shape.dim]
        fits = prod(sizes) <= _MOST_ENTRIES
        _require(
            fits, f"input '{port.name}'", f"its shape {sizes} would take {prod(sizes)} entries"
        )
    for attribute in messages(model.graph, onnx.AttributeProto):
        _require(
            not attribute.ref_attr_name,
            f"attribute '{attribute.name}'",
            "it refers to a function's attribute, but is not in a function",
        )
    for node in messages(model, onnx.NodeProto):
        _check_node(node)
    _check_calls(model)
    _check_sizes(model)
    return model


def _check_sizes(model: onnx.ModelProto) -> None:
    """Refuses negative sizes at a Slice, as with a window wider than its input.

    Shape inference of a Slice from such a size ends the process in onnxruntime and ONNX; here,
    shapes are inferred only up to the Slices.
    """
    slices = [node for node in messages(model, onnx.NodeProto) if node.op_type == "Slice"]
    if not slices:
        return
    outline = with_weights(model, partial(without_values, most=_FEW))
    for node in messages(outline, onnx.NodeProto):
        node.op_type = node.op_type.replace("Slice", "Opaque")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.CopyFrom(without_values(attribute.t, _FEW))
    del outline.graph.value_info[:]
    for dim in messages(outline, onnx.TensorShapeProto.Dimension):
        if dim.dim_value < 0:  # declared open
            dim.Clear()
    with suppress(Exception):  # failures are left to onnxruntime
        outline = onnx.shape_inference.infer_shapes(outline, data_prop=True)
    sliced = {name for node in slices for name in node.input[:1]}
    for info in messages(outline, onnx.ValueInfoProto):
        sizes = [dim.dim_value for dim in messages(info.type, onnx.TensorShapeProto.Dimension)]
        fits = info.name not in sliced or min(sizes, default=0) >= 0
        _require(fits, f"tensor '{info.name}'", f"its shape would be {sizes}")


def _check_calls(model: onnx.ModelProto) -> None:
    """Checks that calls match their functions, do not recurse and do not expand without bound."""
    functions = {(each.domain, each.name, each.overload): each for each in model.functions}
    calls: dict[Any, list[Any]] = {}
    for key, holder in [*functions.items(), (None, model.graph)]:
        calls[key] = []
        for node in messages(holder, onnx.NodeProto):
            called = node.domain, node.op_type, node.overload
            calls[key].append(called)
            if called in functions:
                for side in ("input", "output"):
                    most = len(getattr(functions[called], side))
                    where = f"node '{node.name or node.op_type}'"
                    what = f"it has more {side}s than the function it calls, which has {most}"
                    _require(len(getattr(node, side)) <= most, where, what)
    sizes: dict[Any, int] = {}  # nodes once all calls are inlined
    try:
        for key in TopologicalSorter(calls).static_order():
            sizes[key] = sum(1 + sizes[called] for called in calls[key]) if key in calls else 0
    except CycleError as error:
        _require(False, f"function '{error.args[1][0][1]}'", "it calls itself")
    what = f"it has {sizes[None]} nodes once its functions are inlined"
    _require(sizes[None] <= _MOST_NODES, "the model", what)


def _check_node(node: onnx.NodeProto) -> None:
    where = f"node '{node.name or node.op_type}'"
    if node.domain in _ONNX:
        least = _fewest().get(node.op_type, 0)
        _require(len(node.input) >= least, where, f"it has fewer than {least} inputs")
        missing = _required().get(node.op_type, set()) - {each.name for each in node.attribute}
        _require(not missing, where, f"its '{min(missing, default='')}' is missing")
        # Running these ends the process in onnxruntime.
        told = {a.name: a.f for a in node.attribute if not a.ref_attr_name}
        wide = told.get("scale", 1.0) > 0 or not node.op_type.startswith("RandomNormal")
        _require(wide, where, "it draws from a normal distribution whose scale is not positive")
        rises = told.get("low", 0.0) <= told.get("high", 1.0)
        uniform = node.op_type.startswith("RandomUniform")
        _require(rises or not uniform, where, "it draws random numbers between invalid bounds")
        gaps = node.op_type in _joining() and not all(node.input)
        _require(not gaps, where, "one of its inputs has no name")
    for attribute in node.attribute:
        _check_attribute(node, attribute, where)


def _check_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto, where: str) -> None:
    known = attribute.type in _ATTRIBUTES.values()
    _require(known, where, f"the type of its '{attribute.name}' is not an ONNX type")
    # What ONNX declares is also how the operators of others that are made of its own are read.
    kinds = _declared().get((node.op_type.removeprefix("DynamicQuantize"), attribute.name))
    fits = kinds is None or attribute.type in kinds or not attribute.type
    _require(fits, where, f"its '{attribute.name}' does not have the type that ONNX specifies")
    field = _HOLDERS.get(attribute.type)
    told = field is None or attribute.HasField(field) or bool(attribute.ref_attr_name)
    _require(told, where, f"its '{attribute.name}' is missing")
    # onnxruntime trusts this number, and ends the process if it is wrong.
    parts = len(node.output)
    if (node.op_type, attribute.name) == ("Split", "num_outputs"):
        _require(attribute.i == parts, where, f"it has {parts} outputs but declares {attribute.i}")
    body = attribute.g if node.op_type == "Loop" and attribute.HasField("g") else None
    whole = body is None or (len(body.input) > 1 and len(body.output) > 0)
    _require(whole, where, "its body lacks a counter or a condition")


@cache
def _fewest() -> dict[str, int]:
    """The least number of inputs of each ONNX operator over all versions."""
    fewest: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            fewest[schema.name] = min(schema.min_input, fewest.get(schema.name, schema.min_input))
    return fewest


@cache
def _required() -> dict[str, set[str]]:
    """The attributes that an ONNX operator requires in every version since opset 4."""
    found: dict[str, set[str]] = {}
    schemas = [schema for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain]
    for schema in sorted(schemas, key=lambda schema: schema.since_version):
        needed = {name for name, attribute in schema.attributes.items() if attribute.required}
        before = found.get(schema.name) if schema.since_version > 4 else None
        found[schema.name] = needed if before is None else before & needed
    return found


@cache
def _joining() -> frozenset[str]:
    """Variadic ONNX operators with inputs of one type, none of which may be omitted."""
    schemas = [schema for schema in onnx.defs.get_all_schemas() if not schema.domain]
    last = {schema.name: schema.inputs[-1] for schema in schemas if schema.inputs}
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return frozenset(n for n, i in last.items() if i.option == variadic and i.is_homogeneous)


@cache
def _declared() -> dict[tuple[str, str], set[int]]:
    """The types of each operator's attributes over all versions of ONNX."""
    kinds: dict[tuple[str, str], set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        for name, attribute in schema.attributes.items():
            known = kinds.setdefault((schema.name, name), set())
            known.add(_ATTRIBUTES[str(attribute.type).rpartition(".")[2]])
    return kinds


def _check_tensor(tensor: onnx.TensorProto) -> None:
    where = f"weight '{tensor.name}'"
    known = tensor.data_type in _TYPES and tensor.data_type != onnx.TensorProto.UNDEFINED
    _require(known, where, f"its type is not an ONNX type ({tensor.data_type})")
    _require(min(tensor.dims, default=0) >= 0, where, f"its shape is {list(tensor.dims)}")
    _require(not tensor.HasField("segment"), where, "it is a segment of another tensor")
    if is_reference(tensor):
        return
    count = prod(tensor.dims)
    if tensor.HasField("raw_data"):
        texts = tensor.data_type == onnx.TensorProto.STRING
        held, needed = len(tensor.raw_data), 0 if texts else -(-count * bits(tensor) // 8)
        what = f"its shape needs {needed} bytes, but it has {held}"
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        several = 8 // bits(tensor) if field == "int32_data" and bits(tensor) < 8 else 1
        held = len(getattr(tensor, field)) * several // (1 + (tensor.data_type in _COMPLEX))
        needed = -(-count // several) * several
        what = f"its shape needs {count} values, but it has {held}"
    _require(held == needed, where, what)


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise PruneError(what, where=where, remedy=_REMEDY)


def _decode(model: onnx.ModelProto) -> None:
    """Replaces bytes that are not UTF-8 by escapes, consistently in all names and texts.

    Raises:
        PruneError: it is the name of an input or output, which must not change.
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
    """All texts and lists of texts, each with its message and field; bytes if not UTF-8."""
    waiting: list[Any] = [model]
    while waiting:
        item = waiting.pop()
        for field, value in _fields(item):
            if field.type == field.TYPE_STRING:
                yield item, field.name, value
            elif field.message_type is not None:
                waiting.extend(value if hasattr(value, "extend") else (value,))


def _fields(message: Any) -> list[tuple[Any, Any]]:
    """The fields that are set, except tensor values, which would be copied."""
    if not isinstance(message, onnx.TensorProto):
        return cast(list[tuple[Any, Any]], message.ListFields())
    kinds = message.DESCRIPTOR.fields_by_name
    names = ("name", "doc_string", "external_data", "metadata_props")
    return [(kinds[name], getattr(message, name)) for name in names if name in kinds]


def inner_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model except the initializers of the main graph."""
    outside = ((name, part) for name, part in parts(model, onnx.TensorProto) if name != "graph")
    inside = parts(model.graph, onnx.TensorProto)
    inside = ((name, part) for name, part in inside if name != "initializer")
    for _, part in chain(outside, inside):
        yield from messages(part, onnx.TensorProto)


def find_weights(model: onnx.ModelProto, path: Path) -> None:
    """Checks that external weights exist, and loads all but the main graph's large initializers.

    Args:
        model: as read from its file; edited in place.

    Raises:
        PruneError: a file is missing, too short, or in another folder.
    """
    for tensor in messages(model, onnx.TensorProto):
        if is_reference(tensor):
            anchor(tensor, path)
    for tensor in model.graph.initializer:
        if is_reference(tensor) and (raw_length(tensor) < LEAST or packed(tensor)):
            take_in(tensor)
    for tensor in inner_tensors(model):
        if is_reference(tensor):
            take_in(tensor)


def anchor(tensor: onnx.TensorProto, holder: Path) -> None:
    """Makes a reference to a file absolute.

    Args:
        tensor: the reference, edited in place.
        holder: the file that holds it. If that is a link, files beside its target are allowed as
            well: model caches link each file separately.

    Raises:
        PruneError: the file is missing, too short, not a regular file, or in another folder.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    path = _beside(name, holder)
    if path is None:
        raise PruneError(
            f"it refers to '{name}', which is outside the folder of the model",
            where=f"weight '{tensor.name}'",
            remedy="put that file next to the model, and refer to it there",
        )
    if not os.path.isfile(path):
        raise PruneError(
            f"it refers to '{name}', but there is no such file",
            where=f"weight '{tensor.name}'",
            remedy="put that file next to the model",
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
    refer(tensor, Location(str(path), offset, needed))


def real_path(path: str | Path) -> Path:
    """A path with links resolved, as far as possible if they are circular."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a name that no system accepts leads nowhere
        return Path(os.path.abspath(path))


def _beside(name: str, holder: Path) -> Path | None:
    """The file of a name in another's folder, links resolved; None if that is outside.

    Nothing is opened.
    """
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    homes = {real_path(holder.parent), real_path(holder).parent}
    path = real_path(holder.parent / name)
    return path if homes.intersection(path.parents) else None


def weight_files(path: str | Path) -> list[Path]:
    """The files beside a model that hold its weights; none if it cannot be read."""
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, OSError):
        return []
    names = {
        entry.value
        for tensor in messages(model, onnx.TensorProto)
        for entry in tensor.external_data
        if entry.key == "location" and isinstance(entry.value, str)  # else it is not UTF-8
    }
    found = (_beside(name, Path(path)) for name in sorted(names))
    return [file for file in found if file is not None]
