"""Replaces an unrolled loop by one operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.roll.form import Leaf
from onnx_rnn_prune.roll.reading import Reader
from onnx_rnn_prune.roll.rewrite import (
    Builder,
    Layout,
    Operator,
    Shapes,
    layout_of,
    layout_of_value,
    placed,
    put_masked,
    put_operator,
)
from onnx_rnn_prune.roll.steps import Chain, NotRollableError
from onnx_rnn_prune.roll.values import Value


@dataclass(frozen=True)
class Track:
    """One input of all steps, as a tensor with a time axis.

    Attributes:
        tensor: its name.
        axis: the time axis.
        places: each step's position on it.
        layout: of one step.
    """

    tensor: str
    axis: int
    places: tuple[int, ...]
    layout: Layout

    @property
    def turned(self) -> bool:
        """Whether the second step reads an earlier position than the first."""
        return self.places[0] > self.places[1]

    @property
    def falls(self) -> bool:
        """Whether steps read consecutive positions backwards."""
        first = self.places[0]
        return self.places == tuple(range(first, first - len(self.places), -1))

    @property
    def rises(self) -> bool:
        """Whether steps read consecutive positions forwards."""
        first = self.places[0]
        return self.places == tuple(range(first, first + len(self.places)))


def find_track(leaves: Sequence[Leaf], shapes: Shapes) -> Track | None:
    """The track of some leaves; None if they are in several tensors."""
    names = {leaf.tensor for leaf in leaves}
    if len(names) > 1 or len(leaves) < 2:
        return None
    shape = shapes[leaves[0].tensor]
    layouts = [layout_of(leaf.index, shape) for leaf in leaves]
    first = layouts[0]
    moving = [axis for axis in first.fixed if len({one.fixed.get(axis) for one in layouts}) > 1]
    if len(moving) != 1:
        return None
    (axis,) = moving
    rests = [
        replace(one, fixed={at: place for at, place in one.fixed.items() if at != axis})
        for one in layouts
    ]
    if any(rest != rests[0] for rest in rests):
        return None
    return Track(leaves[0].tensor, axis, tuple(one.fixed[axis] for one in layouts), rests[0])


def roll_chain(builder: Builder, chain: Chain, reader: Reader) -> gs.Node:
    """Replaces a chain of steps by an operator, and gives their readers what they read.

    Raises:
        NotRollableError: that is not possible.
    """
    groups = [placed(group, reader) for group in chain.inputs()]
    count = len(chain.steps)
    if not groups or any(len(group) != count for group in groups):
        raise NotRollableError("its steps do not read one input each")
    tracks = [find_track(group, builder.shapes) for group in groups]
    masks = masks_of(chain)
    backwards = not masks and all(track is not None and track.falls for track in tracks)
    parts = [
        in_time(builder, group, track, backwards)
        for group, track in zip(groups, tracks, strict=True)
    ]
    narrow = narrow_masks(masks)
    flags = find_track(narrow, builder.shapes)
    mask = in_time(builder, narrow, flags, False) if masks else None
    made = put_chain(builder, chain, parts, backwards, mask)
    _serve(builder, chain, made, reader)
    return made.node


def put_chain(
    builder: Builder,
    chain: Chain,
    parts: Sequence[gs.Tensor],
    backwards: bool,
    mask: gs.Tensor | None,
    prefix: bool = False,
) -> Operator:
    """Adds the operator for a chain.

    Args:
        parts: the inputs of its steps: [T, B, n] each.
        mask: which steps count, as in `put_masked`; None if all do.
    """
    sequence = builder.node("Concat", parts, {"axis": 2}) if len(parts) > 1 else parts[0]
    starts = (chain.initial_h, chain.initial_c)
    initial = [initial_state(builder, leaf, sequence) for leaf in starts]
    if mask is None:
        return put_operator(builder, chain, sequence, initial, backwards)
    return put_masked(builder, chain, sequence, initial, mask, prefix, backwards)


def masks_of(chain: Chain) -> list[Leaf]:
    """The masks of the steps; empty if all steps count.

    Raises:
        NotRollableError: a mask does not hold the whole state, or not in all steps.
    """
    masked = [found for found in chain.steps if found.mask is not None]
    for found, state in zip(chain.steps, chain.states, strict=True) if masked else ():
        ends = found.output, found.cell_output
        held = found.kept is not None and state is not None and found.kept.key == state.key
        if not held or any(
            end is not None and end.key == raw.key
            for end, raw in zip(ends, found.plain, strict=False)
        ):
            raise NotRollableError("a mask holds only part of its state, or not in all steps")
    return [found.mask for found in masked if found.mask is not None]


def narrow_masks(masks: Sequence[Leaf]) -> list[Leaf]:
    """Masks reduced to one boolean for all units of a step.

    Raises:
        NotRollableError: it differs between units.
    """
    narrow = [mask.select(None, np.zeros(1, np.int64)) for mask in masks]
    if any((mask.index != one.index).any() for mask, one in zip(masks, narrow, strict=True)):
        raise NotRollableError("its mask holds only some of the units")
    return narrow


def in_time(
    builder: Builder, group: Sequence[Leaf], track: Track | None, backwards: bool
) -> gs.Tensor:
    """The inputs of the steps, stacked: [T, B, n]."""
    if any(map(builder.is_repeated, group)):
        raise NotRollableError("its input is the same for all sequences")
    if track is None:
        steps = [builder.leaf(leaf) for leaf in group]
        rows = [builder.axes("Unsqueeze", step, [0]) for step in steps]
        return builder.node("Concat", rows, {"axis": 0}) if len(rows) > 1 else rows[0]
    data = builder.tensors[track.tensor]
    if backwards or track.rises:
        start = min(track.places)
        whole = (data.shape or [None] * (track.axis + 1))[track.axis] == len(track.places)
        if not whole:
            data = builder.slice(data, track.axis, start, start + len(track.places))
    else:
        data = builder.take(data, track.axis, np.array(track.places, np.int64))
    return builder.as_matrix(data, track.layout, track.axis)


def initial_state(builder: Builder, leaf: Leaf | None, sequence: gs.Tensor) -> gs.Tensor | None:
    """A state before the first step: [1, B, H]; None if it is 0."""
    if leaf is None or builder.is_zero(leaf):
        return None
    matrix = builder.leaf(leaf)
    if builder.is_repeated(leaf):
        sizes = builder.slice(builder.node("Shape", [sequence]), 0, 1, 2)
        units = builder.constant(np.array([leaf.size], np.int64))
        matrix = builder.node(
            "Expand", [matrix, builder.node("Concat", [sizes, units], {"axis": 0})]
        )
    return builder.axes("Unsqueeze", matrix, [0])


def _serve(builder: Builder, chain: Chain, made: Operator, reader: Reader) -> None:
    """Rebuilds every tensor that held a state."""
    shapes, tensors = builder.shapes, builder.tensors
    count = len(chain.steps)
    order = list(range(count))[:: -1 if made.backwards else 1]
    series = {found.output.key: (made.steps, order[n]) for n, found in enumerate(chain.steps)}
    if made.mask is not None:
        series |= _gated(builder, chain, made)
    for node in list(builder.home.nodes):
        if node.op == "Concat" and len(node.inputs) > 1:
            _serve_concat(builder, node, count, reader, series)
    for found in chain.steps:
        for leaf in (found.output, *(leaf for leaf, _ in found.gated)):
            data, at = series[leaf.key]
            last = found is chain.steps[-1] and leaf is found.output
            data = made.last[0] if last else builder.take(data, 0, np.array(at, np.int64))
            layout = layout_of(leaf.index, shapes[leaf.tensor])
            builder.copy(builder.from_matrix(data, layout), tensors[leaf.tensor])
    end = chain.steps[-1].cell_output
    if end is not None:
        layout = layout_of(end.index, shapes[end.tensor])
        builder.copy(builder.from_matrix(made.last[1], layout), tensors[end.tensor])


Series = dict[tuple[object, ...], tuple[gs.Tensor, int]]


def _gated(builder: Builder, chain: Chain, made: Operator) -> Series:
    """Series that are h where a step counts, and elsewhere zero or the previous step's value."""
    assert made.mask is not None and made.unseen is not None
    zero = builder.zero()
    found: Series = {}
    for number, step in enumerate(chain.steps):
        for leaf, before in step.gated:
            if before is None:
                data = builder.node("Where", [made.mask, made.steps, zero])
            else:
                data = builder.node("Where", [made.unseen, zero, made.steps])
                if before.key not in found or found[before.key][1] != number - 1:
                    raise NotRollableError(f"{leaf.tensor} is held in a way of its own")
                if number == 1:
                    found[before.key] = data, 0
                elif found[before.key][0] is not data:
                    raise NotRollableError(f"{leaf.tensor} is held in a way of its own")
            found[leaf.key] = data, number
    return found


def _serve_concat(
    builder: Builder,
    node: gs.Node,
    count: int,
    reader: Reader,
    series: Series,
) -> None:
    """Rebuilds a Concat of states along an axis of its own, which is that of time."""
    values = [reader.known.get(tensor.name) for tensor in node.inputs]
    places, layouts, sources = [], [], {}
    axis = int(node.attrs["axis"])
    for value in values:
        atom = value.form.atom() if isinstance(value, Value) and value.form else None
        if not isinstance(value, Value) or atom is None or atom.key not in series:
            return
        axis %= len(value.shape)
        if value.shape[axis] != 1:
            return
        layouts.append(layout_of_value(value))
        data, place = series[atom.key]
        sources[id(data)] = data
        places.append(place)
    if any(layout != layouts[0] for layout in layouts[1:]) or len(sources) > 1:
        return
    (data,) = sources.values()
    if places != list(range(count)):
        data = builder.take(data, 0, np.array(places, np.int64))
    fixed = {key: place for key, place in layouts[0].fixed.items() if key != axis}
    layout = replace(layouts[0], fixed=fixed)
    output = node.outputs[0]
    builder.copy(builder.from_matrix(data, layout, axis), output)
