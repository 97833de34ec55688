"""Reductions and scans along axes other than that of the units.

If other units lie along such an axis (the directions of one layer), those in one line meet as in an
addition: they become one atom. That is right for every operator here, since a dead atom leaves some
finite number behind, which only zeroed weights read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_rnn_prune.operators.base import Flow, Step, Stop
from onnx_rnn_prune.operators.labels import Labels, squeeze_to, uniform


def reduce(step: Step) -> Flow | Stop:
    """ReduceSum, ReduceMean and the like."""
    labels = step.labels[0]
    if labels is None:
        return Stop(f"feeds a parameter of {step.node.op}")
    axes = step.node.attrs.get("axes")
    if len(step.node.inputs) > 1 and step.node.inputs[1].name:
        if step.constants[1] is None:
            return Stop(f"goes through a {step.node.op} whose axes are not constant")
        axes = np.ravel(step.constants[1]).tolist()
    if axes is None or (not axes and not step.node.attrs.get("noop_with_empty_axes", 0)):
        axes = range(labels.ndim)
    axes = sorted(int(axis) % labels.ndim for axis in axes)
    same = _meetings(labels, axes, step.axes[0])
    if same is None:
        return Stop(f"{step.node.op} mixes its units")
    for axis in axes:
        labels = labels.take([0], axis)
    if not step.node.attrs.get("keepdims", 1):
        labels = labels.reshape([n for axis, n in enumerate(labels.shape) if axis not in axes])
    alters = "" if step.zero == "each" else step.node.op
    return Flow({0: labels}, same=same, alters=alters)


def pool(step: Step) -> Flow | Stop:
    """Pooling or resizing over the axes after the channels."""
    labels, result = step.labels[0], step.results[0]
    reduced = None if labels is None else squeeze_to(labels, (1,))
    named = [tensor for tensor in step.node.outputs if tensor.name]
    if reduced is None or result is None or len(named) > 1 or step.labelled != [0]:
        return Stop(f"its units do not lie on the channels of {step.node.op}")
    return Flow({0: np.array(np.broadcast_to(reduced, result))})


def along_axis(step: Step) -> Flow | Stop:
    """Operators that mix one axis and keep the shape: Softmax, LogSoftmax, CumSum."""
    labels = step.labels[0]
    if labels is None:
        return Stop(f"feeds a parameter of {step.node.op}")
    same = _meetings(labels, _mixed_axes(step, labels), step.axes[0])
    if same is None:
        return Stop(f"{step.node.op} mixes its units")
    alters = "" if step.zero == "each" else step.node.op
    return Flow({0: labels}, same=same, alters=alters)


def _meetings(
    labels: Labels, axes: Sequence[int], unit: int | None
) -> tuple[tuple[Labels, Labels], ...] | None:
    """The units that meet along some axes; None if units of one lane do, or not all are units."""
    same = []
    for axis in axes:
        if uniform(labels, axis):
            continue
        first = labels.take([0], axis)
        if axis == unit or np.any((labels < 0) != (first < 0)):
            return None
        same.append((first, labels))
        labels = first
    return tuple(same)


def _mixed_axes(step: Step, labels: Labels) -> list[int]:
    if step.node.op == "CumSum":
        axis = step.constants[1]
        return list(range(labels.ndim)) if axis is None else [int(axis) % labels.ndim]
    legacy = step.opset < 13  # which flattens all axes from this one on
    first = int(step.node.attrs.get("axis", 1 if legacy else -1)) % labels.ndim
    return list(range(first, labels.ndim)) if legacy else [first]
