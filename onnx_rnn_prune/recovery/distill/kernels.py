"""Kernels, which compute operators in PyTorch; here, those that move entries and compute shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Result: TypeAlias = Tensor | tuple[Tensor | None, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """A node as passed to a kernel.

    Attributes:
        attrs: its attributes; tensors are NumPy arrays.
        opset: version of the ONNX operators.
        outputs: number of outputs.
    """

    attrs: Mapping[str, Any]
    opset: int
    outputs: int = 1

    def get(self, name: str, otherwise: Any) -> Any:
        """An attribute, or its default."""
        return self.attrs.get(name, otherwise)


# Takes a call and its inputs, None for omitted ones.
Function = Callable[..., Result]


@dataclass(frozen=True)
class Kernel:
    """A row of the table.

    Attributes:
        function: computes the outputs from a node's attributes and its inputs.
        weights: the inputs that may be trained if they are constants.
        refuses: why a node of this operator cannot be computed; empty if it can.
        domain: domain of the operator; empty for ONNX's own.
    """

    function: Function
    weights: tuple[int, ...] = ()
    refuses: Callable[[Call], str] = lambda call: ""
    domain: str = ""


def torch_type(kind: np.dtype[np.generic]) -> torch.dtype:
    """The torch type used for entries of a NumPy type."""
    known = {"bool", "int8", "int16", "int32", "int64", "uint8"}
    found = getattr(torch, kind.name) if kind.name in known else torch.float32
    assert isinstance(found, torch.dtype)
    return found


def integers(call: Call, given: Tensor | None, name: str) -> list[int] | None:
    """Integers given as an attribute in older opsets and as an input in newer ones, or None."""
    if given is not None:
        return [int(item) for item in given.reshape(-1).tolist()]
    held = call.attrs.get(name)
    if held is None:
        return None
    return [held] if isinstance(held, int) else [int(item) for item in held]


def _shape(call: Call, x: Tensor) -> Tensor:
    sizes = torch.tensor(x.shape, dtype=torch.int64)
    return sizes[call.get("start", 0) : call.attrs.get("end")]


def _reshape(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
    """0 stands for the present size, unless allowzero."""
    wanted = integers(call, given, "shape") or []
    if not call.get("allowzero", 0):
        wanted = [x.shape[axis] if n == 0 else n for axis, n in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(call: Call, x: Tensor) -> Tensor:
    """Flattens to two axes: those before the given one, and the rest."""
    axis = call.get("axis", 1)
    before, behind = x.shape[:axis], x.shape[axis:]
    return x.reshape(int(np.prod(before, dtype=int)), int(np.prod(behind, dtype=int)))


def _squeeze(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
    axes = integers(call, given, "axes")
    gone = [axis for axis, n in enumerate(x.shape) if n == 1] if axes is None else axes
    places = {axis % max(x.ndim, 1) for axis in gone}
    return x.reshape([n for axis, n in enumerate(x.shape) if axis not in places])


def _unsqueeze(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
    """Adds axes of size 1, numbered in the result."""
    axes = integers(call, given, "axes") or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    names = ("starts", "ends", "axes", "steps")
    inputs = (*given, None, None, None, None)
    starts, ends, axes, steps = (integers(call, g, n) for g, n in zip(inputs, names, strict=False))
    assert starts is not None and ends is not None
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = x.shape[axis]
        if step < 0 and end < -length:  # Python would count it from the end
            places = range(length)[min(start, length - 1) :: step]
        else:
            places = range(length)[start:end:step]
        if step == 1:
            x = x.narrow(axis, places.start if len(places) else 0, len(places))
        else:
            x = x.index_select(axis % x.ndim, torch.tensor(list(places), dtype=torch.int64))
    return x


def _gather(call: Call, x: Tensor, numbers: Tensor) -> Tensor:
    axis, index = call.get("axis", 0) % max(x.ndim, 1), numbers.long()
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _gather_elements(call: Call, x: Tensor, numbers: Tensor) -> Tensor:
    axis, index = call.get("axis", 0), numbers.long()
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def _split(call: Call, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, ...]:
    """Parts of given sizes, or equal ones of which the last may be smaller."""
    axis = call.get("axis", 0)
    sizes: Any = integers(call, given, "split") or -(-x.shape[axis] // call.outputs)
    return tuple(torch.split(x, sizes, axis))


def _expand(call: Call, x: Tensor, given: Tensor) -> Tensor:
    """Broadcasts in both directions."""
    wanted = integers(call, given, "shape") or []
    return x.expand(torch.broadcast_shapes(x.shape, tuple(wanted)))


def _pad(
    call: Call,
    x: Tensor,
    given: Tensor | None = None,
    fill: Tensor | None = None,
    along: Tensor | None = None,
) -> Tensor:
    """Pads in constant, edge or reflect mode; entries are gathered, so any axis can be padded."""
    pads, axes = integers(call, given, "pads") or [], integers(call, along, "axes")
    axes = axes or list(range(x.ndim))
    value = call.get("value", 0.0) if fill is None else fill.item()
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        x = _pad_axis(x, axis % x.ndim, before, after, call.get("mode", "constant"), value)
    return x


def _pad_axis(x: Tensor, axis: int, before: int, after: int, kind: str, value: float) -> Tensor:
    if kind != "constant":
        modes: Any = kind
        places = np.pad(np.arange(x.shape[axis]), (before, after), mode=modes)
        return x.index_select(axis, torch.from_numpy(places))
    x = x.narrow(axis, max(-before, 0), x.shape[axis] + min(before, 0) + min(after, 0))

    def border(count: int) -> Tensor:
        sizes = [count if place == axis else n for place, n in enumerate(x.shape)]
        return torch.full(sizes, value, dtype=x.dtype)

    return torch.cat([border(max(before, 0)), x, border(max(after, 0))], axis)


def _constant_of_shape(call: Call, given: Tensor) -> Tensor:
    fill = np.asarray(call.get("value", np.zeros(1, np.float32)))
    sizes = integers(call, given, "shape") or []
    return torch.full(sizes, fill.reshape(-1)[0].item(), dtype=torch_type(fill.dtype))


def _range(_: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    moved = x.movedim((time, batch), (0, 1))
    return reversed_steps(moved, lengths).movedim((0, 1), (time, batch))


def reversed_steps(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverses the first `lengths` steps of each sequence of [T, B, ...]."""
    steps = torch.arange(len(x))[:, None]
    mirrored = lengths[None, :].long() - 1 - steps
    places = torch.where(mirrored >= 0, mirrored, steps)
    return x[places, torch.arange(x.shape[1])[None, :]]


