"""Writes a graph: the original messages with changed fields."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.importers.onnx_importer import get_onnx_tensor_shape
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnx_rnn_prune.model.walk import Reads, messages, tensors_of

_SIMPLE = {
    onnx.AttributeProto.INT,
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.STRINGS,
}

Store = Callable[[onnx.TensorProto], onnx.TensorProto]
Make = Callable[[npt.NDArray[Any], str], onnx.TensorProto]
Origins = dict[int, tuple[gs.Node, onnx.NodeProto]]


@dataclass(frozen=True)
class Writer:
    """Copies messages with the changes of a graph.

    Attributes:
        origins: each node with its original message, by `id(node)`.
        store: maps an initializer to the one to write.
        make: makes an initializer from a new value and a name.
    """

    origins: Origins
    store: Store
    make: Make
    _reads: Reads = field(default_factory=Reads)

    def graph(self, result: onnx.GraphProto, graph: gs.Graph, source: onnx.GraphProto) -> None:
        """Writes a graph into an empty message."""
        rebuilt = {"node", "initializer", "sparse_initializer", "input", "output", "value_info"}
        copy_fields(source, result, rebuilt)
        for node in graph.nodes:
            result.node.append(self._node(node))
        tensors = {tensor.name: tensor for tensor in tensors_of(graph)}
        read = self._reads.graph(source)
        inner = read - {port.name for port in source.input}
        written = _write_initializers(tensors, source, inner, self.make)
        result.initializer.extend(map(self.store, written))
        result.sparse_initializer.extend(_unedited(tensors, source, inner))
        result.input.extend(_inputs(graph, source, tensors))
        result.output.extend(map(_renamed, source.output, graph.outputs))
        result.output.extend(
            onnx.ValueInfoProto(name=tensor.name)  # its type is inferred
            for tensor in graph.outputs[len(source.output) :]
        )
        dropped = read.union(*(node.output for node in source.node)) - tensors.keys()
        result.value_info.extend(
            _with_shape(info, tensors.get(info.name))
            for info in source.value_info
            if info.name not in dropped
        )
        leave_open(result)

    def _node(self, node: gs.Node) -> onnx.NodeProto:
        names_in = [tensor.name for tensor in node.inputs]
        names_out = [tensor.name for tensor in node.outputs]
        if id(node) not in self.origins:
            made = onnx.helper.make_node(
                node.op, names_in, names_out, name=node.name, domain=node.domain
            )
            made.attribute.extend(make_attribute(name, value) for name, value in node.attrs.items())
            return made
        _, original = self.origins[id(node)]
        result = onnx.NodeProto()
        result.CopyFrom(original)  # deepcopy takes several times as long
        result.input[:] = names_in
        result.output[:] = names_out
        if node.name != original.name:
            result.name = node.name
        del result.attribute[:]
        for attribute in original.attribute:
            if attribute.name in node.attrs or attribute.type not in _SIMPLE:
                result.attribute.append(self._attribute(attribute, node))
        known = {attribute.name for attribute in original.attribute}
        result.attribute.extend(
            make_attribute(name, value) for name, value in node.attrs.items() if name not in known
        )
        return result

    def _attribute(self, original: onnx.AttributeProto, node: gs.Node) -> onnx.AttributeProto:
        value = node.attrs.get(original.name)
        if isinstance(value, gs.Graph):
            result = deepcopy(original)
            result.g.Clear()
            self.graph(result.g, value, original.g)
            return result
        if original.ref_attr_name or original.type not in _SIMPLE:
            return original
        before = onnx.helper.get_attribute_value(original)
        unchanged = _plain(before) == _plain(value)
        return original if unchanged else make_attribute(original.name, value)


def copy_fields(source: Any, target: Any, without: Container[str]) -> None:
    """Copies the fields that are set in a message, except some, to another.

    The excepted ones are not accessed: reading bytes copies them.
    """
    for kind in source.DESCRIPTOR.fields:
        if kind.name in without or (kind.has_presence and not source.HasField(kind.name)):
            continue
        value = getattr(source, kind.name)
        if hasattr(value, "CopyFrom"):
            getattr(target, kind.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, kind.name).extend(value)
        else:
            setattr(target, kind.name, value)


def make_attribute(name: str, value: Any) -> onnx.AttributeProto:
    """The message of an attribute as the graph holds it."""
    if isinstance(value, gs.Constant):
        value = _write_constant(value)
    if isinstance(value, list | tuple) and not value:  # the type is unknown, mostly this one
        return onnx.helper.make_attribute(name, value, attr_type=onnx.AttributeProto.INTS)
    return onnx.helper.make_attribute(name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def leave_open(graph: onnx.GraphProto) -> None:
    """Removes negative sizes, which some exporters write for open ones.

    onnxruntime ends the process if it infers the shape of a Slice from one.
    """
    for port in (*graph.input, *graph.output, *graph.value_info):
        for dim in port.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def _inputs(
    graph: gs.Graph, source: onnx.GraphProto, tensors: dict[str, gs.Tensor]
) -> Iterator[onnx.ValueInfoProto]:
    """A graph's inputs; those with a default are not among the editable graph's inputs.

    New ones follow the others.
    """
    defaults = {tensor.name for tensor in source.initializer}
    defaults |= {tensor.values.name for tensor in source.sparse_initializer}
    given = [port for port in source.input if port.name not in defaults]
    if len(given) == len(graph.inputs):
        places = {port.name: tensor for port, tensor in zip(given, graph.inputs, strict=True)}
    else:
        places = {tensor.name: tensor for tensor in graph.inputs}
    for port in source.input:
        if port.name in defaults:
            yield _with_shape(port, tensors.get(port.name))
        elif port.name in places:
            yield _renamed(port, places[port.name])
    added = list(places.values())[len(given) :] if len(places) > len(given) else []
    for tensor in added:
        yield onnx.helper.make_tensor_value_info(
            tensor.name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), tensor.shape
        )


def _renamed(port: onnx.ValueInfoProto, tensor: gs.Tensor) -> onnx.ValueInfoProto:
    """A port with the tensor's present name and dims."""
    result = deepcopy(_with_shape(port, tensor))
    result.name = tensor.name
    return result


