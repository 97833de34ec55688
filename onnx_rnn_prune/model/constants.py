"""Constants of a graph in all forms, and running a single operator on constants.

A weight may be an initializer, a Constant node, or computed from these by moves, arithmetic or
dequantization. All count as constants; an edit replaces the input that reads one, so other readers
keep the weight.

A single operator runs in ONNX's reference implementation: for moves, that is exact for every type,
including integers, which some of onnxruntime's kernels do not accept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.external import sparse_values, tensor_values
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes, node_key
from onnx_rnn_prune.model.writing import make_attribute

MOVING = frozenset(
    (
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape",
        "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
        "Unsqueeze",
    )
)  # fmt: skip
"""Operators that only move entries of their first input, of Concat all; Expand and Tile copy them.
"""


def evaluate(node: gs.Node, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """The outputs of a node for given inputs; None stands for an omitted input.

    Raises:
        PruneError: it does not conform to ONNX, even if onnxruntime accepts it.
    """
    names = ["" if value is None else f"i{slot}" for slot, value in enumerate(inputs)]
    results = [f"o{slot}" for slot in range(len(node.outputs))]
    message = onnx.helper.make_node(node.op, names, results, domain=node.domain or "")
    message.attribute.extend(make_attribute(name, value) for name, value in node.attrs.items())
    feeds = {name: value for name, value in zip(names, inputs, strict=True) if name}
    # A whole model, since a bare node would be read as one of the newest opset.
    graph = onnx.helper.make_graph(
        [message],
        "one_node",
        [onnx.ValueInfoProto(name=name) for name in feeds],
        [onnx.ValueInfoProto(name=name) for name in results],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        outputs = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:  # invalid nodes make it fail in many ways
        raise PruneError(
            f"it is not a valid {node.op}: {error}",
            where=f"node '{node.name or results[0]}'",
            remedy="check the file with onnx.checker, and export it again",
        ) from error
    return [np.asarray(output) for output in outputs]


# Operators through which constants are followed: exact for every type, so nothing is rounded.
_MOVING = MOVING | {"Cast", "ConstantOfShape", "Shape"}
# Operators that IEEE 754 rounds exactly, so that NumPy and onnxruntime agree to the last bit. They
# may differ where rounding depends on summation order or a polynomial (MatMul, Exp).
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Floor"}
# Operators that compute; DequantizeLinear stands between an integer weight and its readers.
_KNOWN = _MOVING | _ARITHMETIC | {"DequantizeLinear"}
# Equivalent in older opsets, which the reference implementation lacks.
_DEQUANTIZE = 21
# A constant with more entries than this must be stored, or computed from not many fewer.
_MOST_MADE, _MOST_TIMES = 1 << 25, 16
# Iterations that a loop may always run; the longest recordings have a hundredth as many.
_MOST_ROUNDS = 1 << 20
_LITERALS = ("value_int", "value_ints", "value_float", "value_floats")


def constant_value(tensor: gs.Tensor, opset: int | None = None) -> Array | None:
    """The value of a tensor that depends on no graph input, else None."""
    if not _is_constant(tensor):
        return None
    values: dict[int, Array] = {}
    for item in _sources_first(tensor):
        value = _compute(item, values, opset)
        if value is None:
            return None
        values[id(item)] = value
    return values.get(id(tensor))


def require_constant(tensor: gs.Tensor, opset: int | None = None) -> Array:
    """The value of a tensor known to be constant."""
    value = constant_value(tensor, opset)
    assert value is not None, f"{tensor.name} is not constant"
    return value


def check_sizes(graph: gs.Graph) -> None:
    """Refuses constants that a few bytes expand to a very large size, and endless loops.

    onnxruntime computes such constants when it loads the model, and so does every look at a weight;
    no limit stops a loop there, and its outputs may grow with each iteration.

    Raises:
        PruneError: there is one.
    """
    made: dict[int, int] = {}
    for node in all_nodes(graph):
        if node.op == "Loop" and not node.domain and _rounds(node, graph.opset) > _MOST_ROUNDS:
            raise PruneError(
                "it never ends",
                where=f"Loop {node.name or node_key(node)}",
                remedy="export the model again, or correct its trip count",
            )
        made_here = node.op in ("Concat", "ConstantOfShape", "Expand", "Tile") and not node.domain
        if not made_here or not node.inputs or not node.outputs:
            continue
        held = [prod(t.shape) if isinstance(t, gs.Constant) else 1 for t in node.inputs]
        parts = [made.get(id(t)) or own for t, own in zip(node.inputs, held, strict=True)]
        total = made[id(node.outputs[0])] = _entries(node, parts, graph.opset)
        if total > max(_MOST_MADE, _MOST_TIMES * sum(parts)):
            raise PruneError(
                f"it would turn {sum(parts)} entries into {total}",
                where=f"{node.op} {node.name or node.outputs[0].name}",
                remedy="export the model again, or correct the shape that this node reads",
            )


def _rounds(loop: gs.Node, opset: int) -> float:
    """The number of iterations that a loop runs for any input; 0 if that is unknown."""
    trips, body = loop.inputs[:1], loop.attrs.get("body")
    count = constant_value(trips[0], opset) if trips and trips[0].name else np.array([np.inf])
    if count is None or count.size != 1 or count.dtype.kind not in "iuf" or body is None:
        return 0
    goes_on = body.outputs[0]
    for _ in body.nodes:  # bounded, as they may form a cycle
        maker = _maker(goes_on)
        if maker is not None and maker.op == "Identity" and maker.inputs:
            goes_on = maker.inputs[0]
    value = constant_value(goes_on, opset)
    always = goes_on is body.inputs[1] if value is None else bool(value.all())
    return float(count.item()) if always else 0


def _entries(node: gs.Node, parts: Sequence[int], opset: int) -> int:
    """A lower bound on the entries that a node computes from inputs with so many."""
    if node.op == "Concat":
        return sum(parts)
    shape = constant_value(node.inputs[-1], opset)
    if shape is None or shape.dtype.kind not in "iu":  # unknown, or not a shape
        shape = np.ones(1, np.int64)
    times = prod(int(size) for size in shape.reshape(-1))
    return times * (parts[0] if node.op == "Tile" else 1)


def constant_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape of a constant, without reading the values of an initializer."""
    if isinstance(tensor, gs.Constant):
        return tuple(tensor.shape)
    node = _maker(tensor)
    if node is not None and node.op == "DequantizeLinear":
        shapes = [constant_shape(item) for item in node.inputs if item.name]
        return None if None in shapes else shapes[0]
    value = constant_value(tensor)
    return None if value is None else value.shape


