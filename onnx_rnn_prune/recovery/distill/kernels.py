"""What an operator is to the executor, and the operators that move entries and compute shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

Given = Sequence[torch.Tensor | None]
Result: TypeAlias = torch.Tensor | tuple[torch.Tensor | None, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """A node as the functions of the table see it.

    Attributes:
        attrs: its attributes; tensors are NumPy arrays.
        opset: version of the ONNX operators.
        outputs: how many outputs it has.
    """

    attrs: Mapping[str, Any]
    opset: int
    outputs: int = 1

    def get(self, name: str, otherwise: Any) -> Any:
        """An attribute, or what stands for it where it is left out."""
        return self.attrs.get(name, otherwise)


Function = Callable[[Call, Given], Result]


def _always(call: Call) -> str:
    return ""


@dataclass(frozen=True)
class Operator:
    """A row of the table.

    Attributes:
        function: computes the outputs from a node's attributes and its inputs, None for those that
            are left out.
        weights: the inputs that may be trained where they are constants.
        refuses: why a node of this operator cannot be computed, or nothing where it can.
    """

    function: Function
    weights: tuple[int, ...] = ()
    refuses: Callable[[Call], str] = _always


def torch_type(kind: np.dtype[np.generic]) -> torch.dtype:
    """The type in which entries are computed here."""
    known = {"bool", "int8", "int16", "int32", "int64", "uint8"}
    found = getattr(torch, kind.name) if kind.name in known else torch.float32
    assert isinstance(found, torch.dtype)
    return found


def need(inputs: Given, slot: int) -> torch.Tensor:
    """An input that cannot be left out."""
    value = inputs[slot]
    assert value is not None, f"input {slot} is missing"
    return value


def optional(inputs: Given, slot: int) -> torch.Tensor | None:
    """An input that can be left out."""
    return inputs[slot] if slot < len(inputs) else None


def integers(call: Call, inputs: Given, name: str, slot: int) -> list[int] | None:
    """What was an attribute in older opsets and is an input in newer ones; None without it."""
    given = optional(inputs, slot)
    if given is not None:
        return [int(item) for item in given.reshape(-1).tolist()]
    held = call.attrs.get(name)
    if held is None:
        return None
    return [held] if isinstance(held, int) else [int(item) for item in held]


def shape(call: Call, inputs: Given) -> torch.Tensor:
    """Sizes of the axes from start to end."""
    sizes = torch.tensor(need(inputs, 0).shape, dtype=torch.int64)
    return sizes[call.get("start", 0) : call.attrs.get("end")]


def size(_: Call, inputs: Given) -> torch.Tensor:
    """Number of entries."""
    return torch.tensor(need(inputs, 0).numel(), dtype=torch.int64)


def reshape(call: Call, inputs: Given) -> torch.Tensor:
    """A 0 takes the size that is there, unless allowzero."""
    x, wanted = need(inputs, 0), integers(call, inputs, "shape", 1) or []
    if not call.get("allowzero", 0):
        wanted = [x.shape[axis] if n == 0 else n for axis, n in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(call: Call, inputs: Given) -> torch.Tensor:
    """Two axes: those before the given one, and the others."""
    x, axis = need(inputs, 0), call.get("axis", 1)
    before, behind = x.shape[:axis], x.shape[axis:]
    return x.reshape(int(np.prod(before, dtype=int)), int(np.prod(behind, dtype=int)))


def transpose(call: Call, inputs: Given) -> torch.Tensor:
    """Axes in another order, reversed by default."""
    x = need(inputs, 0)
    return x.permute(*call.get("perm", list(range(x.ndim))[::-1]))


def squeeze(call: Call, inputs: Given) -> torch.Tensor:
    """Without some axes of size 1, or all of them."""
    x, axes = need(inputs, 0), integers(call, inputs, "axes", 1)
    gone = [axis for axis, n in enumerate(x.shape) if n == 1] if axes is None else axes
    places = {axis % max(x.ndim, 1) for axis in gone}
    return x.reshape([n for axis, n in enumerate(x.shape) if axis not in places])


def unsqueeze(call: Call, inputs: Given) -> torch.Tensor:
    """With more axes of size 1, counted in the result."""
    x, axes = need(inputs, 0), integers(call, inputs, "axes", 1) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def slices(call: Call, inputs: Given) -> torch.Tensor:
    """Ranges of some axes."""
    x = need(inputs, 0)
    starts, ends = integers(call, inputs, "starts", 1), integers(call, inputs, "ends", 2)
    assert starts is not None and ends is not None
    axes = integers(call, inputs, "axes", 3) or list(range(len(starts)))
    steps = integers(call, inputs, "steps", 4) or [1] * len(starts)
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


def gather(call: Call, inputs: Given) -> torch.Tensor:
    """Lines along an axis, by number."""
    x, index = need(inputs, 0), need(inputs, 1).long()
    axis = call.get("axis", 0) % max(x.ndim, 1)
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def gather_elements(call: Call, inputs: Given) -> torch.Tensor:
    """Entries along an axis, each by its own number."""
    x, index = need(inputs, 0), need(inputs, 1).long()
    axis = call.get("axis", 0)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def gather_nd(call: Call, inputs: Given) -> torch.Tensor:
    """Slices by their first coordinates."""
    x, index = need(inputs, 0), need(inputs, 1).long()
    return x[tuple(index.unbind(-1))]


def concat(call: Call, inputs: Given) -> torch.Tensor:
    """Side by side."""
    parts = [need(inputs, slot) for slot in range(len(inputs))]
    return torch.cat(parts, call.get("axis", 1))


def split(call: Call, inputs: Given) -> tuple[torch.Tensor, ...]:
    """Parts of given sizes, or equal ones of which the last may be smaller."""
    x, axis = need(inputs, 0), call.get("axis", 0)
    sizes: Any = integers(call, inputs, "split", 1)
    if sizes is None:
        sizes = -(-x.shape[axis] // call.outputs)
    return tuple(torch.split(x, sizes, axis))


def expand(call: Call, inputs: Given) -> torch.Tensor:
    """Broadcasts in both directions."""
    x, wanted = need(inputs, 0), integers(call, inputs, "shape", 1) or []
    return x.expand(torch.broadcast_shapes(x.shape, tuple(wanted)))


def tile(call: Call, inputs: Given) -> torch.Tensor:
    """Repeats along each axis."""
    return need(inputs, 0).repeat(integers(call, inputs, "repeats", 1) or [])


def pad(call: Call, inputs: Given) -> torch.Tensor:
    """Constant, at the edge or mirrored; entries are picked, so that any axis can be padded."""
    x, pads = need(inputs, 0), integers(call, inputs, "pads", 1) or []
    axes = integers(call, inputs, "axes", 3) or list(range(x.ndim))
    fill, kind = optional(inputs, 2), call.get("mode", "constant")
    value = call.get("value", 0.0) if fill is None else fill.item()
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        x = _pad_axis(x, axis % x.ndim, before, after, kind, value)
    return x


def _pad_axis(
    x: torch.Tensor, axis: int, before: int, after: int, kind: str, value: float
) -> torch.Tensor:
    if kind != "constant":
        modes: Any = kind
        places = np.pad(np.arange(x.shape[axis]), (before, after), mode=modes)
        return x.index_select(axis, torch.from_numpy(places))
    x = x.narrow(axis, max(-before, 0), x.shape[axis] + min(before, 0) + min(after, 0))

    def border(count: int) -> torch.Tensor:
        sizes = [count if place == axis else n for place, n in enumerate(x.shape)]
        return torch.full(sizes, value, dtype=x.dtype)

    return torch.cat([border(max(before, 0)), x, border(max(after, 0))], axis)


def constant_of_shape(call: Call, inputs: Given) -> torch.Tensor:
    """Filled with one number, 0 by default."""
    fill = np.asarray(call.get("value", np.zeros(1, np.float32)))
    sizes = integers(call, inputs, "shape", 0) or []
    return torch.full(sizes, fill.reshape(-1)[0].item(), dtype=torch_type(fill.dtype))


def counting(_: Call, inputs: Given) -> torch.Tensor:
    """From start to limit by delta."""
    start, limit, delta = (need(inputs, slot) for slot in range(3))
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def reverse_sequence(call: Call, inputs: Given) -> torch.Tensor:
    """The first entries of each sequence in the opposite order."""
    x, lengths = need(inputs, 0), need(inputs, 1)
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    moved = x.movedim((time, batch), (0, 1))
    return reversed_steps(moved, lengths).movedim((0, 1), (time, batch))


def reversed_steps(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Of [T, B, ...], the first `lengths` steps of each sequence in the opposite order."""
    steps = torch.arange(len(x))[:, None]
    mirrored = lengths[None, :].long() - 1 - steps
    places = torch.where(mirrored >= 0, mirrored, steps)
    return x[places, torch.arange(x.shape[1])[None, :]]


def _plain(call: Call) -> str:
    return "has batch_dims" if call.attrs.get("batch_dims") else ""


MOVES: Mapping[str, Operator] = {
    "Concat": Operator(concat),
    "ConstantOfShape": Operator(constant_of_shape),
    "Expand": Operator(expand),
    "Flatten": Operator(flatten),
    "Gather": Operator(gather),
    "GatherElements": Operator(gather_elements),
    "GatherND": Operator(gather_nd, refuses=_plain),
    "Pad": Operator(pad),
    "Range": Operator(counting),
    "Reshape": Operator(reshape),
    "ReverseSequence": Operator(reverse_sequence),
    "Shape": Operator(shape),
    "Size": Operator(size),
    "Slice": Operator(slices),
    "Split": Operator(split),
    "Squeeze": Operator(squeeze),
    "Tile": Operator(tile),
    "Transpose": Operator(transpose),
    "Unsqueeze": Operator(unsqueeze),
}
