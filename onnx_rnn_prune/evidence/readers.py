"""Readers of units: their signals and weights, and where a constant can be added.

A reader computes `weight @ signal + bias` for a signal some of whose entries are units. Criteria
judge units by its weight; recovery writes a new weight and bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.model.constants import constant_shape, constant_value, require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import replace_constant
from onnx_rnn_prune.model.integers import APART, product_of, scaled, set_weight, weight_value
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.operators.feed_forward import CONVOLUTIONS, all_layers
from onnx_rnn_prune.operators.labels import NOBODY, Labels
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.trace.propagation import Binding


@dataclass(frozen=True, eq=False)
class Lookup:
    """An index of a document's nodes and layers for readers.

    Stays valid while only constants change, not nodes.

    Attributes:
        graph: the document's graph.
        nodes: by key.
        layers: by name.
        copies: constants that were changed, by `id`.
    """

    graph: gs.Graph
    nodes: Mapping[str, gs.Node]
    layers: Mapping[str, Layer]
    copies: dict[int, Array] = field(default_factory=dict)

    @staticmethod
    def of(document: Document) -> Lookup:
        """Indexes a document."""
        graph = document.graph
        return Lookup(
            graph, nodes_by_key(graph), {layer.name: layer for layer in all_layers(graph)}
        )

    def own(self, value: Array) -> Array:
        """A private copy of an array, to write into; the same one each time."""
        if self.copies.get(id(value)) is not value:
            value = value.copy()
            self.copies[id(value)] = value
        return value


STACKED = ("MatMul", "MatMulInteger")
"""Products whose weight may be a stack of matrices."""

Taps = Mapping[str, Array]

# Positions sampled per call of a convolution: _SAMPLES per entry, but at least _ROWS; further ones
# mostly show the same.
_SAMPLES, _ROWS = 8, 2500
# Channels times taps that are fitted together at most, as time grows with the cube.
_JOINT = 640

Lines = Callable[[npt.NDArray[np.intp]], Array]

Place = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]
"""Row and column indices of a submatrix, as for `numpy.ix_`."""


class Reader(Protocol):
    """A matrix product that units enter."""

    @property
    def name(self) -> str:
        """Unique among the readers of a graph."""

    @property
    def pool(self) -> str:
        """Readers with the same pool share weights (at other places or steps) and one fit."""

    @property
    def labels(self) -> Labels:
        """The unit behind each entry of the signal, shape [n]."""

    def source(self, lookup: Lookup) -> str:
        """The input tensor: X of a layer, the data of another product."""

    def taps(self, lookup: Lookup) -> list[str]:
        """The tensors that `signal` needs, Y of a layer among them."""

    def signal(self, lookup: Lookup, taps: Taps) -> Array:
        """The signal, one row per product, shape [N, n]."""

    def emphasis(self, lookup: Lookup, taps: Taps) -> Matrix:
        """How much the square of an error in each output matters, [outputs]."""

    def importance(self, lookup: Lookup, taps: Taps, emphasis: Matrix) -> Matrix | None:
        """How much squared errors in each sample matter, over all outputs, [N].

        None if all samples matter the same.

        Args:
            lookup: index of the document that ran.
            taps: tapped tensors of one run.
            emphasis: of the outputs, [outputs]; each output counts relative to its own.
        """

    @property
    def places(self) -> bool:
        """Whether it brings a state to full width for callers who only hand it back."""

    def outputs(self, lookup: Lookup) -> Labels:
        """The unit behind each output, shape [outputs]."""

    def widths(self, lookup: Lookup) -> tuple[int, ...]:
        """Widths of the signals laid side by side in the reader's signal; they add up to n."""

    def weight(self, lookup: Lookup) -> Array:
        """[outputs, n], as the model holds it."""

    def lines(self, lookup: Lookup) -> Lines:
        """A function that returns the weight's rows of given outputs, [rows, n]."""

    def store(self, lookup: Lookup, place: Place, weight: Array, bias: Array) -> None:
        """Writes a part of the weight, and adds to the bias of its rows, [rows]."""


