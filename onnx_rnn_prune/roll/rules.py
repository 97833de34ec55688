"""Rules: the forms that operators compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.roll.form import Activation, Form, Matrix, OpaqueError
from onnx_rnn_prune.roll.values import Known, Value, along, formed, fresh

# Entrywise functions, with their default attributes.
FUNCTIONS: Mapping[str, tuple[tuple[str, float], ...]] = {
    **dict.fromkeys(("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus", "Exp"), ()),
    "Elu": (("alpha", 1.0),),
    "LeakyRelu": (("alpha", 0.01),),
    "ThresholdedRelu": (("alpha", 1.0),),
}
# The clip to 0..1, which every HardSigmoid is up to scale and shift.
CLIPPED = "Clipped"


class Source(Protocol):
    """What rules need from a reader."""

    def shape(self, node: gs.Node) -> tuple[int, ...]:
        """The shape of a node's output."""

    def matrix(self, values: Array, transposed: bool) -> Matrix:
        """A constant as a matrix, or its transpose."""


Given = Sequence[Known | None]
Rule = Callable[[Source, gs.Node, Given], Value]


def _activation(reader: Source, node: gs.Node, given: Given) -> Value:
    attributes = {**dict(FUNCTIONS[node.op]), **node.attrs}
    return _function(given, node.op, tuple(sorted((k, float(v)) for k, v in attributes.items())))


def _function(given: Given, op: str, attributes: tuple[tuple[str, float], ...] = ()) -> Value:
    value = given[0]
    # No cell applies a function to something other than a sum, whose feature axis would be unknown.
    if not isinstance(value, Value) or value.form is None or not value.axes():
        raise OpaqueError
    axis = value.axes()[0]
    form = value.along(axis)
    return formed(Form.of(Activation(op, attributes, form)), value.shape, axis)


def _hard_sigmoid(reader: Source, node: gs.Node, given: Given) -> Value:
    """A HardSigmoid as a clip to 0..1 of a scaled and shifted argument."""
    value = given[0]
    if not isinstance(value, Value) or not value.axes():
        raise OpaqueError
    axis = value.axes()[0]
    form = value.along(axis).scaled(float(np.float32(node.attrs.get("alpha", 0.2))))
    beta = np.float64(np.float32(node.attrs.get("beta", 0.5)))
    form = form.plus(Form.constant(np.full(form.size, beta)))
    return _function([formed(form, value.shape, axis)], CLIPPED)


def _clip(reader: Source, node: gs.Node, given: Given) -> Value:
    low = given[1] if len(given) > 1 else node.attrs.get("min")
    high = given[2] if len(given) > 2 else node.attrs.get("max")
    if isinstance(low, Value) or isinstance(high, Value):  # computed from the data
        raise OpaqueError
    bounds = [None if bound is None else np.asarray(bound).reshape(-1) for bound in (low, high)]
    if any(bound is None or len(bound) != 1 for bound in bounds):
        raise OpaqueError
    if [float(bound[0]) for bound in bounds if bound is not None] != [0.0, 1.0]:
        raise OpaqueError
    return _function(given, CLIPPED)


def _entrywise(compute: Callable[..., Form]) -> Rule:
    """A rule for an entrywise operator, given as a function of its operands' forms."""

    def rule(reader: Source, node: gs.Node, given: Given) -> Value:
        forms, axis = _together(reader.shape(node), given)
        return formed(compute(*forms), reader.shape(node), axis)

    return rule


def _sum(first: Form, *others: Form) -> Form:
    total = first
    for form in others:
        total = total.plus(form)
    return _as_sigmoid(total)


def _as_sigmoid(form: Form) -> Form:
    """tanh(x) / 2 + 1 / 2 as sigmoid(2 x)."""
    if len(form.terms) == 1 and np.all(form.bias == 0.5):
        ((atom, matrix),) = form.terms.values()
        if isinstance(atom, Activation) and atom.op == "Tanh" and matrix.is_scaled_identity(0.5):
            return Form.of(Activation("Sigmoid", (), atom.argument.scaled(2.0)))
    return form


def _divided(above: Form, below: Form) -> Form:
    if not below.terms and below.bias.all():
        return above.scaled(1 / below.bias)
    if not above.terms:  # 1 / (1 + exp(-x))
        return _one_over(below).scaled(above.bias)
    raise OpaqueError


def _one_over(form: Form) -> Form:
    if len(form.terms) == 1 and np.all(form.bias == 1):
        ((atom, matrix),) = form.terms.values()
        if isinstance(atom, Activation) and atom.op == "Exp" and matrix.is_scaled_identity(1.0):
            return Form.of(Activation("Sigmoid", (), atom.argument.scaled(-1.0)))
    raise OpaqueError


