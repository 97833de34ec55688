"""Integer weights with a scale and a zero point: reading and writing them.

A weight is (q - zero) * scale for integers q. Readers here see that number; writers find a new
scale and keep the zero point, the range of the integers and the number of scales. So a file does
not grow, and a range chosen for the sake of a processor is respected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import (
    constant_shape,
    constant_value,
    is_float,
    require_constant,
)
from onnx_rnn_prune.model.edit import (
    add_constant,
    fresh_name,
    insert_before,
    insert_node,
    remove_node,
    replace_constant,
    set_input,
)
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class _IntegerLayout:
    """Which inputs of an operator belong to an integer weight.

    Attributes:
        scale: the input with its scale; None if a multiplication behind the product applies it.
        zero: the input with its zero point.
        axes: the axes of the weight along which these two vary.
    """

    scale: int | None
    zero: int
    axes: tuple[int, ...]


_LAYOUTS: dict[tuple[str, int], _IntegerLayout] = {
    ("DynamicQuantizeLSTM", 1): _IntegerLayout(8, 9, (0, 2)),
    ("DynamicQuantizeLSTM", 2): _IntegerLayout(10, 11, (0, 2)),
    ("DynamicQuantizeMatMul", 1): _IntegerLayout(2, 3, (-1,)),
    ("MatMulInteger", 1): _IntegerLayout(None, 3, (-1,)),
    ("ConvInteger", 1): _IntegerLayout(None, 3, (0,)),
}
APART = tuple(op for (op, _), layout in _LAYOUTS.items() if layout.scale is None)
"""Products that put out integers: apart from them, behind, these become real numbers."""


# Operators of onnxruntime and ONNX that compute with integers of given scales: how many inputs come
# as a triple of integers, scale and zero point; the rest are scale and zero point of the output,
# and a bias. QLinearConcat has those of the output first.
_QLINEAR = {
    "QGemm": 2,
    "QLinearAdd": 2,
    "QLinearAveragePool": 1,
    "QLinearConv": 2,
    "QLinearGlobalAveragePool": 1,
    "QLinearLeakyRelu": 1,
    "QLinearMatMul": 2,
    "QLinearMul": 2,
    "QLinearSigmoid": 1,
}


@dataclass(frozen=True, eq=False)
class Scaled:
    """The nodes that dequantize an integer product, as onnxruntime's quantizer writes them.

    Attributes:
        product: the Mul by both scales, whose output is the real product.
        scales: the Mul that multiplies the two scales.
        weight: the input of `scales` that is the weight's scale, a constant.
        data: the scale of the data.
    """

    product: gs.Node
    scales: gs.Node
    weight: int
    data: gs.Tensor


@dataclass(frozen=True, eq=False)
class Integers:
    """An integer weight.

    Attributes:
        values: the integers.
        scale: broadcasts with them.
        zero: the integer that means 0; broadcasts with them.
    """

    values: Array
    scale: Array
    zero: Array

    def steps(self) -> Array:
        """The integers minus the zero point, as floats."""
        steps = self.values.astype(self._exact)
        steps -= self.zero.astype(self._exact)
        return steps

    def real(self) -> Array:
        """The dequantized weight."""
        steps = self.steps()
        steps *= self.scale
        return np.asarray(steps, dtype=self.scale.dtype)

    def holding(self, weight: Array) -> Integers:
        """Another weight in the same form; if it is equal, so are the integers.

        Values on a side where the zero point leaves no room are clipped.
        """
        lowest, highest = int(self.values.min()), int(self.values.max())
        if lowest == highest:
            lowest, highest = np.iinfo(self.values.dtype).min, np.iinfo(self.values.dtype).max
        padded = _padded(self.scale, self.values.ndim)
        shared = tuple(axis for axis, size in enumerate(padded.shape) if size == 1)
        zero = np.zeros(padded.shape) + _padded(self.zero.astype(np.float64), weight.ndim)
        zero = zero.max(shared, keepdims=True)
        most, least = weight.max(shared, keepdims=True), weight.min(shared, keepdims=True)
        above = most.clip(0) / np.where(highest > zero, highest - zero, np.inf)
        below = least.clip(None, 0) / np.where(lowest < zero, lowest - zero, np.inf)
        fresh = np.maximum(above, below)
        changed = np.any(weight != self.real(), axis=shared, keepdims=True) & (fresh > 0)
        scale = np.where(changed, fresh, padded).astype(padded.dtype).reshape(self.scale.shape)
        steps = weight / np.where(scale != 0, scale, 1).astype(self._exact)
        steps += self.zero.astype(steps.dtype)
        np.clip(np.rint(steps, out=steps), lowest, highest, out=steps)
        return Integers(steps.astype(self.values.dtype), scale, self.zero)

    @property
    def _exact(self) -> np.dtype[Any]:
        """A float type that represents all differences of integers exactly."""
        return np.dtype(np.float32 if self.values.dtype.itemsize == 1 else np.float64)


def integers_of(node: gs.Node, slot: int, opset: int | None = None) -> Integers | None:
    """The integer weight that a node reads, or None if it is no such weight."""
    layout = _LAYOUTS.get((node.op, slot))
    if layout is None:
        return None
    values = require_constant(node.inputs[slot], opset)
    zero = np.zeros((), values.dtype)
    if layout.zero < len(node.inputs) and node.inputs[layout.zero].name:
        zero = require_constant(node.inputs[layout.zero], opset)
    holder, position = _scale_place(node, layout)
    scale = require_constant(holder.inputs[position], opset)
    if node.op == "ConvInteger":  # laid out for the product, which it multiplies
        scale = scale.reshape(-1) if scale.size > 1 else scale.reshape(())
    return Integers(
        values, _aligned(scale, layout.axes, values.ndim), _aligned(zero, layout.axes, values.ndim)
    )


def holds_integers(node: gs.Node, slot: int, opset: int | None = None) -> bool:
    """Whether an input is an integer weight with a known dequantization."""
    layout = _LAYOUTS.get((node.op, slot))
    if layout is None or (layout.scale is None and scaled(node) is None):
        return False
    value = constant_value(node.inputs[slot], opset)
    return value is not None and not is_float(value.dtype)


def scale_and_zero(node: gs.Node, slot: int) -> tuple[gs.Tensor, int]:
    """The scale of an integer weight, and the input with its zero point."""
    layout = _LAYOUTS[node.op, slot]
    holder, position = _scale_place(node, layout)
    return holder.inputs[position], layout.zero


def weight_value(node: gs.Node, slot: int, opset: int | None = None) -> Array:
    """The weight at an input of a node, dequantized if necessary."""
    found = integers_of(node, slot, opset)
    return require_constant(node.inputs[slot], opset) if found is None else found.real()


def set_weight(graph: gs.Graph, node: gs.Node, slot: int, weight: Array) -> None:
    """Gives a node another weight, in the form of the present one."""
    before = integers_of(node, slot, graph.opset)
    if before is None:
        held = dequantized(node.inputs[slot], graph.opset)
        if held is None or held.values.dtype.itemsize > 1:  # floats take no more room
            replace_constant(graph, node, slot, weight)
        else:
            write_dequantized(graph, [(node, slot)], held.holding(weight))
        return
    after = before.holding(weight)
    holder, position = _scale_place(node, _LAYOUTS[node.op, slot])
    shape = require_constant(holder.inputs[position], graph.opset).shape
    replace_constant(graph, node, slot, after.values)
    replace_constant(graph, holder, position, after.scale.reshape(shape))


def dequantized(tensor: gs.Tensor, opset: int | None = None) -> Integers | None:
    """The integers behind a constant computed by DequantizeLinear, or None."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op != "DequantizeLinear" or node.attrs.get("block_size", 0):
        return None
    parts = [constant_value(item, opset) for item in node.inputs if item.name]
    if any(part is None for part in parts):
        return None
    values, scale = require_constant(node.inputs[0], opset), require_constant(node.inputs[1], opset)
    zero = parts[2] if len(parts) > 2 and parts[2] is not None else np.zeros((), values.dtype)
    axes = (int(node.attrs.get("axis", 1)),) if scale.size > 1 else ()
    aligned = [
        _aligned(part if axes else part.reshape(()), axes, values.ndim) for part in (scale, zero)
    ]
    return Integers(values, *aligned)


