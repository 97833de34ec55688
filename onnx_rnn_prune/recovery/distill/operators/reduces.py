"""Operators that sum along axes, and those that normalise by such sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from onnx_rnn_prune.recovery.distill.operators.base import (
    Call,
    Given,
    Operator,
    integers,
    need,
    optional,
)

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


OPERATORS: Mapping[str, Operator] = {
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
