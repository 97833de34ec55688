"""What stands between a layer and whoever reads it; each function maps features to features."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from models import Builder, Value
from oracle.layers import draw_layer
from oracle.merges import merge_steps

Wiring = Callable[[Builder, Value, Value], Value]


def elementwise(b: Builder, h: Value, x: Value) -> Value:
    op = b.rng.choice(["Relu", "Sigmoid", "Tanh", "Add", "Mul", "Sub", "Div", "Clip", "PRelu"])
    if op in ("Relu", "Sigmoid", "Tanh"):
        return b.like(op, h)
    if op == "Clip" and b.opset < 11:
        return b.like(op, h, min=-0.5, max=0.6)
    if op == "Clip":
        return b.like(op, h, b.const(np.float32(-0.5)), b.const(np.float32(0.6)))
    shape = b.rng.choice([(), (1,), (h.width,), (1, h.width)])
    value = np.abs(b.numbers(*shape)) + 0.2
    return b.like(op, h, b.weight(value) if shape else b.const(value))


def where(b: Builder, h: Value, x: Value) -> Value:
    if b.opset < 9:
        return h
    chosen = b.const(b.numbers(h.width) > 0)
    return Value(b.op("Where", chosen, h, b.const(b.numbers(h.width))), h.shape)


def batch_norm(b: Builder, h: Value, x: Value) -> Value:
    moved = h if len(h.shape) == 2 else b.transpose(h, 1, 2, 0)
    scale, shift, mean = (b.const(b.numbers(h.width)) for _ in range(3))
    variance = b.const(np.abs(b.numbers(h.width)) + 0.1)
    result = b.like("BatchNormalization", moved, scale, shift, mean, variance)
    return result if len(h.shape) == 2 else b.transpose(result, 2, 0, 1)


def residual_units(b: Builder, h: Value, x: Value) -> Value:
    """Adds another layer's output: their units live or die together."""
    if len(h.shape) != 3 or h.shape[:2] != x.shape[:2]:
        return h
    source = b.rng.choice([h, x])
    other = draw_layer(b, source, hidden=h.width, direction="forward", wanted=("Y",))
    merged = merge_steps(b, other)
    return b.like("Add", *b.rng.sample([h, merged], 2))


def residual_input(b: Builder, h: Value, x: Value) -> Value:
    """Adds an activation that holds no units: has to be restored."""
    if len(h.shape) != 3 or h.shape[:2] != x.shape[:2]:
        return h
    other = Value(b.op("MatMul", x, b.const(b.numbers(x.width, h.width))), h.shape)
    return b.like(b.rng.choice(["Add", "Mul"]), h, other)


def layer_norm(b: Builder, h: Value, x: Value) -> Value:
    scale, shift = b.const(b.numbers(h.width)), b.const(b.numbers(h.width))
    if b.opset >= 17 and b.rng.random() < 0.5:
        return b.like("LayerNormalization", h, scale, shift, axis=-1)
    axis = len(h.shape) - 1
    centred = b.like("Sub", h, b.reduce("ReduceMean", h, axis, keepdims=1))
    square = b.like("Mul", centred, centred)
    mean = b.reduce("ReduceMean", square, axis, keepdims=1)
    deviation = b.like("Sqrt", b.like("Add", mean, b.const(np.float32(1e-3))))
    return b.like("Add", b.like("Mul", b.like("Div", centred, deviation), scale), shift)


def softmax(b: Builder, h: Value, x: Value) -> Value:
    axis = b.rng.randrange(len(h.shape))
    return b.like("Softmax", h, axis=axis)


def other_features(b: Builder, h: Value, x: Value) -> Value:
    """Concat with features that are no units, or with these once more."""
    others = [h] if h.shape[:-1] != x.shape[:-1] else [h, x]
    parts = [h, b.rng.choice(others)]
    b.rng.shuffle(parts)
    return b.concat(len(h.shape) - 1, *parts)


def split_units(b: Builder, h: Value, x: Value) -> Value:
    """Splits the axis of the units, and lays the parts together the other way round."""
    if h.width < 2:
        return h
    axis = len(h.shape) - 1
    cut = h.width // 2 if h.width % 2 == 0 else b.rng.randrange(1, h.width)
    left, right = b.split(h, axis, cut, h.width - cut)
    if left.shape == right.shape and b.rng.random() < 0.4:
        return b.like("Add", left, right)
    return b.concat(axis, right, left) if b.rng.random() < 0.7 else b.rng.choice([left, right])


