"""Steps that were written one after another become one operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.roll.form import Leaf
from onnx_rnn_prune.roll.reading import Reader
from onnx_rnn_prune.roll.rewrite import (
    Builder,
    Layout,
    Operator,
    layout_of,
    layout_of_value,
    leaf_matrix,
    placed,
    put_operator,
)
from onnx_rnn_prune.roll.steps import Chain, NotRollableError
from onnx_rnn_prune.roll.values import Value

Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, gs.Tensor]


@dataclass(frozen=True)
class Track:
    """One input of all steps, as a tensor with an axis of time.

    Attributes:
        tensor: its name.
        axis: that of time.
        places: where on it each step reads.
        layout: of one step.
    """

    tensor: str
    axis: int
    places: tuple[int, ...]
    layout: Layout

    @property
    def falls(self) -> bool:
        """Whether steps read from the back to the front."""
        first = self.places[0]
        return self.places == tuple(range(first, first - len(self.places), -1))

    @property
    def rises(self) -> bool:
        """Whether steps read from the front to the back."""
        first = self.places[0]
        return self.places == tuple(range(first, first + len(self.places)))


def find_track(leaves: Sequence[Leaf], shapes: Shapes) -> Track | None:
    """The track on which leaves lie; None where they lie in several tensors."""
    names = {leaf.tensor for leaf in leaves}
    if len(names) > 1 or len(leaves) < 2:
        return None
    shape = shapes[leaves[0].tensor]
    layouts = [layout_of(leaf.index, shape) for leaf in leaves]
    first = layouts[0]
    moving = [axis for axis in first.fixed if len({one.fixed.get(axis) for one in layouts}) > 1]
    if len(moving) != 1:
        return None
    axis = moving[0]
    rest = {key: place for key, place in first.fixed.items() if key != axis}
    for one in layouts:
        others = {key: place for key, place in one.fixed.items() if key != axis}
        alike = (one.rows, one.features, one.columns) == (first.rows, first.features, first.columns)
        if not alike or others != rest:
            return None
    places = tuple(one.fixed[axis] for one in layouts)
    return Track(
        leaves[0].tensor, axis, places, Layout(first.rows, first.features, first.columns, rest)
    )


def roll_chain(
    builder: Builder,
    chain: Chain,
    reader: Reader,
    tensors: Tensors,
    dtype: np.dtype[np.generic],
) -> gs.Node:
    """Puts an operator where a chain of steps stood, and serves all that read them.

    Raises:
        NotRollableError: that is not possible.
    """
    shapes = reader.seen.shapes
    groups = [placed(group, reader) for group in chain.inputs()]
    count = len(chain.steps)
    if not groups or any(len(group) != count for group in groups):
        raise NotRollableError("its steps do not read one input each")
    tracks = [find_track(group, shapes) for group in groups]
    backwards = all(track is not None and track.falls for track in tracks)
    parts = [
        _in_time(builder, group, track, tensors, shapes, backwards)
        for group, track in zip(groups, tracks, strict=True)
    ]
    sequence = builder.node("Concat", parts, {"axis": 2}) if len(parts) > 1 else parts[0]
    initial = [
        None
        if leaf is None or is_zero(tensors[leaf.tensor])
        else initial_state(builder, leaf, sequence, tensors, shapes)
        for leaf in (chain.initial_h, chain.initial_c)
    ]
    direction = "reverse" if backwards else "forward"
    made = put_operator(builder, chain, sequence, initial, dtype, direction)
    _serve(builder, chain, made, reader, tensors, backwards)
    return made.node


def _in_time(
    builder: Builder,
    group: Sequence[Leaf],
    track: Track | None,
    tensors: Tensors,
    shapes: Shapes,
    backwards: bool,
) -> gs.Tensor:
    """What steps read, one after another: [T, B, n]."""
    if any(is_repeated(leaf, shapes) for leaf in group):
        raise NotRollableError("its input is the same for all sequences")
    if track is None:
        steps = [leaf_matrix(builder, leaf, tensors, shapes) for leaf in group]
        rows = [builder.axes("Unsqueeze", step, [0]) for step in steps]
        return builder.node("Concat", rows, {"axis": 0}) if len(rows) > 1 else rows[0]
    data, shape = tensors[track.tensor], shapes[track.tensor]
    if backwards or track.rises:
        start = min(track.places)
        whole = (data.shape or [None] * (track.axis + 1))[track.axis] == len(track.places)
        if not whole:
            data = builder.slice(data, track.axis, start, start + len(track.places))
    else:
        data = builder.take(data, track.axis, np.array(track.places, np.int64))
    layout = track.layout
    size = shape[layout.features] if layout.features is not None else 1
    return builder.as_matrix(data, layout, size, track.axis)


def is_zero(tensor: gs.Tensor) -> bool:
    """Whether a tensor holds zeros, of whatever shape."""
    while True:
        value = constant_value(tensor)
        if value is not None:
            return not value.any()
        if not tensor.inputs:
            return False
        node = tensor.inputs[0]
        if node.op == "ConstantOfShape":
            held = node.attrs.get("value")
            return held is None or not np.any(held.values)
        if node.op not in ("Expand", "Identity", "Cast", "Reshape", "Tile"):
            return False
        tensor = node.inputs[0]


def is_repeated(leaf: Leaf, shapes: Shapes) -> bool:
    """Whether all rows are one."""
    return leaf.rows > 1 and layout_of(leaf.index, shapes[leaf.tensor]).rows is None


def initial_state(
    builder: Builder, leaf: Leaf, sequence: gs.Tensor, tensors: Tensors, shapes: Shapes
) -> gs.Tensor:
    """A state before the first step: [1, B, H]."""
    matrix = leaf_matrix(builder, leaf, tensors, shapes)
    if is_repeated(leaf, shapes):
        sizes = builder.slice(builder.node("Shape", [sequence]), 0, 1, 2)
        units = builder.constant(np.array([leaf.size], np.int64))
        matrix = builder.node(
            "Expand", [matrix, builder.node("Concat", [sizes, units], {"axis": 0})]
        )
    return builder.axes("Unsqueeze", matrix, [0])


def _serve(
    builder: Builder,
    chain: Chain,
    made: Operator,
    reader: Reader,
    tensors: Tensors,
    backwards: bool,
) -> None:
    """Makes anew whatever held a state."""
    shapes = reader.seen.shapes
    count = len(chain.steps)
    order = list(range(count))[:: -1 if backwards else 1]
    where = {found.output.key: order[number] for number, found in enumerate(chain.steps)}
    for node in list(builder.home.nodes):
        if node.op == "Concat" and len(node.inputs) > 1:
            _serve_concat(builder, node, made, reader, where)
    for number, found in enumerate(chain.steps):
        layout = layout_of(found.output.index, shapes[found.output.tensor])
        place = np.array(order[number], np.int64)
        data = made.y_h if number == count - 1 else builder.take(made.y, 0, place)
        output = tensors[found.output.tensor]
        builder.copy(builder.from_matrix(data, layout), output)
    last = chain.steps[-1].cell_output
    if last is not None and made.y_c is not None:
        layout = layout_of(last.index, shapes[last.tensor])
        builder.copy(builder.from_matrix(made.y_c, layout), tensors[last.tensor])


def _serve_concat(
    builder: Builder,
    node: gs.Node,
    made: Operator,
    reader: Reader,
    where: Mapping[tuple[object, ...], int],
) -> None:
    """States beside one another on an axis of their own, which is that of time."""
    values = [reader.known.get(tensor.name) for tensor in node.inputs]
    places, layouts = [], []
    axis = int(node.attrs["axis"])
    for value in values:
        atom = value.form.atom() if isinstance(value, Value) and value.form else None
        if not isinstance(value, Value) or atom is None or atom.key not in where:
            return
        axis %= len(value.shape)
        if value.shape[axis] != 1:
            return
        layouts.append(layout_of_value(value))
        places.append(where[atom.key])
    if any(layout != layouts[0] for layout in layouts[1:]):
        return
    data = made.y
    if places != list(range(len(where))):
        data = builder.take(data, 0, np.array(places, np.int64))
    fixed = {key: place for key, place in layouts[0].fixed.items() if key != axis}
    layout = replace(layouts[0], fixed=fixed)
    output = node.outputs[0]
    builder.copy(builder.from_matrix(data, layout, axis), output)
