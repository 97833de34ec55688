"""Making room for a bias behind products that have none, and taking back what stayed unused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.evidence.readers import bias_shape, bias_slot, has_bias_input
from onnx_rnn_prune.model.constants import constant_value, is_zero
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
from onnx_rnn_prune.model.integers import product_of, weight_value
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes, nodes_by_key
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.trace.trace import Binding


@dataclass(frozen=True, eq=False)
class MakeRoom:
    """Adds zero to every sum over units to which nothing constant is added.

    Attributes:
        layers: the layers whose units are cut, and which sum over them.
        bindings: where other constants read units.
    """

    layers: tuple[str, ...]
    bindings: Sequence[Binding]

    def __call__(self, document: Document) -> bool:
        nodes = nodes_by_key(document.graph)
        reading = {binding.node for binding in self.bindings}
        for layer in all_layers(document.graph):
            if layer.key in reading:  # its output's name may be its own, and is about to change
                layer.node.name = layer.name
        changed = False
        for layer in find_layers(document.graph):
            if layer.input("B") is None and (layer.name in self.layers or layer.key in reading):
                _give_layer_room(document.graph, layer)
                changed = True
        for binding in self.bindings:
            node, bound = nodes[binding.node], binding.bound
            if bound.reads is None or constant_value(node.inputs[bound.slot]) is None:
                continue
            weight = weight_value(node, bound.slot, document.graph.opset)
            if node.op in ("MatMul", "MatMulInteger"):
                shape = bias_shape(weight, bound.slot)
                changed |= add_zero(document.graph, product_of(node), shape, weight)
            elif node.op == "DynamicQuantizeMatMul" and not has_bias_input(node, 4):
                zeros = np.zeros(weight.shape[-1], weight.dtype)
                set_input(node, 4, add_constant(document.graph, f"{binding.node}_b", zeros))
                changed = True
            elif node.op == "Gemm" and not has_bias_input(node, 2):
                _give_gemm_room(document.graph, node, weight)
                changed = True
            elif node.op in ("Conv", "ConvTranspose") and not has_bias_input(node, 2):
                zeros = np.zeros(weight.shape[node.op == "ConvTranspose"], weight.dtype)
                set_input(node, 2, add_constant(document.graph, f"{binding.node}_b", zeros))
                changed = True
        return changed


@dataclass(frozen=True)
class DropRoom:
    """Takes additions of zero out again where recovery had no use for them."""

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
    """Puts an addition behind a product, unless there is one; the result keeps its name."""
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


def _give_layer_room(graph: gs.Graph, layer: Layer) -> None:
    weight = layer.constant("W")
    assert weight is not None
    zeros = np.zeros((layer.directions, 2 * weight.shape[1]), weight.dtype)
    set_input(layer.node, layer.slot("B"), add_constant(graph, f"{OWN}{layer.name}_bias", zeros))


def _give_gemm_room(graph: gs.Graph, node: gs.Node, weight: Array) -> None:
    shape = (weight.shape[0 if node.attrs.get("transB", 0) else 1],)
    if len(node.inputs) > 2 and node.inputs[2].name and node.attrs.get("beta", 1.0) != 0.0:
        add_zero(graph, node, shape, weight)  # its C is computed
        return
    zeros = np.zeros(shape, weight.dtype)
    node.attrs["beta"] = 1.0
    set_input(node, 2, add_constant(graph, f"{node.outputs[0].name}_c", zeros))
