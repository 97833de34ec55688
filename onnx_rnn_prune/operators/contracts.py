"""Operators that contract the labelled axis: the matching axis of the weight gets the labels."""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.model.integers import APART, scaled
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.base import Bound, Flow, Step, Stop
from onnx_rnn_prune.operators.labels import Labels, squeeze_to, uniform
from onnx_rnn_prune.operators.quantizes import range_changes
from onnx_rnn_prune.operators.recurrent import CELLS

_FEATURES = {cell.op: cell.features for cell in CELLS}
_STATES = {
    cell.op: [slot for slot, name in enumerate(cell.inputs) if name.startswith("initial_")]
    for cell in CELLS
}
_ZERO = 3  # slot of the weight's zero point in all integer products
_TWO_ACTIVATIONS = "is multiplied by another activation"


def matmul(step: Step) -> Flow | Stop:
    """x W with units on x's columns, W x with units on x's rows, or units on a free axis."""
    if len(step.labelled) > 1:
        return Stop(_TWO_ACTIVATIONS)
    slot = step.labelled[0]
    other = 1 - slot
    labels, size = step.labels[slot], step.shapes[other]
    assert labels is not None
    if labels.ndim < 2 or size is None or len(size) < 2:
        return Stop("is a vector in a MatMul")
    summed = labels.ndim - 1 if slot == 0 else labels.ndim - 2
    if uniform(labels, summed):
        result = step.results[0]
        assert result is not None
        return Flow({0: np.array(np.broadcast_to(labels.take([0], summed), result))})
    if step.constants[other] is None:
        return Stop(_TWO_ACTIVATIONS)
    weight = _of_weight(labels, size, free=labels.ndim - 2 if slot == 0 else labels.ndim - 1)
    if weight is None:
        return Stop("its directions share one weight in MatMul")
    weight = np.swapaxes(weight, -1, -2)
    return Flow({}, (Bound(other, -2 if slot == 0 else -1, weight, reads=slot),))


def _of_weight(labels: Labels, size: tuple[int, ...], free: int) -> Labels | None:
    """Labels in the data's layout, reduced to the weight's axes; None if they vary along others."""
    axes = [labels.ndim - 2, labels.ndim - 1]
    axes.remove(free)
    for axis in range(labels.ndim - 2):
        own = axis - (labels.ndim - len(size))
        if own >= 0 and size[own] > 1:
            axes.append(axis)
    reduced = squeeze_to(labels, tuple(axes))
    if reduced is None:
        return None
    while reduced.ndim > len(size) and reduced.shape[0] == 1:
        reduced = reduced[0]
    return reduced


def gemm(step: Step) -> Flow | Stop:
    """A B + C with units on the inner axis of A."""
    labels = step.labels[0]
    if labels is None or step.labelled != [0]:
        return Stop("feeds a parameter of Gemm")
    if step.constants[1] is None:
        return Stop(_TWO_ACTIVATIONS)
    inner = 0 if step.node.attrs.get("transA", 0) else 1
    reduced = squeeze_to(labels, (inner,))
    if reduced is None:
        return Stop("its units lie on the rows of Gemm")
    transposed = bool(step.node.attrs.get("transB", 0))
    shape = (1, -1) if transposed else (-1, 1)
    return Flow({}, (Bound(1, -1 if transposed else -2, reduced.reshape(shape), reads=0),))


def conv(step: Step) -> Flow | Stop:
    """A convolution whose input channels are units; a depthwise one passes them on."""
    if len(step.constants) > 2 and step.node.inputs[2].name and step.constants[2] is None:
        return Stop(f"is read by a {step.node.op} whose bias is computed")
    return _conv(step, 2)


