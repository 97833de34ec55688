"""What an operator is to the executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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