@dataclass(frozen=True, eq=False)
class ProductReader:
    """A MatMul, Gemm or convolution whose constant weight is contracted with units.

    Attributes:
        binding: the weight's binding.
        part: index of the matrix in a stack of weights, or of the group; 0 if there is one.
        op: the operator.
        twin: the first node that reads the same weight in the same way.
        places: whether it brings a state to full width for callers who only hand it back.
        lane: the units that it makes if it is a layer, [H].
        parts: number of matrices in the stack.
        kernel: number of taps that are entries of the signal; 1 if each tap has outputs of its own,
            fitted from a single position of the signal.
    """

    binding: Binding
    part: int
    op: str
    twin: str
    places: bool = False
    lane: Labels | None = None
    parts: int = 1
    kernel: int = 1

    @property
    def name(self) -> str:
        return f"{self.binding.node}#{self.part}"

    @property
    def pool(self) -> str:
        joint = f"x{self.kernel}" if self.kernel > 1 else ""
        return f"{self.twin}#{self.part}{joint}"

    @cached_property
    def labels(self) -> Labels:
        bound = self.binding.bound
        lines = np.moveaxis(bound.labels, bound.axis, -1)
        lines = lines.reshape(-1, lines.shape[-1])
        if self.op in CONVOLUTIONS:  # a line for each output, several in each group
            return np.repeat(lines[self.part * (len(lines) // self.parts)], self.kernel)
        return np.asarray(lines[self.part if len(lines) > 1 else 0])

    def source(self, lookup: Lookup) -> str:
        return str(self._data(lookup).name)

    def taps(self, lookup: Lookup) -> list[str]:
        node = self._node(lookup)
        names = [self.source(lookup)]
        if self.op in APART:
            names += [tensor.name for tensor in _meaning(node)]
        return names

    def signal(self, lookup: Lookup, taps: Taps) -> Array:
        node = self._node(lookup)
        value = taps[self._data(lookup).name]
        if self.op in APART:
            zero, scale = (taps[tensor.name] for tensor in _meaning(node))
            value = (value.astype(np.int32) - zero) * scale
        value = np.moveaxis(value, _data_axis(node, self.binding.bound.reads), -1)
        slot = self.binding.bound.slot
        batch = (constant_shape(node.inputs[slot]) or ())[:-2] if self.op in STACKED else ()
        if np.prod(batch, dtype=int) > 1:
            batch_axes = value.ndim - 2 - len(batch)
            full = np.broadcast_to(value, (*value.shape[:batch_axes], *batch, *value.shape[-2:]))
            stacked = full.reshape(-1, int(np.prod(batch)), *value.shape[-2:])
            value = stacked[:, self.part]
        if self.op in CONVOLUTIONS:
            return self._sampled(node, np.split(value, self.parts, axis=-1)[self.part], lookup)
        return value.reshape(-1, value.shape[-1])

    def _sampled(self, node: gs.Node, value: Array, lookup: Lookup) -> Array:
        """Channels [..., n], or patches of them, at a sample of positions."""
        shape = self._shape(lookup)[2:] if self.kernel > 1 else (1,) * (value.ndim - 2)
        views = patches(node, value, shape) if self.kernel > 1 else value
        places = views.shape[: value.ndim - 1]
        count, most = math.prod(places), max(_ROWS, _SAMPLES * len(self.labels))
        if count <= most:
            return views.reshape(count, -1)
        chosen = np.random.default_rng(count).choice(count, most, replace=False)
        return np.asarray(views[np.unravel_index(np.sort(chosen), places)]).reshape(most, -1)

    def emphasis(self, lookup: Lookup, taps: Taps) -> Matrix:
        return np.ones(self._rows(lookup))

    def importance(self, lookup: Lookup, taps: Taps, emphasis: Matrix) -> None:
        return None

    def outputs(self, lookup: Lookup) -> Labels:
        rows, own = self._rows(lookup), self.lane
        if own is None:
            return np.full(rows, NOBODY, dtype=np.int64)
        own = np.split(own, self.parts)[self.part] if self.op in CONVOLUTIONS else own
        return np.repeat(own, rows // len(own))

    def widths(self, lookup: Lookup) -> tuple[int, ...]:
        return (self.weight(lookup).shape[1],)

    def weight(self, lookup: Lookup) -> Array:
        return np.asarray(self._stack(lookup)[self.part])

    def lines(self, lookup: Lookup) -> Lines:
        weight = self.weight(lookup)
        return lambda rows: np.asarray(weight[rows])

    def store(self, lookup: Lookup, place: Place, weight: Array, bias: Array) -> None:
        node, slot, before = self._node(lookup), self.binding.bound.slot, self._weight(lookup)
        axis, out = self._axis(lookup), self._out(lookup)
        stack = self._stack(lookup).copy()
        stack[self.part][np.ix_(*place)] = weight
        joint = self.kernel > 1
        value = stack.reshape(before.shape) if joint else _from_matrix(stack, before, axis, out)
        set_weight(lookup.graph, node, slot, value)
        if np.any(bias):
            total = np.zeros(stack.shape[1], before.dtype)
            total[place[0]] = bias
            _BIAS[self.op](lookup.graph, self, node, total)

    def _stack(self, lookup: Lookup) -> Array:
        """The weight as [stack, outputs, n]; taps that are not entries count as outputs."""
        weight, axis, out = self._weight(lookup), self._axis(lookup), self._out(lookup)
        if self.kernel > 1:
            return weight.reshape(self.parts, len(weight) // self.parts, -1)
        if weight.ndim == 2 or 0 in (axis, out):  # a matrix, or kernels
            moved = np.moveaxis(weight, (out, axis), (0, -1))
            return moved.reshape(groups_of(self._node(lookup)), -1, weight.shape[axis])
        moved = np.moveaxis(weight, (out, axis), (-2, -1))
        return moved.reshape(-1, weight.shape[out], weight.shape[axis])

    def _node(self, lookup: Lookup) -> gs.Node:
        return lookup.nodes[self.binding.node]

    def _data(self, lookup: Lookup) -> gs.Tensor:
        assert self.binding.bound.reads is not None
        return self._node(lookup).inputs[self.binding.bound.reads]

    def _weight(self, lookup: Lookup) -> Array:
        slot = self.binding.bound.slot
        return weight_value(self._node(lookup), slot, lookup.graph.opset)

    def _shape(self, lookup: Lookup) -> tuple[int, ...]:
        """The shape of the weight as stored."""
        shape = constant_shape(self._node(lookup).inputs[self.binding.bound.slot])
        assert shape is not None
        return shape

    def _rows(self, lookup: Lookup) -> int:
        """The number of outputs of each matrix in the stack."""
        shape, axis, out = self._shape(lookup), self._axis(lookup), self._out(lookup)
        if self.kernel > 1:
            return shape[0] // self.parts
        one = len(shape) == 2 or 0 in (axis, out)
        matrices = groups_of(self._node(lookup)) if one else math.prod(shape[:-2])
        return math.prod(shape) // (matrices * shape[axis])

    def _axis(self, lookup: Lookup) -> int:
        return self.binding.bound.axis % len(self._shape(lookup))

    def _out(self, lookup: Lookup) -> int:
        """The axis of the weight that becomes the output's."""
        rank = len(self._shape(lookup))
        if self.op.startswith("Conv"):
            return 1 - self._axis(lookup)
        return 2 * rank - 3 - self._axis(lookup)


def patches(node: gs.Node, value: Array, kernel: tuple[int, ...]) -> Array:
    """The input patches of a convolution at each position, with zero padding; a view.

    Args:
        node: the convolution.
        value: [batch, ..., channels].
        kernel: its shape.

    Returns:
        [batch, ..., channels, *kernel].
    """
    rank = len(kernel)
    pads = node.attrs.get("pads", [0] * 2 * rank)
    dilations = node.attrs.get("dilations", [1] * rank)
    sides = [(0, 0), *zip(pads[:rank], pads[rank:], strict=True), (0, 0)]
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    axes = tuple(range(1, 1 + rank))
    views = np.lib.stride_tricks.sliding_window_view(np.pad(value, sides), spans, axes)
    strides = node.attrs.get("strides", [1] * rank)
    steps = [*(slice(None, None, step) for step in strides), slice(None)]
    return views[(slice(None), *steps, *(slice(None, None, step) for step in dilations))]


def joint_taps(node: gs.Node, shape: Sequence[int]) -> int:
    """The number of taps of a kernel to fit together, by its weight's shape; 1 if that is slow."""
    fixed = node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID", b"NOTSET", b"VALID")
    taps = math.prod(shape[2:])
    return taps if node.op in CONVOLUTIONS and fixed and shape[1] * taps <= _JOINT else 1


def groups_of(node: gs.Node) -> int:
    """The number of groups of a convolution."""
    return int(node.attrs.get("group", 1)) if node.op in CONVOLUTIONS else 1


def _meaning(node: gs.Node) -> tuple[gs.Tensor, gs.Tensor]:
    """The zero point and the scale of the integers that a product reads."""
    found = scaled(node)
    assert found is not None
    made = found.data.inputs[0]
    return made.outputs[2], found.data


def _data_axis(node: gs.Node, slot: int | None) -> int:
    if node.op.startswith("Conv"):
        return 1
    if node.op == "Gemm":
        return 0 if node.attrs.get("transA", 0) else 1
    return -1 if slot == 0 else -2


def _from_matrix(stack: Array, like: Array, axis: int, out: int) -> Array:
    if like.ndim == 2 or 0 in (axis, out):
        taps = [size for place, size in enumerate(like.shape) if place not in (axis, out)]
        full = stack.reshape(like.shape[out], *taps, like.shape[axis])
        return _like(np.moveaxis(full, (0, -1), (out, axis)), like)
    batch = like.shape[:-2]
    shaped = stack.reshape(*batch, like.shape[out], like.shape[axis])
    return _like(np.moveaxis(shaped, (-2, -1), (out, axis)), like)


def bias_slot(node: gs.Node) -> int | None:
    """The slot of the constant of an Add right after a product, or None."""
    result = node.outputs[0]
    follower = result.outputs[0] if len(result.outputs) == 1 else None
    if follower is None or follower.op != "Add":
        return None
    slot = 1 if follower.inputs[0] is result else 0
    return None if constant_value(follower.inputs[slot]) is None else slot


def _add_behind(graph: gs.Graph, reader: ProductReader, node: gs.Node, bias: Array) -> None:
    """Adds a bias to the constant of the Add after the product."""
    product = product_of(node)
    slot = bias_slot(product)
    assert slot is not None, "prepare makes room for a bias"
    follower = product.outputs[0].outputs[0]
    present = require_constant(follower.inputs[slot], graph.opset)
    weight = require_constant(node.inputs[reader.binding.bound.slot], graph.opset)
    value = np.zeros(bias_shape(node, weight, reader.binding.bound.slot), bias.dtype)
    if node.op in CONVOLUTIONS:  # taps that are outputs add up, see `_add_to_conv`
        bias = bias.reshape(len(value) // reader.parts, -1).sum(axis=1)
    value.reshape(-1, len(bias))[reader.part] = bias
    replace_constant(graph, follower, slot, _like(present + value, bias))


def bias_shape(node: gs.Node, weight: Array, slot: int) -> tuple[int, ...]:
    """The shape of a bias added after a product, for each output of each matrix in the stack."""
    if node.op in CONVOLUTIONS:
        return (len(weight), *[1] * (weight.ndim - 2))
    if slot == 0:  # W x: outputs lie on the rows
        return (*weight.shape[:-1], 1)
    batch = weight.shape[:-2]
    return (*batch, 1, weight.shape[-1]) if batch else (weight.shape[-1],)


def _add_to_gemm(graph: gs.Graph, reader: ProductReader, node: gs.Node, bias: Array) -> None:
    alpha = float(node.attrs.get("alpha", 1.0))
    if has_bias_input(node, 2):
        beta = float(node.attrs.get("beta", 1.0))
        present = require_constant(node.inputs[2], graph.opset)
        total = present + bias * (alpha / beta)
        replace_constant(graph, node, 2, _like(total, bias))
    else:
        _add_behind(graph, reader, node, _like(bias * alpha, bias))


def _add_to_conv(graph: gs.Graph, reader: ProductReader, node: gs.Node, bias: Array) -> None:
    """Sums over taps that are outputs: a constant adds the same everywhere but at padded borders.

    With strides, a position of a transposed convolution gets only some of the taps: their mean.
    """
    present = require_constant(node.inputs[2], graph.opset)
    value = np.zeros((reader.parts, present.size // reader.parts), bias.dtype)
    value[reader.part] = bias.reshape(value.shape[1], -1).sum(axis=1)
    if node.op == "ConvTranspose":
        value = value / np.prod(node.attrs.get("strides", 1))
    replace_constant(graph, node, 2, _like(present + value.reshape(-1), bias))


def _add_to_last(graph: gs.Graph, _: ProductReader, node: gs.Node, bias: Array) -> None:
    present = require_constant(node.inputs[4], graph.opset)
    replace_constant(graph, node, 4, _like(present + bias, bias))


def has_bias_input(node: gs.Node, slot: int) -> bool:
    """Whether a Gemm or Conv has a constant bias that takes effect."""
    if slot >= len(node.inputs) or constant_value(node.inputs[slot]) is None:
        return False
    return float(node.attrs.get("beta", 1.0)) != 0.0


def _like(value: Array, other: Array) -> Array:
    return np.asarray(value, dtype=other.dtype)


_BIAS: dict[str, Callable[[gs.Graph, ProductReader, gs.Node, Array], None]] = {
    "MatMul": _add_behind,
    "Gemm": _add_to_gemm,
    "Conv": _add_to_conv,
    "ConvTranspose": _add_to_conv,
    **dict.fromkeys(APART, _add_behind),
    "DynamicQuantizeMatMul": _add_to_last,
}
