"""What the numbers and the sizes of inputs stand for, by the operators that they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_rnn_prune.data.equal import Shapes, Size
from onnx_rnn_prune.data.needs import shapes_of
from onnx_rnn_prune.model.constants import MOVING
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.signature import Port
from onnx_rnn_prune.model.walk import messages, node_reads
from onnx_rnn_prune.operators.recurrent import RECURRENT

# Operators behind which the same numbers stand elsewhere: all of their inputs, or the first.
_MOVED = MOVING | {"Cast", "CastLike", "Pad"}
# Operators that make other numbers of lengths, which still are lengths.
_COUNTING = {
    "Abs",
    "Add",
    "Ceil",
    "Clip",
    "Div",
    "Floor",
    "Max",
    "Min",
    "Mul",
    "ReduceMax",
    "Round",
}
_COUNTING |= {"Sub", "TopK", "Where"}
# Where a number is a length or a count, by the operator's inputs.
_LENGTHS: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(RECURRENT, frozenset((4,))),
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual"), frozenset((0, 1))),
    "ReverseSequence": frozenset((1,)),
    "Range": frozenset((1,)),
    "Slice": frozenset((2,)),
    "Expand": frozenset((1,)),
    "ConstantOfShape": frozenset((0,)),
    "Loop": frozenset((0,)),
}
# What else exporters call the number of sequences.
_BATCHES = {"n", "b", "bs"}
# The fields of a constant that hold numbers.
_NUMBERS = {"raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data"}


@dataclass(frozen=True)
class Meaning:
    """What the numbers in an input stand for.

    Attributes:
        rows: they number the rows of a table of so many; None where they number nothing.
        choices: the graph asks whether the one number is one of these.
        length: they say how long sequences are.
    """

    rows: int | None = None
    choices: tuple[float, ...] = ()
    length: bool = False


def meanings(model: onnx.ModelProto, ports: Sequence[Port], shapes: Shapes) -> dict[str, Meaning]:
    """What the numbers in each input stand for.

    Args:
        model: the outline of a model.
        ports: its inputs.
        shapes: of its tensors.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in messages(model.graph, onnx.NodeProto):
        for name in node_reads(node):
            readers.setdefault(name, []).append(node)
    values = dict(_constants(model.graph))
    return {port.name: _meaning(port, readers, values, shapes) for port in ports}


def batch_sizes(
    model: onnx.ModelProto, ports: Sequence[Port], solved: Mapping[str, Size]
) -> tuple[str, ...]:
    """The free sizes that count sequences: where layers have them, else by their names."""
    free = dict.fromkeys(size for size in solved.values() if isinstance(size, str))
    shapes = shapes_of(model, ports, solved)
    read = [
        shapes.get(n.input[0], ())
        for n in messages(model.graph, onnx.NodeProto)
        if n.op_type in RECURRENT
    ]
    named = {solved[key] for key in solved if "batch" in key.lower()}
    named -= {size for shape in read for size in shape[:1]}
    counted = {size for shape in read for size in shape[1:2]} | named
    letters = {solved[key] for key in solved if key.lower() in _BATCHES}
    found = counted & free.keys() or letters & free.keys() or set(list(free)[:1])
    alone = {port.key(0) for port in ports if port.dims and len(port.dims) == 1}
    return tuple(key for key in free if key in found | alone)


def makers(graph: onnx.GraphProto) -> dict[str, set[str]]:
    """For each tensor those that the node reads that makes it; for a body's inputs, its node's."""
    found: dict[str, set[str]] = {}
    for node in messages(graph, onnx.NodeProto):
        for name in node.output:
            found[name] = node_reads(node)
        for attribute in node.attribute:
            for port in attribute.g.input if attribute.HasField("g") else ():
                found[port.name] = set(node.input)
    return found


def _meaning(
    port: Port,
    readers: Mapping[str, list[onnx.NodeProto]],
    values: Mapping[str, Array],
    shapes: Shapes,
) -> Meaning:
    """Follows numbers from an input to all that looks at them."""
    single = all(dim == 1 for dim in port.dims or ())
    rows: set[int] = set()
    choices: dict[float, None] = {}
    length = False
    waiting, seen = [(port.name, True)], {port.name}
    for name, same in waiting:  # `same`: they are the input's own numbers, moved at most
        for node in readers.get(name, ()):
            slots = [slot for slot, read in enumerate(node.input) if read == name]
            if same:
                rows.update(_rows(node, slots, values, shapes))
            if same and single and node.op_type == "Equal":
                for other in node.input:
                    choices.update(dict.fromkeys(map(float, values.get(other, np.zeros(0)).flat)))
            length |= not _LENGTHS.get(node.op_type, frozenset()).isdisjoint(slots)
            moved = node.op_type in _MOVED and (0 in slots or node.op_type == "Concat")
            if moved or node.op_type in _COUNTING:
                fresh = [result for result in node.output if result and result not in seen]
                waiting += [(result, same and moved) for result in fresh]
                seen.update(fresh)
    if len(choices) == 1:  # anything else takes the other branch
        choices.update(dict.fromkeys(value // 2 if value else 1.0 for value in tuple(choices)))
    return Meaning(min(rows, default=None), tuple(choices), length)


def _rows(
    node: onnx.NodeProto, slots: Sequence[int], values: Mapping[str, Array], shapes: Shapes
) -> Iterator[int]:
    """How many rows a table has from which a node takes some by number."""
    if node.op_type == "Gather" and 1 in slots:
        table = shapes.get(node.input[0], ())
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        size = table[axis] if -len(table) <= axis < len(table) else 0
        if isinstance(size, int) and size > 1:
            yield size
    if node.op_type == "OneHot" and 0 in slots:
        yield from map(int, values.get(node.input[1], np.zeros(0)).flat)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, Array]]:
    """Constants whose values the outline of a model has, those in bodies included."""
    graphs = messages(graph, onnx.GraphProto)
    tensors = {tensor.name: tensor for each in graphs for tensor in each.initializer}
    for node in messages(graph, onnx.NodeProto):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.type == onnx.AttributeProto.TENSOR:
                tensors[node.output[0]] = attribute.t
    for name, tensor in tensors.items():
        if any(field.name in _NUMBERS for field, _ in tensor.ListFields()):
            yield name, numpy_helper.to_array(tensor)
