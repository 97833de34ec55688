"""What a rule is given and what it answers."""

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
        constants: per input, its value where it is a constant.
        observed: per input, its value in the run where that is a small integer tensor.
        results: per output, its shape in the run.
        opset: version of the ONNX operators.
        zero: what the operator makes of zeros, see `Operator`.
        altered: per input, what has made another number than 0 of the entries of cut units while
            shapes are kept; empty where they are 0.
        own: the units of the node itself, [D, H], where it is a layer that is followed.
        yielding: per input, whether it is where a state starts, and takes the units that it meets.
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
    """A constant input whose axis carries labels, or one that takes the units that it meets.

    Attributes:
        slot: which input.
        axis: the axis that gets shorter, counted from the end.
        labels: labels that broadcast with the constant.
        dead: what a dead entry holds while shapes are kept; not 0 where 0 is no number to put
            there, as in a divisor, and the zero point where the constant is one in integers. None
            where it keeps what it has.
        reads: the input that this weight contracts with, or None where it only meets it.
    """

    slot: int
    axis: int
    labels: Labels
    dead: float | Array | None = 0.0
    reads: int | None = None


def without_cut(value: Array, bounds: Sequence[Bound], keep: Mask) -> Array:
    """What is left of a constant once the entries of cut units are taken out.

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
    """Labels go on.

    Attributes:
        outputs: labels by output position; what is missing carries none.
        bound: constants that get labels here.
        same: pairs of label arrays that meet entry by entry.
        alters: the operator, if it makes another number of 0; else empty.
    """

    outputs: dict[int, Labels]
    bound: tuple[Bound, ...] = ()
    same: tuple[tuple[Labels, Labels], ...] = ()
    alters: str = ""


@dataclass(frozen=True)
class Stop:
    """Labels can flow no further, and why.

    Attributes:
        reason: ends a sentence that begins with the output.
        lanes: into how many parts each lane must be divided for labels to flow on; 1 where that
            does not help.
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
    """What is known of one operator: a row of the table.

    Attributes:
        rule: what it does to labels.
        zero: `each` where it makes 0 of a unit that is 0, whichever finite numbers that meets;
            `all` where it makes 0 of units if all that meets is 0. Of Div this is the dividend, of
            Pow the base; a divisor or a power with which 0 is no number stops labels.
        resize: how its sizes follow a cut; None where it has none, or they need not.
        domain: whose operator it is.
    """

    rule: Rule
    zero: Zero = ""
    resize: Resize | None = None
    domain: str = ""
