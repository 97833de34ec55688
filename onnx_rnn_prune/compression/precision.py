"""Fewer bits: weights stored in narrower types, and 8-bit integer products where those are faster.

Storing a weight in a narrower type makes the file smaller and changes nothing else: everything is
computed in the same type as before, and as fast. To this end, it is unpacked by Cast, Mul, Floor,
Sub and Concat, which onnxruntime folds once while it loads a model, in any opset. DequantizeLinear
is computed in every run instead, which makes a recurrent layer that is called step by step take
twice as long.

Integer products are onnxruntime's operators DynamicQuantizeLSTM and DynamicQuantizeMatMul: weights
are stored as integers, and data is quantized at run time, by its own range. There is no such
operator for GRU and RNN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import edit
from onnx_rnn_prune.model.constants import (
    constant_shape,
    constant_value,
    require_constant,
    storage_type,
)
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import MICROSOFT
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import LSTM, QUANTIZED_LSTM, find_layers
from onnx_rnn_prune.passes import Pass, Pipeline
from onnx_rnn_prune.passes.cleanup import DropUnread
from onnx_rnn_prune.progress import Progress

LEAST = 1 << 10
"""Smaller weights stay as they are: the operators that unpack one take some hundred bytes."""

# Which inputs are weights, and the axes of their outputs, which have a scale each. The directions
# of a layer have separate outputs.
_CHANNELS: Mapping[tuple[str, int], tuple[int, ...]] = {
    **{(op, slot): (0, 1) for op in ("LSTM", "GRU", "RNN") for slot in (1, 2)},
    ("Conv", 1): (0,),
    ("ConvTranspose", 1): (1,),
    ("Gather", 0): (0,),
    ("Gemm", 1): (1,),
    ("MatMul", 0): (-2,),
    ("MatMul", 1): (-1,),
}


class Encoding(Protocol):
    """A way to store a weight."""

    def __call__(self, value: Array, channels: tuple[int, ...], unpack: Unpack) -> gs.Tensor | None:
        """Encodes a weight; returns the tensor that decodes it, or None if it does not fit.

        Args:
            value: the weight.
            channels: its output axes.
            unpack: makes the decoding nodes.
        """


@dataclass(frozen=True)
class Float16:
    """In float16: 11 significant bits."""

    def __call__(self, value: Array, channels: tuple[int, ...], unpack: Unpack) -> gs.Tensor | None:
        with np.errstate(over="ignore"):
            stored = value.astype(np.float16)
        if value.dtype.itemsize <= 2 or not np.array_equal(np.isfinite(stored), np.isfinite(value)):
            return None
        return unpack.real(stored)


@dataclass(frozen=True)
class Bits:
    """In `count`-bit integers times a scale per output: |w - w'| <= scale / 2.

    The integers are symmetric about 0, so zeros stay zero. Two, or four, share a byte where they
    fit and some axis can be divided into as many parts.

    Attributes:
        count: 2 to 8.
    """

    count: int

    def __call__(self, value: Array, channels: tuple[int, ...], unpack: Unpack) -> gs.Tensor | None:
        scale = scale_of(value, channels, self.count)
        if not np.isfinite(scale).all():
            return None
        integers = np.rint(value / scale).astype(np.int8)
        digits = 8 // self.count
        axis = next((n for n, size in enumerate(value.shape) if size % digits == 0), None)
        if digits == 1 or axis is None:
            real = unpack.real(integers)
        else:
            offset = 1 << (self.count - 1)
            parts = np.split((integers + offset).astype(np.uint8), digits, axis)
            packed: Array = np.zeros_like(parts[0])
            for part in parts:
                packed = (packed << self.count) | part
            real = self._parted(unpack.real(packed), digits, axis, unpack)
            real = unpack("Sub", real, unpack.number(offset))
        return unpack("Mul", real, unpack.constant(scale))

    def _parted(self, packed: gs.Tensor, digits: int, axis: int, unpack: Unpack) -> gs.Tensor:
        """The digits of packed numbers, highest first, concatenated."""
        base = 1 << self.count
        parts = []
        for _ in range(digits - 1):
            higher = unpack("Floor", unpack("Mul", packed, unpack.number(1 / base)))
            parts.append(unpack("Sub", packed, unpack("Mul", higher, unpack.number(base))))
            packed = higher
        return unpack("Concat", packed, *reversed(parts), attributes={"axis": axis})


@dataclass(frozen=True)
class QuantizeWeights:
    """Stores the weights of layers, products, convolutions and tables in another form."""

    form: Encoding

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        changed = False
        for readers in list(_weights(graph)):
            node, slot = readers[0]
            tensor = node.inputs[slot]
            value = require_constant(tensor, graph.opset)
            unpack = Unpack(graph, tensor.name, value.dtype)
            held = self.form(value, _channels(node, slot), unpack)
            if held is not None:
                graph.nodes[:0] = unpack.nodes
                for node, slot in readers:
                    edit.set_input(node, slot, held)
                changed = True
        return changed


class Unpack:
    """Makes nodes that decode a stored weight; the caller adds them to the graph.

    Args:
        graph: where names must be unique.
    """

    def __init__(self, graph: gs.Graph, name: str, dtype: np.dtype[Any]) -> None:
        self._graph, self._dtype = graph, dtype
        self._name = edit.fresh_name(graph, f"{edit.HELD}{name}")
        self._made = 0
        self.nodes: list[gs.Node] = []

    def __call__(
        self, op: str, *inputs: gs.Tensor, attributes: Mapping[str, int] | None = None
    ) -> gs.Tensor:
        result = gs.Variable(self._fresh())
        node = gs.Node(op, result.name, dict(attributes or {}), list(inputs), [result])
        self.nodes.append(node)
        return result

    def constant(self, value: Array) -> gs.Constant:
        """A stored constant."""
        return edit.add_constant(self._graph, self._fresh(), value)

    def number(self, value: float) -> gs.Constant:
        """A scalar of the weight's type."""
        return self.constant(np.asarray(value, self._dtype))

    def real(self, stored: Array) -> gs.Tensor:
        """Stored numbers cast to the weight's type."""
        kind = onnx.helper.np_dtype_to_tensor_dtype(self._dtype)
        return self("Cast", self.constant(stored), attributes={"to": kind})

    def _fresh(self) -> str:
        self._made += 1
        return f"{self._name}/{self._made}"


