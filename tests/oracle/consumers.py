"""Who reads the features in the end; each adds an output to the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

from models import FOREIGN, Builder, Value
from oracle.layers import draw_layer

Consumer = Callable[[Builder, Value], None]


def matmul(b: Builder, h: Value) -> None:
    width = b.rng.randint(1, 4)
    stack = (1,) if len(h.shape) == 3 and b.rng.random() < 0.3 else ()
    weight = b.weight(b.numbers(*stack, h.width, width))
    product = Value(b.op("MatMul", h, weight), (*h.shape[:-1], width))
    if b.rng.random() < 0.5:
        product = b.like("Add", product, b.const(b.numbers(width)))
    b.output(product)


def matmul_left(b: Builder, h: Value) -> None:
    """W x, with the units on the rows of x."""
    if len(h.shape) == 3:
        turned = b.transpose(h, 1, 2, 0)
        name = b.op("MatMul", b.weight(b.numbers(3, h.width)), turned)
        b.output(Value(name, (h.shape[1], 3, h.shape[0])))
    else:
        name = b.op("MatMul", b.weight(b.numbers(3, h.width)), b.transpose(h, 1, 0))
        b.output(Value(name, (3, h.shape[0])))


def twice(b: Builder, h: Value) -> None:
    """Two readers of one weight."""
    weight = b.weight(b.numbers(h.width, 3))
    shape = (*h.shape[:-1], 3)
    left = Value(b.op("MatMul", h, weight), shape)
    right = Value(b.op("MatMul", b.like("Relu", h), weight), shape)
    b.output(b.like("Add", left, right))
    other = b.feed(b.fresh("other"), "B", h.width)
    b.output(Value(b.op("MatMul", other, weight), ("B", 3)))


def gemm(b: Builder, h: Value) -> None:
    rows: tuple[int | str, ...] = h.shape[:1]
    if len(h.shape) == 3:
        rows = ("rows",)
        h = b.reshape(h, b.ints(-1, h.width), *rows, h.width)
    attrs: dict[str, float] = {}
    if b.rng.random() < 0.3:
        attrs["transA"] = 1
        h = b.transpose(h, 1, 0)
    inner = h.shape[0] if attrs else h.shape[1]
    assert isinstance(inner, int)
    weight = b.numbers(inner, 3)
    if b.rng.random() < 0.5:
        attrs["transB"] = 1
        weight = weight.T.copy()
    for name in ("alpha", "beta"):
        if b.rng.random() < 0.3:
            attrs[name] = 0.7
    inputs = [h, b.weight(weight)]
    if b.opset < 11 or b.rng.random() < 0.6:
        inputs.append(b.const(b.numbers(*b.rng.choice([(3,), (1, 3), (1,)]))))
    b.output(Value(b.op("Gemm", *inputs, **attrs), (*rows, 3)))


def conv(b: Builder, h: Value) -> None:
    """Over time, with the units as channels."""
    if len(h.shape) != 3:
        return matmul(b, h)
    turned = b.transpose(h, 1, 2, 0)
    size = b.rng.choice([1, 3])
    inputs = [turned, b.weight(b.numbers(2, h.width, size))]
    if b.rng.random() < 0.5:
        inputs.append(b.const(b.numbers(2)))
    pads = [size // 2, size // 2]
    b.output(Value(b.op("Conv", *inputs, pads=pads), (h.shape[1], 2, h.shape[0])))
    return None


def recurrent(b: Builder, h: Value) -> None:
    if len(h.shape) != 3:
        return matmul(b, h)
    for value in draw_layer(b, h).outputs.values():
        b.output(value)
    return None


def graph_output(b: Builder, h: Value) -> None:
    b.output(h)


def mean_time(b: Builder, h: Value) -> None:
    if len(h.shape) != 3:
        return matmul(b, h)
    op = b.rng.choice(["ReduceMean", "ReduceMax", "ReduceSum"])
    return matmul(b, b.reduce(op, h, 0, keepdims=0))


def attention(b: Builder, h: Value) -> None:
    """Weights over time from the features, and their weighted mean."""
    if len(h.shape) != 3:
        return matmul(b, h)
    steps, batch, width = h.shape
    scores = Value(b.op("MatMul", h, b.const(b.numbers(h.width, 1))), (steps, batch, 1))
    if b.rng.random() < 0.5:
        weights = b.transpose(b.like("Softmax", b.transpose(scores, 1, 2, 0), axis=2), 2, 0, 1)
        weighted = b.like("Mul", h, weights)
        return matmul(b, b.reduce("ReduceSum", weighted, 0, keepdims=0))
    weights = b.like("Softmax", b.transpose(scores, 1, 2, 0), axis=2)
    pooled = Value(b.op("MatMul", weights, b.transpose(h, 1, 0, 2)), (batch, 1, width))
    return matmul(b, b.squeeze(pooled, 1))


def flat_gemm(b: Builder, h: Value) -> None:
    """Time and units on one axis of a weight."""
    if len(h.shape) != 3 or not isinstance(h.shape[0], int):
        return matmul(b, h)
    turned = b.transpose(h, 1, 0, 2)
    flat = Value(b.op("Flatten", turned, axis=1), (h.shape[1], h.shape[0] * h.width))
    return b.rng.choice([matmul, gemm])(b, flat)


def foreign(b: Builder, h: Value) -> None:
    """An operator that nobody here has ever heard of."""
    read = b.op("Mystery", h, domain=FOREIGN)
    b.outputs.append(Value(read, h.shape))
    matmul(b, h)


def captured(b: Builder, h: Value) -> None:
    """The body of an If reads the features by their name."""
    yes = b.const(np.array(b.rng.random() < 0.5))
    branches = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
        result = b.fresh(name)
        node = helper.make_node(op, [h.name], [result])
        output = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [output])
    b.output(Value(b.op("If", yes, **branches), h.shape))


def several(b: Builder, h: Value) -> None:
    for reader in b.rng.sample(CONSUMERS[:8], b.rng.randint(2, 3)):
        reader(b, h)


CONSUMERS: list[Consumer] = [
    matmul,
    matmul_left,
    twice,
    gemm,
    conv,
    recurrent,
    mean_time,
    attention,
    graph_output,
    flat_gemm,
    foreign,
    captured,
    several,
    matmul,
    gemm,
]
