"""Turns reversed sequences into reverse operators, and pairs of operators into bidirectional ones.

A sequence that is reversed, read and reversed back is read in reverse; two operators that read one
sequence from both ends are a bidirectional one.

Nodes between an operator and a reversal or Concat may only move axes, which are tracked by name: T,
D, B, I and H as in the specification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import bodies_of
from onnx_rnn_prune.operators.recurrent import STANDARD
from onnx_rnn_prune.roll.form import Index, digest
from onnx_rnn_prune.roll.probing import is_random
from onnx_rnn_prune.roll.reading import Seen
from onnx_rnn_prune.roll.rewrite import Builder, Operator
from onnx_rnn_prune.roll.steps import PRODUCTS, downstream
from onnx_rnn_prune.roll.values import SAME, moved

# The axes of each output.
_OUTPUTS = ("TDBH", "DBH", "DBH")
_ACTIVATIONS = frozenset(("activations", "activation_alpha", "activation_beta"))
# Inputs that differ by direction; omitted ones are zeros.
_WEIGHTS = (1, 2, 3, 7)
_STATES = (5, 6)
_LENGTHS = 4
_WEIGHED = (*PRODUCTS, *STANDARD, "Conv")


@dataclass(frozen=True, eq=False)
class Turn:
    """A node that reverses the time axis.

    Attributes:
        node: the node.
        lengths: the length of each sequence that is reversed; None for all.
    """

    node: gs.Node
    lengths: gs.Tensor | None


def turnable(graph: gs.Graph, node: gs.Node, seen: Seen) -> bool:
    """Whether an operator's input was reversed, and its output is reversed back."""
    turn = _turn_before(node, seen)[0] if _direction(node) == "forward" else None
    if turn is None or not _same(turn.lengths, _given(node, _LENGTHS)):
        return False
    ends = [end for end in _ends(graph, node.outputs[0], "TDBH") if not _asks_shape(end)]
    turns = [_turn(end.node, end.axes, seen) for end in ends]
    return all(it is not None and _same(it.lengths, turn.lengths) for it in turns)


def turn(builder: Builder, node: gs.Node, seen: Seen) -> gs.Node:
    """Makes an operator read in reverse, and drops the reversals of its output.

    Returns:
        The node that reversed its input.
    """
    before, moves = _turn_before(node, seen)
    assert before is not None
    data = before.node.inputs[0]
    for move in reversed(moves):
        data = builder.node(move.op, [data, *move.inputs[1:]], move.attrs)
    node.inputs[0] = data
    node.attrs["direction"] = "reverse"
    for end in list(_ends(builder.graph, node.outputs[0], "TDBH")):
        if end.node is not None and not _asks_shape(end):
            builder.copy(end.tensor, end.node.outputs[0])
    return before.node


def _direction(node: gs.Node) -> str:
    """The direction of a recurrent operator with layout 0; empty for other nodes."""
    known = node.op in STANDARD and not node.domain
    if not known or node.attrs.get("layout", 0) or "hidden_size" not in node.attrs:
        return ""
    direction = node.attrs.get("direction", "forward")
    return direction.decode() if isinstance(direction, bytes) else str(direction)


def _given(node: gs.Node, slot: int) -> gs.Tensor | None:
    """An input; None if it is omitted."""
    tensor = node.inputs[slot] if slot < len(node.inputs) else None
    return tensor if tensor is not None and tensor.name else None


def _turn_before(node: gs.Node, seen: Seen) -> tuple[Turn | None, list[gs.Node]]:
    """The reversal of an operator's input, if any, and the nodes in between that move axes."""
    moves = list(_moves_before(node.inputs[0]))
    tensor = moves[-1].inputs[0] if moves else node.inputs[0]
    return _turn(tensor.inputs[0] if tensor.inputs else None, _axes_before(moves), seen), moves


def _moves_before(tensor: gs.Tensor) -> Iterator[gs.Node]:
    while tensor.inputs and tensor.inputs[0].op in ("Transpose", "Identity"):
        yield tensor.inputs[0]
        tensor = tensor.inputs[0].inputs[0]


def _axes_before(moves: Sequence[gs.Node]) -> str:
    """The axes at the start of a chain of moves to an operator, listed from the operator back."""
    axes = "TBI"
    for move in moves:
        if move.op == "Transpose":
            order = list(move.attrs.get("perm", (2, 1, 0)))
            axes = "".join(axes[order.index(axis)] for axis in range(3))
    return axes


