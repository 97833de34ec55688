"""The parts of a model that onnxruntime can compute, and a copy in single precision.

onnxruntime lacks operators of foreign domains, and recurrent kernels for double and bfloat16. The
copy has the same nodes and names, and the same values up to rounding. onnxruntime's LSTM and GRU
end the process on empty sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.external import tensor_values, with_weights
from onnx_rnn_prune.model.walk import Reads, messages

# Domains whose operators onnxruntime includes.
_KNOWN_DOMAINS = {"com.microsoft", "com.microsoft.nchwc", "ai.onnx.training"}


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The part of a model that computes the named tensors, as its only outputs.

    Graph inputs stay. The tensors need no declared type, since onnxruntime infers it.
    """
    wanted = list(dict.fromkeys(names))
    nodes = _needed(model.graph, set(wanted))
    result = onnx.ModelProto()
    result.ir_version = model.ir_version
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = model.graph.name
    result.graph.node.extend(nodes)
    read = Reads().all(nodes).union(wanted)
    defaults = {tensor.name for tensor in model.graph.initializer}
    result.graph.input.extend(
        port for port in model.graph.input if port.name in read or port.name not in defaults
    )
    result.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    result.graph.sparse_initializer.extend(
        t for t in model.graph.sparse_initializer if t.values.name in read
    )
    declared = {port.name: port for port in model.graph.output}
    for name in wanted:
        result.graph.output.append(declared.get(name, onnx.ValueInfoProto(name=name)))
    return result


def runnable_outputs(model: onnx.ModelProto) -> list[str]:
    """The furthest tensors that onnxruntime can compute.

    These are the graph's outputs, or the inputs of operators of foreign domains that an output
    depends on.
    """
    computed = computable(model)
    frontier: list[str] = []
    for node in model.graph.node:
        if not computed.issuperset(filter(None, node.output)):
            frontier.extend(name for name in node.input if name in computed)
    lost = {name for node in model.graph.node for name in node.output} - computed
    outputs = [port.name for port in model.graph.output if port.name not in lost]
    return outputs + list(dict.fromkeys(frontier))


def runs_whole(model: onnx.ModelProto) -> bool:
    """Whether onnxruntime has all operators, including those with unread outputs."""
    computed = computable(model)
    return all(computed.issuperset(filter(None, node.output)) for node in model.graph.node)


def computable(model: onnx.ModelProto) -> set[str]:
    """Tensors that depend on no operator of a foreign domain, in bodies as well."""
    functions = {(function.domain, function.name) for function in model.functions}
    computed: set[str] = set()
    lost: set[str] = set()
    _sort_out(model.graph.node, functions, computed, lost, Reads())
    return computed


def _sort_out(
    nodes: Iterable[onnx.NodeProto],
    functions: set[tuple[str, str]],
    computed: set[str],
    lost: set[str],
    reads: Reads,
) -> None:
    for node in nodes:
        foreign = not _known(node) and (node.domain, node.op_type) not in functions
        names = lost if foreign or lost.intersection(reads(node)) else computed
        names.update(name for name in node.output if name)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and names is computed:
                computed.update(port.name for port in attribute.g.input)
                _sort_out(attribute.g.node, functions, computed, lost, reads)


def _needed(graph: onnx.GraphProto, wanted: set[str]) -> list[onnx.NodeProto]:
    kept, reads = list[onnx.NodeProto](), Reads()
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= reads(node)
    return kept[::-1]


def _known(node: onnx.NodeProto) -> bool:
    if node.domain in ("", "ai.onnx", "ai.onnx.ml"):
        domain = "" if node.domain == "ai.onnx" else node.domain
        return bool(onnx.defs.has(node.op_type, domain))
    return node.domain in _KNOWN_DOMAINS


