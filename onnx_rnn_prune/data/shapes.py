"""Sizes of inputs that follow from the graph: from weights, or from axes that must be equal.

ONNX shape inference propagates symbolic sizes. Where one meets a weight or another size that an
operator requires to be equal (the width of a product, the channels of a convolution, the batch of a
state), the two are equal; so nodes far from an input determine its sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice, product

import onnx
from onnx import shape_inference

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import without_values
from onnx_rnn_prune.model.signature import Port
from onnx_rnn_prune.model.walk import all_nodes, messages
from onnx_rnn_prune.operators import contracts, meets, moves
from onnx_rnn_prune.operators.recurrent import RECURRENT
from onnx_rnn_prune.operators.table import Rule, rule_named

# Larger constants are neither shapes nor bounds; their values are ignored.
_VALUES = 64
# Possible ranks of inputs, likeliest first.
_RANKS = (3, 2, 4, 1, 5)
_MOST_RANKS = 25
_INVALID = (shape_inference.InferenceError, RuntimeError, ValueError)
# Maximum rounds of deriving sizes from sizes.
_ROUNDS = 6


def numbered(document: Document) -> Document:
    """A copy of a model with nodes named by index."""
    copy = document.copy()
    for number, node in enumerate(all_nodes(copy.graph)):
        node.name = str(number)
    return copy


def outline(document: Document) -> onnx.ModelProto:
    """A model without its larger constants, with nodes named as in `numbered`."""
    model = numbered(document).outline(_VALUES)
    for graph in messages(model.graph, onnx.GraphProto):
        del graph.value_info[:]
        for value in graph.output:  # symbolic sizes here may differ from those of inputs
            value.type.tensor_type.ClearField("shape")
    for node in messages(model.graph, onnx.NodeProto):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                attribute.t.CopyFrom(without_values(attribute.t, _VALUES))
    return model


def shapes_of(model: onnx.ModelProto, ports: Sequence[Port], sizes: Mapping[str, Size]) -> Shapes:
    """The shapes of tensors, as far as they follow from those of the inputs.

    Args:
        sizes: a number or a name for each open size.
    """
    try:
        inferred = _infer(model, ports, sizes)
    except _INVALID:
        return {}  # onnxruntime's message is clearer
    found: dict[str, tuple[Size, ...]] = {}
    for graph in messages(inferred.graph, onnx.GraphProto):
        for tensor in graph.initializer:
            found[tensor.name] = tuple(tensor.dims)
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                found[value.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims
                )
    return found


def ranked(model: onnx.ModelProto, ports: Sequence[Port]) -> Iterator[tuple[Port, ...]]:
    """The inputs, with each possible rank for those of undeclared rank."""
    choices = [
        [replace(port, dims=(None,) * rank) for rank in _RANKS] if port.dims is None else [port]
        for port in ports
    ]
    for found in islice(product(*choices), _MOST_RANKS):
        with suppress(*_INVALID):
            if found != tuple(ports):
                _infer(model, found, {}, strict=True)
            yield found


def _infer(
    model: onnx.ModelProto, ports: Sequence[Port], sizes: Mapping[str, Size], strict: bool = False
) -> onnx.ModelProto:
    """A model with shapes inferred from those of its inputs."""
    known = {port.name: port for port in ports}
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    for value in asked.graph.input:
        port = known.get(value.name)
        if port is not None and port.dims is not None:
            value.type.tensor_type.ClearField("shape")
            shape = value.type.tensor_type.shape
            for dim in port.sizes:
                size = dim if isinstance(dim, int) else sizes.get(dim, "")
                name = "dim_value" if isinstance(size, int) else "dim_param"
                setattr(shape.dim.add(), name, size)
            shape.SetInParent()
    return shape_inference.infer_shapes(asked, data_prop=True, strict_mode=strict)


def solved(
    model: onnx.ModelProto, ports: Sequence[Port], given: Mapping[str, int]
) -> dict[str, Size]:
    """For each open size of the inputs, its number, or the name of an equal one.

    Args:
        given: sizes that are fixed, whatever follows from the graph.
    """
    names = [size for port in ports for size in port.sizes if isinstance(size, str)]
    found: dict[str, Size] = {name: given.get(name, name) for name in names}
    for _ in range(_ROUNDS):
        shapes = shapes_of(model, ports, found)
        classes = _Classes(dict.fromkeys(names))
        for node in messages(model.graph, onnx.NodeProto):
            for one, other in equal(node, shapes):
                classes.join(one, other)
        better = {name: classes.of(size) for name, size in found.items()}
        if better == found:
            break
        found = better
    return found


class _Classes:
    """Classes of equal sizes, represented by a number, else by a name of inputs, else by any other.

    Args:
        names: of the inputs' open sizes, in order of preference.
    """

    def __init__(self, names: Mapping[str, None]) -> None:
        self._rank = {name: number for number, name in enumerate(names)}
        self._parent: dict[Size, Size] = {}

    def of(self, size: Size) -> Size:
        """The representative of a size's class."""
        while size in self._parent:
            size = self._parent[size]
        return size

    def join(self, one: Size, other: Size) -> None:
        """Joins the classes of equal sizes; unequal numbers stay apart, for the run to report."""
        one, other = sorted((self.of(one), self.of(other)), key=self._key)
        if one != other and not isinstance(other, int) and one not in (0, "") and other:
            self._parent[other] = one

    def _key(self, size: Size) -> tuple[int, int]:
        if isinstance(size, int):
            return 0, size
        return 1, self._rank.get(size, len(self._rank))


