"""Passes that normalize a model: sorted, time first, inputs fixed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import edit
from onnx_rnn_prune.model.constants import (
    MOVING,
    constant_shape,
    constant_value,
    evaluate,
)
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import make_real, move_real
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.signature import inputs
from onnx_rnn_prune.model.walk import (
    State,
    all_nodes,
    bodies_of,
    place_of,
    places,
    ports_of,
    source,
)
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.roll.probing import is_random

# Axis permutations from layout=1 to layout=0, and back, by input and output name.
_INPUTS = {"X": [1, 0, 2], "initial_h": [1, 0, 2], "initial_c": [1, 0, 2]}
_OUTPUTS = {"Y": [2, 0, 1, 3], "Y_h": [1, 0, 2], "Y_c": [1, 0, 2]}


@dataclass(frozen=True)
class TimeFirst:
    """Rewrites layout=1 as layout=0 between Transposes."""

    def __call__(self, document: Document) -> bool:
        changed = False
        for layer in find_layers(document.graph):
            if layer.node.attrs.pop("layout", 0) == 1:
                _turn(document.graph, layer)
                changed = True
        return changed


@dataclass(frozen=True)
class StackSequences:
    """Replaces a sequence that a Loop fills, and that is then stacked, by a scan output."""

    def __call__(self, document: Document) -> bool:
        graph, changed = document.graph, False
        for node in list(all_nodes(graph)) if graph.opset >= 11 else ():
            ports = ports_of(node) if node.op == "Loop" else None
            for state in reversed(ports.states if ports is not None else ()):
                added = _added(state, node.inputs[state.slot])
                joins = list(state.final.outputs)
                if added is not None and joins and all(_stacks(join, added) for join in joins):
                    _stack(document, node, state, added)
                    changed = True
        return changed


@dataclass(frozen=True)
class TakeInvariants:
    """Makes a Loop or Scan capture loop-invariant states from outside instead.

    Weights that are carried as states become constants.
    """

    def __call__(self, document: Document) -> bool:
        graph, changed = document.graph, False
        for node in list(all_nodes(graph)):
            ports = ports_of(node)
            for state in reversed(ports.states if ports is not None else ()):
                if source(state.result) is state.source:
                    _take_outside(document, node, state)
                    changed = True
        return changed


@dataclass(frozen=True)
class PlainProducts:
    """Rewrites an Einsum or a Gemm as the equivalent MatMul.

    `abc,cd->abd` with a constant matrix, and `W x` with nothing added.
    """

    def __call__(self, document: Document) -> bool:
        changed = False
        for node in list(all_nodes(document.graph)):
            turned = _turned_operands(node)
            for slot in turned or ():
                _turn_operand(document.graph, node, slot)
            if turned is not None:
                data, results = list(node.inputs[:2]), list(node.outputs)
                node.outputs.clear()
                product = gs.Node("MatMul", node.name, {}, data, results)
                edit.insert_before(document.graph, product, before=node)
                edit.remove_node(document.graph, node)
                changed = True
        return changed


def _turned_operands(node: gs.Node) -> tuple[int, ...] | None:
    """The operands to transpose to make a node a MatMul; None if it is not equivalent to one."""
    if node.op == "Einsum" and len(node.inputs) == 2:
        equation = str(node.attrs.get("equation", "")).replace(" ", "")
        parts = re.fullmatch(r"(.*)(\w),(\w)(\w)->(.*)(\w)", equation)
        shape = constant_shape(node.inputs[1])
        if parts is None or shape is None or len(shape) != 2:
            return None
        before, summed, one, other, after, made = parts.groups()
        letters = {*before} - {"."}
        plain = len({*letters, summed, made}) == len(before.replace("...", "")) + 2
        if before != after or not plain or {one, other} != {summed, made}:
            return None
        return (1,) if one == made else ()
    if node.op == "Gemm" and constant_shape(node.inputs[0]) and not constant_shape(node.inputs[1]):
        added = len(node.inputs) > 2 and bool(node.inputs[2].name) and node.attrs.get("beta", 1.0)
        if not added and node.attrs.get("alpha", 1.0) == 1:
            return tuple(n for n in (0, 1) if node.attrs.get(("transA", "transB")[n], 0))
    return None


def _turn_operand(graph: gs.Graph, node: gs.Node, slot: int) -> None:
    turned = gs.Variable(edit.fresh_name(graph, f"{node.inputs[slot].name}_turned"))
    made = gs.Node("Transpose", turned.name, {"perm": [1, 0]}, [node.inputs[slot]], [turned])
    node.inputs[slot] = turned
    edit.insert_before(graph, made, before=node)


@dataclass(frozen=True)
class RealOperators:
    """Rewrites QLinearConv and the like as Conv etc. between DequantizeLinear and QuantizeLinear.

    Operators that move the integers follow. onnxruntime computes both forms with the same kernels,
    since it converts the latter when it loads a model.
    """

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        changed = [make_real(graph, node) for node in list(all_nodes(graph))]
        for node in list(all_nodes(graph)) if any(changed) else ():
            if node.op in ("MaxPool", *MOVING - {"Concat"}):
                move_real(graph, node)
        return any(changed)


@dataclass(frozen=True)
class SortNodes:
    """Sorts nodes topologically, which ONNX requires and onnxruntime does not."""

    def __call__(self, document: Document) -> bool:
        computed: set[int] = set()
        for node in document.graph.nodes:
            if any(tensor.inputs and id(tensor) not in computed for tensor in node.inputs):
                try:
                    with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):
                        document.graph.toposort()
                except OnnxGraphSurgeonException as error:
                    raise PruneError(
                        "its nodes form a cycle",
                        where="the model",
                        remedy="check the file with onnx.checker, and export it again",
                    ) from error
                return True
            computed.update(map(id, node.outputs))
        return False


@dataclass(frozen=True)
class UniqueNames:
    """Renames tensors of bodies that share a name with one of another body."""

    def __call__(self, document: Document) -> bool:
        taken: set[str] = set()
        renamed = []
        for place in places(document.graph):
            made = [tensor for node in place.graph.nodes for tensor in node.outputs]
            for tensor in (*place.graph.inputs, *made):
                if tensor.name and tensor.name in taken:
                    renamed.append(tensor)
                taken.add(tensor.name)
        for tensor in renamed:
            tensor.name = edit.fresh_name(document.graph, tensor.name)
        return bool(renamed)


@dataclass(frozen=True)
class StateHiddenSize:
    """Adds missing `hidden_size` attributes, which follow from R."""

    def __call__(self, document: Document) -> bool:
        changed = False
        for layer in find_layers(document.graph):
            if "hidden_size" not in layer.node.attrs:
                layer.node.attrs["hidden_size"] = layer.hidden
                changed = True
        return changed


@dataclass(frozen=True)
class ListBounds:
    """Turns scalar bounds of a Slice into lists, as ONNX requires.

    PyTorch writes scalars, and onnxruntime runs them if it fuses several Slices into a Split.
    """

    def __call__(self, document: Document) -> bool:
        changed = False
        for node in all_nodes(document.graph):
            for slot in range(1, len(node.inputs)) if node.op == "Slice" else ():
                bound = constant_value(node.inputs[slot], document.graph.opset)
                if bound is not None and bound.ndim == 0:
                    edit.replace_constant(document.graph, node, slot, bound.reshape(1))
                    changed = True
        return changed


def _turn(graph: gs.Graph, layer: Layer) -> None:
    layer.node.name = layer.name  # its first output's name may have been its name
    for name, axes in _INPUTS.items():
        tensor = layer.input(name)
        if tensor is not None:
            turned = gs.Variable(edit.fresh_name(graph, f"{layer.name}_{name}_time_first"))
            made = gs.Node("Transpose", turned.name, {"perm": axes}, [tensor], [turned])
            layer.node.inputs[layer.slot(name)] = turned
            edit.insert_before(graph, made, before=layer.node)
    for slot, name in enumerate(layer.cell.outputs):
        tensor = layer.output(name)
        if tensor is not None:
            inner = gs.Variable(edit.fresh_name(graph, f"{layer.name}_{name}_time_first"))
            layer.node.outputs[slot] = inner
            made = gs.Node("Transpose", inner.name, {"perm": _OUTPUTS[name]}, [inner], [tensor])
            edit.insert_node(graph, made, after=layer.node)


# Maximum entries of the constant for an input, whatever size it declares.
_MOST_FROZEN = 1 << 24


@dataclass(frozen=True)
class Freeze:
    """Replaces graph inputs by constants.

    Attributes:
        values: by input name, the value as text.
    """

    values: Mapping[str, str]

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        ports = {port.name: port for port in inputs(document.source)}
        for name, text in self.values.items():
            port = ports.get(name)
            if port is None or port.dtype is None:
                raise PruneError(
                    f"the model has no input '{name}'",
                    where="--freeze",
                    remedy=f"its inputs are {', '.join(ports)}",
                )
            value = _parse(name, text, port.dtype)
            shape = [dim if isinstance(dim, int) else 1 for dim in port.dims or ()]
            if prod(shape) > _MOST_FROZEN:
                raise PruneError(
                    f"a constant in place of {port} would be too large",
                    where="--freeze",
                    remedy=f"leave out {name}",
                )
            tensor = next(item for item in graph.inputs if item.name == name)
            frozen = edit.add_constant(graph, f"{name}_frozen", np.full(shape, value))
            for node in list(tensor.outputs):
                for slot, item in enumerate(node.inputs):
                    if item is tensor:
                        node.inputs[slot] = frozen
            graph.inputs.remove(tensor)
        return bool(self.values)


@dataclass(frozen=True)
class TakeBranches:
    """Inlines the taken branch of an If with a constant condition."""

    def __call__(self, document: Document) -> bool:
        graph, changed = document.graph, False
        while True:
            for node in all_nodes(graph):
                taken = known_value(node.inputs[0], graph.opset) if node.op == "If" else None
                if taken is not None:
                    branch = "then_branch" if bool(np.ravel(taken)[0]) else "else_branch"
                    _take(graph, node, bodies_of(node)[branch])
                    changed = True
                    break
            else:
                return changed


def known_value(tensor: gs.Tensor, opset: int) -> Array | None:
    """The value of a tensor that depends on constants only, through any operators, else None."""
    value = constant_value(tensor, opset)
    if value is not None or not tensor.inputs:
        return value
    node = tensor.inputs[0]
    if node.domain or bodies_of(node) or is_random(node):
        return None
    values = [known_value(item, opset) if item.name else None for item in node.inputs]
    if any(value is None and item.name for value, item in zip(values, node.inputs, strict=True)):
        return None
    slot = next(slot for slot, output in enumerate(node.outputs) if output is tensor)
    return evaluate(node, values, opset)[slot]


def _parse(name: str, text: str, dtype: np.dtype[np.generic]) -> Array:
    try:
        if dtype.kind == "b":
            return np.array({"true": True, "false": False}[text.lower()])
        return np.array(text, dtype) if dtype.kind == "O" else np.array(text).astype(dtype)
    except (KeyError, ValueError, OverflowError) as error:
        raise PruneError(
            f"'{text}' is not a {dtype.name}", where=f"--freeze={name}", remedy="give one value"
        ) from error


def _take(graph: gs.Graph, node: gs.Node, body: gs.Graph) -> None:
    """Moves a body's nodes in front of its node; the node's outputs keep their names."""
    siblings = place_of(graph, node).graph.nodes
    position = next(index for index, item in enumerate(siblings) if item is node)
    moved, results = list(body.nodes), list(body.outputs)
    for inner in moved:
        for slot, tensor in enumerate(inner.inputs):
            if isinstance(tensor, gs.Constant):  # it may be visible in the body only
                value = constant_value(tensor)
                inner.inputs[slot] = gs.Constant(
                    edit.fresh_name(graph, f"{tensor.name}_taken"), value
                )
    outputs = list(node.outputs)
    node.outputs.clear()
    for result, output in zip(results, outputs, strict=True):
        if output.name:
            name = edit.fresh_name(graph, f"{output.name}_taken")
            moved.append(gs.Node("Identity", name, inputs=[result], outputs=[output]))
    siblings[position:position] = moved
    edit.remove_node(graph, node)


def _added(state: State, start: gs.Tensor) -> gs.Tensor | None:
    """The tensor that each iteration appends to an initially empty, unread sequence."""
    made, only = state.result.inputs, len(state.source.outputs) == 1
    if not made or made[0].op != "SequenceInsert" or not start.inputs or not only:
        return None
    insert = made[0]
    at_end = len(insert.inputs) < 3 or not insert.inputs[2].name
    fits = insert.inputs[0] is state.source and start.inputs[0].op == "SequenceEmpty"
    return insert.inputs[1] if fits and at_end and len(state.result.outputs) == 0 else None


def _stacks(join: gs.Node, added: gs.Tensor) -> bool:
    """Whether a node stacks the tensors of a sequence along a new axis."""
    new = join.op == "ConcatFromSequence" and join.attrs.get("new_axis", 0) == 1
    return new and (join.attrs["axis"] == 0 or _rank(join, added) is not None)


def _rank(join: gs.Node, added: gs.Tensor) -> int | None:
    """The declared rank of the tensors that are joined, or None."""
    whole = join.outputs[0].shape
    return len(added.shape) if added.shape is not None else whole and len(whole) - 1


def _stack(document: Document, node: gs.Node, state: State, added: gs.Tensor) -> None:
    graph, body = document.graph, bodies_of(node)["body"]
    name = edit.fresh_name(graph, f"{state.final.name}_stacked")
    stacked = gs.Variable(name, dtype=added.dtype)
    edit.remove_node(graph, state.result.inputs[0])
    given = gs.Variable(edit.fresh_name(graph, f"{added.name}_given"), dtype=added.dtype)
    body.nodes.append(gs.Node("Identity", "", {}, [added], [given]))
    for reader in list(state.final.outputs):
        axis, rank = reader.attrs["axis"], _rank(reader, added)
        order = list(range(1, (rank or 0) + 1))
        order.insert(axis if axis >= 0 else len(order) + 1 + axis, 0)
        op, attrs = ("Transpose", {"perm": order}) if axis else ("Identity", {})
        made = gs.Node(op, reader.name, attrs, [stacked], [])
        result = reader.outputs.pop()
        made.outputs.append(result)
        edit.insert_before(graph, made, before=reader)
        edit.remove_node(graph, reader)
    _drop_state(document, node, state)
    body.outputs.append(given)
    node.outputs.append(stacked)


def _drop_state(document: Document, node: gs.Node, state: State) -> None:
    """Removes a state from a Loop or Scan, and from the message declaring its body's types."""
    body, (_, original) = bodies_of(node)["body"], document.origins[id(node)]
    message = onnx.NodeProto()
    message.CopyFrom(original)
    declared = next(item.g for item in message.attribute if item.name == "body")
    del node.inputs[state.slot]
    for ports, gone, types in (
        (body.inputs, state.source, declared.input),
        (body.outputs, state.result, declared.output),
        (node.outputs, state.final, []),
    ):
        place = next(place for place, tensor in enumerate(ports) if tensor is gone)
        del ports[place]
        del types[place : place + 1]
    document.origins[id(node)] = node, message


def _take_outside(document: Document, node: gs.Node, state: State) -> None:
    graph, outer = document.graph, node.inputs[state.slot]
    _drop_state(document, node, state)
    for each in (place.graph for place in places(bodies_of(node)["body"])):
        if any(tensor is state.source for tensor in each.outputs):
            copied = gs.Variable(edit.fresh_name(graph, f"{outer.name}_kept"), dtype=outer.dtype)
            each.nodes.append(gs.Node("Identity", "", {}, [outer], [copied]))
            each.outputs[:] = [copied if item is state.source else item for item in each.outputs]
    for reader in list(state.source.outputs):
        for slot, tensor in enumerate(reader.inputs):
            if tensor is state.source:
                reader.inputs[slot] = outer
    if state.final.name:
        edit.insert_node(graph, gs.Node("Identity", "", {}, [outer], [state.final]), after=node)
