"""Kernels of elementwise operators, reductions and normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from onnx_rnn_prune.recovery.distill.kernels import Call, Kernel, integers, torch_type

One = Callable[[Tensor], Tensor]
Two = Callable[[Tensor, Tensor], Tensor]


def _one(function: One) -> Kernel:
    return Kernel(lambda _, x: function(x))


def _two(function: Two) -> Kernel:
    return Kernel(lambda _, x, y: function(x, y))


def _arithmetic(function: Two) -> Kernel:
    return Kernel(lambda _, x, y: function(x, y), (0, 1), _before_7)


def _folded(function: Two) -> Kernel:
    """A row for a function of any number of tensors, two at a time."""
    return Kernel(lambda _, *inputs: reduce(function, inputs))


def _scaled(function: Callable[[Tensor, float], Tensor], alpha: float) -> Kernel:
    """A row for an activation with one parameter, alpha."""
    return Kernel(lambda call, x: function(x, call.get("alpha", alpha)))


def _before_7(call: Call) -> str:
    return "broadcasts as before opset 7" if call.attrs.get("broadcast") else ""


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """As x / y; integers are rounded towards zero."""
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _power(x: Tensor, y: Tensor) -> Tensor:
    """As x ** y, in the type of x."""
    return torch.pow(x, float(y) if y.numel() == 1 else y).to(x.dtype)


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0.0, 1.0)


def _selu(call: Call, x: Tensor) -> Tensor:
    """gamma x above 0, gamma alpha (exp x - 1) below."""
    alpha = call.get("alpha", 1.67326319217681884765625)
    gamma = call.get("gamma", 1.05070102214813232421875)
    return gamma * functional.elu(x, alpha)


def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are attributes before opset 11."""
    least = call.get("min", -math.inf) if low is None else low.item()
    most = call.get("max", math.inf) if high is None else high.item()
    return torch.clamp(x, least, most)


def _cast(call: Call, x: Tensor) -> Tensor:
    """All floats are computed in single precision."""
    return x.to(torch_type(onnx.helper.tensor_dtype_to_np_dtype(call.get("to", 1))))


