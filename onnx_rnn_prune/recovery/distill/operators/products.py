"""Operators that multiply with weights, and pooling, which slides over places as they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from onnx_rnn_prune.recovery.distill.operators.base import Call, Given, Operator, need, optional

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_AVERAGES = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
_MAXIMA = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


def matmul(_: Call, inputs: Given) -> torch.Tensor:
    """Stacks of matrices broadcast."""
    return torch.matmul(need(inputs, 0), need(inputs, 1))


def gemm(call: Call, inputs: Given) -> torch.Tensor:
    """alpha A B + beta C."""
    a, b, c = need(inputs, 0), need(inputs, 1), optional(inputs, 2)
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    total = call.get("alpha", 1.0) * (a @ b)
    return total if c is None else total + call.get("beta", 1.0) * c


def einsum(call: Call, inputs: Given) -> torch.Tensor:
    """As its equation says."""
    operands = [need(inputs, slot) for slot in range(len(inputs))]
    return torch.einsum(call.get("equation", ""), *operands)


def convolution(call: Call, inputs: Given) -> torch.Tensor:
    """Over one to three axes of places."""
    weight = need(inputs, 1)
    x = _padded(call, need(inputs, 0), weight.shape[2:], 0.0)
    places = weight.ndim - 2
    result: torch.Tensor = _CONVOLUTIONS[places - 1](
        x,
        weight,
        optional(inputs, 2),
        stride=_sizes(call, "strides", places),
        dilation=_sizes(call, "dilations", places),
        groups=call.get("group", 1),
    )
    return result


def average_pool(call: Call, inputs: Given) -> torch.Tensor:
    """The mean of each window; what was padded counts only where the node says so."""
    x, kernel = need(inputs, 0), list(call.get("kernel_shape", ()))
    pool: Any = _AVERAGES[len(kernel) - 1]
    strides = _sizes(call, "strides", len(kernel))
    total = pool(_padded(call, x, kernel, 0.0), kernel, strides)
    if call.get("count_include_pad", 0):
        return total
    inside = pool(_padded(call, torch.ones_like(x), kernel, 0.0), kernel, strides)
    return total / inside


def max_pool(call: Call, inputs: Given) -> torch.Tensor:
    """The largest of each window."""
    x, kernel = need(inputs, 0), list(call.get("kernel_shape", ()))
    pool: Any = _MAXIMA[len(kernel) - 1]
    strides, dilations = (_sizes(call, name, len(kernel)) for name in ("strides", "dilations"))
    padded = _padded(call, x, kernel, float("-inf"))
    return pool(padded, kernel, strides, dilation=dilations)


def global_average(_: Call, inputs: Given) -> torch.Tensor:
    """Over all places."""
    x = need(inputs, 0)
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def global_max(_: Call, inputs: Given) -> torch.Tensor:
    """Over all places."""
    x = need(inputs, 0)
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def _sizes(call: Call, name: str, places: int) -> list[int]:
    return list(call.get(name, [1] * places))


def _padded(call: Call, x: torch.Tensor, kernel: Sequence[int], value: float) -> torch.Tensor:
    places = x.ndim - 2
    pads = list(call.get("pads", [0] * 2 * places))
    how = call.get("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        strides, dilations = (_sizes(call, name, places) for name in ("strides", "dilations"))
        for axis in range(places):
            size, reach = x.shape[axis + 2], (kernel[axis] - 1) * dilations[axis] + 1
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + reach - size, 0)
            small, large = total // 2, total - total // 2
            ends = (small, large) if how == "SAME_UPPER" else (large, small)
            pads[axis], pads[axis + places] = ends
    if not any(pads):
        return x
    # torch wants pairs, from the last axis to the first
    pairs = [n for axis in reversed(range(places)) for n in (pads[axis], pads[axis + places])]
    return functional.pad(x, pairs, value=value)


def _ceils(call: Call) -> str:
    if call.outputs > 1:
        return "has several outputs"
    return "has ceil_mode" if call.attrs.get("ceil_mode") else ""


def _ceils_or_dilates(call: Call) -> str:
    dilated = any(n != 1 for n in call.get("dilations", ()))
    return "has dilations" if dilated else _ceils(call)


OPERATORS: Mapping[str, Operator] = {
    "AveragePool": Operator(average_pool, refuses=_ceils_or_dilates),
    "Conv": Operator(convolution, (1, 2)),
    "Einsum": Operator(einsum, (0, 1)),
    "Gemm": Operator(gemm, (0, 1, 2)),
    "GlobalAveragePool": Operator(global_average),
    "GlobalMaxPool": Operator(global_max),
    "MatMul": Operator(matmul, (0, 1)),
    "MaxPool": Operator(max_pool, refuses=_ceils),
}
