"""Operators on single entries, those that sum along axes, and those that normalise by such sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx
import torch
from torch.nn import functional

from onnx_rnn_prune.recovery.distill.kernels import (
    Call,
    Function,
    Given,
    Operator,
    integers,
    need,
    optional,
    torch_type,
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


ELEMENTWISE: Mapping[str, Operator] = {
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


Along = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def reduction(function: Along) -> Operator:
    """A row for a function that makes one entry of all along some axes."""

    def reduce(call: Call, inputs: Given) -> torch.Tensor:
        x, axes = need(inputs, 0), integers(call, inputs, "axes", 1)
        if axes is None or not axes:
            if call.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, axes, bool(call.get("keepdims", 1)))

    return Operator(reduce)


def product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    """torch multiplies along one axis at a time."""
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def euclidean(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    """Root of the sum of squares."""
    return torch.sqrt(torch.sum(x * x, axes, keepdim=keep))


def softmax(call: Call, inputs: Given) -> torch.Tensor:
    """Along one axis; before opset 13, along all from that axis on."""
    return _over_axis(call, need(inputs, 0), torch.softmax)


def log_softmax(call: Call, inputs: Given) -> torch.Tensor:
    """The logarithm of `softmax`."""
    return _over_axis(call, need(inputs, 0), torch.log_softmax)


def _over_axis(
    call: Call, x: torch.Tensor, function: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    if call.opset >= 13:
        return function(x, call.get("axis", -1))
    axis = call.get("axis", 1) % max(x.ndim, 1)
    return function(x.flatten(axis), axis).reshape(x.shape)


def layer_normalization(call: Call, inputs: Given) -> tuple[torch.Tensor, ...]:
    """Over all axes from the given one on."""
    x = need(inputs, 0)
    axis = call.get("axis", -1) % x.ndim
    axes = list(range(axis, x.ndim))
    mean = x.mean(axes, keepdim=True)
    spread = torch.rsqrt(((x - mean) ** 2).mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
    result = (x - mean) * spread * need(inputs, 1)
    bias = optional(inputs, 2)
    return (result if bias is None else result + bias, mean, spread)[: call.outputs]


def batch_normalization(call: Call, inputs: Given) -> torch.Tensor:
    """With the statistics that the model holds."""
    x = need(inputs, 0)
    shape = [1, -1] + [1] * (x.ndim - 2)
    scale, bias, mean, variance = (need(inputs, slot).reshape(shape) for slot in range(1, 5))
    return (x - mean) * torch.rsqrt(variance + call.get("epsilon", 1e-5)) * scale + bias


def instance_normalization(call: Call, inputs: Given) -> torch.Tensor:
    """Each channel of each sample by itself."""
    epsilon = call.get("epsilon", 1e-5)
    return functional.instance_norm(
        need(inputs, 0), weight=need(inputs, 1), bias=need(inputs, 2), eps=epsilon
    )


def group_normalization(call: Call, inputs: Given) -> torch.Tensor:
    """Groups of channels; scale and bias are per channel since opset 21."""
    x, groups, epsilon = need(inputs, 0), call.get("num_groups", 1), call.get("epsilon", 1e-5)
    scale, bias = need(inputs, 1), need(inputs, 2)
    if call.opset < 21:
        scale, bias = (part.repeat_interleave(x.shape[1] // groups) for part in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, epsilon)


def lp_normalization(call: Call, inputs: Given) -> torch.Tensor:
    """By the norm along an axis."""
    x, axis = need(inputs, 0), call.get("axis", -1)
    return functional.normalize(x, p=float(call.get("p", 2)), dim=axis)


def cumulative_sum(call: Call, inputs: Given) -> torch.Tensor:
    """Forward or backward, with or without the entry itself."""
    x, axis = need(inputs, 0), int(need(inputs, 1).item())
    turned = x.flip(axis) if call.get("reverse", 0) else x
    total = turned.cumsum(axis)
    total = total - turned if call.get("exclusive", 0) else total
    return total.flip(axis) if call.get("reverse", 0) else total


def _in_training(call: Call) -> str:
    return "is in training mode" if call.attrs.get("training_mode") or call.outputs > 1 else ""


REDUCES: Mapping[str, Operator] = {
    "BatchNormalization": Operator(batch_normalization, (1, 2), _in_training),
    "CumSum": Operator(cumulative_sum),
    "GroupNormalization": Operator(group_normalization, (1, 2)),
    "InstanceNormalization": Operator(instance_normalization, (1, 2)),
    "LayerNormalization": Operator(layer_normalization, (1, 2)),
    "LogSoftmax": Operator(log_softmax),
    "LpNormalization": Operator(lp_normalization),
    "ReduceL1": reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": reduction(euclidean),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceMax": reduction(lambda x, axes, keep: torch.amax(x, axes, keepdim=keep)),
    "ReduceMean": reduction(lambda x, axes, keep: torch.mean(x, axes, keepdim=keep)),
    "ReduceMin": reduction(lambda x, axes, keep: torch.amin(x, axes, keepdim=keep)),
    "ReduceProd": reduction(product),
    "ReduceSum": reduction(lambda x, axes, keep: torch.sum(x, axes, keepdim=keep)),
    "ReduceSumSquare": reduction(lambda x, axes, keep: torch.sum(x * x, axes, keepdim=keep)),
    "Softmax": Operator(softmax),
}