def write_dequantized(
    graph: gs.Graph, places: Sequence[tuple[gs.Node, int]], after: Integers
) -> None:
    """Gives inputs that read a DequantizeLinear of constants other integers."""
    tensor = places[0][0].inputs[places[0][1]]
    node = tensor.inputs[0]
    if len(tensor.outputs) > len(places) or any(tensor is item for item in graph.outputs):
        node = own_dequantize(graph, places)
        tensor = node.outputs[0]
    scalar = constant_shape(node.inputs[1])
    shape = () if after.scale.size == 1 and not scalar else (-1,)
    replace_constant(graph, node, 0, after.values)
    replace_constant(graph, node, 1, after.scale.reshape(shape))
    if len(node.inputs) > 2 and node.inputs[2].name:
        replace_constant(graph, node, 2, after.zero.reshape(shape))
    if tensor.shape is not None:
        tensor.shape = list(after.values.shape)


def own_dequantize(graph: gs.Graph, places: Sequence[tuple[gs.Node, int]]) -> gs.Node:
    """A separate DequantizeLinear for some readers of a shared one."""
    tensor = places[0][0].inputs[places[0][1]]
    node = tensor.inputs[0]
    result = gs.Variable(fresh_name(graph, f"{tensor.name}_cut"), dtype=tensor.dtype)
    made = gs.Node(node.op, result.name, dict(node.attrs), list(node.inputs), [result])
    insert_node(graph, made, after=node)
    for reader, slot in places:
        set_input(reader, slot, result)
    return made


