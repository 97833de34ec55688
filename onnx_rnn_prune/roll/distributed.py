"""Turns copies of a layer, one for each step, into a single layer on all steps.

A layer in Keras' `TimeDistributed`, or in a Python loop over time, is exported as a copy for each
step; their outputs are stacked by a Concat. No copy reads another, so this is a recurrence without
a state: the form of one step holds for all of them, with the sequence in place of its steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_shape
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import node_key
from onnx_rnn_prune.roll.cells import Key
from onnx_rnn_prune.roll.form import WHOLE, Activation, Atom, Form, Leaf, Product
from onnx_rnn_prune.roll.reading import Reader
from onnx_rnn_prune.roll.rewrite import Builder, Layout, layout_of_value, placed
from onnx_rnn_prune.roll.rules import FUNCTIONS
from onnx_rnn_prune.roll.steps import PRODUCTS, NotRollableError
from onnx_rnn_prune.roll.unrolled import Track, find_track, in_time
from onnx_rnn_prune.roll.values import Value


@dataclass(frozen=True, eq=False)
class Copies:
    """Copies of a layer whose outputs are stacked.

    Attributes:
        stack: the Concat.
        form: of the first step.
        read: what takes the place of each leaf of that form: where the steps read their entries,
            or the leaf itself if all steps read the same.
        layout: of one step in the Concat's output.
        axis: of the steps there.
        products: keys of the nodes that multiply in the copies.
    """

    stack: gs.Node
    form: Form
    read: Mapping[Key, tuple[Leaf, ...]]
    layout: Layout
    axis: int
    products: frozenset[str]


def may_have_copies(nodes: Sequence[gs.Node]) -> bool:
    """Whether products share their right operand, and something is stacked; quick to tell."""
    shared = [id(t) for node in nodes if node.op in PRODUCTS for t in node.inputs[1:2]]
    return len(set(shared)) < len(shared) and any(node.op == "Concat" for node in nodes)


def find_copies(reader: Reader, nodes: Iterable[gs.Node]) -> list[Copies]:
    """Finds copies of layers; none that other stacks need as well, which would compute them twice.

    Args:
        reader: has read the nodes.
        nodes: of one graph.
    """
    found = []
    for node in nodes:
        if node.op == "Concat" and len(node.inputs) > 1 and not node.domain:
            with suppress(NotRollableError):  # entries do not lie along axes
                found.append(_copies(reader, node))
    every = [each for each in found if each is not None]
    users = Counter(key for each in every for key in each.products)
    return [each for each in every if all(users[key] == 1 for key in each.products)]


def _copies(reader: Reader, node: gs.Node) -> Copies | None:
    values = [reader.known.get(tensor.name) for tensor in node.inputs]
    steps = [value for value in values if isinstance(value, Value)]
    forms = [value.form for value in steps if value.form is not None]
    if len(forms) < len(values) or len({value.shape for value in steps}) > 1:
        return None
    if len({id(tensor) for tensor in node.inputs}) < len(values):  # one step is stacked twice
        return None
    first, leaves = forms[0], list(_leaves(forms[0]))
    axis = int(node.attrs["axis"]) % len(steps[0].shape)
    known = all(leaf.tensor in reader.seen.shapes for leaf in leaves)  # else it is a constant's
    if steps[0].shape[axis] != 1 or not known or any(not _alike(first, form) for form in forms):
        return None
    groups = [list(_leaves(form)) for form in forms]
    ends = {leaf.tensor for group in groups for leaf in group}
    # Products without a function between them are one in a form, which may be larger than both.
    if not 0 < _entries(first) <= sum(map(_size, _products(node.inputs[:1], ends))):
        return None
    layout, *others = (layout_of_value(value) for value in steps)
    if layout.features is None or any(other != layout for other in others):
        return None
    read = {
        leaf.key: placed([group[place] for group in groups], reader)
        for place, leaf in enumerate(leaves)
    }
    tracks = [_track(group, reader) for group in read.values() if not _is_same(group)]
    if not tracks or None in tracks:
        return None
    fixed = {at: place for at, place in layout.fixed.items() if at != axis}
    products = frozenset(node_key(each) for each in _products(node.inputs, ends))
    return Copies(node, first, read, replace(layout, fixed=fixed), axis, products)


def _track(group: Sequence[Leaf], reader: Reader) -> Track | None:
    return find_track(group, reader.seen.shapes)


def _is_same(group: Sequence[Leaf]) -> bool:
    return all(leaf.key == group[0].key for leaf in group)


def _leaves(form: Form) -> Iterator[Leaf]:
    """The leaves of a form, in the order in which it was computed."""
    for atom, _ in form.terms.values():
        yield from _inner(atom)


def _inner(atom: Atom) -> Iterator[Leaf]:
    if isinstance(atom, Leaf):
        yield atom
    elif isinstance(atom, Activation):
        yield from _leaves(atom.argument)
    else:
        for factor in atom.factors:
            yield from _inner(factor)


def _alike(one: Form, two: Form) -> bool:
    """Whether two forms differ at most in their leaves, of the same sizes."""
    pairs = zip(one.terms.values(), two.terms.values(), strict=False)
    return (
        len(one.terms) == len(two.terms)
        and np.array_equal(one.bias, two.bias)
        and all(m.key == n.key and _same_kind(a, b) for (a, m), (b, n) in pairs)
    )


def _same_kind(one: Atom, two: Atom) -> bool:
    if isinstance(one, Activation) and isinstance(two, Activation):
        same = (one.op, one.attributes) == (two.op, two.attributes)
        return same and _alike(one.argument, two.argument)
    if isinstance(one, Product) and isinstance(two, Product):
        pairs = zip(one.factors, two.factors, strict=False)
        return len(one.factors) == len(two.factors) and all(_same_kind(a, b) for a, b in pairs)
    both = isinstance(one, Leaf) and isinstance(two, Leaf)
    return both and (one.size, one.rows) == (two.size, two.rows)


def _entries(form: Form) -> int:
    """The entries of the weights in a form; 0 if it has a function that is no operator."""
    total = 0
    for atom, matrix in form.terms.values():
        total += 0 if matrix.diagonal else matrix.values.size
        for factor in atom.factors if isinstance(atom, Product) else (atom,):
            if isinstance(factor, Activation):
                if factor.op != WHOLE and factor.op not in FUNCTIONS:
                    return 0
                total += _entries(factor.argument)
    return total


def _products(tensors: Iterable[gs.Tensor], ends: Container[str]) -> list[gs.Node]:
    """The products by which tensors are computed from some others, by name."""
    found: dict[int, gs.Node] = {}
    waiting = list(tensors)
    while waiting:
        tensor = waiting.pop()
        for maker in tensor.inputs if tensor.name not in ends else ():
            if id(maker) not in found:
                found[id(maker)] = maker
                waiting += maker.inputs
    return [node for node in found.values() if node.op in PRODUCTS]


def _size(product: gs.Node) -> int:
    """The entries of a product's weights."""
    shapes = [constant_shape(tensor) for tensor in product.inputs[:2]]
    return sum(prod(shape) for shape in shapes if shape is not None)