def _turn(node: gs.Node | None, axes: str, seen: Seen) -> Turn | None:
    """The reversal of time that a node is, if it is one."""
    if node is None or "T" not in axes:
        return None
    time = axes.index("T")
    axis = _turned_axis(node, seen)
    if axis is not None:
        return Turn(node, None) if axis % len(axes) == time else None
    where = node.attrs.get("time_axis", 0), node.attrs.get("batch_axis", 1)
    parts = node.op == "ReverseSequence" and "B" in axes and where == (time, axes.find("B"))
    return Turn(node, node.inputs[1]) if parts else None


def _turned_axis(node: gs.Node, seen: Seen) -> int | None:
    """The axis that a node reverses entirely; None if it reverses none."""
    if node.op == "ReverseSequence":
        axis = int(node.attrs.get("time_axis", 0))
        lengths = seen.numbers.get(node.inputs[1].name, constant_value(node.inputs[1]))
        size = seen.shapes.get(node.inputs[0].name, (0, 0))[axis]
        return axis if lengths is not None and bool(np.all(lengths == size)) else None
    if node.op != "Slice" or len(node.inputs) < 5:
        return None
    bounds = [constant_value(tensor) for tensor in node.inputs[1:5]]
    if any(bound is None or bound.size != 1 for bound in bounds):
        return None
    start, end, axis, step = (int(bound.reshape(-1)[0]) for bound in bounds if bound is not None)
    return axis if (start, step) == (-1, -1) and end < -(1 << 30) else None


def serve_ends(
    builder: Builder, made: Operator, seen: Seen, turned: gs.Tensor | None = None, axes: str = "TBH"
) -> None:
    """Makes readers of the last step read the final state instead, and drops double reversals.

    Args:
        builder: of the graph.
        made: the operator.
        seen: what a run showed.
        turned: its reversed steps, whose readers are handled; None for the steps themselves.
        axes: of this tensor.
    """
    for end in list(_ends(builder.graph, turned or made.steps, axes)):
        node, time = end.node, end.axes.index("T")
        if node is None:
            continue
        axis = _turned_axis(node, seen)
        if axis is not None and axis % len(end.axes) == time and turned is None:
            serve_ends(builder, made, seen, node.outputs[0], end.axes)
        elif axis is not None and axis % len(end.axes) == time:
            order = ["TBH".index(axis) for axis in end.axes]
            builder.copy(builder.transpose(made.steps, order), node.outputs[0])
        place = -1 if made.backwards == (turned is not None) else 0
        for kept, index in (([], place), ([time], [place])):
            if made.last and _does(node, partial(np.take, indices=index, axis=time)):
                order = ["BH".index(axis) for axis in end.axes if axis != "T"]
                data = builder.transpose(made.last[0], order)
                builder.copy(builder.axes("Unsqueeze", data, kept), node.outputs[0])


def _does(node: gs.Node, wanted: Callable[[Index], Index]) -> bool:
    """Whether a node moves the entries of any three axes in the wanted way."""
    given = [constant_value(tensor) for tensor in node.inputs[1:] if tensor.name]
    if node.op not in ("Gather", "Slice") or any(value is None for value in given):
        return False
    for shape in ((5, 5, 5), (7, 7, 7)):
        labels = np.arange(shape[0] ** 3).reshape(shape)
        try:
            (found,) = moved(node, labels, given, [None])
        except IndexError:
            return False
        if not np.array_equal(found, wanted(labels)):
            return False
    return True


def _same(one: gs.Tensor | None, other: gs.Tensor | None) -> bool:
    """Whether lengths are equal, whatever their integer type."""
    return _lengths(one) == _lengths(other)


def _lengths(tensor: gs.Tensor | None) -> object:
    while tensor is not None and tensor.inputs and tensor.inputs[0].op in ("Cast", "Identity"):
        tensor = tensor.inputs[0].inputs[0]
    return None if tensor is None else _content(tensor, {})


@dataclass(frozen=True, eq=False)
class _End:
    """A reader of a tensor, behind moves of its axes.

    Attributes:
        node: the reader; None for an output of the graph.
        tensor: the tensor it reads.
        axes: of that tensor.
    """

    node: gs.Node | None
    tensor: gs.Tensor
    axes: str


