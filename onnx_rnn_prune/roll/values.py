"""What a tensor is: the entries of a form, or moved entries of another tensor.

Move operators are run on the indices of the entries, so their treatment of axes needs no rules: a
`Value` says for each entry of a tensor which entry of its source it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.roll.form import Form, Index, Leaf, OpaqueError

SAME = frozenset(("Identity", "Dropout"))
_RESHAPES = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten"))
MOVES = SAME | _RESHAPES | {"Transpose", "Slice", "Gather", "Split", "Expand", "Tile"}


@dataclass(frozen=True, eq=False)
class Value:
    """What a tensor is.

    Attributes:
        labels: of the tensor's shape: for each entry, its index in the matrix of the form, or in
            the flattened source tensor.
        form: the form; None for entries of a tensor, which may be read along any axis.
        tensor: the source tensor, if there is no form.
        boolean: whether that is boolean.
        plain: the axis of the form's columns, if the entries are in the form's order.
    """

    labels: Index
    form: Form | None = None
    tensor: str = ""
    boolean: bool = False
    plain: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.labels.shape

    def entries(self) -> tuple[str, Index] | None:
        """The tensor and the indices of its entries, if it consists of these."""
        if self.form is None:
            return self.tensor, self.labels
        atom = self.form.atom()
        leaf = atom if atom is None or isinstance(atom, Leaf) else atom.origin
        return None if leaf is None else (leaf.tensor, leaf.index.reshape(-1)[self.labels])

    def axes(self) -> list[int]:
        """The possible axes of features, likeliest first."""
        if self.plain is not None:
            return [self.plain]
        axes = list(range(self.labels.ndim))[::-1]
        if self.form is None:
            return axes
        return [axis for axis in axes if self._along(axis) is not None]

    def along(self, axis: int) -> Form:
        """The tensor as a matrix whose columns lie along an axis.

        Raises:
            OpaqueError: they do not.
        """
        if self.form is None:
            entries = np.moveaxis(self.labels, axis, -1)
            index = entries.reshape(-1, self.labels.shape[axis])
            return Form.of(Leaf(self.tensor, index, self.boolean))
        if axis % self.labels.ndim == self.plain:
            return self.form
        found = self._along(axis)
        if found is None:
            raise OpaqueError
        rows, columns = found
        all_rows = np.array_equal(rows, np.arange(self.form.rows))
        all_columns = np.array_equal(columns, np.arange(self.form.size))
        return self.form.select(None if all_rows else rows, None if all_columns else columns)

    def _along(self, axis: int) -> tuple[Index, Index] | None:
        assert self.form is not None
        entries = np.moveaxis(self.labels, axis, -1).reshape(-1, self.labels.shape[axis])
        rows, columns = np.divmod(entries, self.form.size)
        if (rows != rows[:, :1]).any() or (columns != columns[:1]).any():
            return None
        return rows[:, 0], columns[0]


Known = Value | Array


def fresh(tensor: str, shape: Sequence[int], boolean: bool = False) -> Value:
    """A tensor of which only the shape is known."""
    return Value(np.arange(prod(shape)).reshape(shape), None, tensor, boolean)


def formed(form: Form, shape: Sequence[int], axis: int) -> Value:
    """A tensor with a form's columns along an axis, and its rows in the order of the other axes."""
    axis %= len(shape)
    rows = prod(shape) // max(shape[axis], 1)
    others = [size for at, size in enumerate(shape) if at != axis]
    labels = np.arange(rows * form.size).reshape(*others, form.size)
    plain = axis if form.size > 1 and rows > 1 else None
    return Value(np.moveaxis(labels, -1, axis), form, plain=plain)


def along(value: Value | Array, axis: int) -> Form:
    """The form of a value, or of a constant that is the same in all rows."""
    if isinstance(value, Value):
        return value.along(axis)
    rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
    if (rows != rows[:1]).any():
        raise OpaqueError
    return Form.constant(rows[0])


def moved(
    node: gs.Node,
    labels: Index,
    given: Sequence[Known | None],
    shapes: Sequence[tuple[int, ...] | None],
) -> list[Index]:
    """The indices of entries after a node that moves them."""
    shape = shapes[0]
    if node.op in _RESHAPES and shape is not None:
        return [labels.reshape(shape)]
    if node.op in SAME or node.op == "Cast":
        return [labels]
    if node.op == "Transpose":
        return [labels.transpose(node.attrs.get("perm", list(range(labels.ndim))[::-1]))]
    if node.op == "Expand" and shape is not None:
        return [np.broadcast_to(labels, shape)]
    if node.op == "Split":
        sizes = [made[int(node.attrs.get("axis", 0))] if made else 0 for made in shapes]
        return list(np.split(labels, np.cumsum(sizes)[:-1], axis=int(node.attrs.get("axis", 0))))
    wanted = [tensor for tensor in node.inputs[1:] if tensor.name]
    arrays = [item for item in given if isinstance(item, np.ndarray)]
    if len(arrays) < len(wanted):  # the movement depends on data
        raise OpaqueError
    if node.op == "Gather":
        return [np.take(labels, arrays[0], axis=int(node.attrs.get("axis", 0)))]
    if node.op == "Tile":
        return [np.tile(labels, [int(times) for times in arrays[0]])]
    return [labels[_slices(node, arrays, labels.ndim)]]


def _slices(node: gs.Node, arrays: Sequence[Array], rank: int) -> tuple[slice, ...]:
    """The range that a Slice takes of each axis."""
    if "starts" in node.attrs:
        starts, ends = node.attrs["starts"], node.attrs["ends"]
        axes = node.attrs.get("axes", range(len(starts)))
        steps: Sequence[int] = [1] * len(starts)
    else:
        starts, ends, *others = (array.reshape(-1).tolist() for array in arrays)
        axes = others[0] if others else range(len(starts))
        steps = others[1] if len(others) > 1 else [1] * len(starts)
    found = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        last = None if step < 0 and end < -(1 << 30) else end
        found[axis] = slice(start, last, step)
    return tuple(found)
