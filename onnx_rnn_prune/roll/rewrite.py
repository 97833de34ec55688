"""Putting an operator where its steps stood.

The operator reads `X` [T, B, I], made of what the steps read, and whatever held the state of a step
is made anew from `Y`, `Y_h` and `Y_c`. The nodes of the steps then have no readers left.
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
        rows: the axis of the rows; None where there is one row, or each is the same.
        features: the axis of the features; None where there is one feature.
        columns: which entries of that axis the features are; None for all of them, in order.
        fixed: the other axes, each with the one place on it.
    """

    rows: int | None
    features: int | None
    columns: tuple[int, ...] | None
    fixed: Mapping[int, int]


def layout_of(index: Index, shape: Sequence[int]) -> Layout:
    """Where the entries [rows, n] of a flattened tensor lie.

    Raises:
        NotRollableError: they do not lie along axes.
    """
    rows = features = None
    columns: tuple[int, ...] | None = None
    fixed = {}
    for axis, places in enumerate(np.unravel_index(index, tuple(shape))):
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
    """The same entries, of a tensor in which they lie along axes.

    Where axes were joined on the way, that is not the tensor that they stem from.

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
    """The tensors that hold all of some entries, the one that they stem from first."""
    shapes, stem = reader.seen.shapes, leaves[0].tensor
    yield stem, tuple(leaves)
    fewest = len(np.unique(np.concatenate([leaf.index.reshape(-1) for leaf in leaves])))
    for name, value in reader.known.items():
        seen = isinstance(value, Value) and value.form is None and value.tensor == stem
        # Slices of single steps are passed over: there are as many as steps.
        if seen and isinstance(value, Value) and value.labels.size >= fewest and name in shapes:
            places = np.full(int(np.prod(shapes[stem])), -1)
            places[value.labels.reshape(-1)] = np.arange(value.labels.size)
            moved = tuple(Leaf(name, places[leaf.index], leaf.boolean) for leaf in leaves)
            if not any((leaf.index < 0).any() for leaf in moved):
                yield name, moved


def layout_of_value(value: Value) -> Layout:
    """Where the rows and columns lie that a tensor is all of.

    Raises:
        NotRollableError: it is not, or they do not lie along axes.
    """
    form = value.form
    rows, units = (form.rows, form.size) if form is not None else (0, 0)
    if value.labels.size != rows * units or len(np.unique(value.labels)) != rows * units:
        raise NotRollableError("only part of a state is read")
    entries = np.empty(rows * units, np.int64)
    entries[value.labels.reshape(-1)] = np.arange(rows * units)
    return layout_of(entries.reshape(rows, units), value.shape)


class Builder:
    """Makes nodes of a graph, which is put in order when all are made.

    Args:
        graph: the main graph, for names.
        home: the graph that gets the nodes.
        name: how names begin.
        shapes: of tensors, as seen in a run.
        dtype: of the weights that it puts in.
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
        """A constant, one for all that are equal."""
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
        """A node with one output: a new tensor, the one of an equal node, or this one."""
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
        """Some places on an axis; of a scalar, the axis goes."""
        return self.node("Gather", [data, self.constant(places)], {"axis": axis})

    def slice(self, data: gs.Tensor, axis: int, start: int, end: int) -> gs.Tensor:
        """A part of an axis."""
        if self.graph.opset < 10:
            return self.node("Slice", [data], {"starts": [start], "ends": [end], "axes": [axis]})
        bounds = [self.constant(np.array([number], np.int64)) for number in (start, end, axis)]
        return self.node("Slice", [data, *bounds])

    def flip(self, data: gs.Tensor, axis: int) -> gs.Tensor:
        """An axis from the back to the front."""
        if self.graph.opset < 10:
            raise NotRollableError("its opset cannot reverse an axis")
        bounds = (-1, -(1 << 62), axis, -1)
        return self.node("Slice", [data, *(self.constant(np.array([n], np.int64)) for n in bounds)])

    def total(self, data: gs.Tensor, axis: int) -> gs.Tensor:
        """The sum over an axis, which stays."""
        if self.graph.opset < 13:
            return self.node("ReduceSum", [data], {"axes": [axis], "keepdims": 1})
        return self.node("ReduceSum", [data, self.constant(np.array([axis], np.int64))])

    def ones_like(self, data: gs.Tensor) -> gs.Tensor:
        """A tensor of that shape full of 1, whole numbers."""
        one = self.constant(np.ones(1, np.int64))
        return self.node("ConstantOfShape", [self.node("Shape", [data])], {"value": one})

    def transpose(self, data: gs.Tensor, order: Sequence[int]) -> gs.Tensor:
        """Axes in another order."""
        if list(order) == sorted(order):
            return data
        return self.node("Transpose", [data], {"perm": list(order)})

    def reshape(self, data: gs.Tensor, shape: Sequence[int]) -> gs.Tensor:
        """Another shape, in which 0 stands for a size that stays, and -1 for what is left."""
        return self.node("Reshape", [data, self.constant(np.array(shape, np.int64))])

    def zero(self) -> gs.Tensor:
        """0, of the type of the weights."""
        return self.constant(np.zeros((), self.dtype))

    def is_zero(self, leaf: Leaf) -> bool:
        """Whether a leaf stands for entries that are provably 0."""
        return leaf.tensor in self.tensors and is_zero(self.tensors[leaf.tensor])

    def is_repeated(self, leaf: Leaf) -> bool:
        """Whether all rows of a leaf are one."""
        return leaf.rows > 1 and layout_of(leaf.index, self.shapes[leaf.tensor]).rows is None

    def leaf(self, leaf: Leaf) -> gs.Tensor:
        """A leaf as [B, n]."""
        layout = layout_of(leaf.index, self.shapes[leaf.tensor])
        return self.as_matrix(self.tensors[leaf.tensor], layout)

    def copy(self, data: gs.Tensor, output: gs.Tensor) -> None:
        """The same under the name of a tensor that was made elsewhere before."""
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
    """The operator that was put in.

    Attributes:
        node: the operator.
        steps: h after each step: [T, B, H], masked steps included.
        last: h after all steps, and of an LSTM c: [B, H] each.
        backwards: whether the first of the steps is the last one.
        mask: which steps count: [T, B, 1], a truth value each; None where all do.
        unseen: which steps come before the first that counts: [T, B, 1].
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
    """Adds the operator that a chain is.

    Args:
        builder: makes its nodes.
        chain: the steps.
        sequence: X: [T, B, I], what `chain.inputs` lists beside one another.
        initial: h and c before the first step: [1, B, H] each.
        backwards: whether the last step comes first.
        lengths: how many steps of each sequence count: [B]; all where it is left out.
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
    """How many steps count, as the operators take it: [B], of 1 where a step counts, [T, B]."""
    total = build.axes("Squeeze", build.total(counts, 0), [0])
    return build.node("Cast", [total], {"to": 6})