def slice_units(b: Builder, h: Value, x: Value) -> Value:
    axis, n = len(h.shape) - 1, h.width
    if b.opset >= 10 and b.rng.random() < 0.5:
        start, end = b.rng.choice([(-1, -n - 1), (n, -99), (n - 1, 0 if n > 1 else -9)])
        return b.slice(h, axis, start, end, -1)
    start = b.rng.randrange(n)
    return b.slice(h, axis, start, b.rng.choice([n, 2**31]))


def gather_units(b: Builder, h: Value, x: Value) -> Value:
    count = b.rng.randint(1, h.width)
    index = b.rng.sample(range(h.width), count)
    return b.gather(h, len(h.shape) - 1, index)


def expand(b: Builder, h: Value, x: Value) -> Value:
    """A new axis in front, repeated and averaged away again."""
    if b.opset < 8:
        return h
    wide = b.unsqueeze(h, 0)
    if b.rng.random() < 0.5:
        ones = [1] * (len(h.shape) - 1)
        target = b.ints(3, *ones, b.rng.choice([1, h.width]))
    else:
        sizes = [b.size_of(h, axis) for axis in range(len(h.shape))]
        target = b.concat(0, b.ints(2), *sizes)
    repeated = Value(b.op("Expand", wide, target), (3, *h.shape))
    return b.reduce("ReduceMean", repeated, 0, keepdims=0)


def tile_time(b: Builder, h: Value, x: Value) -> Value:
    if len(h.shape) != 3 or not isinstance(h.shape[0], int):
        return h
    tiled = Value(b.op("Tile", h, b.ints(2, 1, 1)), (2 * h.shape[0], *h.shape[1:]))
    return b.slice(tiled, 0, 1, h.shape[0] + 1)


def tile_units(b: Builder, h: Value, x: Value) -> Value:
    ones = [1] * (len(h.shape) - 1)
    return Value(b.op("Tile", h, b.ints(*ones, 2)), (*h.shape[:-1], 2 * h.width))


def pad_units(b: Builder, h: Value, x: Value) -> Value:
    return b.pad(h, len(h.shape) - 1, b.rng.randint(0, 1), 1)


def pad_time(b: Builder, h: Value, x: Value) -> Value:
    if len(h.shape) != 3:
        return h
    padded = b.pad(h, 0, 1, 0)
    return Value(b.slice(padded, 0, 0, -1).name, h.shape)


def heads(b: Builder, h: Value, x: Value) -> Value:
    """Splits the units into heads and lays the heads together again."""
    if h.width % 2 or len(h.shape) != 3:
        return h
    half = h.width // 2
    shape = (*h.shape[:2], 2, half)
    split = b.reshape(h, b.ints(0, 0, 2, half), *shape)
    turned = b.transpose(split, 0, 1, 3, 2)
    last = b.reshape(b.like("Tanh", turned), b.ints(0, 0, -1), *h.shape)
    return last


def there_and_back(b: Builder, h: Value, x: Value) -> Value:
    if len(h.shape) != 3:
        return b.transpose(b.like("Relu", b.transpose(h, 1, 0)), 1, 0)
    perm = b.rng.sample(range(3), 3)
    return b.transpose(b.like("Tanh", b.transpose(h, *perm)), *np.argsort(perm).tolist())


def next_layer(b: Builder, h: Value, x: Value) -> Value:
    if len(h.shape) != 3:
        return h
    return merge_steps(b, draw_layer(b, h, wanted=("Y",)))


def flat_time(b: Builder, h: Value, x: Value) -> Value:
    """Time and units on one axis, computed from sizes, and apart again."""
    if len(h.shape) != 3 or b.rng.random() < 0.3:
        return h
    turned = b.transpose(h, 1, 0, 2)
    flat = b.reshape(turned, b.concat(0, b.size_of(turned, 0), b.ints(-1)), h.shape[1], "TF")
    flat = b.like("Relu", flat)
    back = b.ints(0, -1, h.width)
    if b.rng.random() < 0.5:
        back = b.concat(0, b.size_of(turned, 0), b.size_of(h, 0), b.ints(h.width))
    split = b.reshape(flat, back, h.shape[1], h.shape[0], h.width)
    return b.transpose(split, 1, 0, 2)


WIRINGS: list[Wiring] = [
    elementwise,
    elementwise,
    elementwise,
    where,
    batch_norm,
    residual_units,
    residual_units,
    residual_input,
    layer_norm,
    softmax,
    other_features,
    split_units,
    slice_units,
    gather_units,
    expand,
    tile_time,
    tile_units,
    pad_units,
    pad_time,
    heads,
    there_and_back,
    next_layer,
    next_layer,
    flat_time,
]


def draw_wiring(rng: random.Random) -> Wiring:
    return rng.choice(WIRINGS)