def _conv(step: Step, made: int) -> Flow | Stop:
    """A convolution; input `made` has one entry per output channel, or just one."""
    labels, weight, op = step.labels[0], step.constants[1], step.node.op
    if labels is None or weight is None:
        return Stop(_TWO_ACTIVATIONS)
    reduced, groups = squeeze_to(labels, (1,)), int(step.node.attrs.get("group", 1))
    if reduced is None or (groups > 1 and op == "ConvTranspose" and groups != labels.shape[1]):
        return Stop(f"its units do not lie on the input channels of one group of {op}")
    if groups > 1 and groups == labels.shape[1]:
        return _depthwise(step, reduced.reshape(-1), weight, made)
    if groups > 1:  # each group reads its own channels
        lines = np.repeat(reduced.reshape(groups, -1), len(weight) // groups, axis=0)
        lines = lines.reshape(*lines.shape, *[1] * (weight.ndim - 2))
        return Flow({}, (Bound(1, 1 - weight.ndim, lines, reads=0),))
    axis = 0 if op == "ConvTranspose" else 1
    sizes = [-1 if place == axis else 1 for place in range(weight.ndim)]
    return Flow({}, (Bound(1, axis - weight.ndim, reduced.reshape(sizes), reads=0),))


def _depthwise(step: Step, line: Labels, weight: Array, slot: int) -> Flow | Stop:
    """A depthwise convolution: the output channels of a unit, one or several, are the unit's."""
    result, transposed = step.results[0], step.node.op == "ConvTranspose"
    if result is None:
        return Stop(f"goes through a {step.node.op} whose result is unknown")
    made = np.repeat(line, result[1] // len(line))
    places = (1,) * (weight.ndim - 2)
    labels = np.array(np.broadcast_to(made.reshape(1, -1, *places), result))
    # Kernels are [M, 1, ...], or [C, M / C, ...] in a transposed convolution.
    kernels = (line if transposed else made).reshape(-1, 1, *places)
    bound = [Bound(1, -weight.ndim, kernels)]
    given = step.constants[slot] if slot < len(step.constants) else None
    if given is not None and given.size == made.size:
        bound.append(Bound(slot, -1, made))
    return Flow({0: labels}, tuple(bound))


def recurrent(step: Step) -> Flow | Stop:
    """The X input of another recurrent layer, or initial states, which meet the layer's units."""
    op, same = step.node.op, []
    for slot in step.labelled:
        labels = step.labels[slot]
        assert labels is not None
        if slot not in (0, *_STATES[op]):
            return Stop(f"feeds a parameter of {op}")
        if slot > 0 and (step.own is None or np.any(labels < 0)):
            return Stop(f"enters a state of {op}")
        if slot > 0 and step.own is not None:
            same.append((step.own[:, None, :], labels))
    labels = step.labels[0]
    if labels is None:
        return Flow({}, same=tuple(same))
    reduced = squeeze_to(labels, (2,))
    if reduced is None or step.constants[1] is None:
        return Stop(f"its units do not lie on the features of {op}")
    axis = _FEATURES[op]
    shape = [-1 if place == axis else 1 for place in range(3)]
    return Flow({}, (Bound(1, axis - 3, reduced.reshape(shape), reads=0),), tuple(same))


def quantized_recurrent(step: Step) -> Flow | Stop:
    """The X input of another recurrent layer that quantizes what it reads."""
    problem = range_changes(step)
    return Stop(problem) if problem else recurrent(step)


def integer_matmul(step: Step) -> Flow | Stop:
    """An integer product with units on the columns of the data."""
    return _of_integers(step) or matmul(step)


def integer_conv(step: Step) -> Flow | Stop:
    """An integer convolution."""
    return _of_integers(step) or _conv(step, _ZERO)


def _of_integers(step: Step) -> Stop | None:
    """A Stop if units cannot be followed into an integer product."""
    op = step.node.op
    if step.labelled != [0]:
        return Stop(f"feeds a parameter of {op}")
    if op in APART and scaled(step.node) is None:
        return Stop(f"is read by a {op} whose scales are not where they are expected")
    given = len(step.constants) > _ZERO and bool(step.node.inputs[_ZERO].name)
    if given and step.constants[_ZERO] is None:
        return Stop(f"is read by a {op} whose zero point is computed")
    return None


def quantized_matmul(step: Step) -> Flow | Stop:
    """A product that quantizes its data and has an integer weight."""
    if len(step.constants) < 3 or step.constants[2] is None:
        return Stop(f"is read by a {step.node.op} whose scale is computed")
    problem = range_changes(step)
    return Stop(problem) if problem else integer_matmul(step)
