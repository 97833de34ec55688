"""Entrywise operators: units that meet become one atom, constants that meet units get bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_rnn_prune.operators.base import Bound, Flow, Shape, Step, Stop
from onnx_rnn_prune.operators.labels import Labels, squeeze_to, uniform

# Inputs where a masked entry of a constant must not be 0: 0 / 0 is NaN, and stays so when
# multiplied by a zero weight.
_DEAD = {("Div", 1): 1.0}


def meet(step: Step) -> Flow | Stop:
    """Labels of an entrywise operator with any number of inputs."""
    hazard = _hazard(step)
    if hazard:
        return Stop(hazard)
    shapes = [() if size is None else size for size in step.shapes]
    full = np.broadcast_shapes(*shapes)
    labels = [_spread(step.labels[slot], full) for slot in step.labelled]
    first = labels[0]
    if any(np.any((first < 0) != (other < 0)) for other in labels[1:]):
        return Stop(f"is combined with another activation in {step.node.op}")
    unit = _unit_axis(step, len(full))
    bound: list[Bound] = []
    alters = "" if step.zero else step.node.op
    for slot, size in enumerate(shapes):
        if step.labels[slot] is not None or not step.node.inputs[slot].name:
            continue
        if _size(size, unit, len(full)) == 1:
            # One number for all entries, which stays when cut units are zeroed.
            alters = alters or (step.node.op if step.zero == "all" else "")
            continue
        if step.constants[slot] is None and not (step.yielding and step.yielding[slot]):
            return Stop(f"is combined with another activation in {step.node.op}")
        dead = _DEAD.get((step.node.op, slot), 0.0)
        bound.append(_bind(slot, first, size, unit, dead))
    outputs = dict.fromkeys(range(len(step.node.outputs)), first)
    return Flow(outputs, tuple(bound), tuple((first, other) for other in labels[1:]), alters)


def normalize(step: Step) -> Flow | Stop:
    """Normalization by channel, with given statistics or those of each channel or group.

    Scale and shift per channel or group come first; BatchNormalization has mean and variance as
    well.
    """
    op, labels = step.node.op, step.labels[0]
    reduced = None if labels is None else squeeze_to(labels, (1,))
    if labels is None or step.labelled != [0]:
        return Stop(f"its units do not lie on the channels of {op}")
    if reduced is None:  # as when a Reshape puts the channels of a group side by side
        return Stop(f"is normalized together with other units by {op}")
    if any(value is None for value in step.constants[1:]):
        return Stop(f"is combined with another activation in {op}")
    lane = reduced.reshape(-1)
    groups = lane.reshape(int(step.node.attrs.get("num_groups", lane.size)), -1)
    first = groups[:, :1]
    if np.any((groups < 0) != (first < 0)):
        return Stop(f"is normalized together with values other than units by {op}")
    # Means are of all that is in a group, so that only whole groups go.
    same = ((groups, np.broadcast_to(first, groups.shape)),) if groups.shape[1] > 1 else ()
    bound = tuple(
        Bound(n, -1, lane if value.size == lane.size else first[:, 0], 1.0 if n == 4 else 0.0)
        for n, value in enumerate(step.constants)
        if n > 0 and value is not None
    )
    return Flow({0: labels}, bound, same)


def _hazard(step: Step) -> str:
    """Where the value that a dead unit leaves behind could become infinite; empty if nowhere."""
    if step.node.op == "Div" and 1 in step.labelled:
        return "divides by a unit"
    if step.node.op == "Sqrt" and any(step.altered):
        return "takes the root of a value that may not be 0"
    if step.node.op == "Pow":
        power = step.constants[1]
        if power is None or not np.all(power > 0):
            return "is raised to a power that is not a positive constant"
    return ""


def _unit_axis(step: Step, rank: int) -> int:
    """The axis of the result along which units lie."""
    slot = step.labelled[0]
    labels, axis = step.labels[slot], step.axes[slot]
    assert labels is not None and axis is not None
    return axis + rank - labels.ndim


def _spread(labels: Labels | None, full: Shape) -> Labels:
    assert labels is not None
    return np.array(np.broadcast_to(labels, full))


def _size(shape: Sequence[int], axis: int, rank: int) -> int:
    own = axis - (rank - len(shape))
    return shape[own] if own >= 0 else 1


def _bind(slot: int, labels: Labels, size: Shape, unit: int, dead: float) -> Bound:
    """Labels of a constant: those of the output, without the axes along which it is broadcast.

    If directions with different units meet one constant, the axis of the directions stays, and the
    constant is repeated along it when it is cut.
    """
    rank = labels.ndim
    for axis in range(rank):
        if _size(size, axis, rank) == 1 and uniform(labels, axis):
            labels = labels.take([0], axis)
    while labels.ndim > len(size) and labels.shape[0] == 1:
        labels = labels[0]
    return Bound(slot, unit - rank, labels, dead)