def sums_integers(graph: gs.Graph) -> bool:
    """Whether some node sums integer products, or quantizes its input."""
    known = {op for op, _ in _LAYOUTS} | {"QuantizeLinear"}
    return any(node.op in known for node in all_nodes(graph))


def hold_unsigned(graph: gs.Graph) -> None:
    """Stores signed 8-bit weights as equivalent unsigned ones: (q + 128) - (z + 128).

    On x86 processors before VNNI, onnxruntime adds products of unsigned data and signed weights in
    16 bits, which overflow; the result depends on which products are neighbours. Its option against
    that does the same as this, but fails if nodes share a weight, and skips bodies.
    """
    made: dict[tuple[int, tuple[int, ...]], gs.Constant] = {}

    def unsigned(tensor: gs.Tensor | None, value: Array) -> gs.Constant:
        key = (id(tensor), value.shape)
        if key not in made:
            name = "zero_unsigned" if tensor is None else f"{tensor.name}_unsigned"
            shifted = (value.astype(np.int16) + 128).astype(np.uint8)
            made[key] = add_constant(graph, name, shifted)
        return made[key]

    for node in all_nodes(graph):
        for (op, slot), layout in _LAYOUTS.items():
            weight = constant_value(node.inputs[slot], graph.opset) if node.op == op else None
            if weight is None or weight.dtype != np.int8:
                continue
            given = layout.zero < len(node.inputs) and bool(node.inputs[layout.zero].name)
            tensor = node.inputs[layout.zero] if given else None
            lanes = weight.shape[:1] if len(layout.axes) > 1 else ()
            zero = np.zeros(lanes, np.int8) if tensor is None else constant_value(tensor)
            if zero is not None:
                set_input(node, slot, unsigned(node.inputs[slot], weight))
                set_input(node, layout.zero, unsigned(tensor, zero))


def make_real(graph: gs.Graph, node: gs.Node) -> bool:
    """Rewrites a QLinearConv or the like as the floating-point operator; whether it was one."""
    given, count = list(node.inputs), _QLINEAR.get(node.op, 0)
    if node.op == "QLinearConcat":
        given, count = [*given[2:], *given[:2]], len(given) // 3
    parts, rest = [given[3 * n : 3 * n + 3] for n in range(count)], given[3 * count :]
    known = all(constant_shape(tensor) is not None for part in parts for tensor in part[1:])
    if not parts or not known or node.attrs.get("channels_last", 0):
        return False
    first = node.op == "QLinearConv" or bool(node.attrs.get("transB", 0))
    bias = rest.pop(0 if node.op == "QGemm" else 2) if len(rest) > 2 else None
    operands = [_real(graph, node, part, 0 if first else -1) for part in parts]
    if bias is not None and bias.name:  # it has the scale of the sums
        one, other = (require_constant(part[1], graph.opset) for part in parts)
        product = (one * other).reshape(-1 if one.size * other.size > 1 else ())
        scale = add_constant(graph, f"{bias.name}_scale", product)
        operands.append(_real(graph, node, [bias, scale]))
    op, results = node.op.removeprefix("QLinear").removeprefix("Q"), list(node.outputs)
    node.outputs.clear()
    made = gs.Node(op, node.name, dict(node.attrs), operands, results)
    insert_before(graph, made, before=node)
    remove_node(graph, node)
    if rest and rest[0].name:
        _as_integers(graph, made, rest)
    return True


