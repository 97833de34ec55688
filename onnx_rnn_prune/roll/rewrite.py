"""Inserts an operator in place of its steps.

The operator reads `X` [T, B, I], assembled from the inputs of the steps, and every tensor that held
the state of a step is rebuilt from `Y`, `Y_h` and `Y_c`. The nodes of the steps then have no
readers left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import is_zero
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes, tensors_of
from onnx_rnn_prune.roll.form import Index, Leaf
from onnx_rnn_prune.roll.reading import Reader
from onnx_rnn_prune.roll.steps import Chain, NotRollableError
from onnx_rnn_prune.roll.values import Value

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Where rows and features of a matrix lie in a tensor.

    Attributes:
        rows: the axis of the rows; None if there is one row, or all are equal.
        features: the axis of the features; None if there is one feature.
        columns: the entries of that axis; None for all of them, in order.
        fixed: the other axes, each with its one position.
    """

    rows: int | None
    features: int | None
    columns: tuple[int, ...] | None
    fixed: Mapping[int, int]


def layout_of(index: Index, shape: Sequence[int]) -> Layout:
    """The layout of entries [rows, n] in a flattened tensor.

    Raises:
        NotRollableError: they do not lie along axes.
    """
    rows = features = None
    columns: tuple[int, ...] | None = None
    fixed = {}
    for axis, places in enumerate(np.unravel_index(index, tuple(shape)) if shape else ()):
        if (places == places.flat[0]).all():
            fixed[axis] = int(places.flat[0])
        elif (places == places[:1]).all() and features is None:
            features, columns = axis, tuple(places[0].tolist())
            columns = None if columns == tuple(range(shape[axis])) else columns
        elif np.array_equal(places, np.repeat(np.arange(shape[axis])[:, None], places.shape[1], 1)):
            rows = axis
        else:
            raise NotRollableError("what it reads or writes does not lie along axes of a tensor")
    wide, high = index.shape[1] > 1, index.shape[0] > 1
    if (wide and features is None) or (
        high and rows is None and index.size == np.unique(index).size
    ):
        raise NotRollableError("what it reads or writes does not lie along axes of a tensor")
    return Layout(rows, features, columns, fixed)


def placed(leaves: Sequence[Leaf], reader: Reader) -> tuple[Leaf, ...]:
    """The same entries in a tensor where they lie along axes.

    If axes were merged on the way, that is not their original tensor.

    Raises:
        NotRollableError: there is none.
    """
    shapes, stem = reader.seen.shapes, leaves[0].tensor
    if any(leaf.tensor != stem for leaf in leaves) or stem not in shapes:
        return tuple(leaves)
    for name, moved in _views(leaves, reader):
        try:
            for leaf in moved:
                layout_of(leaf.index, shapes[name])
        except NotRollableError:
            continue
        return moved
    raise NotRollableError("what it reads does not lie along axes of a tensor")


def _views(leaves: Sequence[Leaf], reader: Reader) -> Iterator[tuple[str, tuple[Leaf, ...]]]:
    """The tensors that hold all of some entries, their original one first."""
    shapes, stem = reader.seen.shapes, leaves[0].tensor
    yield stem, tuple(leaves)
    fewest = len(np.unique(np.concatenate([leaf.index.reshape(-1) for leaf in leaves])))
    for name, value in reader.known.items():
        seen = isinstance(value, Value) and value.form is None and value.tensor == stem
        # Slices of single steps are skipped: there are as many as steps.
        if seen and isinstance(value, Value) and value.labels.size >= fewest and name in shapes:
            places = np.full(int(np.prod(shapes[stem])), -1)
            places[value.labels.reshape(-1)] = np.arange(value.labels.size)
            moved = tuple(Leaf(name, places[leaf.index], leaf.boolean) for leaf in leaves)
            if not any((leaf.index < 0).any() for leaf in moved):
                yield name, moved


def layout_of_value(value: Value) -> Layout:
    """The layout of rows and columns in a tensor.

    Raises:
        NotRollableError: it does not hold all of them, or they do not lie along axes.
    """
    form = value.form
    rows, units = (form.rows, form.size) if form is not None else (0, 0)
    if value.labels.size != rows * units or len(np.unique(value.labels)) != rows * units:
        raise NotRollableError("only part of a state is read")
    entries = np.empty(rows * units, np.int64)
    entries[value.labels.reshape(-1)] = np.arange(rows * units)
    return layout_of(entries.reshape(rows, units), value.shape)