# The axes of X that must not be empty. A Slice or a Loop may leave nothing of a sequence.
_FILLED = {"LSTM": (1,), "DynamicQuantizeLSTM": (1,), "GRU": (0, 0, 0)}
# Operators with non-empty outputs if all inputs, or the data alone, are non-empty.
_FILLS = {
    "Abs", "Add", "BatchNormalization", "Cast", "Clip", "Concat", "DequantizeLinear", "Div",
    "Dropout", "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "Elu", "Erf", "Exp", "GRU",
    "Gather", "Gelu", "Gemm", "HardSigmoid", "LSTM", "LayerNormalization", "LeakyRelu", "Log",
    "LogSoftmax", "MatMul", "Mul", "Neg", "PRelu", "Pow", "QuantizeLinear", "RNN", "Reciprocal",
    "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Sqrt", "Sub", "Tanh", "Where",
}  # fmt: skip
_MOVES = {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def guarded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model; or, if a layer may get an empty sequence, a copy that raises an error there."""
    endangered = may_be_empty(model)
    if not endangered:
        return model
    result = deepcopy(model)
    for graph in list(messages(result.graph, onnx.GraphProto))[::-1]:  # inner before outer
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.op_type in _FILLED and node.input and _key(node) in endangered:
                nodes += _guard(node)
            nodes.append(node)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    return result


def may_be_empty(model: onnx.ModelProto) -> set[str]:
    """The keys of layers that may get an empty sequence."""
    return set(_endangered(model.graph, {port.name for port in model.graph.input}))


def _endangered(graph: onnx.GraphProto, filled: set[str]) -> Iterator[str]:
    """The keys of layers whose X may be empty, given tensors that are not."""
    filled |= {tensor.name for tensor in graph.initializer if 0 not in tensor.dims}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _endangered(attribute.g, set(filled))
        if node.op_type in _FILLED and node.input and node.input[0] not in filled:
            yield _key(node)
        read = node.input[:1] if node.op_type in _MOVES else filter(None, node.input)
        fills = (node.op_type in _FILLS or node.op_type in _MOVES) and filled.issuperset(read)
        if fills or (node.op_type == "Constant" and _has_entries(node)):
            filled.update(node.output)


def _has_entries(constant: onnx.NodeProto) -> bool:
    if len(constant.attribute) != 1:
        return False  # invalid, which loading will tell
    (held,) = constant.attribute
    if held.name.endswith("s"):  # a list of numbers or strings
        return bool(held.floats or held.ints or held.strings)
    return 0 not in (held.t.dims or held.sparse_tensor.dims)


def _guard(layer: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Makes X depend on its first entry, which fails if there is none.

    X is reshaped to its shape plus 0 times that entry, which onnxruntime does not optimize away.
    """
    x, name = layer.input[0], f"onnx_rnn_prune/guard/{_key(layer)}"
    layer.input[0] = f"{name}/x"
    node, entry = onnx.helper.make_node, x
    zero = numpy_helper.from_array(np.array(0, np.int64))
    made = [node("Constant", [], [f"{name}/0"], value=zero)]
    for number, axis in enumerate(_FILLED[layer.op_type]):
        taken = node("Gather", [entry, f"{name}/0"], [f"{name}/in{number}"], axis=axis)
        # For errors.
        taken.name = f"axis {number + axis} of the input of {_key(layer)} is empty"
        made.append(taken)
        entry = f"{name}/in{number}"
    return [
        *made,
        node("ReduceSum", [entry], [f"{name}/sum"], keepdims=0),
        node("Cast", [f"{name}/sum"], [f"{name}/whole"], to=onnx.TensorProto.INT64),
        node("Mul", [f"{name}/whole", f"{name}/0"], [f"{name}/nothing"]),
        node("Shape", [x], [f"{name}/shape"]),
        node("Add", [f"{name}/shape", f"{name}/nothing"], [f"{name}/same"]),
        node("Reshape", [x, f"{name}/same"], [f"{name}/x"]),
    ]


def _key(node: onnx.NodeProto) -> str:
    return next((str(name) for name in node.output if name), "")


_UNKNOWN = {onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
_RECURRENT = {"LSTM", "GRU", "RNN"}
# Attributes that name a type.
_TYPES = {"to", "dtype", "output_dtype"}


def unknown_type(model: onnx.ModelProto) -> str:
    """The type of a recurrent layer for which onnxruntime has no kernel, or ''."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types.update((port.name, port.type.tensor_type.elem_type) for port in model.graph.input)
    for node in model.graph.node:
        named = [a.i for a in node.attribute if a.name == "to"]
        named += [a.t.data_type for a in node.attribute if a.name == "value" and a.HasField("t")]
        # Operators that compute or move weights preserve their type.
        taken = [types[name] for name in node.input if name in types]
        kind = named[0] if named else taken[0] if taken else onnx.TensorProto.UNDEFINED
        types.update((name, kind) for name in node.output)
        if node.op_type in _RECURRENT and kind in _UNKNOWN:
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name
    return ""


def as_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in single precision instead of such a type."""
    result = with_weights(model, _single)
    _convert(result.graph)
    for function in result.functions:
        _convert_nodes(function.node)
    return result


def _single(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type not in _UNKNOWN:
        return tensor
    values = narrowed(tensor_values(tensor), f"weight '{tensor.name}'")
    return numpy_helper.from_array(values, tensor.name)


def narrowed(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.float32]:
    """Numbers in single precision.

    Raises:
        PruneError: one overflows, so that the copy would compute something else.
    """
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    if not np.array_equal(np.isinf(result), np.isinf(values)):
        raise PruneError(
            "it has values beyond the range of float32, in which the model runs because"
            " onnxruntime has no kernels for its own type",
            where=where,
            remedy="scale them and whatever reads them, or train in float32",
        )
    return result


def _convert(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        _convert_type(info.type)
    for tensor in graph.initializer:
        tensor.CopyFrom(_single(tensor))
    _convert_nodes(graph.node)


def _convert_type(kind: onnx.TypeProto) -> None:
    if kind.HasField("tensor_type"):
        if kind.tensor_type.elem_type in _UNKNOWN:
            kind.tensor_type.elem_type = onnx.TensorProto.FLOAT
    elif kind.HasField("sequence_type"):
        _convert_type(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        _convert_type(kind.optional_type.elem_type)


def _convert_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.i in _UNKNOWN:
                attribute.i = onnx.TensorProto.FLOAT
            if attribute.HasField("t"):
                attribute.t.CopyFrom(_single(attribute.t))
            if attribute.HasField("g"):
                _convert(attribute.g)