def move_real(graph: gs.Graph, node: gs.Node) -> None:
    """Makes a node that moves the integers of a QuantizeLinear move the real numbers instead."""
    maker = node.inputs[0].inputs[0] if node.inputs and node.inputs[0].inputs else None
    if maker is not None and maker.op == "QuantizeLinear":
        scale = maker.inputs[1:]
        node.inputs[0] = _real(graph, node, [node.inputs[0], *scale])
        _as_integers(graph, node, scale)


def _real(graph: gs.Graph, reader: gs.Node, part: list[gs.Tensor], axis: int = 0) -> gs.Tensor:
    """The dequantized input of a node; scales vary along `axis`."""
    result = gs.Variable(fresh_name(graph, f"{part[0].name}_real"), np.dtype(np.float32))
    lines = any(size > 1 for size in constant_shape(part[1]) or ())
    axes = {"axis": axis % len(constant_shape(part[0]) or (1,))} if lines else {}
    made = gs.Node("DequantizeLinear", result.name, axes, part, [result])
    insert_before(graph, made, before=reader)
    return result


def _as_integers(graph: gs.Graph, node: gs.Node, scale: list[gs.Tensor]) -> None:
    """Quantizes the outputs of a node."""
    for slot, output in enumerate(list(node.outputs)):
        if output.name:
            name = fresh_name(graph, f"{output.name}_real")
            node.name = node.name or output.name
            node.outputs[slot] = gs.Variable(name, np.dtype(np.float32))
            inputs = [node.outputs[slot], *scale]
            made = gs.Node("QuantizeLinear", f"{name}_rounded", {}, inputs, [output])
            insert_node(graph, made, after=node)


def scaled(node: gs.Node) -> Scaled | None:
    """How an integer product is dequantized, or None if in another form."""
    cast = _only_reader(node.outputs[0])
    product = None if cast is None or cast.op != "Cast" else _only_reader(cast.outputs[0])
    if cast is None or product is None or product.op != "Mul":
        return None
    other = product.inputs[1 if product.inputs[0] is cast.outputs[0] else 0]
    scales = other.inputs[0] if other.inputs else None
    if scales is None or scales.op != "Mul" or _only_reader(other) is None:
        return None
    for weight in (0, 1):
        data = scales.inputs[1 - weight]
        made = data.inputs[0] if data.inputs else None
        constant = constant_value(scales.inputs[weight]) is not None
        if constant and made is not None and made.op == "DynamicQuantizeLinear":
            return Scaled(product, scales, weight, data)
    return None


def product_of(node: gs.Node) -> gs.Node:
    """The node that outputs the real product of a node's data and weight."""
    if node.op not in APART:
        return node
    found = scaled(node)
    assert found is not None, "the trace follows units to no other form"
    return found.product


def _scale_place(node: gs.Node, layout: _IntegerLayout) -> tuple[gs.Node, int]:
    if layout.scale is not None:
        return node, layout.scale
    found = scaled(node)
    assert found is not None, "the trace follows units to no other form"
    return found.scales, found.weight


def _only_reader(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.outputs[0] if len(tensor.outputs) == 1 else None


def _aligned(value: Array, axes: tuple[int, ...], rank: int) -> Array:
    """A scale or zero point reshaped to broadcast with its weight."""
    if value.ndim > len(axes):
        return value
    shape = [1] * rank
    for axis, size in zip(axes, value.shape, strict=False):
        shape[axis] = size
    return value.reshape(shape)


def _padded(value: Array, rank: int) -> Array:
    return value.reshape((1,) * (rank - value.ndim) + value.shape)