def scale_of(value: Array, channels: tuple[int, ...], bits: int) -> Array:
    """The step of integers of `bits` bits; broadcasts with the weight."""
    kept = {axis % value.ndim for axis in channels}
    summed = tuple(axis for axis in range(value.ndim) if axis not in kept)
    largest = np.abs(value).max(axis=summed, keepdims=True)
    steps = (1 << (bits - 1)) - 1
    return np.asarray(np.where(largest > 0, largest, 1) / steps, dtype=value.dtype)


def is_large(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant large enough to be worth encoding."""
    shape = constant_shape(tensor)
    return shape is not None and len(shape) > 1 and int(np.prod(shape)) >= LEAST


def is_plain(tensor: gs.Tensor, opset: int) -> bool:
    """Whether a constant is in floats and not stored in a narrower type already."""
    narrow = storage_type(tensor) is not None or _is_computed_from_integers(tensor)
    return not narrow and require_constant(tensor, opset).dtype.kind == "f"


def _is_computed_from_integers(tensor: gs.Tensor) -> bool:
    waiting = [tensor]
    while waiting:
        for node in waiting.pop().inputs:
            if node.op == "DequantizeLinear" or node.name.startswith(edit.HELD):
                return True
            waiting += node.inputs
    return False


def _weights(graph: gs.Graph) -> Iterator[list[tuple[gs.Node, int]]]:
    """The readers of each weight."""
    found: dict[int, list[tuple[gs.Node, int]]] = {}
    for node in all_nodes(graph):
        for slot, tensor in enumerate(node.inputs):
            if (node.op, slot) in _CHANNELS and not node.domain:
                found.setdefault(id(tensor), []).append((node, slot))
    for readers in found.values():
        node, slot = readers[0]
        if is_large(node.inputs[slot]) and is_plain(node.inputs[slot], graph.opset):
            yield readers


def _channels(node: gs.Node, slot: int) -> tuple[int, ...]:
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        return (0,)
    return _CHANNELS[node.op, slot]


# Processors without VNNI add two products of 8-bit integers in 16 bits. With 7-bit weights that
# cannot overflow, and all processors compute the same.
_BITS = 7


@dataclass(frozen=True)
class UseIntegerOperators:
    """Replaces LSTM layers and products with weights by 8-bit integer operators."""

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        store = _IntegerWeights(graph)
        layers = [layer for layer in find_layers(graph) if layer.cell is LSTM]
        layers = [layer for layer in layers if _fits(graph, *layer.node.inputs[1:3])]
        for layer in layers:
            _replace_layer(graph, layer, store)
        found = [n for n in all_nodes(graph) if n.op in ("Gemm", "MatMul") and not n.domain]
        products = [node for node in found if _replace_product(graph, node, store)]
        return bool(layers or products)


class _IntegerWeights:
    """Encodes weights as integers; a shared one only once."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[int, bool], tuple[gs.Tensor, list[gs.Tensor]]] = {}

    def __call__(self, tensor: gs.Tensor, outputs_first: bool) -> list[gs.Tensor]:
        """The integers [.., n, outputs], the scale of each output and the zero points.

        Args:
            tensor: the weight.
            outputs_first: whether it lies as [.., outputs, n].
        """
        key = id(tensor), outputs_first
        if key not in self._made:
            weight = require_constant(tensor, self._graph.opset)
            weight = weight.swapaxes(-1, -2) if outputs_first else weight
            scale = scale_of(weight, (0, -1) if weight.ndim > 2 else (-1,), _BITS)
            values = np.rint(weight / scale).astype(np.int8)
            scale = scale.squeeze(-2)
            parts = {"integers": values, "scale": scale, "zero": np.zeros(scale.shape, np.int8)}
            made = [
                edit.add_constant(self._graph, f"{tensor.name}_{n}", v) for n, v in parts.items()
            ]
            self._made[key] = tensor, made  # kept, so that its id is not reused
        return self._made[key][1]


def _fits(graph: gs.Graph, *weights: gs.Tensor) -> bool:
    """Whether weights are plain float32, the only type that these operators take."""
    return any(map(is_large, weights)) and all(
        is_plain(tensor, graph.opset)
        and require_constant(tensor, graph.opset).dtype == np.float32
        and np.isfinite(require_constant(tensor, graph.opset)).all()
        for tensor in weights
    )


def _replace_layer(graph: gs.Graph, layer: Layer, store: _IntegerWeights) -> None:
    node = layer.node
    made = gs.Node(QUANTIZED_LSTM.op, layer.name, dict(node.attrs), domain=MICROSOFT)
    made.attrs.pop("layout", None)  # 0 by now
    made.inputs = list(node.inputs)
    for name in ("W", "R"):
        parts = store(node.inputs[layer.slot(name)], True)
        for part, tensor in zip(("", "_scale", "_zero_point"), parts, strict=True):
            edit.set_input(made, QUANTIZED_LSTM.inputs.index(f"{name}{part}"), tensor)
    _put(graph, made, node)


def _replace_product(graph: gs.Graph, node: gs.Node, store: _IntegerWeights) -> bool:
    weight = node.inputs[1]
    usual = not node.attrs.get("transA", 0) and node.attrs.get("alpha", 1.0) == 1.0
    matrix = _fits(graph, weight) and require_constant(weight, graph.opset).ndim == 2
    if not usual or not matrix:
        return False
    turned = bool(node.attrs.get("transB", 0))
    outputs = require_constant(weight, graph.opset).shape[0 if turned else 1]
    bias = None
    if len(node.inputs) > 2 and node.inputs[2].name:
        value = constant_value(node.inputs[2], graph.opset)
        if value is None or node.attrs.get("beta", 1.0) != 1.0 or value.size != outputs:
            return False
        bias = edit.add_constant(graph, f"{node.inputs[2].name}_row", value.reshape(-1))
    inputs = [node.inputs[0], *store(weight, turned), *([] if bias is None else [bias])]
    made = gs.Node("DynamicQuantizeMatMul", node.name, inputs=inputs, domain=MICROSOFT)
    _put(graph, made, node)
    return True


def _put(graph: gs.Graph, made: gs.Node, node: gs.Node) -> None:
    """Replaces a node by another."""
    outputs = list(node.outputs)
    node.outputs.clear()
    made.outputs = outputs
    edit.insert_before(graph, made, before=node)
    edit.remove_node(graph, node)


QUANTIZE_FORMS = "int8, fp16 or bits=K with K from 2 to 8"

_FORMS: dict[str, tuple[Pass, ...]] = {
    "int8": (UseIntegerOperators(), QuantizeWeights(Bits(8))),
    "fp16": (QuantizeWeights(Float16()),),
    **{f"bits={count}": (QuantizeWeights(Bits(count)),) for count in range(2, 9)},
}
# Arithmetic broadcasts since this opset.
_LEAST_OPSET = 7


@dataclass(frozen=True)
class Quantize:
    """The stage that quantizes the pruned model."""

    name: str

    def __call__(self, document: Document, data: Calibration, progress: Progress) -> Document:
        """Quantizes in place.

        Raises:
            PruneError: nothing can be quantized, or the model's opset is too old.
        """
        where = f"--quantize={self.name}"
        if document.graph.opset < _LEAST_OPSET:
            raise PruneError(
                f"the model has opset {document.graph.opset}, but this needs {_LEAST_OPSET}",
                where=where,
                remedy="leave it out, or convert the model to a newer opset",
            )
        if not Pipeline(_FORMS[self.name])(document):
            raise PruneError(
                f"no weight of {LEAST} entries or more uses more bits than that",
                where=where,
                remedy="leave it out: the model is already quantized, or too small to benefit",
            )
        DropUnread()(document)
        return document


def read_quantize(value: object) -> Quantize:
    """Parses `--quantize`.

    Raises:
        PruneError: it has none of the forms.
    """
    text = re.sub(r"\s", "", value) if isinstance(value, str) else None
    if text not in _FORMS:
        raise PruneError(
            f"unknown format {value!r}", where="--quantize", remedy=f"give {QUANTIZE_FORMS}"
        )
    return Quantize(text)
