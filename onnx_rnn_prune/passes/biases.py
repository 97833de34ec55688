"""Biases: those added behind a convolution become its own, and recovery gets room for its own.

Products without a bias get a zero one, for recovery to write to; it goes again if unused.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.evidence.readers import bias_shape, bias_slot, has_bias_input
from onnx_rnn_prune.model.constants import constant_shape, constant_value, is_zero
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import (
    OWN,
    add_constant,
    drop_input,
    fresh_name,
    insert_node,
    remove_node,
    set_input,
)
from onnx_rnn_prune.model.integers import APART, product_of, weight_value
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes, node_key, nodes_by_key, places
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.trace.propagation import Binding

# The bias input, and the axis of the weight that matches it.
_BIASES = {"DynamicQuantizeMatMul": (4, -1), "Conv": (2, 0), "ConvTranspose": (2, 1)}


@dataclass(frozen=True)
class FoldBiases:
    """Makes a constant that is added behind a convolution the convolution's own bias.

    Keras' one-dimensional convolutions are exported as two-dimensional ones with a Squeeze before
    the bias is added, which keeps onnxruntime from fusing the two.
    """

    def __call__(self, document: Document) -> bool:
        graph, changed = document.graph, False
        for place in places(graph):
            free = {id(node) for node in place.graph.nodes}
            free -= {id(maker) for tensor in place.graph.outputs for maker in tensor.inputs}
            for node in list(place.graph.nodes):
                if node.op == "Add" and not node.domain:
                    changed |= _fold(graph, node, free)
        return changed


def _fold(graph: gs.Graph, node: gs.Node, free: Set[int]) -> bool:
    """Folds an Add into the convolution that it adds one number per channel to.

    Args:
        free: ids of the nodes of its graph whose outputs are not that graph's.
    """
    place = 0 if constant_value(node.inputs[1]) is not None else 1
    source, bias = node.inputs[place], constant_value(node.inputs[1 - place])
    convolution, axes = _convolution(source, free)
    if bias is None or convolution is None or bias.ndim > len(axes):
        return False
    others = [size for size, axis in zip(bias.shape[::-1], axes[::-1], strict=False) if axis != 1]
    if convolution.inputs[1].dtype != bias.dtype or any(size != 1 for size in others):
        return False
    own = convolution.inputs[2] if len(convolution.inputs) > 2 else gs.Variable.empty()
    present = constant_value(own) if own.name else np.zeros(_channels(convolution), bias.dtype)
    if present is None or bias.size not in (1, present.size):
        return False
    total = (present + bias.reshape(-1)).astype(bias.dtype)
    set_input(convolution, 2, add_constant(graph, f"{node_key(convolution)}_bias", total))
    last, result = source.inputs[0], node.outputs[0]
    remove_node(graph, node)
    last.outputs[0] = result
    return True


def _convolution(tensor: gs.Tensor, free: Set[int]) -> tuple[gs.Node | None, list[int | None]]:
    """The convolution whose output a tensor is, and which of its axes each axis is.

    Only axes were added or dropped on the way, and nothing else reads it; None if it is no such
    tensor.
    """
    way: list[gs.Node] = []
    while len(tensor.outputs) == 1 and tensor.inputs and id(tensor.inputs[0]) in free:
        node = tensor.inputs[0]
        if node.op in ("Conv", "ConvTranspose") and not node.domain:
            axes: list[int | None] = list(range(len(constant_shape(node.inputs[1]) or ())))
            plain = isinstance(node.inputs[1], gs.Constant)  # integers have biases of their own
            return (node if plain else None), reduce(_moved, way[::-1], axes)
        if node.op not in ("Squeeze", "Unsqueeze") or _axes(node) is None:
            break
        way.append(node)
        tensor = node.inputs[0]
    return None, []


def _moved(axes: list[int | None], node: gs.Node) -> list[int | None]:
    places = _axes(node) or []
    if node.op == "Squeeze":
        gone = {place % len(axes) for place in places}
        return [axis for place, axis in enumerate(axes) if place not in gone]
    rank = len(axes) + len(places)
    added, kept = {place % rank for place in places}, iter(axes)
    return [None if place in added else next(kept) for place in range(rank)]


def _axes(node: gs.Node) -> list[int] | None:
    """The axes that a Squeeze or Unsqueeze drops or adds; None if they are unknown."""
    given = node.attrs.get("axes")
    if given is None and len(node.inputs) > 1:
        given = constant_value(node.inputs[1])
    return None if given is None else [int(axis) for axis in np.reshape(given, -1)]


def _channels(convolution: gs.Node) -> int:
    shape, group = constant_shape(convolution.inputs[1]), int(convolution.attrs.get("group", 1))
    assert shape is not None
    return int(shape[0] if convolution.op == "Conv" else shape[1] * group)


@dataclass(frozen=True, eq=False)
class AddBiasSlots:
    """Adds a zero bias to every sum over units that has no constant addend.

    Attributes:
        layers: the layers whose units are cut; they sum over units themselves.
        bindings: of other constants that read units.
    """

    layers: tuple[str, ...]
    bindings: Sequence[Binding]

    def __call__(self, document: Document) -> bool:
        nodes = nodes_by_key(document.graph)
        reading = {binding.node for binding in self.bindings}
        for layer in all_layers(document.graph):
            if layer.key in reading:  # it may go by its output's name, which changes
                layer.node.name = layer.name
        changed = False
        for layer in find_layers(document.graph):
            if layer.input("B") is None and (layer.name in self.layers or layer.key in reading):
                _add_to_layer(document.graph, layer)
                changed = True
        for binding in self.bindings:
            node, bound = nodes[binding.node], binding.bound
            if bound.reads is None or constant_value(node.inputs[bound.slot]) is None:
                continue
            weight = weight_value(node, bound.slot, document.graph.opset)
            if node.op in ("MatMul", *APART):
                shape = bias_shape(node, weight, bound.slot)
                changed |= add_zero(document.graph, product_of(node), shape, weight)
            elif node.op == "Gemm" and not has_bias_input(node, 2):
                _add_to_gemm(document.graph, node, weight)
                changed = True
            elif node.op in _BIASES and not has_bias_input(node, _BIASES[node.op][0]):
                slot, axis = _BIASES[node.op]
                zeros = np.zeros(weight.shape[axis], weight.dtype)
                set_input(node, slot, add_constant(document.graph, f"{binding.node}_b", zeros))
                changed = True
        return changed


@dataclass(frozen=True)
class DropUnusedBiases:
    """Removes the zero biases that recovery left unused."""

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        unused = []
        for layer in find_layers(graph):
            bias = layer.input("B")
            if bias is not None and bias.name.startswith(OWN) and is_zero(bias):
                drop_input(layer.node, layer.slot("B"))
        for node in all_nodes(graph):
            if node.op == "Add" and node.name.startswith(OWN) and is_zero(node.inputs[1]):
                unused.append(node)
        for node in unused:
            product, result = node.inputs[0].inputs[0], node.outputs[0]
            remove_node(graph, node)
            product.outputs[0] = result
        return bool(unused)


def add_zero(graph: gs.Graph, node: gs.Node, shape: tuple[int, ...], weight: Array) -> bool:
    """Adds a zero bias to a product without one; the result keeps its name."""
    if bias_slot(node) is not None:
        return False
    result = node.outputs[0]
    inner = gs.Variable(fresh_name(graph, f"{result.name}_product"))
    node.outputs[0] = inner
    zero = add_constant(graph, f"{result.name}_bias", np.zeros(shape, weight.dtype))
    name = fresh_name(graph, f"{OWN}{result.name}_add")
    made = gs.Node("Add", name, inputs=[inner, zero], outputs=[result])
    insert_node(graph, made, after=node)
    return True


def _add_to_layer(graph: gs.Graph, layer: Layer) -> None:
    weight = layer.held("W")
    zeros = np.zeros((layer.directions, 2 * weight.shape[1]), weight.dtype)
    set_input(layer.node, layer.slot("B"), add_constant(graph, f"{OWN}{layer.name}_bias", zeros))


def _add_to_gemm(graph: gs.Graph, node: gs.Node, weight: Array) -> None:
    shape = (weight.shape[0 if node.attrs.get("transB", 0) else 1],)
    if len(node.inputs) > 2 and node.inputs[2].name and node.attrs.get("beta", 1.0) != 0.0:
        add_zero(graph, node, shape, weight)  # C is computed
        return
    zeros = np.zeros(shape, weight.dtype)
    node.attrs["beta"] = 1.0
    set_input(node, 2, add_constant(graph, f"{node.outputs[0].name}_c", zeros))
