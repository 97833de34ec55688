"""Replaces a Loop or Scan whose body consists of cells by one operator for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import evaluate
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import source
from onnx_rnn_prune.roll.directions import serve_ends
from onnx_rnn_prune.roll.form import Leaf
from onnx_rnn_prune.roll.loops import Given, Recurrence, Turns
from onnx_rnn_prune.roll.reading import Reader
from onnx_rnn_prune.roll.rewrite import (
    Builder,
    Layout,
    Operator,
    layout_of_value,
    placed,
)
from onnx_rnn_prune.roll.steps import NotRollableError
from onnx_rnn_prune.roll.unrolled import (
    Track,
    find_track,
    initial_state,
    masks_of,
    narrow_masks,
    put_chain,
)
from onnx_rnn_prune.roll.values import Value

# Comparisons of a step's index with a length, and the order of their operands.
_COMPARED = {"Less": 1, "LessOrEqual": 1, "Greater": -1, "GreaterOrEqual": -1}


class Repeated:
    """Rewrites one Loop or Scan.

    Args:
        builder: makes nodes.
        turns: the node as observed.
    """

    def __init__(self, builder: Builder, turns: Turns) -> None:
        self.builder, self.turns = builder, turns
        self.made: list[tuple[Recurrence, Operator]] = []
        # Operators with stacked steps; without the final state if the steps are not h throughout.
        self.series: list[Operator] = []

    def __call__(self, items: Sequence[Recurrence]) -> list[gs.Node]:
        """Inserts operators, and gives all readers of the node what they read.

        Raises:
            NotRollableError: that is not possible.
        """
        for item in items:
            self.made.append((item, self._operator(item)))
        serve = [*self._states(), *self._stacked()]
        for data, output in serve:
            self.builder.copy(data, output)
        for made in self.series:
            serve_ends(self.builder, made, self.turns.reader.seen)
        return [made.node for _, made in self.made]

    def _operator(self, item: Recurrence) -> Operator:
        masks = masks_of(item.chain)
        groups = [self._placed(group, bool(masks)) for group in item.chain.inputs()]
        count = len(self.turns.read)
        if not groups or any(len(group) != count for group in groups):
            raise NotRollableError("its steps do not read one input each")
        tracks = [self._track(group) for group in groups]
        flags = self._flags(masks)
        timed = [*tracks, *([flags] if flags else [])]
        backwards = all(track is not None and track.turned for track in timed)
        parts = [
            self._before(group) if track is None else self._in_time(track, backwards)
            for group, track in zip(groups, tracks, strict=True)
        ]
        mask, prefix = None, False
        if flags is not None:
            mask = self._in_time(flags, backwards)
            prefix = flags.turned == backwards and self._is_prefix(flags)
        return put_chain(self.builder, item.chain, parts, backwards, mask, prefix)

    def _placed(self, group: Sequence[Leaf], masked: bool) -> Sequence[Leaf]:
        if group[0].tensor in self.turns.local:
            return group
        # Without masks, reversals are handled later, on the operator.
        turned = [self._before_turn(leaf) for leaf in group] if masked else group
        return placed(turned, self.turns.reader)

    def _before_turn(self, leaf: Leaf) -> Leaf:
        """Entries of the tensor before a ReverseSequence, in place of those after it."""
        node = next(iter(self.builder.tensors[leaf.tensor].inputs), None)
        reader = self.turns.reader
        if node is None or node.op != "ReverseSequence":
            return leaf
        before, lengths = (reader.get(tensor) for tensor in node.inputs)
        entries = before.entries() if isinstance(before, Value) else None
        if entries is None or not isinstance(lengths, np.ndarray):
            return leaf
        (labels,) = evaluate(node, [entries[1], lengths], reader.opset)
        return Leaf(entries[0], labels.reshape(-1)[leaf.index], leaf.boolean)

    def _flags(self, masks: Sequence[Leaf]) -> Track | None:
        """Which steps count; None if all do."""
        if not masks:
            return None
        track = self._track(self._placed(narrow_masks(masks), True))
        if track is None:
            raise NotRollableError("its mask is computed in the body")
        return track

    def _track(self, group: Sequence[Leaf]) -> Track | None:
        """Where iterations read their input; None if that is another cell of the body."""
        if group[0].tensor in self.turns.local:
            return None
        if any(map(self.builder.is_repeated, group)):
            raise NotRollableError("its input is the same for all sequences")
        track = find_track(group, self.builder.shapes)
        if track is None:
            raise NotRollableError("an iteration does not read the next step of its input")
        first, last = track.places[0], self.turns.count - 1
        if [first - at if track.turned else at - first for at in track.places] != list(
            self.turns.read
        ):
            raise NotRollableError("an iteration does not read the next step of its input")
        size = self.builder.shapes[track.tensor][track.axis]
        if last + 1 < size and first not in (0, last, size - 1):
            raise NotRollableError("it has fewer iterations than its input has steps")
        return track

    def _in_time(self, track: Track, backwards: bool) -> gs.Tensor:
        """A track as [T, B, n], in iteration order; in storage order if all tracks fall."""
        data = self.builder.tensors[track.tensor]
        if self.builder.shapes[track.tensor][track.axis] > self.turns.count:
            data = self._part(data, track)
        data = self.builder.as_matrix(data, track.layout, track.axis)
        return self.builder.flip(data, 0) if track.turned and not backwards else data

    def _part(self, data: gs.Tensor, track: Track) -> gs.Tensor:
        """The part of an input that is read: the front, or, from the back, its end."""
        build, node = self.builder, self.turns.node
        count = node.inputs[0] if node.op == "Loop" else gs.Variable.empty()
        if not count.name or int(self.turns.reader.seen.numbers[count.name]) != self.turns.count:
            raise NotRollableError("it has fewer iterations than its input has steps")
        count = build.reshape(count, [1])
        zero, axis = (build.constant(np.array([number], np.int64)) for number in (0, track.axis))
        if track.places[0] == self.builder.shapes[track.tensor][track.axis] - 1:
            end = build.constant(np.array([1 << 62], np.int64))
            return build.node("Slice", [data, build.node("Neg", [count]), end, axis])
        return build.node("Slice", [data, zero, count, axis])

    def _before(self, group: Sequence[Leaf]) -> gs.Tensor:
        """The output of an earlier cell of the body."""
        for item, made in self.made:
            outputs = [step.output.key for step in item.chain.steps]
            if outputs == [leaf.key for leaf in group] and made.mask is None:
                return self._order(made, backwards=False)
        raise NotRollableError("a cell reads what its body computes")

    def _order(self, made: Operator, backwards: bool) -> gs.Tensor:
        """All h in the order of iterations, or reversed."""
        if made.backwards != backwards:
            return self.builder.flip(made.steps, 0)
        return made.steps

    def _is_prefix(self, track: Track) -> bool:
        """Whether a mask is true first and false later: it compares an index with a length."""
        makers = self.builder.tensors[track.tensor].inputs
        if not makers or makers[0].op not in _COMPARED:
            return False
        shape = self.builder.shapes[track.tensor]
        number, length = makers[0].inputs[:: _COMPARED[makers[0].op]]
        known = self.turns.reader.get(number)
        size = self.builder.shapes.get(length.name, length.shape)
        if not isinstance(known, np.ndarray) or size is None:
            return False
        rises = bool((np.diff(np.broadcast_to(known, shape), axis=track.axis) > 0).all())
        sizes = [1] * (len(shape) - len(size)) + list(size)
        return rises and sizes[track.axis] == 1

    def _states(self) -> list[tuple[gs.Tensor, gs.Tensor]]:
        """The final states that are read."""
        found = []
        for number, (initial, taken, given, output) in enumerate(self.turns.states):
            if not _is_read(output, self.builder.graph):
                continue
            added = _added(initial, taken, given)
            scattered = _scattered(taken, given)
            if source(given) is taken:
                found.append((self.builder.tensors[initial.name], output))
            elif scattered is not None:
                found.append((self._collected(scattered), output))
            elif added is not None:
                found += self._gathered(added, output)
            else:
                found.append((self._state(number, given), output))
        return found

    def _state(self, number: int, tensor: gs.Tensor) -> gs.Tensor:
        given = self.turns.given(tensor)
        for item, made in self.made:
            outputs = [step.output.key for step in item.chain.steps]
            for own, data in zip((item.state, item.cell), made.last, strict=False):
                if own == number or (own == item.state and given.keys == outputs):
                    return self.builder.from_matrix(data, layout_of_value(given.value))
        raise NotRollableError(f"{tensor.name} is not the h of a cell")

    def _stacked(self) -> list[tuple[gs.Tensor, gs.Tensor]]:
        """The stacked outputs that are read."""
        found = []
        for given, output, axis, back in self.turns.stacked:
            if _is_read(output, self.builder.graph):
                data, value = self._all_steps(given, back)
                axis %= len(value.shape) + 1
                shifted = shift(layout_of_value(value), axis)
                found.append((self.builder.from_matrix(data, shifted, axis), output))
        return found

    def _all_steps(self, tensor: gs.Tensor, back: bool) -> tuple[gs.Tensor, Value]:
        """A tensor of the body over all iterations, [T, B, H], and the layout of one."""
        given = self.turns.given(tensor)
        for item, made in self.made:
            steps = self._shown(item, made, given)
            if steps is not None:
                made = replace(made, steps=steps, last=made.last if steps is made.steps else ())
                self.series.append(made)
                return self._order(made, back), given.value
        raise NotRollableError(f"{tensor.name} is not the h of a cell")

    def _gathered(self, added: gs.Tensor, output: gs.Tensor) -> list[tuple[gs.Tensor, gs.Tensor]]:
        """Replacements for the tensors made from a sequence that the iterations append to."""
        data, value = self._all_steps(added, back=False)
        layout = layout_of_value(value)
        found = []
        for reader in output.outputs:
            if reader.op != "ConcatFromSequence":
                raise NotRollableError("its sequence is read element by element")
            rank = len(value.shape) + int(reader.attrs.get("new_axis", 0))
            axis = int(reader.attrs["axis"]) % rank
            if rank > len(value.shape):
                laid = shift(layout, axis)
            elif axis in layout.fixed:
                rest = {at: place for at, place in layout.fixed.items() if at != axis}
                laid = replace(layout, fixed=rest)
            else:
                raise NotRollableError("its steps are not joined along an axis of their own")
            found.append((self.builder.from_matrix(data, laid, axis), reader.outputs[0]))
        return found

    def _collected(self, node: gs.Node) -> gs.Tensor:
        """The replacement for a tensor that is filled place by place, one per iteration."""
        target, added = node.inputs[0], node.inputs[2]
        shape = self.turns.readers[0].seen.shapes[target.name]
        filled = [self._filled(node, reader, shape) for reader in self.turns.readers]
        axes = [axis for axis, size in enumerate(shape) if size == self.turns.count]
        last = self.turns.count - 1
        for axis in axes:
            places = [
                np.flatnonzero((labels >= 0).any(axis=_others(axis, shape))) for labels in filled
            ]
            if any(len(place) != 1 for place in places):
                continue
            at = tuple(int(place[0]) for place in places)
            parts = [np.take(labels, it, axis) for labels, it in zip(filled, at, strict=True)]
            back = at != self.turns.read
            if back and at != tuple(last - turn for turn in self.turns.read):
                continue
            if (parts[0] < 0).any() or any((part != parts[0]).any() for part in parts):
                continue
            data, value = self._all_steps(added, back)
            moved = replace(value, labels=value.labels.reshape(-1)[parts[0]], plain=None)
            return self.builder.from_matrix(data, shift(layout_of_value(moved), axis), axis)
        raise NotRollableError(f"{target.name} is not filled in order")

    def _filled(self, node: gs.Node, reader: Reader, shape: tuple[int, ...]) -> Array:
        """Which entries of a tensor an iteration fills: the index of the source entry, or -1."""
        where = reader.get(node.inputs[1])
        size = reader.seen.shapes[node.inputs[2].name]
        if not isinstance(where, np.ndarray):
            raise NotRollableError(
                f"the place where {node.inputs[0].name} is filled depends on the data"
            )
        added = np.arange(np.prod(size, dtype=np.int64)).reshape(size)
        return evaluate(node, [np.full(shape, -1), where, added], reader.opset)[0]

    def _shown(self, item: Recurrence, made: Operator, given: Given) -> gs.Tensor | None:
        """All h, held or zeroed where masked; None if the body outputs something else."""
        steps = item.chain.steps
        if given.keys == [step.output.key for step in steps]:
            return made.steps
        for ends in zip(*(step.gated for step in steps), strict=False):
            if given.keys == [leaf.key for leaf, _ in ends]:
                return self._gated(item, made, given, ends[0][1])
        return None

    def _gated(
        self, item: Recurrence, made: Operator, given: Given, held: Leaf | None
    ) -> gs.Tensor | None:
        build, data = self.builder, made.steps
        assert made.mask is not None and made.unseen is not None
        if held is None or build.is_zero(held):
            return build.node("Where", [made.mask, data, build.zero()])
        for number, (initial, taken, inner, _) in enumerate(self.turns.states):
            if taken.name == held.tensor and number == item.state:
                return data
            if taken.name == held.tensor and self.turns.given(inner).keys == given.keys:
                start = initial_state(build, replace(held, tensor=initial.name), data)
                state = item.chain.initial_h
                if start is None and state is not None and build.is_zero(state):
                    return data
                return build.node("Where", [made.unseen, start or build.zero(), data])
        return None


def _added(initial: gs.Tensor, taken: gs.Tensor, given: gs.Tensor) -> gs.Tensor | None:
    """The tensor that an iteration appends to an initially empty sequence."""
    kept = source(given)
    node = kept.inputs[0] if kept.inputs else None
    if node is None or node.op != "SequenceInsert" or source(node.inputs[0]) is not taken:
        return None
    empty = bool(initial.inputs) and initial.inputs[0].op == "SequenceEmpty"
    at_end = len(node.inputs) < 3 or not node.inputs[2].name
    return node.inputs[1] if empty and at_end else None


def _scattered(taken: gs.Tensor, given: gs.Tensor) -> gs.Node | None:
    """The node that writes a part into a tensor that the body uses for nothing else."""
    kept = source(given)
    node = kept.inputs[0] if kept.inputs else None
    if node is None or node.op not in ("ScatterND", "ScatterElements"):
        return None
    only = source(node.inputs[0]) is taken and node.attrs.get("reduction", "none") == "none"
    return node if only else None


def _others(axis: int, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(other for other in range(len(shape)) if other != axis)


def shift(layout: Layout, axis: int) -> Layout:
    """The layout with one more axis."""

    def moved(at: int) -> int:
        return at + (at >= axis)

    rows = None if layout.rows is None else moved(layout.rows)
    features = None if layout.features is None else moved(layout.features)
    fixed = {moved(at): place for at, place in layout.fixed.items()}
    return Layout(rows, features, layout.columns, fixed)


def _is_read(tensor: gs.Tensor, graph: gs.Graph) -> bool:
    return bool(tensor.outputs) or any(tensor is output for output in graph.outputs)