def _not(form: Form) -> Form:
    return Form.constant(np.ones(form.size)).plus(form, -1.0)


def _where(chosen: Form, one: Form, other: Form) -> Form:
    return chosen.times(one).plus(_not(chosen).times(other))


def _matmul(reader: Source, node: gs.Node, given: Given) -> Value:
    left, right = given[:2]
    shape = reader.shape(node)
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):  # for a constant state
        left = fresh(node.inputs[0].name, left.shape)
    if isinstance(left, Value) and isinstance(right, np.ndarray) and right.ndim >= 2:
        if right.ndim > 2 and prod(right.shape[:-2]) != 1:
            raise OpaqueError
        weight = right if right.ndim == 2 else right.reshape(right.shape[-2:])
        form = left.along(left.labels.ndim - 1).then(reader.matrix(weight, False))
        return formed(form, shape, -1)
    if isinstance(right, Value) and isinstance(left, np.ndarray) and left.ndim == 2:
        form = right.along(right.labels.ndim - 2).then(reader.matrix(left, True))
        return formed(form, shape, -2)
    raise OpaqueError


def _gemm(reader: Source, node: gs.Node, given: Given) -> Value:
    left, right = given[:2]
    first, second = (bool(node.attrs.get(name, 0)) for name in ("transA", "transB"))
    alpha, beta = (float(node.attrs.get(name, 1.0)) for name in ("alpha", "beta"))
    shape = reader.shape(node)
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        left = fresh(node.inputs[0].name, left.shape)
    if isinstance(left, Value) and isinstance(right, np.ndarray):
        axis, weight = 1, reader.matrix(right, second)
        form = left.along(0 if first else 1)
    elif isinstance(right, Value) and isinstance(left, np.ndarray):
        axis, weight = 0, reader.matrix(left, not first)
        form = right.along(1 if second else 0)
    else:
        raise OpaqueError
    form = form.then(weight).scaled(alpha)
    added = given[2] if len(given) > 2 else None
    if added is not None and beta:
        if isinstance(added, Value):
            bias = _spread(added, shape).along(axis)
        else:
            bias = along(np.broadcast_to(added, shape), axis)
        form = form.plus(bias.scaled(beta))
    return formed(form, shape, axis)


def _concat(reader: Source, node: gs.Node, given: Given) -> Value:
    """Concatenated columns; or entries of one tensor."""
    shape = reader.shape(node)
    axis = int(node.attrs["axis"]) % len(shape)
    values = [item for item in given if isinstance(item, Value)]
    first = values[0]
    if len(values) == len(given) and all(
        item.form is None and item.tensor == first.tensor for item in values
    ):
        labels = np.concatenate([item.labels for item in values], axis)
        return replace(first, labels=labels, plain=None)
    total = Form.constant(np.zeros(shape[axis]))
    at = 0
    for item in given:
        if item is None:
            raise OpaqueError
        form = along(item, axis)
        place = np.zeros((form.size, shape[axis]))
        place[np.arange(form.size), at + np.arange(form.size)] = 1
        total = total.plus(form.then(Matrix(place)))
        at += form.size
    return formed(total, shape, axis)


def _together(shape: tuple[int, ...], given: Given) -> tuple[list[Form], int]:
    """Operands as forms broadcast to the result's shape, and the axis of the columns."""
    values: list[Value | Array] = []
    for item in given:
        if isinstance(item, Value):
            values.append(item if item.shape == shape else _spread(item, shape))
        elif item is not None:
            values.append(np.broadcast_to(item, shape))
    axes = [value.axes() for value in values if isinstance(value, Value)]
    common = [axis for axis in axes[0] if all(axis in other for other in axes)] if axes else []
    formal = [v.axes() for v in values if isinstance(v, Value) and v.form is not None]
    for axis in formal[0] if formal else common:
        if axis in common:
            return [along(value, axis) for value in values], axis
    raise OpaqueError


def _spread(value: Value, shape: tuple[int, ...]) -> Value:
    """A value broadcast to a larger shape."""
    return replace(value, labels=np.broadcast_to(value.labels, shape), plain=None)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(FUNCTIONS, _activation),
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    **dict.fromkeys(("Add", "Sum"), _entrywise(_sum)),
    "Sub": _entrywise(lambda one, other: _as_sigmoid(one.plus(other, -1.0))),
    **dict.fromkeys(("Mul", "And"), _entrywise(Form.times)),
    "Div": _entrywise(_divided),
    "Reciprocal": _entrywise(_one_over),
    "Neg": _entrywise(lambda form: form.scaled(-1.0)),
    "Not": _entrywise(_not),
    "Where": _entrywise(_where),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Concat": _concat,
}
