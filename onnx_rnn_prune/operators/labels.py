"""Labels: an integer array of a tensor's own shape that says which unit owns each entry."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NOBODY = -1


def uniform(labels: Labels, axis: int) -> bool:
    """Whether labels do not change along an axis."""
    if labels.strides[axis] == 0:
        return True
    return bool(np.all(labels == labels.take([0], axis))) if labels.shape[axis] else True


def varying_axes(labels: Labels) -> list[int]:
    """The axes along which labels change."""
    return [axis for axis in range(labels.ndim) if not uniform(labels, axis)]


def repeated(labels: Labels) -> Labels:
    """The same labels, read-only, stored once along axes where they do not vary."""
    held = labels
    for axis in range(labels.ndim):
        if labels.shape[axis] and uniform(labels, axis):
            held = held.take([0], axis)
    return np.broadcast_to(held, labels.shape)


def squeeze_to(labels: Labels, axes: tuple[int, ...]) -> Labels | None:
    """Labels reduced to some axes, the others of size 1; None if they vary along another axis."""
    for axis in range(labels.ndim):
        if axis in axes:
            continue
        if not uniform(labels, axis):
            return None
        labels = labels.take([0], axis)
    return labels


def unit_axis(labels: Labels, lane_of: npt.NDArray[np.int64]) -> int | None:
    """The axis along which every legal plan keeps equally many entries everywhere.

    Args:
        labels: labels of one tensor, with at least one unit in them.
        lane_of: the lane of each unit.

    Returns:
        The axis, or None if there is none and a cut would leave a ragged tensor.
    """
    varying = varying_axes(labels)
    if len(varying) == 1:
        return varying[0]
    for axis in reversed(varying):
        if _whole_lanes(labels, axis, lane_of):
            return axis
    return None


def tied_lanes(labels: Labels, axis: int, lane_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The lanes that must keep equally many units for lines along an axis to stay equally long.

    All lanes of the tensor if its lines hold different ones, else none.
    """
    if len(varying_axes(labels)) < 2:
        return np.zeros(0, dtype=np.int64)
    held = [np.unique(lane_of[line[line >= 0]]) for line in _lines(labels, axis)]
    same = all(np.array_equal(lanes, held[0]) for lanes in held)
    return np.zeros(0, dtype=np.int64) if same else np.unique(np.concatenate(held))


def can_vanish(labels: Labels, axis: int, lane_of: npt.NDArray[np.int64]) -> bool:
    """Whether a legal plan may leave a tensor empty, since it holds only parts of lanes."""
    line = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])[0]
    units = np.unique(line[line >= 0])
    found, counts = np.unique(lane_of[units], return_counts=True)
    whole = counts == np.bincount(lane_of)[found]
    return bool((line >= 0).all() and not whole.any())


def same_order(before: Labels, axis: int, after: Labels, to: int) -> bool:
    """Whether a Reshape still keeps entries in order once units are cut.

    A cut closes up each line along the unit axis by itself. If inner lines hold different units,
    the neighbours of an entry then depend on which units are cut, and only a Reshape that leaves
    all of these lines in place does the same before and after.

    Args:
        before: the labels.
        axis: their unit axis.
        after: the labels reshaped.
        to: the unit axis of those.
    """
    if before.shape[axis:] == after.shape[to:]:
        return True
    return all(
        uniform(labels, inner)
        for labels, units in ((before, axis), (after, to))
        for inner in range(units + 1, labels.ndim)
    )


def beside(labels: Labels, axis: int) -> tuple[Labels, Labels]:
    """Units, and those at the same place in the first of the inner lines.

    If these are joined, all such lines are cut alike and a Reshape keeps entries in order; that is
    how channel shuffles of grouped convolutions are followed.
    """
    first = labels
    for inner in range(axis + 1, labels.ndim):
        first = first.take([0], inner)
    return labels, np.array(np.broadcast_to(first, labels.shape))


def _whole_lanes(labels: Labels, axis: int, lane_of: npt.NDArray[np.int64]) -> bool:
    """Whether each line along an axis holds whole lanes, equally many in every line."""
    sizes = np.bincount(lane_of)
    counts = set()
    for line in _lines(labels, axis):
        units = line[line >= 0]
        found, times = np.unique(units, return_counts=True)
        lanes = np.unique(lane_of[found])
        whole = len(found) == sizes[lanes].sum() and len(set(times)) == 1
        if not whole:
            return False
        counts.add((len(lanes), int(times[0]), len(line) - len(units)))
    return len(counts) == 1 and len(set(sizes[tied_lanes(labels, axis, lane_of)])) < 2


def _lines(labels: Labels, axis: int) -> Labels:
    """All distinct lines along an axis."""
    return np.unique(np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis]), axis=0)


def occurrences(labels: Labels) -> Labels:
    """For each entry of a line, how many earlier entries have the same label, [n]."""
    order = np.argsort(labels, kind="stable")
    runs = labels[order]
    result = np.empty_like(order)
    result[order] = np.arange(len(order)) - np.searchsorted(runs, runs)
    return result


def kept(labels: Labels, keep: Mask) -> Mask:
    """The mask of entries to keep, in the shape of the labels."""
    return np.where(labels < 0, True, keep[labels])


def compress(values: npt.NDArray[np.generic], mask: Mask, axis: int) -> npt.NDArray[np.generic]:
    """Keeps the True part of an array along one axis.

    Args:
        values: the array.
        mask: broadcastable to it; along `axis`, equally many True in every line.
        axis: the axis that gets shorter.
    """
    if (
        mask.ndim == values.ndim and mask.size == mask.shape[axis] == values.shape[axis]
    ):  # the same in every line
        return values.compress(mask.reshape(-1), axis)
    moved = np.moveaxis(values, axis, -1)
    full = np.moveaxis(np.broadcast_to(mask, values.shape), axis, -1)
    count = int(full.reshape(-1, full.shape[-1])[0].sum()) if full.size else full.shape[-1]
    return np.moveaxis(moved[full].reshape(*moved.shape[:-1], count), -1, axis)