def storage_type(tensor: gs.Tensor) -> np.dtype[Any] | None:
    """The narrower float type in which a constant is stored, to be widened by a Cast; else None.

    Rounding to bytes is quantization, which takes more than a Cast to undo.
    """
    value = constant_value(tensor)
    while value is not None and not isinstance(tensor, gs.Constant) and tensor.inputs:
        node = tensor.inputs[0]
        if node.op not in _MOVING or not node.inputs:
            return None
        tensor = node.inputs[0]
        held = constant_value(tensor) if node.op == "Cast" else None
        if held is not None and is_float(held.dtype) and 2 <= held.itemsize < value.itemsize:
            return held.dtype
    return None


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether entries are floats, including types that NumPy lacks."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def is_zero(tensor: gs.Tensor) -> bool:
    """Whether a tensor is provably zero, whatever its shape at run time."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        item = waiting.pop()
        node = _maker(item)
        if node is None or node.op not in _MOVING - {"Shape", "ConstantOfShape"}:
            if not _is_zero_made(item, node):
                return False
            continue
        moved = node.inputs if node.op == "Concat" else node.inputs[:1]
        waiting += [other for other in moved if id(other) not in seen]
        seen.update(map(id, moved))
    return True


def _is_zero_made(tensor: gs.Tensor, node: gs.Node | None) -> bool:
    if node is not None and node.op == "ConstantOfShape":
        fill = node.attrs.get("value")
        return fill is None or not np.any(constant_value(fill))
    value = constant_value(tensor)
    return value is not None and prod(value.shape) > 0 and not np.any(value)


def _maker(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor; None for initializers, inputs and those of other domains."""
    if isinstance(tensor, gs.Constant) or not tensor.inputs or tensor.inputs[0].domain:
        return None
    return tensor.inputs[0]


