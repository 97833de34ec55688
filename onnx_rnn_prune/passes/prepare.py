"""Preparation: every outlet of a layer becomes absorbed, and every state can be cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.evidence.readers import bias_shape
from onnx_rnn_prune.model.constants import constant_value, is_zero
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import (
    HANDED_BACK,
    OWN,
    add_constant,
    drop_input,
    fresh_name,
    insert_before,
    insert_node,
)
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes, node_key, nodes_by_key, place_of, places
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.labels import Labels, squeeze_to, varying_axes
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.passes.biases import add_zero
from onnx_rnn_prune.trace.bindings import STATES
from onnx_rnn_prune.trace.propagation import Outlet
from onnx_rnn_prune.trace.trace import Trace


@dataclass(frozen=True)
class DropZeroStates:
    """Omits initial states that are provably zero, which is the operator's default."""

    layers: tuple[str, ...]

    def __call__(self, document: Document) -> bool:
        changed = False
        for layer, name, tensor in _states(document, self.layers):
            if is_zero(tensor) and not _is_default(document, tensor):
                drop_input(layer.node, layer.slot(name))
                changed = True
        return changed


@dataclass(frozen=True)
class SelectStates:
    """Puts an identity matrix in front of each computed initial state.

    Cutting its columns with the units selects the entries that the cut layer needs from a
    full-width state.

    Attributes:
        layers: the layers whose states get one.
        narrow: names of states that hold units themselves.
    """

    layers: tuple[str, ...]
    narrow: Container[str] = ()

    def __call__(self, document: Document) -> bool:
        changed = False
        for layer in _chosen(document, self.layers):
            for name in STATES:
                tensor = layer.input(name)
                if tensor is None or tensor.name in self.narrow or _is_selected(tensor):
                    continue
                if constant_value(tensor) is None or _is_default(document, tensor):
                    _select(document.graph, layer, name, tensor)
                    changed = True
        return changed


def _is_selected(state: gs.Tensor) -> bool:
    """Whether a selecting matrix, or a Gather as in a pruned file, is there already."""
    made = state.inputs[0] if state.inputs else None
    return made is not None and made.op in ("MatMul", "Add") and bool(made.name.startswith(OWN))


@dataclass(frozen=True)
class PickUnits:
    """Puts a Gather of all entries in front of each full-width input that meets units.

    Cutting its indices with the units picks the needed entries.

    Attributes:
        selects: by node key and slot, the axis of the units from the end, and their number.
    """

    selects: Mapping[tuple[str, int], tuple[int, int]]

    def __call__(self, document: Document) -> bool:
        graph, nodes = document.graph, nodes_by_key(document.graph)
        for (key, slot), (axis, count) in self.selects.items():
            full = nodes[key].inputs[slot]
            label = fresh_name(graph, f"{OWN}{full.name}_picked")
            picked = gs.Variable(label, dtype=full.dtype)
            entries = np.arange(count, dtype=np.int32)
            inputs = [full, add_constant(graph, f"{label}_entries", entries)]
            nodes[key].inputs[slot] = picked
            made = gs.Node("Gather", label, {"axis": axis}, inputs, [picked])
            insert_before(graph, made, before=nodes[key])
        return bool(self.selects)


@dataclass(frozen=True, eq=False)
class Widen:
    """Puts an identity matrix where states are read at full width, like `Restore` for outlets.

    Attributes:
        trace: of the document; its edges are those places.
    """

    trace: Trace

    def __call__(self, document: Document) -> bool:
        graph, nodes = document.graph, nodes_by_key(document.graph)
        for layer in _chosen(document, tuple(self.trace.units.lanes)):
            layer.node.name = layer.name  # it may go by its output's name, which changes
            dtype = layer.held("W").dtype
        readers: dict[str, list[tuple[gs.Node, int] | None]] = {}
        for edge in self.trace.edges:
            reader = (nodes[edge.consumer], edge.slot) if edge.consumer else None
            readers.setdefault(edge.tensor, []).append(reader)
        shared: dict[tuple[object, ...], gs.Constant] = {}
        biases: dict[int, gs.Tensor] = {}
        for name, reading in readers.items():
            labels, axis = self.trace.labels[name], self.trace.axes[name]
            inner, full = _apart(graph, name, [item for item in reading if item is not None])
            maker = inner.inputs[0] if inner.inputs else None
            home = _home(graph, inner) if maker is None else place_of(graph, maker).graph
            order, matrices = _units_last(labels, axis)
            lines = squeeze_to(labels, (axis, *varying_axes(labels)))
            assert lines is not None
            key = (id(home), lines.shape, lines.tobytes())
            if key not in shared:  # shared by all unrolled steps
                eye = matrices.astype(dtype)
                shared[key] = add_constant(graph, f"{OWN}{name}_restore_weight", eye)
            made = _products(graph, inner, full, order, shared[key])
            for node in reversed(made):
                if maker is not None:
                    insert_node(graph, node, after=maker)
                else:  # before any reader, branches included
                    home.nodes.insert(0, node)
            product = next(node for node in made if node.op == "MatMul")
            add_zero(graph, product, bias_shape(product, matrices, 1), shared[key].values)
            total = product.outputs[0].outputs[0]
            total.inputs[1] = biases.setdefault(id(shared[key]), total.inputs[1])
        return bool(readers)


