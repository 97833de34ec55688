"""Weights held in narrower numbers, of which operators make real ones again when a model loads.

The file becomes smaller, and nothing else changes: all is computed in the type that it was computed
in, and just as fast. For that, a weight is unpacked by Cast, Mul, Floor, Sub and Concat, which
onnxruntime computes once, while it loads a model, in any opset. DequantizeLinear it computes in
every run, which makes a recurrent layer that is called step by step take twice as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_shape, require_constant, storage_type
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import HELD, add_constant, fresh_name, set_input
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes

LEAST = 1 << 10
"""Smaller weights stay as they are: the operators that unpack one take some hundred bytes."""

# Which inputs are weights, and along which of their axes the outputs lie, which have a scale each.
# Both directions of a layer have outputs of their own.
_CHANNELS: Mapping[tuple[str, int], tuple[int, ...]] = {
    **{(op, slot): (0, 1) for op in ("LSTM", "GRU", "RNN") for slot in (1, 2)},
    ("Conv", 1): (0,),
    ("ConvTranspose", 1): (1,),
    ("Gather", 0): (0,),
    ("Gemm", 1): (1,),
    ("MatMul", 0): (-2,),
    ("MatMul", 1): (-1,),
}


class Form(Protocol):
    """A way to hold a weight."""

    def __call__(self, value: Array, channels: tuple[int, ...], unpack: Unpack) -> gs.Tensor | None:
        """Writes a weight down; returns what it is made of again, or None where it does not fit.

        Args:
            value: the weight.
            channels: its axes of outputs.
            unpack: makes the nodes.
        """


@dataclass(frozen=True)
class Half:
    """In float16: 11 significant bits."""

    def __call__(self, value: Array, channels: tuple[int, ...], unpack: Unpack) -> gs.Tensor | None:
        with np.errstate(over="ignore"):
            stored = value.astype(np.float16)
        if value.dtype.itemsize <= 2 or not np.array_equal(np.isfinite(stored), np.isfinite(value)):
            return None
        return unpack.real(stored)


@dataclass(frozen=True)
class Bits:
    """In integers of so many bits times a scale for each output: |w - w'| <= scale / 2.

    The integers lie evenly on both sides of 0, so that what is 0 stays so. Two, or four, share a
    byte where they fit and some axis can be cut in so many parts.

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
        """The digits of numbers, the highest first, laid behind each other."""
        base = 1 << self.count
        parts = []
        for _ in range(digits - 1):
            higher = unpack("Floor", unpack("Mul", packed, unpack.number(1 / base)))
            parts.append(unpack("Sub", packed, unpack("Mul", higher, unpack.number(base))))
            packed = higher
        return unpack("Concat", packed, *reversed(parts), attributes={"axis": axis})


@dataclass(frozen=True)
class HoldWeights:
    """Holds the weights of layers, products, convolutions and tables in another form."""

    form: Form

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
                    set_input(node, slot, held)
                changed = True
        return changed


class Unpack:
    """Makes nodes that turn what is stored into a weight; who uses them puts them into the graph.

    Args:
        graph: for names that it does not have.
        name: of the weight.
        dtype: of the weight.
    """

    def __init__(self, graph: gs.Graph, name: str, dtype: np.dtype[Any]) -> None:
        self._graph, self._dtype = graph, dtype
        self._name = fresh_name(graph, f"{HELD}{name}")
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
        """Stored as it is."""
        return add_constant(self._graph, self._fresh(), value)

    def number(self, value: float) -> gs.Constant:
        """One number in the type of the weight."""
        return self.constant(np.asarray(value, self._dtype))

    def real(self, stored: Array) -> gs.Tensor:
        """Numbers of another type as ones of the weight's."""
        kind = onnx.helper.np_dtype_to_tensor_dtype(self._dtype)
        return self("Cast", self.constant(stored), attributes={"to": kind})

    def _fresh(self) -> str:
        self._made += 1
        return f"{self._name}/{self._made}"


def scale_of(value: Array, channels: tuple[int, ...], bits: int) -> Array:
    """What one step of integers of so many bits is worth; broadcasts with the weight."""
    kept = {axis % value.ndim for axis in channels}
    summed = tuple(axis for axis in range(value.ndim) if axis not in kept)
    largest = np.abs(value).max(axis=summed, keepdims=True)
    steps = (1 << (bits - 1)) - 1
    return np.asarray(np.where(largest > 0, largest, 1) / steps, dtype=value.dtype)


def is_large(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant that is worth holding in another form."""
    shape = constant_shape(tensor)
    return shape is not None and len(shape) > 1 and int(np.prod(shape)) >= LEAST


def is_plain(tensor: gs.Tensor, opset: int) -> bool:
    """Whether a constant is in floats, which are not held in narrower numbers yet."""
    narrow = storage_type(tensor) is not None or _is_computed_from_integers(tensor)
    return not narrow and require_constant(tensor, opset).dtype.kind == "f"


def _is_computed_from_integers(tensor: gs.Tensor) -> bool:
    waiting = [tensor]
    while waiting:
        for node in waiting.pop().inputs:
            if node.op == "DequantizeLinear" or node.name.startswith(HELD):
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
