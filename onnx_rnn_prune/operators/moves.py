"""Operators that only move entries: the operator itself is run on the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.model.constants import evaluate
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.base import Bound, Flow, Shape, Step, Stop
from onnx_rnn_prune.operators.labels import NOBODY, Labels, uniform, varying_axes


def pass_on(step: Step) -> Flow | Stop:
    """Labels of an operator that leaves every entry in its place."""
    labels = step.labels[0]
    if labels is None:
        return Stop(f"feeds a parameter of {step.node.op}")
    return Flow(dict.fromkeys(range(len(step.node.outputs)), labels))


def move(step: Step) -> Flow | Stop:
    """Labels of an operator whose first input is moved as the others say."""
    if step.labelled != [0]:
        return Stop(f"feeds a parameter of {step.node.op}")
    problem = _undecided(step)
    if problem:
        return Stop(problem)
    inputs: list[Array | None] = [step.labels[0]]
    inputs += [step.value(slot) for slot in range(1, len(step.labels))]
    return _run(step, inputs)


def concat(step: Step) -> Flow | Stop:
    """Concatenated labels; inputs without units are nobody's."""
    return _run(step, [_labels_or_nobody(step, slot) for slot in range(len(step.labels))])


def place_elements(step: Step) -> Flow | Stop:
    """GatherElements and ScatterElements along an axis other than that of the units.

    Indices are as wide as the data, and are cut with it.
    """
    op, result, size = step.node.op, step.results[0], step.shapes[1]
    slots = [0, 2] if op == "ScatterElements" else [0]
    if 1 in step.labelled or result is None or size is None:
        return Stop(f"feeds a parameter of {op}")
    first = step.labelled[0]
    labels, unit = step.labels[first], step.axes[first]
    assert labels is not None and unit is not None
    axis = int(step.node.attrs.get("axis", 0)) % labels.ndim
    if axis == unit or not uniform(labels, axis) or size[unit] != labels.shape[unit]:
        return Stop(f"its units are selected one by one by {op}")
    line, met, bound = labels.take([0], axis), [], []
    for slot in (1, *slots):
        own = _first_entries(line, axis, step.shapes[slot] or ())
        labelled, loose = step.labels[slot], step.constants[slot] is None
        if own is None or (labelled is None and loose and not step.yielding[slot]):
            return Stop(f"is combined with another activation in {op}")
        if labelled is None:
            bound.append(Bound(slot, unit - own.ndim, own, dead=None if slot == 1 else 0.0))
        elif np.any((own < 0) != (labelled < 0)):
            return Stop(f"is combined with another activation in {op}")
        else:
            met.append((own, labelled))
    made = _first_entries(line, axis, result)
    assert made is not None
    return Flow({0: made}, tuple(bound), tuple(met))


def _first_entries(line: Labels, axis: int, shape: Shape) -> Labels | None:
    """Labels that do not vary along an axis, cropped to another shape; None if that is larger."""
    if len(shape) != line.ndim:
        return None
    sizes = [*line.shape]
    sizes[axis] = shape[axis]
    full = np.broadcast_to(line, sizes)
    if any(wanted > size for wanted, size in zip(shape, sizes, strict=True)):
        return None
    return np.array(full[tuple(slice(wanted) for wanted in shape)])


def pad(step: Step) -> Flow | Stop:
    """Padding adds nobody's entries along the unit axis, and copies of edge lines along others.

    The content of those lines is cut with the units, whatever it is.
    """
    amounts = _amounts(step)
    if step.labelled != [0] or amounts is None:
        return Stop("is padded by amounts that are not constant")
    labels, unit = step.labels[0], step.axes[0]
    assert labels is not None and unit is not None
    mode = step.node.attrs.get("mode", "constant")
    for axis, (before, after) in enumerate(amounts.T.tolist()):
        size = labels.shape[axis]
        if axis == unit:
            labels = labels.take(range(max(-before, 0), size + min(after, 0)), axis)
            widths = [(0, 0)] * labels.ndim
            widths[axis] = max(before, 0), max(after, 0)
            blank = {"constant_values": NOBODY} if mode == "constant" else {}
            labels = np.pad(labels, widths, mode, **blank)
        else:
            labels = labels.take(np.arange(-before, size + after).clip(0, size - 1), axis)
    value = step.constants[2] if len(step.constants) > 2 else None
    fill = step.node.attrs.get("value", 0.0) if value is None else value.reshape(-1)[0]
    return Flow({0: labels}, alters="Pad" if fill else "")