def _home(graph: gs.Graph, tensor: gs.Tensor) -> gs.Graph:
    """The graph or body that has this tensor as an input."""
    graphs = (place.graph for place in places(graph))
    return next(each for each in graphs if any(port is tensor for port in each.inputs))


def _units_last(labels: Labels, axis: int) -> tuple[list[int], Array]:
    """The axis order in which a MatMul contracts the units, and the identity matrices for it.

    If units vary along another axis as well, each of its entries needs a matrix of its own. The
    second-to-last axis, that of rows, must be a third one.
    """
    varying = varying_axes(labels)
    rows = max(place for place in range(labels.ndim) if place not in (axis, *varying))
    order = [place for place in range(labels.ndim) if place not in (axis, rows)]
    batch = [labels.shape[place] if place in varying else 1 for place in order]
    while batch and batch[0] == 1:
        batch.pop(0)
    eye = np.eye(labels.shape[axis])
    return [*order, rows, axis], np.array(np.broadcast_to(eye, (*batch, *eye.shape)))


def _apart(
    graph: gs.Graph, name: str, readers: list[tuple[gs.Node, int]]
) -> tuple[gs.Tensor, gs.Tensor]:
    """Splits a tensor into one with units and one of full width, which the given readers get.

    Args:
        graph: what is edited.
        name: of the tensor.
        readers: nodes and slots that read full width.
    """
    ports = [tensor for tensor in graph.outputs if tensor.name == name]
    tensor = ports[0] if ports else readers[0][0].inputs[readers[0][1]]
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None or place_of(graph, maker).way:
        full = gs.Variable(fresh_name(graph, f"{name}_full"), dtype=tensor.dtype)
        for node, slot in readers:
            node.inputs[slot] = full
        return tensor, full
    # Tensors that may be compared with the original, such as inputs of unknown operators, keep
    # their name.
    inner = gs.Variable(fresh_name(graph, f"{name}_units"), dtype=tensor.dtype, shape=tensor.shape)
    reading = {(id(node), slot) for node, slot in readers}
    for node in all_nodes(graph):
        for slot, item in enumerate(node.inputs):
            if item is tensor and (id(node), slot) not in reading:
                node.inputs[slot] = inner
    for place in places(graph):
        if place.way:
            place.graph.outputs[:] = [inner if t is tensor else t for t in place.graph.outputs]
    maker.name = maker.name or node_key(maker)  # scopes use it, and the key is about to change
    maker.outputs[maker.outputs.index(tensor)] = inner
    return inner, tensor


def _products(
    graph: gs.Graph, inner: gs.Tensor, full: gs.Tensor, order: list[int], weight: gs.Constant
) -> list[gs.Node]:
    """Nodes that multiply the axis that `order` puts last by a matrix."""
    label = fresh_name(graph, f"{OWN}{inner.name}_restore")
    if order == sorted(order):
        return [gs.Node("MatMul", label, inputs=[inner, weight], outputs=[full])]
    turned = [gs.Variable(fresh_name(graph, f"{label}_{end}"), dtype=full.dtype) for end in "io"]
    back = np.argsort(order).tolist()
    return [
        gs.Node("Transpose", f"{label}_turned", {"perm": order}, [inner], [turned[0]]),
        gs.Node("MatMul", label, {}, [turned[0], weight], [turned[1]]),
        gs.Node("Transpose", f"{label}_back", {"perm": back}, [turned[1]], [full]),
    ]