# A number, or the name of an open size.
Size = int | str
Shape = tuple[Size, ...]
Shapes = Mapping[str, Shape]
Pairs = Iterator[tuple[Size, Size]]


def layer_inputs(model: onnx.ModelProto, shapes: Shapes) -> list[Shape]:
    """The known shapes of the inputs of recurrent layers."""
    nodes = (n for n in messages(model.graph, onnx.NodeProto) if n.op_type in RECURRENT)
    return [shapes[node.input[0]] for node in nodes if node.input[0] in shapes]


def equal(node: onnx.NodeProto, shapes: Shapes) -> Pairs:
    """Pairs of sizes that a node requires to be equal."""
    rule = _OF_OPERATORS.get(node.op_type) or _OF_RULES.get(rule_named(node.op_type))
    if rule is not None:
        read = [shapes.get(name) if name else None for name in node.input]
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        yield from rule(read, attributes)


Read = Sequence[Shape | None]
Attributes = Mapping[str, object]


def _whole(attributes: Attributes, name: str, default: int) -> int:
    value = attributes.get(name, default)
    return value if isinstance(value, int) else default


def _at(read: Read, slot: int, rank: int = 1) -> Shape | None:
    """The shape of an input, if it is known and has at least so many axes."""
    shape = read[slot] if slot < len(read) else None
    return shape if shape is not None and len(shape) >= rank else None


def _recurrent(read: Read, attributes: Attributes, features: int = 2) -> Pairs:
    x, w, r, lengths = _at(read, 0, 3), _at(read, 1, 3), _at(read, 2, 3), _at(read, 4)
    states = [_at(read, slot, 3) for slot in (5, 6)]
    if x is not None and w is not None:
        yield x[2], w[features]
    for state in states:
        if state is not None and w is not None and r is not None:
            yield state[0], w[0]
            yield state[2], r[features]
        if state is not None and x is not None:
            yield state[1], x[1]
    if lengths is not None and x is not None:
        yield lengths[0], x[1]


def _product(read: Read, attributes: Attributes) -> Pairs:
    a, b = _at(read, 0), _at(read, 1)
    if a is not None and b is not None:
        yield a[-1], b[-2] if len(b) > 1 else b[0]
        yield from _pairs(a[:-2], b[:-2])


def _gemm(read: Read, attributes: Attributes) -> Pairs:
    a, b = _at(read, 0, 2), _at(read, 1, 2)
    if a is not None and b is not None:
        turned = [bool(_whole(attributes, name, 0)) for name in ("transA", "transB")]
        yield a[1 - turned[0]], b[turned[1]]


def _convolution(read: Read, attributes: Attributes) -> Pairs:
    x, w = _at(read, 0, 2), _at(read, 1, 2)
    if x is not None and w is not None and isinstance(w[1], int):
        yield x[1], w[1] * _whole(attributes, "group", 1)


def _channels(read: Read, attributes: Attributes) -> Pairs:
    """Sizes paired by normalizations and transposed convolutions: weights have channels first."""
    x, scale = _at(read, 0, 2), _at(read, 1)
    if x is not None and scale is not None:
        yield x[1], scale[0]


def _concatenated(read: Read, attributes: Attributes) -> Pairs:
    known = [shape for shape in read if shape]
    for shape in known[1:]:
        axis = _whole(attributes, "axis", 0) % len(shape)
        if len(shape) == len(known[0]):
            yield from zip(*(s[:axis] + s[axis + 1 :] for s in (known[0], shape)), strict=True)


def _reversed(read: Read, attributes: Attributes) -> Pairs:
    x, lengths = _at(read, 0, 2), _at(read, 1)
    axis = _whole(attributes, "batch_axis", 1)
    if x is not None and lengths is not None and -len(x) <= axis < len(x):
        yield lengths[0], x[axis]


def _broadcast(read: Read, attributes: Attributes) -> Pairs:
    known = [shape for shape in read if shape]
    for shape in known[1:]:
        yield from _pairs(known[0], shape)


def _pairs(one: Shape, other: Shape) -> Pairs:
    """Sizes that broadcasting pairs, other than 1."""
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if 1 not in (a, b):
            yield a, b


Equal = Callable[[Read, Attributes], Pairs]
# By the operator's rule in the table; exceptions by name follow.
_OF_RULES: Mapping[Rule | None, Equal] = {
    contracts.recurrent: _recurrent,
    contracts.matmul: _product,
    contracts.integer_matmul: _product,
    contracts.quantized_matmul: _product,
    contracts.gemm: _gemm,
    contracts.conv: _convolution,
    contracts.integer_conv: _convolution,
    meets.meet: _broadcast,
    meets.normalize: _channels,
    moves.concat: _concatenated,
}
_OF_OPERATORS: Mapping[str, Equal] = {
    "ConvTranspose": _channels,
    "DynamicQuantizeLSTM": partial(_recurrent, features=1),
    "LayerNormalization": _broadcast,
    "MatMulIntegerToFloat": _product,
    "Mod": _broadcast,
    "ReverseSequence": _reversed,
}