def _amounts(step: Step) -> npt.NDArray[np.int64] | None:
    """Padding at both ends of each axis, [2, axes]; None if unknown."""
    labels, node = step.labels[0], step.node
    pads = node.attrs.get("pads") if len(node.inputs) < 2 else step.constants[1]
    if labels is None or pads is None:
        return None
    axes: Sequence[int] = range(labels.ndim)
    if len(node.inputs) > 3 and node.inputs[3].name:
        given = step.constants[3]
        if given is None:
            return None
        axes = [int(axis) % labels.ndim for axis in given]
    result = np.zeros((2, labels.ndim), np.int64)
    result[:, list(axes)] = np.asarray(pads, np.int64).reshape(2, -1)
    return result


def shape(_: Step) -> Flow:
    """Sizes carry no units; a changed size is corrected where the tensor is cut."""
    return Flow({})


def _labels_or_nobody(step: Step, slot: int) -> Labels:
    labels = step.labels[slot]
    if labels is not None:
        return labels
    sizes = step.shapes[slot]
    return np.full(() if sizes is None else sizes, NOBODY, dtype=np.int64)


def _run(step: Step, inputs: list[Array | None]) -> Flow | Stop:
    known = [
        value is not None or not step.node.inputs[slot].name
        for slot, value in enumerate(inputs[: len(step.node.inputs)])
    ]
    if not all(known):
        return Stop(f"goes through a {step.node.op} whose parameters are unknown")
    outputs = evaluate(step.node, inputs, step.opset)
    return Flow({slot: output.astype(np.int64) for slot, output in enumerate(outputs)})


def _undecided(step: Step) -> str:
    """Why another run might move units differently, or an empty string."""
    labels = step.labels[0]
    assert labels is not None
    op = step.node.op
    axes = selected_axes(step)
    axes = None if axes is None else [axis % labels.ndim for axis in axes]
    varying = [axis for axis in axes or () if not uniform(labels, axis)]
    fixed = all(
        constant is not None or not tensor.name
        for constant, tensor in list(zip(step.constants, step.node.inputs, strict=True))[1:]
    )
    if not fixed and op not in ("Reshape", "Expand", "Tile") and (varying or axes is None):
        return f"its units are selected by a {op} that is computed at run time"
    if step.axes[0] not in varying:
        return ""
    if len(varying_axes(labels)) > 1:
        return f"units of several directions are selected at once by a {op}"
    if op == "Gather" and np.ndim(step.value(1)) != 1:  # type: ignore[arg-type]
        return "single units are selected by a Gather"
    if op == "Slice" and not _contiguous(step):
        return "units are selected by a Slice with steps"
    return ""


def selected_axes(step: Step) -> list[int] | None:
    """The axes along which an operator picks entries; None if unknown."""
    node, labels = step.node, step.labels[0]
    assert labels is not None
    if node.op in ("Gather", "GatherElements", "Split"):
        return [int(node.attrs.get("axis", 0))]
    if node.op == "ReverseSequence":
        return [int(node.attrs.get("time_axis", 0))]
    if node.op == "Slice":
        return slice_axes(step)
    return []


def slice_axes(step: Step) -> list[int] | None:
    """The axes of a Slice, as attribute or as input."""
    if len(step.node.inputs) == 1:  # opset 9 and older
        starts = step.node.attrs["starts"]
        return [int(axis) for axis in step.node.attrs.get("axes", range(len(starts)))]
    if len(step.node.inputs) > 3 and step.node.inputs[3].name:
        axes = step.constants[3]
        return None if axes is None else [int(axis) for axis in np.ravel(axes)]
    starts = step.value(1)
    return None if starts is None else list(range(np.size(starts)))


def _contiguous(step: Step) -> bool:
    steps = step.value(4)
    return steps is None or bool(np.all(np.abs(steps) == 1))