def front(build: Builder, counts: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
    """The order in which the steps that count come first, and how many these are.

    Args:
        build: makes nodes.
        counts: 1 where a step counts: [T, B].

    Returns:
        places [T, B], and lengths [B] as the operators take them.
    """
    lengths = lengths_of(build, counts)
    steps = build.slice(build.node("Shape", [counts]), 0, 0, 1)
    first = build.constant(np.array(0, np.int64))
    numbers = build.node("CumSum", [build.ones_like(counts), first])
    # Those that count get T more than their number from the back, so that no two are equal.
    rank = build.node("Sub", [build.node("Mul", [counts, steps]), numbers])
    order, sizes = gs.Variable(build.fresh("order")), gs.Variable(build.fresh("ranks"))
    node = gs.Node("TopK", "", {"axis": 0}, [rank, steps], [sizes, order])
    build.home.nodes.append(node)
    return order, lengths


def rows_at(build: Builder, data: gs.Tensor, places: gs.Tensor, like: gs.Tensor) -> gs.Tensor:
    """Of each sequence of [T, B, n], what stands at its places, of the shape of another [T, B]."""
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
    """Adds the operator that a chain is, some of whose steps do not count.

    For any mask, the same follows from moving the steps that count to the front, in their order,
    and telling the operator how many these are (`sequence_lens`); what it puts out is brought back
    to where it was by counting. A step that does not count puts out what the one before it did.

    Args:
        build: makes its nodes.
        chain: the steps.
        sequence: X: [T, B, I].
        initial: h and c before the first step: [1, B, H] each.
        mask: which steps count: [T, B, 1].
        prefix: whether these come first in each sequence.
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
    place = build.node("Sub", ends)  # before the first one, -1: any place will do there
    least = build.constant(np.array(0, np.int32))
    # A sequence without steps gives 0, which is right where it starts at 0.
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