def new_initializers(
    graph: gs.Graph, source: onnx.GraphProto, make: Make
) -> Iterator[onnx.TensorProto]:
    """Constants that the source lacks; bodies read them from the main graph."""
    known = {t.name for each in messages(source, onnx.GraphProto) for t in each.initializer}
    tensors = {tensor.name: tensor for tensor in tensors_of(graph)}
    for name, tensor in tensors.items():
        if is_edited(tensor) and name not in known:
            yield _write_constant(tensor, make)


def local_initializers(source: onnx.GraphProto) -> set[str]:
    """The names of initializers that only a body can see."""
    bodies = islice(messages(source, onnx.GraphProto), 1, None)
    return {tensor.name for body in bodies for tensor in body.initializer}


def _write_initializers(
    tensors: dict[str, gs.Tensor], source: onnx.GraphProto, read_before: set[str], make: Make
) -> Iterator[onnx.TensorProto]:
    """The original initializers in order, without those that lost their last reader.

    Initializers that were unread from the start stay, as do defaults of graph inputs.
    """
    for original in source.initializer:
        tensor = tensors.get(original.name)
        if tensor is None:
            if original.name not in read_before:
                yield original
        else:
            yield _write_constant(tensor, make) if is_edited(tensor) else original


def _unedited(
    tensors: dict[str, gs.Tensor], source: onnx.GraphProto, read_before: set[str]
) -> Iterator[onnx.SparseTensorProto]:
    """The sparse initializers that stay sparse; one with a new value is written densely."""
    for item in source.sparse_initializer:
        tensor = tensors.get(item.values.name)
        gone = tensor is None and item.values.name in read_before
        if not gone and not is_edited(tensor):
            yield item


def is_edited(tensor: gs.Tensor | None) -> bool:
    """Whether a tensor is a constant whose value was set here."""
    return isinstance(tensor, gs.Constant) and not isinstance(tensor._values, LazyValues)


def _write_constant(tensor: gs.Constant, make: Make = numpy_helper.from_array) -> onnx.TensorProto:
    if isinstance(tensor._values, LazyValues):
        original: onnx.TensorProto = tensor._values.tensor
        return original
    return make(np.asarray(tensor._values, order="C"), tensor.name)


def _with_shape(info: onnx.ValueInfoProto, tensor: gs.Tensor | None) -> onnx.ValueInfoProto:
    """The original declaration, with changed dims."""
    before = get_onnx_tensor_shape(info) if info.type.HasField("tensor_type") else None
    after = getattr(tensor, "shape", None)
    # A declaration of another rank contradicts the tensor; it is left alone.
    if before is None or after is None or len(before) != len(after) or list(before) == list(after):
        return info
    result = deepcopy(info)
    for dim, old, new in zip(result.type.tensor_type.shape.dim, before, after, strict=True):
        if old != new and isinstance(new, int):
            dim.dim_value = new
    return result
