"""Kernels of products with weights and of recurrent layers, by torch's own if they are equivalent.

In the letters of the ONNX specification: X [T, B, I], W [D, G H, I], R [D, G H, H], B [D, 2 G H],
Y [T, D, B, H], Y_h and Y_c [D, B, H].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnx_rnn_prune.model.integers import MICROSOFT
from onnx_rnn_prune.operators.recurrent import STANDARD
from onnx_rnn_prune.recovery.distill.kernels import Call, Kernel, reversed_steps

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)
_AVERAGES = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
_MAXIMA = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha A B + beta C."""
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    total: Tensor = call.get("alpha", 1.0) * (a @ b)
    return total if c is None else total + call.get("beta", 1.0) * c


def _convolution(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution over one to three spatial axes."""
    places = weight.ndim - 2
    result: Tensor = _CONVOLUTIONS[places - 1](
        _padded(call, x, weight.shape[2:], 0.0),
        weight,
        bias,
        stride=_sizes(call, "strides", places),
        dilation=_sizes(call, "dilations", places),
        groups=call.get("group", 1),
    )
    return result


def _transposed_convolution(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Padding may differ between sides, so it is cropped from the full result."""
    places = weight.ndim - 2
    strides, dilations = (_sizes(call, name, places) for name in ("strides", "dilations"))
    more, groups = list(call.get("output_padding", [0] * places)), call.get("group", 1)
    transpose: Any = _TRANSPOSED[places - 1]
    full: Tensor = transpose(x, weight, None, strides, 0, more, groups, dilations)
    pads = list(call.get("pads", [0] * 2 * places))
    for axis in range(places):
        before, after = pads[axis], pads[axis + places]
        full = full.narrow(axis + 2, before, full.shape[axis + 2] - before - after)
    return full if bias is None else full + bias.reshape(-1, *[1] * places)


def _average_pool(call: Call, x: Tensor) -> Tensor:
    """The mean of each window; padding counts only if the node says so."""
    kernel = list(call.get("kernel_shape", ()))
    pool: Any = _AVERAGES[len(kernel) - 1]
    strides = _sizes(call, "strides", len(kernel))
    total: Tensor = pool(_padded(call, x, kernel, 0.0), kernel, strides)
    if call.get("count_include_pad", 0):
        return total
    return total / pool(_padded(call, torch.ones_like(x), kernel, 0.0), kernel, strides)


def _max_pool(call: Call, x: Tensor) -> Tensor:
    kernel = list(call.get("kernel_shape", ()))
    pool: Any = _MAXIMA[len(kernel) - 1]
    strides, dilations = (_sizes(call, name, len(kernel)) for name in ("strides", "dilations"))
    found: Tensor = pool(_padded(call, x, kernel, -math.inf), kernel, strides, dilation=dilations)
    return found


def _over_places(function: Callable[[Tensor, list[int], bool], Tensor]) -> Kernel:
    return Kernel(lambda _, x: function(x, list(range(2, x.ndim)), True))


def _sizes(call: Call, name: str, places: int) -> list[int]:
    return list(call.get(name, [1] * places))


def _padded(call: Call, x: Tensor, kernel: Sequence[int], value: float) -> Tensor:
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
    # torch takes pairs from the last axis to the first
    pairs = [n for axis in reversed(range(places)) for n in (pads[axis], pads[axis + places])]
    return functional.pad(x, pairs, value=value)


def _ceils(call: Call) -> str:
    if call.outputs > 1:
        return "has several outputs"
    return "has ceil_mode" if call.attrs.get("ceil_mode") else ""


def _sized(call: Call) -> str:
    chosen = call.get("output_shape", None) or call.get("auto_pad", "NOTSET") != "NOTSET"
    return "has pads that follow from its output" if chosen else ""


def _ceils_or_dilates(call: Call) -> str:
    dilated = any(n != 1 for n in call.get("dilations", ()))
    return "has dilations" if dilated else _ceils(call)


PRODUCTS: Mapping[str, Kernel] = {
    "AveragePool": Kernel(_average_pool, refuses=_ceils_or_dilates),
    "Conv": Kernel(_convolution, (1, 2)),
    "ConvTranspose": Kernel(_transposed_convolution, (1, 2), _sized),
    "Einsum": Kernel(lambda call, *parts: torch.einsum(call.get("equation", ""), *parts), (0, 1)),
    "Gemm": Kernel(_gemm, (0, 1, 2)),
    "GlobalAveragePool": _over_places(torch.mean),
    "GlobalMaxPool": _over_places(torch.amax),
    "MatMul": Kernel(lambda _, a, b: torch.matmul(a, b), (0, 1)),
    "MaxPool": Kernel(_max_pool, refuses=_ceils),
}


Nonlinearity = Callable[[Tensor], Tensor]

ACTIVATIONS: Mapping[str, Nonlinearity] = {
    "hardsigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "softsign": torch.nn.functional.softsign,
    "tanh": torch.tanh,
}
# For each operator, the gates in torch's order, as indices into ONNX's order: i f c o, r z h.
_TORCH_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction of a layer, running forward.

    Attributes:
        inputs: [T, B, I].
        weight: [G H, I].
        recurrence: [G H, H].
        biases: Wb and Rb, [2, G H].
        peepholes: [3 H] or None.
        state: initial_h, [B, H].
        memory: initial_c, [B, H]; None unless an LSTM.
        lengths: [B], or None if all sequences run to the end.
        activations: in lower case.
    """

    inputs: Tensor
    weight: Tensor
    recurrence: Tensor
    biases: Tensor
    peepholes: Tensor | None
    state: Tensor
    memory: Tensor | None
    lengths: Tensor | None
    activations: tuple[str, ...]


# Y [T, B, H] up to the end of each sequence, and the final state and memory, [B, H].
Ran = tuple[Tensor, Tensor, Tensor | None]


def _recurrent(op: str) -> Kernel:
    """A row for one of the three operators."""

    def run(call: Call, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        named = dict(zip(STANDARD[op].inputs, inputs, strict=False))
        directions = _tensor(named, "R").shape[0]
        found = [_direction(op, call, named, number) for number in range(directions)]
        whole = torch.stack([sequence for sequence, _, _ in found], 1)
        state = torch.stack([last for _, last, _ in found])
        memories = [last for _, _, last in found if last is not None]
        outputs = (whole, state, torch.stack(memories) if memories else None)
        return outputs[: call.outputs]

    slots = tuple(map(STANDARD[op].inputs.index, STANDARD[op].parameters))
    return Kernel(run, slots, lambda call: _refuses(op, call))


def _refuses(op: str, call: Call) -> str:
    named = call.get("activations", None) or STANDARD[op].activations
    unknown = [str(name) for name in named if str(name).lower() not in ACTIVATIONS]
    if unknown:
        return f"has the activation {unknown[0]}"
    for name in ("clip", "activation_alpha", "activation_beta", "input_forget", "layout"):
        if call.get(name, None):
            return f"has {name}"
    return ""


def _tensor(named: Mapping[str, Tensor | None], name: str) -> Tensor:
    value = named[name]
    assert value is not None
    return value


def _direction(op: str, call: Call, named: Mapping[str, Tensor | None], number: int) -> Ran:
    """Runs one direction; a backward one runs forward on reversed steps."""
    lane = _lane(op, call, named, number)
    backward = call.get("direction", "forward") == "reverse" or number == 1
    if not backward:
        return _run(op, call, lane)
    lengths = named.get("sequence_lens")
    turned = lane.inputs.flip(0) if lengths is None else reversed_steps(lane.inputs, lengths)
    sequence, state, memory = _run(op, call, replace(lane, inputs=turned))
    back = sequence.flip(0) if lengths is None else reversed_steps(sequence, lengths)
    return back, state, memory


def _lane(op: str, call: Call, named: Mapping[str, Tensor | None], number: int) -> Direction:
    inputs, weight, recurrence = (_tensor(named, name) for name in ("X", "W", "R"))
    parts = {name: named.get(name) for name in ("B", "P", "initial_h", "initial_c")}
    own = {name: None if part is None else part[number] for name, part in parts.items()}
    rows, hidden = recurrence.shape[1:]
    zeros = inputs.new_zeros(inputs.shape[1], hidden)
    bias = own["B"] if own["B"] is not None else inputs.new_zeros(2 * rows)
    state, memory = (zeros if part is None else part.expand_as(zeros)
                     for part in (own["initial_h"], own["initial_c"]))  # fmt: skip
    defaults = STANDARD[op].activations
    activations = call.get("activations", None) or defaults * (number + 1)
    first = number * len(defaults)
    chosen = tuple(str(name).lower() for name in activations[first : first + len(defaults)])
    return Direction(
        inputs,
        weight[number],
        recurrence[number],
        bias.reshape(2, -1),
        own["P"],
        state,
        memory if op == "LSTM" else None,
        named.get("sequence_lens"),
        chosen,
    )


def _run(op: str, call: Call, lane: Direction) -> Ran:
    kernel = _kernel(op, call, lane)
    if kernel is None:
        return _step_by_step(op, call, lane)
    sequence, state, memory = kernel
    if lane.lengths is None:
        return sequence, state, memory
    inside = torch.arange(len(sequence))[:, None] < lane.lengths[None, :]
    last = sequence[(lane.lengths.long() - 1).clamp(min=0), torch.arange(sequence.shape[1])]
    state = torch.where((lane.lengths > 0)[:, None], last, lane.state)
    return sequence * inside[:, :, None], state, memory


def _kernel(op: str, call: Call, lane: Direction) -> Ran | None:
    """torch's own loop over time, or None if it computes something else."""
    ends_early = lane.lengths is not None and op == "LSTM" and call.outputs > 2
    if lane.peepholes is not None or ends_early or not len(lane.inputs):
        return None
    default = tuple(name.lower() for name in STANDARD[op].activations)
    rectified = op == "RNN" and lane.activations == ("relu",)
    if lane.activations != default and not rectified:
        return None
    if op == "GRU" and not call.get("linear_before_reset", 0):
        return None
    weights = [
        _in_torch_order(op, part)
        for part in (lane.weight, lane.recurrence, lane.biases[0], lane.biases[1])
    ]
    how = (True, 1, 0.0, True, False, False)  # biases, layers, dropout, train, both ways, batch
    state = lane.state[None].contiguous()
    if op == "LSTM":
        assert lane.memory is not None
        memory = lane.memory[None].contiguous()
        sequence, last, kept = torch._VF.lstm(lane.inputs, (state, memory), weights, *how)
        return sequence, last[0], kept[0]
    name = "gru" if op == "GRU" else "rnn_relu" if rectified else "rnn_tanh"
    sequence, last = getattr(torch._VF, name)(lane.inputs, state, weights, *how)
    return sequence, last[0], None


def _in_torch_order(op: str, part: Tensor) -> Tensor:
    order = _TORCH_ORDER[op]
    if len(order) == 1:
        return part
    blocks = part.reshape(len(order), -1, *part.shape[1:])
    return torch.cat([blocks[place] for place in order])


def _step_by_step(op: str, call: Call, lane: Direction) -> Ran:
    """Runs a direction step by step, as in the specification."""
    step = _STEPS[op]
    summed = lane.inputs @ lane.weight.T + lane.biases[0]
    state, memory = lane.state, lane.memory
    rows: list[Tensor] = []
    for time in range(len(summed)):
        after, kept = step(call, lane, summed[time], state, memory)
        if lane.lengths is not None:
            inside = (time < lane.lengths)[:, None]
            rows.append(after * inside)
            state = torch.where(inside, after, state)
            memory = None if memory is None or kept is None else torch.where(inside, kept, memory)
        else:
            rows.append(after)
            state, memory = after, kept
    sequence = torch.stack(rows) if rows else lane.inputs.new_zeros(0, *lane.state.shape)
    return sequence, state, memory


StepState = tuple[Tensor, Tensor | None]


def _lstm_step(_: Call, lane: Direction, x: Tensor, h: Tensor, c: Tensor | None) -> StepState:
    f, g, out = (ACTIVATIONS[name] for name in lane.activations)
    assert c is not None
    a_i, a_o, a_f, a_c = (x + h @ lane.recurrence.T + lane.biases[1]).chunk(4, -1)
    if lane.peepholes is None:
        p_i = p_o = p_f = torch.zeros_like(c[0])
    else:
        p_i, p_o, p_f = lane.peepholes.chunk(3)
    c_new = f(a_f + p_f * c) * c + f(a_i + p_i * c) * g(a_c)
    return f(a_o + p_o * c_new) * out(c_new), c_new


def _gru_step(call: Call, lane: Direction, x: Tensor, h: Tensor, _: Tensor | None) -> StepState:
    f, g = (ACTIVATIONS[name] for name in lane.activations)
    hidden = h.shape[-1]
    r_zr, r_h = lane.recurrence[: 2 * hidden], lane.recurrence[2 * hidden :]
    b_zr, b_h = lane.biases[1][: 2 * hidden], lane.biases[1][2 * hidden :]
    z, r = f(x[:, : 2 * hidden] + h @ r_zr.T + b_zr).chunk(2, -1)
    linear = call.get("linear_before_reset", 0)
    candidate = r * (h @ r_h.T + b_h) if linear else (r * h) @ r_h.T + b_h
    return (1.0 - z) * g(x[:, 2 * hidden :] + candidate) + z * h, None


def _rnn_step(_: Call, lane: Direction, x: Tensor, h: Tensor, __: Tensor | None) -> StepState:
    return ACTIVATIONS[lane.activations[0]](x + h @ lane.recurrence.T + lane.biases[1]), None


_STEPS: Mapping[str, Callable[[Call, Direction, Tensor, Tensor, Tensor | None], StepState]] = {
    "LSTM": _lstm_step,
    "GRU": _gru_step,
    "RNN": _rnn_step,
}


def _not_rounded(_: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DynamicQuantizeLinear without rounding, which gradients do not pass."""
    return x, x.new_ones(()), x.new_zeros(())


def _from_zero(x: Tensor, zero: Tensor | None, axis: int = -1) -> Tensor:
    """Integers (or floats in place of them) minus their zero points, which lie along an axis."""
    if zero is None:
        return x.to(torch.float32)
    sizes = [-1 if place == axis % x.ndim else 1 for place in range(x.ndim)]
    return x.to(torch.float32) - (zero.reshape(sizes) if zero.numel() > 1 else zero.reshape(()))


def _integer_product(
    _: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    return torch.matmul(_from_zero(a, a_zero, -2), _from_zero(b, b_zero))


def _integer_convolution(
    call: Call, x: Tensor, weight: Tensor, zero: Tensor | None = None, own: Tensor | None = None
) -> Tensor:
    return _convolution(call, _from_zero(x, zero), _from_zero(weight, own, 0))


def _quantized_product(
    _: Call,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    product = torch.matmul(a, _from_zero(b, zero) * scale)
    return product if bias is None else product + bias


def _quantized_lstm(call: Call, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """An LSTM whose W and R are integers, [D, I, 4 H] and [D, H, 4 H], each with a scale."""
    given = list(inputs)
    for slot, scale in ((1, 8), (2, 10)):
        steps, by = given[slot], given[scale]
        assert steps is not None and by is not None
        zero = given[scale + 1] if scale + 1 < len(given) else None
        wide = (len(by), 1, -1)
        own = steps.to(torch.float32) - (0.0 if zero is None else zero.reshape(wide))
        given[slot] = (own * by.reshape(wide)).transpose(1, 2)
    found = _LSTM.function(call, *given[: len(STANDARD["LSTM"].inputs)])
    assert isinstance(found, tuple)
    return found


_LSTM = _recurrent("LSTM")
# Integer weights are trained as floats relative to their zero point. Their other operand is not
# rounded.
INTEGERS: Mapping[str, Kernel] = {
    "ConvInteger": Kernel(_integer_convolution, (1,)),
    "DynamicQuantizeLinear": Kernel(_not_rounded),
    "DynamicQuantizeLSTM": Kernel(_quantized_lstm, _LSTM.weights, _LSTM.refuses, MICROSOFT),
    "DynamicQuantizeMatMul": Kernel(_quantized_product, (1, 4), domain=MICROSOFT),
    "MatMulInteger": Kernel(_integer_product, (1,)),
}
LAYERS: Mapping[str, Kernel] = {op: _recurrent(op) for op in _STEPS}
