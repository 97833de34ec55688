"""What a rule answers, as far as every cut can follow it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.operators.labels import Labels, can_vanish, same_order, unit_axis, varying_axes
from onnx_rnn_prune.operators.table import Flow, Step, Stop, rule_of


def answer(step: Step, lane_of: npt.NDArray[np.int64]) -> Flow | Stop:
    """What becomes of the labels that have reached a node.

    Args:
        step: the node.
        lane_of: the lane of each unit.
    """
    rule = rule_of(step.node)
    if rule is None:
        return Stop(f"is read by {step.node.op}, through which units cannot be followed")
    result = rule(step)
    return _check_even(step, result, lane_of) if isinstance(result, Flow) else result


def _check_even(step: Step, flow: Flow, lane_of: npt.NDArray[np.int64]) -> Flow | Stop:
    """Stops labels that a cut would leave ragged or out of order, or leave nothing of."""
    op, before, own = step.node.op, step.labels[0], step.axes[0]
    for labels in flow.outputs.values():
        if not (labels >= 0).any():
            continue
        axis = unit_axis(labels, lane_of)
        if axis is None:
            last = varying_axes(labels)[-1:]
            parts = _parts(labels, last[0], lane_of) if last else 1
            return Stop(f"{op} splits its units unevenly", parts)
        if can_vanish(labels, axis, lane_of):
            parts = _parts(labels, axis, lane_of)
            return Stop(f"{op} takes some of its units only, which may all be cut", parts)
        if op in ("Reshape", "Flatten"):
            assert before is not None and own is not None
            if not same_order(before, own, labels, axis):
                return Stop(f"{op} mixes the order of its units")
    for bound in flow.bound:
        axis = bound.axis % bound.labels.ndim
        if len(varying_axes(bound.labels)) > 1 and unit_axis(bound.labels, lane_of) != axis:
            parts = _parts(bound.labels, axis, lane_of)
            return Stop(f"its units do not fill the groups of {op} evenly", parts)
    return flow


def _parts(labels: Labels, axis: int, lane_of: npt.NDArray[np.int64]) -> int:
    """Into how many parts to divide each lane for a line to hold whole ones; 1 if that is none."""
    line = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])[0]
    found, counts = np.unique(lane_of[np.unique(line[line >= 0])], return_counts=True)
    sizes = np.bincount(lane_of)[found]
    return int(max(sizes // counts)) if len(found) and not np.any(sizes % counts) else 1