def put_layer(builder: Builder, copies: Copies, output: gs.Tensor) -> gs.Node:
    """Adds a layer in place of copies; returns its last product.

    Args:
        builder: makes its nodes.
        copies: in the model or in one that it is a copy of.
        output: that of the Concat in the builder's graph.

    Raises:
        NotRollableError: that is not possible.
    """
    products: list[gs.Node] = []

    def of_form(form: Form) -> gs.Tensor:
        parts = [times(of_atom(atom), matrix.values) for atom, matrix in form.terms.values()]
        if form.bias.any() or not parts:
            parts.append(builder.constant(form.bias.astype(builder.dtype)))
        total = parts[0]
        for part in parts[1:]:
            total = builder.node("Add", [total, part])
        return total

    def times(data: gs.Tensor, values: Array) -> gs.Tensor:
        weight = values.astype(builder.dtype)
        if weight.ndim == 1:
            whole = bool(np.all(weight == 1))
            return data if whole else builder.node("Mul", [data, builder.constant(weight)])
        name = builder.fresh("MatMul")
        held = gs.Constant(builder.fresh("MatMul/weight"), np.ascontiguousarray(weight))
        made = gs.Variable(builder.fresh("MatMul/output"))
        products.append(gs.Node("MatMul", name, {}, [data, held], [made]))
        builder.home.nodes.append(products[-1])
        return made

    def of_atom(atom: Atom) -> gs.Tensor:
        if isinstance(atom, Leaf):
            group = copies.read[atom.key]
            if _is_same(group):
                return builder.leaf(group[0])
            return in_time(builder, group, find_track(group, builder.shapes), False)
        if isinstance(atom, Product):
            total, *others = map(of_atom, atom.factors)
            for other in others:
                total = builder.node("Mul", [total, other])
            return total
        inner = of_form(atom.argument)
        return builder.node(atom.op, [inner], dict(atom.attributes)) if atom.op else inner

    data = of_form(copies.form)
    builder.copy(builder.from_matrix(data, copies.layout, copies.axis), output)
    return products[-1]
