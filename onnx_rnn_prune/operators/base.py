"""The input of a rule and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.labels import Labels, Mask, compress, kept

Shape = tuple[int, ...]
Zero = Literal["", "each", "all"]


@dataclass(frozen=True)
class Step:
    """One node that labels have reached, as seen in one run of the model.

    Attributes:
        node: the node.
        labels: per input, its labels, or None where no unit is in it.
        axes: per input, the axis along which its units lie; None where no unit is in it.
        shapes: per input, its shape in the run; None where unknown or omitted.
        constants: per input, its value if it is constant.
        observed: per input, its value in the run where that is a small integer tensor.
        results: per output, its shape in the run.
        opset: version of the ONNX operators.
        zero: what the operator does to zeros, see `Operator`.
        altered: per input, the operator that turned the zeros of cut units into another number
            while shapes are kept; empty where they are still 0.
        own: the units of the node itself, [D, H], where it is a layer that is followed.
        yielding: per input, whether it is an initial state that takes the units it meets.
    """

    node: gs.Node
    labels: tuple[Labels | None, ...]
    axes: tuple[int | None, ...]
    shapes: tuple[Shape | None, ...]
    constants: tuple[Array | None, ...]
    observed: tuple[Array | None, ...]
    results: tuple[Shape | None, ...]
    opset: int
    altered: tuple[str, ...]
    zero: Zero = ""
    own: Labels | None = None
    yielding: tuple[bool, ...] = ()

    def value(self, slot: int) -> Array | None:
        """An input's value, constant or as observed."""
        if slot >= len(self.constants):
            return None
        constant = self.constants[slot]
        return self.observed[slot] if constant is None else constant

    @property
    def labelled(self) -> list[int]:
        """The inputs that carry labels."""
        return [slot for slot, labels in enumerate(self.labels) if labels is not None]


@dataclass(frozen=True)
class Bound:
    """A constant input whose axis carries labels, or a computed one that takes the units it meets.

    Attributes:
        slot: which input.
        axis: the axis that gets shorter, counted from the end.
        labels: labels that broadcast with the constant.
        dead: the value of a dead entry while shapes are kept; not 0 where 0 would be invalid, as in
            a divisor, and the zero point in integers. None to keep the present value.
        reads: the input that this weight is contracted with, or None if the two only meet.
    """

    slot: int
    axis: int
    labels: Labels
    dead: float | Array | None = 0.0
    reads: int | None = None


def without_cut(value: Array, bounds: Sequence[Bound], keep: Mask) -> Array:
    """A constant without the entries of cut units.

    Args:
        value: the constant.
        bounds: where units lie in it; labels of one may lie along the axis of another, too.
        keep: per unit, True where it stays.
    """
    masks = [kept(bound.labels, keep) for bound in bounds]
    for number, bound in enumerate(bounds):
        mask, axis = masks[number], bound.axis
        value = np.broadcast_to(value, np.broadcast_shapes(value.shape, mask.shape))
        value = compress(value, mask, axis % value.ndim)
        for other in range(number + 1, len(bounds)):
            along = masks[other]
            if along.ndim >= -axis and along.shape[axis] > 1:
                masks[other] = compress(along, mask, axis % along.ndim).astype(bool)
    return value


@dataclass(frozen=True)
class Flow:
    """The rule's answer that labels go on.

    Attributes:
        outputs: labels by output position; what is missing carries none.
        bound: inputs that get labels here.
        same: pairs of label arrays that meet entry by entry.
        alters: the operator if it turns 0 into another number, else empty.
    """

    outputs: dict[int, Labels]
    bound: tuple[Bound, ...] = ()
    same: tuple[tuple[Labels, Labels], ...] = ()
    alters: str = ""


@dataclass(frozen=True)
class Stop:
    """The rule's answer that labels stop, and why.

    Attributes:
        reason: the end of a sentence whose subject is the layer's output.
        lanes: the number of parts to divide each lane into so that labels can go on; 1 if that does
            not help.
    """

    reason: str
    lanes: int = 1


Rule = Callable[[Step], Flow | Stop]


@dataclass(frozen=True)
class Cut:
    """How one tensor gets shorter: along one axis, from `mask.size` to `mask.sum()` entries."""

    axis: int
    rank: int
    mask: Mask

    @property
    def ratio(self) -> tuple[int, int]:
        """New and old length."""
        return int(self.mask.sum()), int(self.mask.size)


Resize = Callable[[gs.Graph, gs.Node, Mapping[str, Cut]], None]
"""Brings a node's parameters down to what the tensors around it are cut to."""


@dataclass(frozen=True)
class Operator:
    """An operator: a row of the table.

    Attributes:
        rule: what it does to labels.
        zero: `each` if a unit that is 0 yields 0, whatever finite numbers it meets; `all` if it
            yields 0 only where everything it meets is 0. For Div this concerns the dividend, for
            Pow the base; a divisor or exponent for which 0 is invalid stops labels.
        resize: adapts its sizes to a cut; None if it has none, or they need no change.
        domain: of the operator.
    """

    rule: Rule
    zero: Zero = ""
    resize: Resize | None = None
    domain: str = ""