def _ends(graph: gs.Graph, tensor: gs.Tensor, axes: str) -> Iterator[_End]:
    waiting = [(tensor, axes)]
    while waiting:
        tensor, axes = waiting.pop()
        if any(tensor is output for output in graph.outputs):
            yield _End(None, tensor, axes)
        for node in tensor.outputs:
            moved = _moved(node, axes)
            if moved is None:
                yield _End(node, tensor, axes)
            else:
                waiting.append((node.outputs[0], moved))


def _asks_shape(end: _End) -> bool:
    """Whether it only asks for the shape, which a reversal does not change."""
    return end.node is not None and end.node.op in ("Shape", "Size")


def _moved(node: gs.Node, axes: str) -> str | None:
    """The axes after a node that moves them; None for other nodes."""
    if node.domain or node.op not in ("Transpose", "Identity", "Squeeze"):
        return None
    if node.op == "Transpose":
        return "".join(axes[at] for at in node.attrs.get("perm", range(len(axes))[::-1]))
    if node.op == "Identity":
        return axes
    given = constant_value(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("axes")
    lost = {int(at) % len(axes) for at in np.reshape(given, -1)} if given is not None else set()
    return axes.replace("D", "") if lost == {axes.find("D")} else None


@dataclass(frozen=True, eq=False)
class Pair:
    """Two operators that read the same from both ends, and the nodes that join their outputs.

    Attributes:
        forward: the operator that reads forward.
        reverse: the one that reads in reverse.
        joins: Concats of an output of each: the number of the output, the tensor that the Concat
            reads from the forward one, and whether that is its first input.
    """

    forward: gs.Node
    reverse: gs.Node
    joins: tuple[tuple[int, _End, bool], ...]


def pairs(graph: gs.Graph) -> Iterator[Pair]:
    """Pairs of operators that may become one bidirectional operator."""
    readers: dict[object, list[gs.Node]] = {}
    for node in graph.nodes:
        if _direction(node) == "reverse":
            readers.setdefault(_key(node), []).append(node)
    for node in graph.nodes:
        if _direction(node) == "forward":
            for other in readers.get(_key(node), ()):
                joins = tuple(_joins(graph, node, other))
                constant = all(
                    tensor is None or constant_value(tensor) is not None
                    for each in (node, other)
                    for tensor in (_given(each, slot) for slot in _WEIGHTS)
                )
                if (
                    constant
                    and (joins or _meet(graph, node, other))
                    and _activations(node, other) is not None
                ):
                    yield Pair(node, other, joins)


def _meet(graph: gs.Graph, *nodes: gs.Node) -> bool:
    """Whether the outputs of two nodes are concatenated, with no weights in between."""
    between = [node for node in graph.nodes if node.op not in _WEIGHED]
    one, other = (downstream(between, [t.name for t in n.outputs if t.name]) for n in nodes)
    inputs = [
        {tensor.name for tensor in node.inputs} for node in graph.nodes if node.op == "Concat"
    ]
    return any(names & one - other and names & other - one for names in inputs)


def _key(node: gs.Node) -> object:
    """Equal for operators that read the same in the same way."""
    rest = {k: v for k, v in node.attrs.items() if k not in {*_ACTIVATIONS, "direction"}}
    lengths = _lengths(_given(node, _LENGTHS))
    return node.op, repr(sorted(rest.items())), _content(node.inputs[0], {}), lengths


def _content(tensor: gs.Tensor, known: dict[int, object], depth: int = 40) -> object:
    """Equal for tensors that are computed in the same way from the same sources."""
    if id(tensor) not in known:
        known[id(tensor)] = _content_anew(tensor, known, depth)
    return known[id(tensor)]


def _content_anew(tensor: gs.Tensor, known: dict[int, object], depth: int) -> object:
    value = constant_value(tensor)
    if value is not None:
        return digest(value)
    maker = tensor.inputs[0] if tensor.inputs else None
    if not depth or maker is None or bodies_of(maker) or is_random(maker):
        return tensor.name
    if maker.op in SAME:
        return _content(maker.inputs[0], known, depth - 1)
    attrs = {
        k: digest(v.values) if isinstance(v, gs.Constant) else v for k, v in maker.attrs.items()
    }
    inputs = [_content(item, known, depth - 1) if item.name else "" for item in maker.inputs]
    number = next(n for n, item in enumerate(maker.outputs) if item is tensor)
    parts = maker.domain or "", maker.op, sorted(attrs.items()), inputs, number
    return blake2b(repr(parts).encode(), digest_size=16).digest()


def _activations(one: gs.Node, other: gs.Node) -> dict[str, object] | None:
    """The activation attributes for both directions; None if alpha and beta would be ambiguous."""
    both = [{key: node.attrs.get(key) for key in _ACTIVATIONS} for node in (one, other)]
    names = [each["activations"] or STANDARD[one.op].activations for each in both]
    if any(each["activation_alpha"] or each["activation_beta"] for each in both):
        if both[0] != both[1]:
            return None
        return {key: [*value, *value] for key, value in both[0].items() if value}
    given = any(each["activations"] for each in both)
    return {"activations": [*names[0], *names[1]]} if given else {}


def _joins(graph: gs.Graph, one: gs.Node, other: gs.Node) -> Iterator[tuple[int, _End, bool]]:
    for slot, (mine, its) in enumerate(zip(one.outputs, other.outputs, strict=False)):
        theirs = list(_ends(graph, its, _OUTPUTS[slot]))
        for end in _ends(graph, mine, _OUTPUTS[slot]):
            node = end.node
            if node is None or node.op != "Concat" or len(node.inputs) != 2:
                continue
            met = [e for e in theirs if e.node is node and e.axes == end.axes]
            axis = int(node.attrs["axis"]) % len(end.axes)
            if met and end.axes[axis] == "H" and axis == len(end.axes) - 1 and "D" not in end.axes:
                yield slot, end, node.inputs[0] is end.tensor


def merge(builder: Builder, pair: Pair) -> gs.Node:
    """Replaces a pair by one bidirectional operator."""
    both = pair.forward, pair.reverse
    inputs = [pair.forward.inputs[0]]
    for slot in range(1, max(len(node.inputs) for node in both)):
        one, other = (_given(node, slot) for node in both)
        if slot == _LENGTHS or (one is None and other is None):
            inputs.append(one if one is not None else gs.Variable.empty())
        elif slot in _STATES:
            weight = constant_value(pair.forward.inputs[1])
            zero = np.zeros(1, weight.dtype if weight is not None else np.float32)
            parts = [tensor or _zeros_like(builder, one or other, zero) for tensor in (one, other)]
            inputs.append(builder.node("Concat", parts, {"axis": 0}))
        else:
            inputs.append(_beside(builder, one, other))
    forward = pair.forward
    attrs = {k: v for k, v in forward.attrs.items() if k not in _ACTIVATIONS}
    attrs |= {**(_activations(*both) or {}), "direction": "bidirectional"}
    count = max(len(node.outputs) for node in both)
    outputs = [gs.Variable(builder.fresh(f"{forward.op}/out")) for _ in range(count)]
    name = builder.fresh(forward.op)
    result = gs.Node(forward.op, name, attrs, inputs, outputs)
    builder.home.nodes.append(result)
    for slot, end, first in pair.joins:
        assert end.node is not None
        builder.copy(
            _joined(builder, outputs[slot], _OUTPUTS[slot], end.axes, first), end.node.outputs[0]
        )
    for place, node in enumerate(both):
        for slot, tensor in enumerate(tuple(node.outputs)):  # copying removes them from the node
            if tensor.name:
                axis = _OUTPUTS[slot].index("D")
                builder.copy(builder.slice(outputs[slot], axis, place, place + 1), tensor)
    return result


def _beside(builder: Builder, one: gs.Tensor | None, other: gs.Tensor | None) -> gs.Tensor:
    """The constants of both directions; zeros for an omitted one."""
    values = [None if tensor is None else constant_value(tensor) for tensor in (one, other)]
    known = next(value for value in values if value is not None)
    return builder.constant(
        np.concatenate([np.zeros_like(known) if value is None else value for value in values])
    )


def _zeros_like(builder: Builder, tensor: gs.Tensor, zero: Array) -> gs.Tensor:
    shape = builder.node("Shape", [tensor])
    return builder.node("ConstantOfShape", [shape], {"value": builder.constant(zero)})


def _joined(builder: Builder, data: gs.Tensor, axes: str, wanted: str, first: bool) -> gs.Tensor:
    """Both directions of an output concatenated, on axes with H last."""
    if not first:
        data = builder.take(data, axes.index("D"), np.array([1, 0], np.int64))
    order = [axes.index(axis) for axis in f"{wanted[:-1]}DH"]
    return builder.reshape(builder.transpose(data, order), [0] * (len(wanted) - 1) + [-1])