def _plain(call: Call) -> str:
    return "has batch_dims" if call.attrs.get("batch_dims") else ""


MOVES: Mapping[str, Kernel] = {
    "Concat": Kernel(lambda call, *inputs: torch.cat(inputs, call.get("axis", 1))),
    "ConstantOfShape": Kernel(_constant_of_shape),
    "Expand": Kernel(_expand),
    "Flatten": Kernel(_flatten),
    "Gather": Kernel(_gather),
    "GatherElements": Kernel(_gather_elements),
    "GatherND": Kernel(lambda _, x, index: x[tuple(index.long().unbind(-1))], refuses=_plain),
    "Pad": Kernel(_pad),
    "Range": Kernel(_range),
    "Reshape": Kernel(_reshape),
    "ReverseSequence": Kernel(_reverse_sequence),
    "Shape": Kernel(_shape),
    "Size": Kernel(lambda _, x: torch.tensor(x.numel(), dtype=torch.int64)),
    "Slice": Kernel(_slice),
    "Split": Kernel(_split),
    "Squeeze": Kernel(_squeeze),
    "Tile": Kernel(lambda call, x, counts: x.repeat(integers(call, counts, "repeats") or [])),
    "Transpose": Kernel(lambda call, x: x.permute(*call.get("perm", range(x.ndim)[::-1]))),
    "Unsqueeze": Kernel(_unsqueeze),
}
