"""Operators that compute entry by entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import torch
from torch.nn import functional

from onnx_rnn_prune.recovery.distill.operators.base import (
    Call,
    Function,
    Given,
    Operator,
    need,
    optional,
)

One = Callable[[torch.Tensor], torch.Tensor]
Two = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def one(function: One) -> Operator:
    """A row for a function of one tensor."""
    return Operator(lambda _, inputs: function(need(inputs, 0)))


def two(function: Two, weights: tuple[int, ...] = ()) -> Operator:
    """A row for a function of two tensors, which broadcast."""
    return Operator(lambda _, inputs: function(need(inputs, 0), need(inputs, 1)), weights)


def folded(function: Two) -> Operator:
    """A row for a function of any number of tensors, two at a time."""

    def fold(_: Call, inputs: Given) -> torch.Tensor:
        total = need(inputs, 0)
        for slot in range(1, len(inputs)):
            total = function(total, need(inputs, slot))
        return total

    return Operator(fold)


def scaled(function: Callable[[torch.Tensor, float], torch.Tensor], alpha: float) -> Operator:
    """A row for an activation with one parameter, alpha."""
    return Operator(lambda call, inputs: function(need(inputs, 0), call.get("alpha", alpha)))


def divide(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As x / y; integers are rounded towards zero."""
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def power(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As x ** y, in the type of x."""
    return torch.pow(x, float(y) if y.numel() == 1 else y).to(x.dtype)


def hard_sigmoid(call: Call, inputs: Given) -> torch.Tensor:
    """Clips alpha x + beta to 0 and 1."""
    line = call.get("alpha", 0.2) * need(inputs, 0) + call.get("beta", 0.5)
    return torch.clamp(line, 0.0, 1.0)


def selu(call: Call, inputs: Given) -> torch.Tensor:
    """gamma x above 0, gamma alpha (exp x - 1) below."""
    alpha = call.get("alpha", 1.67326319217681884765625)
    gamma = call.get("gamma", 1.05070102214813232421875)
    return gamma * functional.elu(need(inputs, 0), alpha)


def clip(call: Call, inputs: Given) -> torch.Tensor:
    """Bounds are attributes before opset 11."""
    low, high = optional(inputs, 1), optional(inputs, 2)
    least = call.get("min", -math.inf) if low is None else low.item()
    most = call.get("max", math.inf) if high is None else high.item()
    return torch.clamp(need(inputs, 0), least, most)


def gelu(call: Call, inputs: Given) -> torch.Tensor:
    """Exact, or by tanh."""
    return functional.gelu(need(inputs, 0), approximate=call.get("approximate", "none"))


def prelu(_: Call, inputs: Given) -> torch.Tensor:
    """Its slope broadcasts, other than torch's."""
    x, slope = need(inputs, 0), need(inputs, 1)
    return torch.where(x < 0, slope * x, x)


def cast(call: Call, inputs: Given) -> torch.Tensor:
    """All floats are computed in single precision."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(call.get("to", 1))
    return need(inputs, 0).to(torch_type(kind))


def torch_type(kind: np.dtype[np.generic]) -> torch.dtype:
    """The type in which entries are computed here."""
    known: Mapping[str, torch.dtype] = {
        "bool": torch.bool,
        "int8": torch.int8,
        "int16": torch.int16,
        "int32": torch.int32,
        "int64": torch.int64,
        "uint8": torch.uint8,
    }
    return known.get(kind.name, torch.float32)


def cast_refuses(call: Call) -> str:
    """Text and unsigned integers have no counterpart."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(call.get("to", 1))
    return f"casts to {kind.name}" if kind.kind == "O" or kind.name[:5] == "uint1" else ""


def where(_: Call, inputs: Given) -> torch.Tensor:
    """The first of two where a condition holds."""
    return torch.where(need(inputs, 0), need(inputs, 1), need(inputs, 2))


def average(_: Call, inputs: Given) -> torch.Tensor:
    """The mean of any number of tensors."""
    total = need(inputs, 0)
    for slot in range(1, len(inputs)):
        total = total + need(inputs, slot)
    return total / len(inputs)


def same(_: Call, inputs: Given) -> torch.Tensor:
    """What it was given."""
    return need(inputs, 0)


def dropout(call: Call, inputs: Given) -> tuple[torch.Tensor, ...]:
    """Does nothing outside of training; its mask lets all through."""
    x = need(inputs, 0)
    return (x, torch.ones_like(x, dtype=torch.bool))[: call.outputs]


def like_relu(call: Call, inputs: Given) -> torch.Tensor:
    """x above alpha, 0 below."""
    x = need(inputs, 0)
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


def _row(function: Function, *weights: int) -> Operator:
    return Operator(function, weights)


def _before_7(call: Call) -> str:
    return "broadcasts as before opset 7" if call.attrs.get("broadcast") else ""


def _arithmetic(function: Two) -> Operator:
    row = two(function, (0, 1))
    return Operator(row.function, row.weights, _before_7)


OPERATORS: Mapping[str, Operator] = {
    "Abs": one(torch.abs),
    "Add": _arithmetic(torch.add),
    "And": two(torch.logical_and),
    "Cast": Operator(cast, refuses=cast_refuses),
    "Ceil": one(torch.ceil),
    "Celu": scaled(lambda x, alpha: functional.celu(x, alpha), 1.0),
    "Clip": Operator(clip),
    "Cos": one(torch.cos),
    "Div": _arithmetic(divide),
    "Dropout": Operator(dropout),
    "Elu": scaled(lambda x, alpha: functional.elu(x, alpha), 1.0),
    "Equal": two(torch.eq),
    "Erf": one(torch.erf),
    "Exp": one(torch.exp),
    "Floor": one(torch.floor),
    "Gelu": Operator(gelu),
    "Greater": two(torch.gt),
    "GreaterOrEqual": two(torch.ge),
    "HardSigmoid": Operator(hard_sigmoid),
    "HardSwish": one(functional.hardswish),
    "Identity": Operator(same),
    "IsNaN": one(torch.isnan),
    "LeakyRelu": scaled(lambda x, alpha: functional.leaky_relu(x, alpha), 0.01),
    "Less": two(torch.lt),
    "LessOrEqual": two(torch.le),
    "Log": one(torch.log),
    "Max": folded(torch.maximum),
    "Mean": Operator(average),
    "Min": folded(torch.minimum),
    "Mish": one(functional.mish),
    "Mul": _arithmetic(torch.mul),
    "Neg": one(torch.neg),
    "Not": one(torch.logical_not),
    "Or": two(torch.logical_or),
    "PRelu": _row(prelu, 1),
    "Pow": two(power),
    "Reciprocal": one(torch.reciprocal),
    "Relu": one(torch.relu),
    "Round": one(torch.round),
    "Selu": Operator(selu),
    "Sigmoid": one(torch.sigmoid),
    "Sign": one(torch.sign),
    "Sin": one(torch.sin),
    "Softplus": one(functional.softplus),
    "Softsign": one(functional.softsign),
    "Sqrt": one(torch.sqrt),
    "Sub": _arithmetic(torch.sub),
    "Sum": folded(torch.add),
    "Tanh": one(torch.tanh),
    "ThresholdedRelu": Operator(like_relu),
    "Where": Operator(where),
    "Xor": two(torch.logical_xor),
}
