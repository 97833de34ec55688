"""A model as an editable graph, written back without losing what was not edited.

onnx-graphsurgeon holds the graph while it is edited. Its exporter rebuilds every message and drops
what it has no field for (metadata, doc strings, attributes of rare types). So writing works the
other way round here: each original message is copied, and only fields that differ in the edited
graph are replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import inliner, numpy_helper
from onnx_graphsurgeon.importers.onnx_importer import get_onnx_tensor_shape
from onnx_graphsurgeon.logger import G_LOGGER

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.external import raw_length, without_values
from onnx_rnn_prune.model.scratch import give_back
from onnx_rnn_prune.model.walk import all_nodes, messages
from onnx_rnn_prune.model.writing import Make, Origins, Store, Writer, copy_fields, new_initializers


@dataclass(frozen=True)
class Document:
    """An editable graph together with the message it was read from.

    Attributes:
        graph: the graph to edit.
        source: the model as read; never changed.
        origins: each node of the graph and its subgraphs with its original message, by `id(node)`;
            nodes are kept here, since the id of a deleted one may be reused.
    """

    graph: gs.Graph
    source: onnx.ModelProto
    origins: Origins

    @staticmethod
    def read(model: onnx.ModelProto) -> Document:
        """Opens a model; weights stay in the message until they are accessed."""
        try:
            with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):
                graph = gs.import_onnx(model)
        except Exception as error:  # invalid messages make it fail in many ways
            raise PruneError(
                f"it cannot be read as a graph: {error}",
                where="the model",
                remedy="check the file with onnx.checker, and export it again",
            ) from error
        _declare(graph, model.graph)
        origins = {id(node): (node, original) for node, original in _pairs(graph, model.graph)}
        return Document(graph, model, origins)

    def write(
        self, store: Store = lambda tensor: tensor, make: Make = numpy_helper.from_array
    ) -> onnx.ModelProto:
        """The edited model.

        Args:
            store: maps each initializer to the one to write.
            make: makes an initializer from a value that was set here, and a name.
        """
        result = onnx.ModelProto()
        copy_fields(self.source, result, {"graph"})
        Writer(self.origins, store, make).graph(result.graph, self.graph, self.source.graph)
        added = new_initializers(self.graph, self.source.graph, make)
        result.graph.initializer.extend(map(store, added))
        if result.ir_version < 4:
            _list_initializers(result.graph)
        _import_domains(result, {node.domain or "" for node in all_nodes(self.graph)})
        return result

    def outline(self, most: int = 0) -> onnx.ModelProto:
        """The edited model without the values of initializers of more than `most` entries."""

        def make(values: npt.NDArray[Any], name: str) -> onnx.TensorProto:
            if values.size <= most:
                return numpy_helper.from_array(values, name)
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            return onnx.TensorProto(name=name, dims=values.shape, data_type=kind)

        return self.write(partial(without_values, most=most), make)

    def copy(self) -> Document:
        """An independent document of the same model; values are shared until one is replaced."""
        held = sum(map(raw_length, self.source.graph.initializer))
        give_back(held, len(self.graph.nodes))
        graph = self.graph.copy()
        pairs = list(zip(all_nodes(self.graph), all_nodes(graph), strict=True))
        _reunite(pairs)
        origins = {
            id(twin): (twin, self.origins[id(node)][1])
            for node, twin in pairs
            if id(node) in self.origins
        }
        return Document(graph, self.source, origins)


def _reunite(pairs: Iterable[tuple[gs.Node, gs.Node]]) -> None:
    """Merges a constant that graphsurgeon copied for each body that captures it."""
    copies: dict[int, gs.Constant] = {}
    for node, twin in pairs:
        for slot, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                copy = copies.setdefault(id(tensor), twin.inputs[slot])
                if twin.inputs[slot] is not copy:
                    twin.inputs[slot] = copy


def _pairs(graph: gs.Graph, message: onnx.GraphProto) -> Iterator[tuple[gs.Node, onnx.NodeProto]]:
    for node, original in zip(graph.nodes, message.node, strict=True):
        yield node, original
        for attribute in original.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _pairs(node.attrs[attribute.name], attribute.g)


def _declare(graph: gs.Graph, message: onnx.GraphProto) -> None:
    """Gives inputs and outputs their declared shapes; graphsurgeon prefers `value_info`."""
    ports = {port.name: port for port in (*message.input, *message.output)}
    for tensor in (*graph.inputs, *graph.outputs):
        port = ports.get(tensor.name) if isinstance(tensor, gs.Variable) else None
        if port is not None and port.type.tensor_type.HasField("shape"):
            tensor.shape = get_onnx_tensor_shape(port)
    for node, original in zip(graph.nodes, message.node, strict=True):
        for attribute in original.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _declare(node.attrs[attribute.name], attribute.g)


def _list_initializers(graph: onnx.GraphProto) -> None:
    """Lists every initializer as an input, as required before IR version 4."""
    listed = {port.name for port in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in listed:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )


def _import_domains(model: onnx.ModelProto, domains: set[str]) -> None:
    """Declares the domains of inserted nodes that the model did not use before."""
    known = {item.domain for item in model.opset_import}
    known |= {function.domain for function in model.functions}
    # The two names of the standard domain are equivalent.
    for domain in sorted(domains - known - {"", "ai.onnx"}):
        model.opset_import.add(domain=domain, version=1)


def inline_layers(model: onnx.ModelProto, ops: Iterable[str]) -> onnx.ModelProto:
    """Inlines all functions that contain one of some operators at any depth.

    A function may be called from several places with different weights, so a layer in it is not one
    layer. Functions that have nothing to do with such layers stay.

    Returns:
        The model with these functions inlined; itself if there are none.
    """
    calls = {
        (function.domain, function.name): {
            (node.domain, node.op_type) for node in messages(function, onnx.NodeProto)
        }
        for function in model.functions
    }
    wanted = set(ops)
    holding = {key for key, called in calls.items() if wanted.intersection(op for _, op in called)}
    while more := {key for key, called in calls.items() if called & holding} - holding:
        holding |= more
    if not holding:
        return model
    waiting = list(holding)
    for key in waiting:  # units flow through the functions they call
        waiting += (calls[key] & calls.keys()) - set(waiting)
    return inlined(model, sorted(waiting))


def inlined(model: onnx.ModelProto, names: list[tuple[str, str]]) -> onnx.ModelProto:
    """The model with some functions inlined.

    Raises:
        PruneError: one uses another version of the operators than the model, or has a namesake.
    """
    try:
        return inliner.inline_selected_functions(model, names)
    except Exception as error:  # ONNX raises several types
        raise PruneError(
            f"its functions cannot be inlined ({error})",
            where="the model",
            remedy="export it without functions",
        ) from error
