"""A model as a graph that can be edited, and back without losing what the edit did not touch.

onnx-graphsurgeon holds the graph while it is edited. Its own exporter builds every message anew
and drops what it has no field for (metadata, doc strings, attributes of rare types), so writing
goes the other way round here: each original message is taken over as it was, and only the fields
in which the graph now differs are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.importers.onnx_importer import get_onnx_tensor_shape
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnx_rnn_prune.model.memory import give_back

_SIMPLE = {
    onnx.AttributeProto.INT,
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.STRINGS,
}

# A copy of a larger model first makes room.
_LARGE = 1 << 20

Store = Callable[[onnx.TensorProto], onnx.TensorProto]
Origins = dict[int, tuple[gs.Node, onnx.NodeProto]]


@dataclass(frozen=True)
class Document:
    """An editable graph together with the message it was read from.

    Attributes:
        graph: the graph to edit.
        source: the model as read; never changed.
        origins: each node of the graph and its subgraphs with its original message, by `id(node)`;
            held here, since the id of a node that is gone may become another's.
    """

    graph: gs.Graph
    source: onnx.ModelProto
    origins: Origins

    @staticmethod
    def read(model: onnx.ModelProto) -> Document:
        """Opens a model; weights stay in the message until they are looked at."""
        with G_LOGGER.suppress(G_LOGGER.ERROR):
            graph = gs.import_onnx(model)
        origins = {id(node): (node, original) for node, original in _pairs(graph, model.graph)}
        return Document(graph, model, origins)

    def write(self, store: Store = lambda tensor: tensor) -> onnx.ModelProto:
        """The edited model.

        Args:
            store: takes each initializer, and gives what is written in its place.
        """
        result = onnx.ModelProto()
        for field, _ in self.source.ListFields():
            if field.name != "graph":
                _copy_field(self.source, result, field.name)
        _Writer(self.origins, store).graph(result.graph, self.graph, self.source.graph)
        if result.ir_version < 4:
            _list_initializers(result.graph)
        return result

    def copy(self) -> Document:
        """An independent document of the same model; values are shared until one is set anew."""
        if self.source.ByteSize() > _LARGE:
            give_back()
        graph = self.graph.copy()
        origins = {
            id(twin): (twin, self.origins[id(node)][1])
            for node, twin in zip(_all_nodes(self.graph), _all_nodes(graph), strict=True)
            if id(node) in self.origins
        }
        return Document(graph, self.source, origins)


def node_key(node: gs.Node) -> str:
    """The name by which a node is found again in a copy of its graph: its first output's."""
    return next((tensor.name for tensor in node.outputs if tensor.name), "")


def nodes_by_key(graph: gs.Graph) -> dict[str, gs.Node]:
    """All nodes of the main graph."""
    return {node_key(node): node for node in graph.nodes}