@dataclass(frozen=True)
class Restore:
    """Puts an identity matrix behind each outlet that nothing absorbs.

    Cutting its rows with the units restores full width, so everything downstream stays the same;
    recovery fits it like any other weight that reads the units.

    Attributes:
        handed_back: outlets that give callers a state which they only feed back. They get a matrix
            of their own, which recovery turns into one that just places the kept entries.
    """

    layers: tuple[str, ...]
    outlets: Mapping[Outlet, str]
    handed_back: frozenset[Outlet] = frozenset()

    def __call__(self, document: Document) -> bool:
        changed = False
        found: dict[tuple[str, str], set[Outlet]] = defaultdict(set)
        for outlet in self.outlets:
            found[outlet.layer, outlet.output].add(outlet)
        for layer in _chosen(document, self.layers):
            for name in layer.cell.outputs:
                closed = found[layer.name, name]
                back = closed & self.handed_back
                if closed:
                    kinds = {HANDED_BACK: back, OWN: closed - back}
                    _restore(document.graph, layer, name, {k: v for k, v in kinds.items() if v})
                    changed = True
        return changed


def _is_default(document: Document, tensor: gs.Tensor) -> bool:
    """Whether a constant is the default of a graph input.

    Before IR version 4, every initializer had to be listed as an input, so that does not count.
    """
    source = document.source
    if source.ir_version < 4:
        return False
    ports = {port.name for port in source.graph.input}
    waiting, seen = [tensor], {id(tensor)}
    while waiting:  # each tensor once: chains of residual sums have exponentially many paths
        item = waiting.pop()
        if isinstance(item, gs.Constant) and item.name in ports:
            return True
        before = [other for node in item.inputs for other in node.inputs]
        waiting += [other for other in before if id(other) not in seen]
        seen.update(map(id, before))
    return False


def _chosen(document: Document, names: tuple[str, ...]) -> list[Layer]:
    return [layer for layer in all_layers(document.graph) if layer.name in names]


def _states(document: Document, names: tuple[str, ...]) -> list[tuple[Layer, str, gs.Tensor]]:
    """The initial states of some layers, by name of the input."""
    every = [(layer, name) for layer in _chosen(document, names) for name in STATES]
    return [(layer, name, t) for layer, name in every if (t := layer.input(name)) is not None]


def _identity(graph: gs.Graph, layer: Layer, name: str) -> gs.Constant:
    eye = np.eye(layer.hidden, dtype=layer.held("R").dtype)
    return add_constant(graph, name, np.repeat(eye[None], layer.directions, axis=0))


def _select(graph: gs.Graph, layer: Layer, name: str, state: gs.Tensor) -> None:
    label = fresh_name(graph, f"{OWN}{layer.name}_{name}_select")
    result = gs.Variable(label)
    matrix = _identity(graph, layer, f"{label}_weight")
    layer.node.inputs[layer.slot(name)] = result
    made = gs.Node("MatMul", label, inputs=[state, matrix], outputs=[result])
    insert_before(graph, made, before=layer.node)


def _restore(graph: gs.Graph, layer: Layer, name: str, kinds: Mapping[str, set[Outlet]]) -> None:
    """Restores an output; absorbed readers read the inner tensor, graph outputs keep their names.

    Args:
        graph: what is edited.
        layer: whose output it is.
        name: of the output.
        kinds: outlets that share a matrix, by the prefix of its name.
    """
    full = layer.output(name)
    assert full is not None
    inner = gs.Variable(fresh_name(graph, f"{full.name}_units"), dtype=full.dtype, shape=full.shape)
    layer.node.name = layer.name  # it may go by its output's name, which changes
    layer.node.outputs[layer.cell.outputs.index(name)] = inner
    leaving = [kind for kind, outlets in kinds.items() if any(not o.consumer for o in outlets)]
    results = {(leaving or list(kinds))[0]: full}
    for kind in kinds.keys() - results.keys():
        results[kind] = gs.Variable(fresh_name(graph, f"{full.name}_full"), dtype=full.dtype)
    places = {(o.consumer, o.slot): results[kind] for kind in kinds for o in kinds[kind]}
    for node in {id(reader): reader for reader in full.outputs}.values():
        for slot, tensor in enumerate(node.inputs):
            if tensor is full:
                node.inputs[slot] = places.get((node_key(node), slot), inner)
    for kind, result in results.items():
        label = fresh_name(graph, f"{kind}{layer.name}_{name}_restore")
        matrix = _identity(graph, layer, f"{label}_weight")
        made = gs.Node("MatMul", label, inputs=[inner, matrix], outputs=[result])
        insert_node(graph, made, after=layer.node)
        add_zero(graph, made, bias_shape(made, matrix.values, 1), matrix.values)
