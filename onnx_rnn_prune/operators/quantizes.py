"""Operators that quantize their input by a range that they find in it.

The range includes 0, so removing zeros does not change it, and 0 maps exactly to the zero point:
readers of the integers compute the same. If the entries of cut units are another number, as behind
a Sigmoid, they may determine the range, and units are not followed.
"""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.operators.base import Flow, Step, Stop
from onnx_rnn_prune.operators.moves import pass_on


def quantize(step: Step) -> Flow | Stop:
    """DynamicQuantizeLinear: integers in place, and a common scale and zero point."""
    problem = range_changes(step)
    if problem:
        return Stop(problem)
    labels = step.labels[0]
    assert labels is not None
    return Flow({0: labels})


def in_steps(step: Step) -> Flow | Stop:
    """QuantizeLinear and DequantizeLinear with one constant scale: 0 stays 0 both ways."""
    if step.labelled != [0]:
        return Stop(f"feeds a parameter of {step.node.op}")
    sizes = [
        size for size, tensor in zip(step.shapes, step.node.inputs, strict=True) if tensor.name
    ]
    if any(size is None or np.prod(size) != 1 for size in sizes[1:]):
        return Stop(f"has more than one scale in {step.node.op}")
    return pass_on(step)


def range_changes(step: Step) -> str:
    """Why cutting units may change the first input's range, or an empty string."""
    culprit = step.altered[0]
    return (
        f"{step.node.op} takes its range from what {culprit} makes of a cut unit" if culprit else ""
    )