def _cast_refuses(call: Call) -> str:
    """Text and unsigned integers have no counterpart."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(call.get("to", 1))
    return f"casts to {kind.name}" if kind.kind == "O" or kind.name[:5] == "uint1" else ""


def _dropout(call: Call, x: Tensor, *_: Tensor | None) -> tuple[Tensor, ...]:
    """The identity outside of training; its mask is all True."""
    return (x, torch.ones_like(x, dtype=torch.bool))[: call.outputs]


def _thresholded(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


ELEMENTWISE: Mapping[str, Kernel] = {
    "Abs": _one(torch.abs),
    "Add": _arithmetic(torch.add),
    "And": _two(torch.logical_and),
    "Cast": Kernel(_cast, refuses=_cast_refuses),
    "Ceil": _one(torch.ceil),
    "Celu": _scaled(functional.celu, 1.0),
    "Clip": Kernel(_clip),
    "Cos": _one(torch.cos),
    "Div": _arithmetic(_divide),
    "Dropout": Kernel(_dropout),
    "Elu": _scaled(functional.elu, 1.0),
    "Equal": _two(torch.eq),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Floor": _one(torch.floor),
    "Gelu": Kernel(lambda call, x: functional.gelu(x, approximate=call.get("approximate", "none"))),
    "Greater": _two(torch.gt),
    "GreaterOrEqual": _two(torch.ge),
    "HardSigmoid": Kernel(_hard_sigmoid),
    "HardSwish": _one(functional.hardswish),
    "Identity": _one(lambda x: x),
    "IsNaN": _one(torch.isnan),
    "LeakyRelu": _scaled(functional.leaky_relu, 0.01),
    "Less": _two(torch.lt),
    "LessOrEqual": _two(torch.le),
    "Log": _one(torch.log),
    "Max": _folded(torch.maximum),
    "Mean": Kernel(lambda _, *inputs: reduce(torch.add, inputs) / len(inputs)),
    "Min": _folded(torch.minimum),
    "Mish": _one(functional.mish),
    "Mul": _arithmetic(torch.mul),
    "Neg": _one(torch.neg),
    "Not": _one(torch.logical_not),
    "Or": _two(torch.logical_or),
    "PRelu": Kernel(lambda _, x, slope: torch.where(x < 0, slope * x, x), (1,)),
    "Pow": _two(_power),
    "Reciprocal": _one(torch.reciprocal),
    "Relu": _one(torch.relu),
    "Round": _one(torch.round),
    "Selu": Kernel(_selu),
    "Sigmoid": _one(torch.sigmoid),
    "Sign": _one(torch.sign),
    "Sin": _one(torch.sin),
    "Softplus": _one(functional.softplus),
    "Softsign": _one(functional.softsign),
    "Sqrt": _one(torch.sqrt),
    "Sub": _arithmetic(torch.sub),
    "Sum": _folded(torch.add),
    "Tanh": _one(torch.tanh),
    "ThresholdedRelu": _scaled(_thresholded, 1.0),
    "Where": Kernel(lambda _, holds, x, y: torch.where(holds, x, y)),
    "Xor": _two(torch.logical_xor),
}


Along = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(function: Along) -> Kernel:
    """A row for a function that reduces some axes to size 1."""

    def reduced(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = integers(call, given, "axes")
        if not axes:
            if call.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, axes, bool(call.get("keepdims", 1)))

    return Kernel(reduced)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """torch multiplies along one axis at a time."""
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _over_axis(function: Callable[[Tensor, int], Tensor]) -> Kernel:
    """A row for a softmax: along one axis; before opset 13, along all from that axis on."""

    def computed(call: Call, x: Tensor) -> Tensor:
        if call.opset >= 13:
            return function(x, call.get("axis", -1))
        axis = call.get("axis", 1) % max(x.ndim, 1)
        return function(x.flatten(axis), axis).reshape(x.shape)

    return Kernel(computed)


def _layer_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Normalises over all axes from the given one on."""
    axes = list(range(call.get("axis", -1) % x.ndim, x.ndim))
    mean = x.mean(axes, keepdim=True)
    spread = torch.rsqrt(((x - mean) ** 2).mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
    result = (x - mean) * spread * scale
    return (result if bias is None else result + bias, mean, spread)[: call.outputs]


def _batch_normalization(call: Call, x: Tensor, *held: Tensor) -> Tensor:
    """Uses the statistics stored in the model."""
    shape = [1, -1] + [1] * (x.ndim - 2)
    scale, bias, mean, variance = (part.reshape(shape) for part in held)
    return (x - mean) * torch.rsqrt(variance + call.get("epsilon", 1e-5)) * scale + bias


def _instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalises each channel of each sample by itself."""
    epsilon = call.get("epsilon", 1e-5)
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Groups of channels; scale and bias are per channel since opset 21."""
    groups = call.get("num_groups", 1)
    if call.opset < 21:
        scale, bias = (part.repeat_interleave(x.shape[1] // groups) for part in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


def _lp_normalization(call: Call, x: Tensor) -> Tensor:
    return functional.normalize(x, p=float(call.get("p", 2)), dim=call.get("axis", -1))


def _cumulative_sum(call: Call, x: Tensor, along: Tensor) -> Tensor:
    """Forward or backward, with or without the entry itself."""
    axis = int(along.item())
    turned = x.flip(axis) if call.get("reverse", 0) else x
    total = turned.cumsum(axis)
    total = total - turned if call.get("exclusive", 0) else total
    return total.flip(axis) if call.get("reverse", 0) else total


def _in_training(call: Call) -> str:
    return "is in training mode" if call.attrs.get("training_mode") or call.outputs > 1 else ""


REDUCES: Mapping[str, Kernel] = {
    "BatchNormalization": Kernel(_batch_normalization, (1, 2), _in_training),
    "CumSum": Kernel(_cumulative_sum),
    "GroupNormalization": Kernel(_group_normalization, (1, 2)),
    "InstanceNormalization": Kernel(_instance_normalization, (1, 2)),
    "LayerNormalization": Kernel(_layer_normalization, (1, 2)),
    "LogSoftmax": _over_axis(torch.log_softmax),
    "LpNormalization": Kernel(_lp_normalization),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keepdim=keep))),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(torch.sum),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: torch.sum(x * x, axes, keepdim=keep)),
    "Softmax": _over_axis(torch.softmax),
}