def subgraphs_of(node: gs.Node) -> list[gs.Graph]:
    """The bodies that a control-flow node carries."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]


def _all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    for node in graph.nodes:
        yield node
        for body in subgraphs_of(node):
            yield from _all_nodes(body)


def _pairs(graph: gs.Graph, message: onnx.GraphProto) -> Iterator[tuple[gs.Node, onnx.NodeProto]]:
    for node, original in zip(graph.nodes, message.node, strict=True):
        yield node, original
        for attribute in original.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _pairs(node.attrs[attribute.name], attribute.g)


def _copy_field(source: Any, target: Any, name: str) -> None:
    value = getattr(source, name)
    if hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    elif hasattr(value, "extend"):
        getattr(target, name).extend(value)
    else:
        setattr(target, name, value)


@dataclass(frozen=True)
class _Writer:
    """Takes messages over, with what a graph has changed of them."""

    origins: Origins
    store: Store

    def graph(self, result: onnx.GraphProto, graph: gs.Graph, source: onnx.GraphProto) -> None:
        """Writes a graph into an empty message."""
        rebuilt = {"node", "initializer", "sparse_initializer", "input", "output", "value_info"}
        for field, _ in source.ListFields():
            if field.name not in rebuilt:
                _copy_field(source, result, field.name)
        for node in graph.nodes:
            result.node.append(self._node(node))
        tensors = {tensor.name: tensor for tensor in tensors_of(graph)}
        written = _write_initializers(tensors, source, outer=_defined(source))
        result.initializer.extend(map(self.store, written))
        result.sparse_initializer.extend(
            item for item in source.sparse_initializer if not _edited(tensors.get(item.values.name))
        )
        for ports, kept in ((source.input, result.input), (source.output, result.output)):
            kept.extend(_with_shape(port, tensors.get(port.name)) for port in ports)
        gone = _names(source) - tensors.keys()
        result.value_info.extend(
            _with_shape(info, tensors.get(info.name))
            for info in source.value_info
            if info.name not in gone
        )

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
        result.CopyFrom(original)
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
            result = onnx.AttributeProto()
            result.CopyFrom(original)
            result.g.Clear()
            self.graph(result.g, value, original.g)
            return result
        if original.ref_attr_name or original.type not in _SIMPLE:
            return original
        before = onnx.helper.get_attribute_value(original)
        unchanged = _plain(before) == _plain(value)
        return original if unchanged else make_attribute(original.name, value)


def _list_initializers(graph: onnx.GraphProto) -> None:
    """Before IR version 4, every initializer is an input, too."""
    listed = {port.name for port in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in listed:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )


def make_attribute(name: str, value: Any) -> onnx.AttributeProto:
    """The message of an attribute as the graph holds it."""
    if isinstance(value, gs.Constant):
        value = _write_constant(value)
    return onnx.helper.make_attribute(name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def tensors_of(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """Every tensor that the graph names, those that its subgraphs capture included."""
    yield from graph.inputs
    yield from graph.outputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs
        for body in subgraphs_of(node):
            yield from tensors_of(body)


def _defined(source: onnx.GraphProto) -> set[str]:
    return {tensor.name for tensor in source.initializer}


def _write_initializers(
    tensors: dict[str, gs.Tensor], source: onnx.GraphProto, outer: set[str]
) -> Iterator[onnx.TensorProto]:
    """The original initializers in their order, then the new ones; what lost its last reader goes.

    An initializer that nobody read in the first place stays: it is the user's, not ours. So does
    the default of a graph input.
    """
    read_before = _names_read(source) - {port.name for port in source.input}
    for original in source.initializer:
        tensor = tensors.get(original.name)
        if tensor is None:
            if original.name not in read_before:
                yield original
        else:
            yield _write_constant(tensor) if _edited(tensor) else original
    for name, tensor in tensors.items():
        if _edited(tensor) and name not in outer:
            yield _write_constant(tensor)


def _edited(tensor: gs.Tensor | None) -> bool:
    """Whether a tensor is a constant whose value was set here."""
    return isinstance(tensor, gs.Constant) and not isinstance(tensor._values, LazyValues)


def _names(source: onnx.GraphProto) -> set[str]:
    return _names_read(source).union(*(node.output for node in source.node))


def _names_read(source: onnx.GraphProto) -> set[str]:
    names = {port.name for port in source.output}
    for node in source.node:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                names |= _names_read(attribute.g)
    return names


def _write_constant(tensor: gs.Constant) -> onnx.TensorProto:
    if isinstance(tensor._values, LazyValues):
        original: onnx.TensorProto = tensor._values.tensor
        return original
    return numpy_helper.from_array(np.ascontiguousarray(tensor._values), tensor.name)


def _with_shape(info: onnx.ValueInfoProto, tensor: gs.Tensor | None) -> onnx.ValueInfoProto:
    """The original description, with the dims in which the tensor now differs."""
    before = get_onnx_tensor_shape(info) if info.type.HasField("tensor_type") else None
    after = getattr(tensor, "shape", None)
    if before is None or after is None or list(before) == list(after):
        return info
    result = onnx.ValueInfoProto()
    result.CopyFrom(info)
    for dim, old, new in zip(result.type.tensor_type.shape.dim, before, after, strict=True):
        if old != new:
            dim.dim_value = new
    return result