class Builder:
    """Adds nodes to a graph, which is sorted in the end.

    Args:
        graph: the main graph, for names.
        home: the graph that gets the nodes, main or body.
        name: prefix of names.
        shapes: of tensors, as seen in a run.
        dtype: of the weights that it adds.
    """

    def __init__(
        self,
        graph: gs.Graph,
        home: gs.Graph,
        name: str,
        shapes: Shapes = MappingProxyType({}),
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.graph, self.home, self.name, self.shapes = graph, home, name, shapes
        self.dtype = np.dtype(dtype)
        self.tensors = {tensor.name: tensor for tensor in tensors_of(graph)}
        self._used = {*self.tensors, *(node.name for node in all_nodes(graph))}
        self._count = 0
        self._made: dict[object, gs.Tensor] = {}

    def constant(self, value: Array) -> gs.Tensor:
        """A constant, shared by all that are equal."""
        key = value.dtype, value.shape, value.tobytes()
        if key not in self._made:
            self._made[key] = gs.Constant(self.fresh("constant"), np.asarray(value, order="C"))
        return self._made[key]

    def node(
        self,
        op: str,
        inputs: Sequence[gs.Tensor],
        attributes: Mapping[str, object] | None = None,
        output: gs.Tensor | None = None,
    ) -> gs.Tensor:
        """A node with one output: `output`, that of an equal node, or a new tensor."""
        key = op, *map(id, inputs), repr(attributes)
        result = output or self._made.get(key) or gs.Variable(self.fresh(op.lower()))
        if output is not None or key not in self._made:
            attrs = dict(attributes or {})
            self.home.nodes.append(gs.Node(op, "", attrs, list(inputs), [result]))
        if output is None:
            self._made[key] = result
        return result

    def axes(self, op: str, data: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """Squeeze or Unsqueeze."""
        if not axes:
            return data
        if self.graph.opset < 13:
            return self.node(op, [data], {"axes": list(axes)})
        return self.node(op, [data, self.constant(np.array(axes, np.int64))])

    def take(self, data: gs.Tensor, axis: int, places: Array) -> gs.Tensor:
        """Some positions on an axis; a scalar removes the axis."""
        return self.node("Gather", [data, self.constant(places)], {"axis": axis})

    def slice(self, data: gs.Tensor, axis: int, start: int, end: int) -> gs.Tensor:
        """A range of an axis."""
        if self.graph.opset < 10:
            return self.node("Slice", [data], {"starts": [start], "ends": [end], "axes": [axis]})
        bounds = [self.constant(np.array([number], np.int64)) for number in (start, end, axis)]
        return self.node("Slice", [data, *bounds])

    def flip(self, data: gs.Tensor, axis: int) -> gs.Tensor:
        """An axis reversed."""
        if self.graph.opset < 10:
            raise NotRollableError("its opset cannot reverse an axis")
        bounds = (-1, -(1 << 62), axis, -1)
        return self.node("Slice", [data, *(self.constant(np.array([n], np.int64)) for n in bounds)])

    def total(self, data: gs.Tensor, axis: int) -> gs.Tensor:
        """The sum over an axis, which is kept."""
        if self.graph.opset < 13:
            return self.node("ReduceSum", [data], {"axes": [axis], "keepdims": 1})
        return self.node("ReduceSum", [data, self.constant(np.array([axis], np.int64))])

    def ones_like(self, data: gs.Tensor) -> gs.Tensor:
        """An integer tensor of that shape full of 1."""
        one = self.constant(np.ones(1, np.int64))
        return self.node("ConstantOfShape", [self.node("Shape", [data])], {"value": one})

    def transpose(self, data: gs.Tensor, order: Sequence[int]) -> gs.Tensor:
        """The axes in another order."""
        if list(order) == sorted(order):
            return data
        return self.node("Transpose", [data], {"perm": list(order)})

    def reshape(self, data: gs.Tensor, shape: Sequence[int]) -> gs.Tensor:
        """Another shape; 0 keeps a size, and -1 takes the rest."""
        return self.node("Reshape", [data, self.constant(np.array(shape, np.int64))])

    def zero(self) -> gs.Tensor:
        """0, of the type of the weights."""
        return self.constant(np.zeros((), self.dtype))

    def is_zero(self, leaf: Leaf) -> bool:
        """Whether all entries of a leaf are provably 0."""
        return leaf.tensor in self.tensors and is_zero(self.tensors[leaf.tensor])

    def is_repeated(self, leaf: Leaf) -> bool:
        """Whether all rows of a leaf are the same."""
        return leaf.rows > 1 and layout_of(leaf.index, self.shapes[leaf.tensor]).rows is None

    def leaf(self, leaf: Leaf) -> gs.Tensor:
        """A leaf as [B, n]."""
        layout = layout_of(leaf.index, self.shapes[leaf.tensor])
        return self.as_matrix(self.tensors[leaf.tensor], layout)

    def copy(self, data: gs.Tensor, output: gs.Tensor) -> None:
        """Outputs data under the name of a tensor that another node made before."""
        output.inputs.clear()
        self.node("Identity", [data], output=output)

    def as_matrix(self, data: gs.Tensor, layout: Layout, time: int | None = None) -> gs.Tensor:
        """Entries of a tensor as [B, n], or [T, B, n] with the axis of time.

        Args:
            data: the tensor.
            layout: where the entries lie in it.
            time: its axis of time.
        """
        kept = [axis for axis in (time, layout.rows, layout.features) if axis is not None]
        rank = max([*kept, *layout.fixed], default=-1) + 1
        order = [axis for axis in range(rank) if axis in kept]
        for axis in reversed(range(rank)):
            if axis not in kept:
                data = self.take(data, axis, np.array(layout.fixed[axis], np.int64))
        data = self.transpose(data, [order.index(axis) for axis in kept])
        if layout.columns is not None:
            data = self.take(data, len(kept) - 1, np.array(layout.columns, np.int64))
        first = 0 if time is None else 1
        missing = [first] if layout.rows is None else []
        missing += [first + 1] if layout.features is None else []
        return self.axes("Unsqueeze", data, missing)

    def from_matrix(self, data: gs.Tensor, layout: Layout, time: int | None = None) -> gs.Tensor:
        """[B, n], or [T, B, n], laid out as a tensor whose other axes have size 1."""
        first = 0 if time is None else 1
        if layout.features is None:
            raise NotRollableError("its state has one unit")
        fixed = dict(layout.fixed)
        rows = layout.rows
        if rows is None:
            rows = next((axis for axis in fixed if axis != time), None)
        if rows is None:
            data = self.axes("Squeeze", data, [first])
        kept = [axis for axis in (time, rows, layout.features) if axis is not None]
        order = sorted(kept)
        data = self.transpose(data, [kept.index(axis) for axis in order])
        rank = max([*kept, *fixed]) + 1
        return self.axes("Unsqueeze", data, [axis for axis in range(rank) if axis not in kept])

    def fresh(self, kind: str) -> str:
        """A name that nothing has yet."""
        name = f"{self.name}/{kind}"
        while name in self._used:
            self._count += 1
            name = f"{self.name}/{kind}_{self._count}"
        self._used.add(name)
        return name


@dataclass(frozen=True, eq=False)
class Operator:
    """An inserted operator.

    Attributes:
        node: the operator.
        steps: h after each step: [T, B, H], masked steps included.
        last: the final h, and c for an LSTM: [B, H] each.
        backwards: whether `steps` holds the last step first.
        mask: which steps count: boolean [T, B, 1]; None if all do.
        unseen: which steps precede the first that counts: [T, B, 1].
    """

    node: gs.Node
    steps: gs.Tensor
    last: tuple[gs.Tensor, ...]
    backwards: bool
    mask: gs.Tensor | None = None
    unseen: gs.Tensor | None = None


def put_operator(
    builder: Builder,
    chain: Chain,
    sequence: gs.Tensor,
    initial: Sequence[gs.Tensor | None],
    backwards: bool = False,
    lengths: gs.Tensor | None = None,
) -> Operator:
    """Adds the operator for a chain.

    Args:
        builder: makes its nodes.
        chain: the steps.
        sequence: X: [T, B, I], the concatenation of what `chain.inputs` lists.
        initial: h and c before the first step: [1, B, H] each.
        backwards: whether the last step comes first.
        lengths: how many steps of each sequence count: [B]; all by default.
    """
    step = chain.step
    name = builder.fresh(step.op)
    weights: dict[str, Array] = {}
    state = chain.states[-1]
    assert state is not None
    blocks = {its: key for key, its in step.block_keys.items() if key != state.key}
    ordered = [blocks[block] for block in sorted(blocks)]
    weights["W"] = np.concatenate([step.weight(key) for key in ordered], axis=1)[None]
    weights["R"] = step.weight(state.key)[None]
    weights["B"] = step.bias[None]
    inputs: list[gs.Tensor] = [sequence]
    for letter, value in weights.items():
        inputs.append(
            gs.Constant(builder.fresh(f"{step.op}/{letter}"), value.astype(builder.dtype))
        )
    inputs += [lengths or gs.Variable.empty(), *(item or gs.Variable.empty() for item in initial)]
    if step.peepholes is not None:
        inputs.append(builder.constant(step.peepholes.reshape(1, -1).astype(builder.dtype)))
    while not inputs[-1].name:
        inputs.pop()
    letters = ("Y", "Y_h", "Y_c") if step.op == "LSTM" else ("Y", "Y_h")
    outputs = [gs.Variable(builder.fresh(f"{step.op}/{letter}")) for letter in letters]
    attributes = dict(step.attributes())
    if backwards:
        attributes["direction"] = "reverse"
    node = gs.Node(step.op, name, attributes, inputs, outputs)
    builder.home.nodes.append(node)
    y = builder.axes("Squeeze", outputs[0], [1])
    ends = tuple(builder.axes("Squeeze", output, [0]) for output in outputs[1:])
    return Operator(node, y, ends, backwards)


def lengths_of(build: Builder, counts: gs.Tensor) -> gs.Tensor:
    """The number of steps that count, as sequence_lens [B], from counts [T, B] of 0 or 1."""
    total = build.axes("Squeeze", build.total(counts, 0), [0])
    return build.node("Cast", [total], {"to": 6})


def front(build: Builder, counts: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
    """The order that puts steps that count first, and their number.

    Args:
        build: makes nodes.
        counts: 1 where a step counts: [T, B].

    Returns:
        positions [T, B], and sequence_lens [B].
    """
    lengths = lengths_of(build, counts)
    steps = build.slice(build.node("Shape", [counts]), 0, 0, 1)
    first = build.constant(np.array(0, np.int64))
    numbers = build.node("CumSum", [build.ones_like(counts), first])
    # Steps are ranked by their distance from the end, plus T for those that count, so all differ.
    rank = build.node("Sub", [build.node("Mul", [counts, steps]), numbers])
    order, sizes = gs.Variable(build.fresh("order")), gs.Variable(build.fresh("ranks"))
    node = gs.Node("TopK", "", {"axis": 0}, [rank, steps], [sizes, order])
    build.home.nodes.append(node)
    return order, lengths


def rows_at(build: Builder, data: gs.Tensor, places: gs.Tensor, like: gs.Tensor) -> gs.Tensor:
    """Entries of each sequence in [T, B, n] at its own positions, shaped like another [T, B]."""
    batch = build.slice(build.node("Shape", [like]), 0, 1, 2)
    zero, one = (build.constant(np.array(number, np.int64)) for number in (0, 1))
    many = build.axes("Squeeze", batch, [0])
    own = build.node("Range", [zero, many, one])
    at = build.node("Add", [build.node("Mul", [places, batch]), own])
    rows = build.node("Flatten", [data], {"axis": 2})
    return build.node("Gather", [rows, at], {"axis": 0})


def put_masked(
    build: Builder,
    chain: Chain,
    sequence: gs.Tensor,
    initial: Sequence[gs.Tensor | None],
    mask: gs.Tensor,
    prefix: bool = False,
    backwards: bool = False,
) -> Operator:
    """Adds the operator for a chain with masked steps.

    For any mask, the steps that count can be moved to the front, in order, with their number as
    `sequence_lens`; outputs are moved back by counting. A masked step repeats the previous output.

    Args:
        build: makes its nodes.
        chain: the steps.
        sequence: X: [T, B, I].
        initial: h and c before the first step: [1, B, H] each.
        mask: which steps count: [T, B, 1].
        prefix: whether they come first in each sequence.
        backwards: whether the last step comes first.
    """
    counts = build.node("Cast", [build.axes("Squeeze", mask, [2])], {"to": 7})
    if prefix:
        lengths, moved = lengths_of(build, counts), sequence
    else:
        order, lengths = front(build, counts)
        moved = rows_at(build, sequence, order, counts)
    made = put_operator(build, chain, moved, initial, backwards, lengths)
    one, zero = (build.constant(np.array(number, np.int64)) for number in (1, 0))
    seen = build.node("CumSum", [counts, zero], {"reverse": int(backwards)})
    ends = [build.total(counts, 0), seen] if backwards else [seen, one]
    place = build.node("Sub", ends)  # -1 before the first one, where any position will do
    least = build.constant(np.array(0, np.int32))
    # A sequence without steps yields 0, which is right if it starts at 0.
    none = build.axes("Unsqueeze", build.node("Equal", [lengths, least]), [1])
    last = tuple(
        end
        if start is None
        else build.node("Where", [none, build.axes("Squeeze", start, [0]), end])
        for end, start in zip(made.last, initial, strict=False)
    )
    unseen = build.axes("Unsqueeze", build.node("Equal", [seen, zero]), [2])
    before = initial[0] or build.zero()
    steps = build.node("Where", [unseen, before, rows_at(build, made.steps, place, counts)])
    return Operator(made.node, steps, last, backwards, mask, unseen)
