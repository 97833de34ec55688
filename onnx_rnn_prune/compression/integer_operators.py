"""Products in 8-bit integers, where onnxruntime has kernels for them.

These are its operators DynamicQuantizeLSTM and DynamicQuantizeMatMul: weights are integers in the
file, and data becomes integers while the model runs, by its own range. onnxruntime has none for GRU
and RNN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.compression.weight_quantization import is_large, is_plain, scale_of
from onnx_rnn_prune.model.constants import constant_value, require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import add_constant, insert_before, remove_node, set_input
from onnx_rnn_prune.model.integers import MICROSOFT
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes
from onnx_rnn_prune.operators.recurrent import LSTM, QUANTIZED_LSTM, RecurrentLayer, find_layers

# Processors without VNNI add two products of 8-bit integers in 16 bits. With weights of 7 bits that
# cannot overflow, and all processors compute the same.
_BITS = 7


@dataclass(frozen=True)
class ComputeInIntegers:
    """Lets LSTM layers and products with weights compute in 8-bit integers."""

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        store = _Store(graph)
        layers = [layer for layer in find_layers(graph) if layer.cell is LSTM]
        layers = [layer for layer in layers if _fits(graph, *layer.node.inputs[1:3])]
        for layer in layers:
            _replace_layer(graph, layer, store)
        found = [n for n in all_nodes(graph) if n.op in _PRODUCTS and not n.domain]
        products = [node for node in found if _PRODUCTS[node.op](graph, node, store)]
        return bool(layers or products)


Turn = Callable[[Array], Array]


def _as_it_is(weight: Array) -> Array:
    return weight


def _sums_first(weight: Array) -> Array:
    return weight.swapaxes(-1, -2)


class _Store:
    """Writes weights in integers; one that several nodes read, once."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[int, Turn], tuple[gs.Tensor, list[gs.Tensor]]] = {}

    def __call__(self, tensor: gs.Tensor, turn: Turn) -> list[gs.Tensor]:
        """The integers [.., n, outputs], the scale of each output and the zero points.

        Args:
            tensor: the weight.
            turn: to this order of axes.
        """
        key = id(tensor), turn
        if key not in self._made:
            weight = turn(require_constant(tensor, self._graph.opset))
            scale = scale_of(weight, (0, -1) if weight.ndim > 2 else (-1,), _BITS)
            values = np.rint(weight / scale).astype(np.int8)
            scale = scale.squeeze(-2)
            parts = {"integers": values, "scale": scale, "zero": np.zeros(scale.shape, np.int8)}
            made = [add_constant(self._graph, f"{tensor.name}_{n}", v) for n, v in parts.items()]
            self._made[key] = tensor, made  # held, so that no other one gets its id
        return self._made[key][1]


def _fits(graph: gs.Graph, *weights: gs.Tensor) -> bool:
    """Whether weights are plain ones in float32, the only type that these operators take."""
    return any(map(is_large, weights)) and all(
        is_plain(tensor, graph.opset)
        and require_constant(tensor, graph.opset).dtype == np.float32
        and np.isfinite(require_constant(tensor, graph.opset)).all()
        for tensor in weights
    )


def _replace_layer(graph: gs.Graph, layer: RecurrentLayer, store: _Store) -> None:
    node = layer.node
    made = gs.Node(QUANTIZED_LSTM.op, layer.name, dict(node.attrs), domain=MICROSOFT)
    made.attrs.pop("layout", None)  # it is 0 here
    made.inputs = list(node.inputs)
    for name in ("W", "R"):
        parts = store(node.inputs[layer.slot(name)], _sums_first)
        for part, tensor in zip(("", "_scale", "_zero_point"), parts, strict=True):
            set_input(made, QUANTIZED_LSTM.inputs.index(f"{name}{part}"), tensor)
    _put(graph, made, node)


def _replace_matmul(graph: gs.Graph, node: gs.Node, store: _Store) -> bool:
    weight = node.inputs[1]
    if not _is_matrix(graph, weight):
        return False
    _put(graph, _product(node, store(weight, _as_it_is)), node)
    return True


def _replace_gemm(graph: gs.Graph, node: gs.Node, store: _Store) -> bool:
    weight = node.inputs[1]
    usual = not node.attrs.get("transA", 0) and node.attrs.get("alpha", 1.0) == 1.0
    if not usual or not _is_matrix(graph, weight):
        return False
    turned = bool(node.attrs.get("transB", 0))
    outputs = require_constant(weight, graph.opset).shape[0 if turned else 1]
    bias = None
    if len(node.inputs) > 2 and node.inputs[2].name:
        value = constant_value(node.inputs[2], graph.opset)
        if value is None or node.attrs.get("beta", 1.0) != 1.0 or value.size != outputs:
            return False
        bias = add_constant(graph, f"{node.inputs[2].name}_row", value.reshape(-1))
    made = _product(node, store(weight, _sums_first if turned else _as_it_is))
    if bias is not None:
        made.inputs.append(bias)
    _put(graph, made, node)
    return True


_PRODUCTS: dict[str, Callable[[gs.Graph, gs.Node, _Store], bool]] = {
    "Gemm": _replace_gemm,
    "MatMul": _replace_matmul,
}


def _is_matrix(graph: gs.Graph, weight: gs.Tensor) -> bool:
    return _fits(graph, weight) and require_constant(weight, graph.opset).ndim == 2


def _product(node: gs.Node, parts: list[gs.Tensor]) -> gs.Node:
    return gs.Node(
        "DynamicQuantizeMatMul", node.name, inputs=[node.inputs[0], *parts], domain=MICROSOFT
    )


def _put(graph: gs.Graph, made: gs.Node, node: gs.Node) -> None:
    """Puts a node in another one's place."""
    outputs = list(node.outputs)
    node.outputs.clear()
    made.outputs = outputs
    insert_before(graph, made, before=node)
    remove_node(graph, node)