def _is_constant(tensor: gs.Tensor) -> bool:
    """Whether a tensor is computed from constants only.

    The nearest sources come first: a single non-constant one decides, and most sums have one
    nearby, while their other operand leads to the rest of the graph.
    """
    waiting, seen = deque([tensor]), {id(tensor)}
    while waiting:
        item = waiting.popleft()
        node = _maker(item)
        if node is not None and node.op in _KNOWN:
            fresh = [other for other in node.inputs if other.name and id(other) not in seen]
            seen.update(map(id, fresh))
            waiting += fresh
        elif not isinstance(item, gs.Constant) and (node is None or node.op != "Constant"):
            return False
    return True


def _sources_first(tensor: gs.Tensor) -> list[gs.Tensor]:
    """A constant and everything it is computed from, sources first, each once.

    Without recursion, and each tensor once, because graphs are deep and every residual sum doubles
    the number of paths.
    """
    found: dict[int, gs.Tensor] = {}
    begun: set[int] = set()
    waiting = [tensor]
    while waiting:
        item = waiting[-1]
        if id(item) in begun:
            found.setdefault(id(waiting.pop()), item)
            continue
        begun.add(id(item))
        node = _maker(item)
        if node is not None and node.op in _KNOWN:
            waiting += [other for other in node.inputs if other.name and id(other) not in begun]
    return list(found.values())


def _compute(tensor: gs.Tensor, known: Mapping[int, Array], opset: int | None) -> Array | None:
    """The value of a tensor, given those it is computed from; None if it is not constant."""
    if isinstance(tensor, gs.Constant):
        return _held(tensor)
    node = _maker(tensor)
    if node is None or node.op == "Constant":
        return None if node is None else _literal(node)
    values = [known.get(id(item)) for item in node.inputs]
    if node.op in _ARITHMETIC and not _is_exact(node, values):
        return None
    if node.op in _KNOWN:
        version = opset or _opset_of(node)
        if node.op == "DequantizeLinear":
            version = max(version, _DEQUANTIZE)
        outputs = evaluate(node, values, version)
        return next(
            value for value, made in zip(outputs, node.outputs, strict=True) if made is tensor
        )
    return None


def _is_exact(node: gs.Node, values: Sequence[Array | None]) -> bool:
    """Whether arithmetic on such values has a unique result that all runtimes agree on.

    Integer division rounds differently elsewhere, and the attributes that arithmetic had before
    opset 7 meant another kind of broadcasting.
    """
    kinds = "f" if node.op in ("Div", "Sqrt", "Floor") else "fiu"
    known = all(value is not None and value.dtype.kind in kinds for value in values)
    return known and not node.attrs


def _held(tensor: gs.Constant) -> Array:
    held = tensor._values
    if isinstance(held, SparseValues):
        return sparse_values(held.tensor)
    if isinstance(held, LazyValues):
        return tensor_values(held.tensor)
    return np.asarray(held)


def _opset_of(node: gs.Node) -> int:
    """An opset in which a move operator has the form that this node has."""
    if "starts" in node.attrs:  # Slice
        return 9
    if "axes" in node.attrs or "split" in node.attrs:  # Squeeze, Unsqueeze, Split
        return 11
    return 18 if "num_outputs" in node.attrs else 17


def _literal(node: gs.Node) -> Array | None:
    value = node.attrs.get("value")
    if isinstance(value, gs.Tensor):
        return constant_value(value)
    for name in _LITERALS:
        if name in node.attrs:
            kind = np.int64 if "int" in name else np.float32
            return np.array(node.attrs[name], dtype=kind)
    return None
