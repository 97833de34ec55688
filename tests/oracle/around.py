"""Models with dense layers and convolutions around a recurrent one, at random."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from models import Builder, Value
from oracle.layers import draw_layer
from oracle.merges import merge_last, merge_steps

Block = Callable[[Builder, Value], Value]


def draw_around(seed: int) -> Builder:
    """The model of a number: blocks, a recurrent layer or none, blocks, and a last product."""
    rng = random.Random(seed)
    # onnxruntime rounds products with integers otherwise once it rewrites them.
    b = Builder(rng, rng.choice([9, 11, 13, 17, 21]), integers=False)
    if rng.random() < 0.4:
        features = _image(b)
    else:
        features = b.feed("x", "T", "B", rng.randint(2, 6))
        features = _blocks(b, features, rng.randint(1, 3))
    if rng.random() < 0.8:
        layer = draw_layer(b, features, wanted=("Y",))
        features = (merge_last if rng.random() < 0.2 else merge_steps)(b, layer)
    features = _blocks(b, features, rng.randint(0, 3))
    width = rng.randint(1, 3)
    product = Value(b.op("MatMul", features, b.weight(b.numbers(features.width, width))), ())
    b.output(Value(product.name, (*features.shape[:-1], width)))
    return b


def _blocks(b: Builder, x: Value, count: int) -> Value:
    for _ in range(count):
        blocks = SEQUENCES if len(x.shape) == 3 else ROWS
        block = b.rng.choice(blocks)
        b.used.append(block.__name__)
        x = block(b, x)
    return x


def activation(b: Builder, x: Value) -> Value:
    """One operator, several that exporters write, or none."""
    kind = b.rng.choice(
        ["Relu", "Sigmoid", "Tanh", "none", "swish", "gelu", "PRelu", "Clip", "root"]
    )
    if kind == "none":
        return x
    if kind == "swish":
        return b.like("Mul", x, b.like("Sigmoid", x))
    if kind == "gelu":
        inner = b.like("Erf", b.like("Div", x, b.const(np.float32(1.4142135))))
        return b.like("Mul", x, b.like("Add", inner, b.const(np.float32(1.0))))
    if kind == "root":
        return b.like("Sqrt", b.like("Abs", x))
    if kind == "PRelu":
        slopes = b.numbers(*[1] * (len(x.shape) - 1), x.width)
        return b.like("PRelu", x, b.const(slopes))
    if kind == "Clip":
        limits = [b.const(np.float32(n)) for n in (0.0, 6.0)]
        return b.like("Clip", x, *limits) if b.opset >= 11 else b.like("Clip", x, min=0.0, max=6.0)
    return b.like(kind, x)


def dense(b: Builder, x: Value) -> Value:
    """A product, a bias behind it, and an activation."""
    return activation(b, _product(b, x, b.rng.randint(2, 7)))


def _product(b: Builder, x: Value, width: int) -> Value:
    product = Value(b.op("MatMul", x, b.weight(b.numbers(x.width, width))), (*x.shape[:-1], width))
    if b.rng.random() < 0.7:
        terms = [product, b.const(b.numbers(width))]
        b.rng.shuffle(terms)
        product = Value(b.op("Add", *terms), product.shape)
    return product


def gemm_rows(b: Builder, x: Value) -> Value:
    """Of rows only, with all that Gemm can be told."""
    width, attrs = b.rng.randint(2, 7), {}
    weight = b.numbers(x.width, width)
    if b.rng.random() < 0.5:
        attrs["transB"], weight = 1, weight.T.copy()
    for name in ("alpha", "beta"):
        if b.rng.random() < 0.3:
            attrs[name] = 0.7
    inputs = [x, b.weight(weight)]
    if b.opset < 11 or b.rng.random() < 0.7:
        inputs.append(b.const(b.numbers(*b.rng.choice([(width,), (1, width), (1,)]))))
    return activation(b, Value(b.op("Gemm", *inputs, **attrs), (x.shape[0], width)))


def columns(b: Builder, x: Value) -> Value:
    """W x on turned steps, and back."""
    width = b.rng.randint(2, 6)
    turned = b.transpose(x, 1, 2, 0)
    made = Value(
        b.op("MatMul", b.weight(b.numbers(width, x.width)), turned), (x.shape[1], width, x.shape[0])
    )
    return b.transpose(b.like("Relu", made), 2, 0, 1)


def residual(b: Builder, x: Value) -> Value:
    """Something is added to what it was made of."""
    inner = activation(b, _product(b, x, b.rng.randint(2, 5)))
    return b.like("Add", x, _product(b, inner, x.width))


def beside(b: Builder, x: Value) -> Value:
    """Two products side by side."""
    left, right = (activation(b, _product(b, x, b.rng.randint(2, 4))) for _ in range(2))
    width = left.width + right.width
    return Value(b.op("Concat", left, right, axis=len(x.shape) - 1), (*x.shape[:-1], width))


def gated(b: Builder, x: Value) -> Value:
    """One product times the sigmoid of another."""
    width = b.rng.randint(2, 5)
    return b.like("Mul", _product(b, x, width), b.like("Sigmoid", _product(b, x, width)))


def halved(b: Builder, x: Value) -> Value:
    """A gated linear unit: one half of a product times the sigmoid of the other."""
    width = b.rng.randint(2, 4)
    made = _product(b, x, 2 * width)
    axis = len(x.shape) - 1
    if b.rng.random() < 0.5:
        left, right = b.split(made, axis, width, width)
    else:
        left, right = (b.slice(made, axis, n * width, (n + 1) * width) for n in range(2))
    return b.like("Mul", left, b.like("Sigmoid", right))


def steps_conv(b: Builder, x: Value) -> Value:
    """A convolution over time, perhaps depthwise, between products."""
    turned = b.transpose(x, 1, 2, 0)
    if b.rng.random() < 0.4:
        kernel = [turned, b.weight(b.numbers(x.width, 1, 3))]
        turned = b.like("Conv", turned, *kernel[1:], pads=[1, 1], group=x.width)
    width = b.rng.randint(2, 6)
    inputs = [turned, b.weight(b.numbers(width, x.width, 3))]
    if b.rng.random() < 0.5:
        inputs.append(b.const(b.numbers(width)))
    made = Value(b.op("Conv", *inputs, pads=[1, 1]), (x.shape[1], width, x.shape[0]))
    return b.transpose(activation_of_channels(b, made), 2, 0, 1)


def activation_of_channels(b: Builder, x: Value) -> Value:
    """With channels on the second axis."""
    channels = x.shape[1]
    assert isinstance(channels, int)
    kind = b.rng.choice(["Relu", "BatchNormalization", "swish", "PRelu", "InstanceNormalization"])
    if kind == "swish":
        return b.like("Mul", x, b.like("Sigmoid", x))
    if kind == "PRelu":
        places = [1] * (len(x.shape) - 2)
        return b.like("PRelu", x, b.const(b.numbers(channels, *places)))
    if kind == "BatchNormalization":
        scale, shift, mean = (b.const(b.numbers(channels)) for _ in range(3))
        return b.like(kind, x, scale, shift, mean, b.const(np.abs(b.numbers(channels)) + 0.1))
    if kind == "InstanceNormalization" and isinstance(x.shape[-1], int):
        return b.like(kind, x, b.const(b.numbers(channels)), b.const(b.numbers(channels)))
    return b.like("Relu", x)


def _image(b: Builder) -> Value:
    """Convolutions over an image of 8 rows and T columns, which are steps in the end."""
    x = b.feed("x", "B", b.rng.randint(1, 3), 8, 10)
    for _ in range(b.rng.randint(1, 3)):
        x = b.rng.choice(IMAGES)(b, x)
    batch, channels, rows, steps = x.shape
    assert isinstance(channels, int) and isinstance(rows, int)
    turned = b.transpose(x, 3, 0, 1, 2)
    return b.reshape(turned, b.ints(0, 0, channels * rows), steps, batch, channels * rows)


def _conv(b: Builder, x: Value, width: int, size: int, op: str = "Conv", **attrs: object) -> Value:
    batch, channels, rows, steps = x.shape
    assert isinstance(channels, int) and isinstance(rows, int) and isinstance(steps, int)
    kernels = (channels, width) if op == "ConvTranspose" else (width, channels)
    inputs = [x, b.weight(b.numbers(*kernels, size, size, scale=0.4))]
    if b.rng.random() < 0.6:
        inputs.append(b.const(b.numbers(width)))
    edge = size // 2
    return Value(b.op(op, *inputs, pads=[edge] * 4, **attrs), (batch, width, rows, steps))


def plain(b: Builder, x: Value) -> Value:
    """A convolution and what stands behind it."""
    return activation_of_channels(b, _conv(b, x, b.rng.randint(2, 5), b.rng.choice([1, 3])))


def transposed(b: Builder, x: Value) -> Value:
    """Of stride 1, so that the size stays."""
    return activation_of_channels(b, _conv(b, x, b.rng.randint(2, 5), 3, "ConvTranspose"))


def separable(b: Builder, x: Value) -> Value:
    """Each channel by itself, one or two from each, then all of them mixed."""
    made = b.like("Relu", _conv(b, x, b.rng.randint(2, 4), 1))
    batch, channels, rows, steps = made.shape
    assert isinstance(channels, int)
    times = b.rng.choice([1, 2])
    inputs = [made, b.weight(b.numbers(channels * times, 1, 3, 3))]
    if b.rng.random() < 0.5:
        inputs.append(b.const(b.numbers(channels * times)))
    name = b.op("Conv", *inputs, pads=[1] * 4, group=channels)
    made = activation_of_channels(b, Value(name, (batch, channels * times, rows, steps)))
    return _conv(b, made, b.rng.randint(2, 5), 1)


def excited(b: Builder, x: Value) -> Value:
    """Channels times what the means of all of them say."""
    made = _conv(b, x, b.rng.randint(3, 5), 3)
    width = made.shape[1]
    assert isinstance(width, int)
    mean = Value(b.op("GlobalAveragePool", made), (*made.shape[:2], 1, 1))
    inner = b.like("Relu", _conv(b, mean, 2, 1))
    return b.like("Mul", made, b.like("Sigmoid", _conv(b, inner, width, 1)))


def grouped(b: Builder, x: Value) -> Value:
    """Convolutions of several groups, one behind the other."""
    groups, width = b.rng.choice([2, 3]), b.rng.randint(2, 3)
    made = b.like("Relu", _conv(b, x, groups * width, 1))
    batch, channels, rows, steps = made.shape
    for _ in range(b.rng.randint(1, 2)):
        wide = groups * b.rng.randint(2, 3)
        assert isinstance(channels, int)
        inputs = [made, b.weight(b.numbers(wide, channels // groups, 3, 3, scale=0.4))]
        if b.rng.random() < 0.5:
            inputs.append(b.const(b.numbers(wide)))
        name = b.op("Conv", *inputs, pads=[1] * 4, group=groups)
        made = activation_of_channels(b, Value(name, (batch, wide, rows, steps)))
        channels = wide
    return made


def shuffled(b: Builder, x: Value) -> Value:
    """Channels of groups in turns, as ShuffleNet has them, between convolutions of groups."""
    groups, each = b.rng.choice([2, 3]), b.rng.randint(2, 3)
    made = _conv(b, x, groups * each, 1)
    batch, _, rows, steps = made.shape
    if b.rng.random() < 0.5:
        weight = b.weight(b.numbers(groups * each, each, 1, 1))
        made = b.like("Conv", b.like("Relu", made), weight, group=groups)
    made = activation_of_channels(b, made)
    apart = b.reshape(made, b.ints(0, groups, each, rows, -1), batch, groups, each, rows, steps)
    turned = b.transpose(apart, 0, 2, 1, 3, 4)
    wide = groups * each
    mixed = b.reshape(turned, b.ints(0, wide, rows, -1), batch, wide, rows, steps)
    return _conv(b, mixed, b.rng.randint(2, 5), 3)


def normalized(b: Builder, x: Value) -> Value:
    """Channels that are normalized in groups, or each alone, which opset 18 has."""
    groups = b.rng.randint(2, 4)
    width = groups * b.rng.choice([1, 1, 2])
    made = _conv(b, x, width, 3)
    if b.opset < 18:
        return made
    shape = (groups,) if b.opset < 21 else (width,)
    scale, shift = (b.const(b.numbers(*shape)) for _ in range(2))
    made = b.like("GroupNormalization", made, scale, shift, num_groups=groups)
    return b.like("Relu", made)


def shortcut(b: Builder, x: Value) -> Value:
    """A residual connection around two convolutions."""
    made = activation_of_channels(b, _conv(b, x, b.rng.randint(2, 4), 3))
    inner = activation_of_channels(b, _conv(b, made, b.rng.randint(2, 4), 3))
    assert isinstance(made.shape[1], int)
    return b.like("Relu", b.like("Add", made, _conv(b, inner, made.shape[1], 3)))


def stacked(b: Builder, x: Value) -> Value:
    """Two convolutions side by side."""
    parts = [plain(b, x) for _ in range(2)]
    width = sum(part.shape[1] for part in parts if isinstance(part.shape[1], int))
    return Value(b.op("Concat", *parts, axis=1), (x.shape[0], width, *x.shape[2:]))


def pooled(b: Builder, x: Value) -> Value:
    """Half of the rows, made twice as many again at times."""
    op = b.rng.choice(["MaxPool", "AveragePool"])
    made = _conv(b, x, b.rng.randint(2, 5), 3)
    batch, channels, rows, steps = made.shape
    assert isinstance(rows, int)
    if rows < 4:
        return made
    half = Value(
        b.op(op, made, kernel_shape=[2, 1], strides=[2, 1]), (batch, channels, rows // 2, steps)
    )
    if b.opset < 13 or b.rng.random() < 0.5:
        return half
    scales = b.const(np.array([1, 1, 2, 1], np.float32))
    return Value(b.op("Resize", half, "", scales, mode="nearest"), (batch, channels, rows, steps))


SEQUENCES: tuple[Block, ...] = (dense, residual, beside, gated, halved, steps_conv, columns)
ROWS: tuple[Block, ...] = (dense, residual, beside, gated, halved, gemm_rows)
IMAGES: tuple[Block, ...] = (
    plain,
    plain,
    transposed,
    separable,
    excited,
    grouped,
    shuffled,
    normalized,
    shortcut,
    stacked,
    pooled,
)
