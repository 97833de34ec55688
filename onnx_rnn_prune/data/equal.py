"""The sizes that an operator takes only if they are equal, a rule for each kind of operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx

from onnx_rnn_prune.operators.recurrent import RECURRENT

# A number, or the name of a size that is open.
Size = int | str
Shape = tuple[Size, ...]
Shapes = Mapping[str, Shape]
Pairs = Iterator[tuple[Size, Size]]

_PRODUCTS = ("MatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
_ARITHMETIC = ("Add", "Div", "Max", "Mean", "Min", "Mod", "Mul", "Pow", "PRelu", "Sub", "Sum")
_COMPARING = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_LOGIC = ("And", "Or", "Where", "Xor")


def equal(node: onnx.NodeProto, shapes: Shapes) -> Pairs:
    """The sizes that a node takes only if they are equal."""
    rule = _RULES.get(node.op_type)
    if rule is not None:
        read = [shapes.get(name) if name else None for name in node.input]
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        yield from rule(read, attributes)


Read = Sequence[Shape | None]
Attributes = Mapping[str, object]


def _whole(attributes: Attributes, name: str, default: int) -> int:
    value = attributes.get(name, default)
    return value if isinstance(value, int) else default


def _at(read: Read, slot: int, rank: int = 1) -> Shape | None:
    """The shape of an input, if it is known and has at least so many axes."""
    shape = read[slot] if slot < len(read) else None
    return shape if shape is not None and len(shape) >= rank else None


def _recurrent(read: Read, attributes: Attributes, features: int = 2) -> Pairs:
    x, w, r, lengths = _at(read, 0, 3), _at(read, 1, 3), _at(read, 2, 3), _at(read, 4)
    states = [_at(read, slot, 3) for slot in (5, 6)]
    if x is not None and w is not None:
        yield x[2], w[features]
    for state in states:
        if state is not None and w is not None and r is not None:
            yield state[0], w[0]
            yield state[2], r[features]
        if state is not None and x is not None:
            yield state[1], x[1]
    if lengths is not None and x is not None:
        yield lengths[0], x[1]


def _quantized(read: Read, attributes: Attributes) -> Pairs:
    yield from _recurrent(read, attributes, features=1)


def _product(read: Read, attributes: Attributes) -> Pairs:
    a, b = _at(read, 0), _at(read, 1)
    if a is not None and b is not None:
        yield a[-1], b[-2] if len(b) > 1 else b[0]
        yield from _pairs(a[:-2], b[:-2])


def _gemm(read: Read, attributes: Attributes) -> Pairs:
    a, b = _at(read, 0, 2), _at(read, 1, 2)
    if a is not None and b is not None:
        yield a[1 - _whole(attributes, "transA", 0)], b[_whole(attributes, "transB", 0)]


def _convolution(read: Read, attributes: Attributes) -> Pairs:
    x, w = _at(read, 0, 2), _at(read, 1, 2)
    if x is not None and w is not None and isinstance(w[1], int):
        yield x[1], w[1] * _whole(attributes, "group", 1)


def _transposed(read: Read, attributes: Attributes) -> Pairs:
    x, w = _at(read, 0, 2), _at(read, 1, 2)
    if x is not None and w is not None:
        yield x[1], w[0]


def _channels(read: Read, attributes: Attributes) -> Pairs:
    x, scale = _at(read, 0, 2), _at(read, 1)
    if x is not None and scale is not None:
        yield x[1], scale[0]


def _concatenated(read: Read, attributes: Attributes) -> Pairs:
    known = [shape for shape in read if shape]
    for shape in known[1:]:
        axis = _whole(attributes, "axis", 0) % len(shape)
        if len(shape) == len(known[0]):
            yield from zip(*(s[:axis] + s[axis + 1 :] for s in (known[0], shape)), strict=True)


def _reversed(read: Read, attributes: Attributes) -> Pairs:
    x, lengths = _at(read, 0, 2), _at(read, 1)
    if x is not None and lengths is not None:
        yield lengths[0], x[_whole(attributes, "batch_axis", 1)]


def _broadcast(read: Read, attributes: Attributes) -> Pairs:
    known = [shape for shape in read if shape]
    for shape in known[1:]:
        yield from _pairs(known[0], shape)


def _pairs(one: Shape, other: Shape) -> Pairs:
    """Sizes that face each other once the axes are flush right; 1 goes with all."""
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if 1 not in (a, b):
            yield a, b


_RULES: Mapping[str, Callable[[Read, Attributes], Pairs]] = {
    **dict.fromkeys(RECURRENT, _recurrent),
    "DynamicQuantizeLSTM": _quantized,
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys((*_ARITHMETIC, *_COMPARING, *_LOGIC), _broadcast),
    "Gemm": _gemm,
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "ConvTranspose": _transposed,
    "BatchNormalization": _channels,
    "InstanceNormalization": _channels,
    "LayerNormalization": _broadcast,
    "Concat": _concatenated,
    "ReverseSequence": _reversed,
}
