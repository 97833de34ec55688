"""The part of a graph that is trained in PyTorch: if possible, everything after pruned layers.

If an operator cannot be computed with gradients, its inputs become targets, and its outputs come
from the original. So a graph of supported operators is trained end to end, any other piece by
piece, down to single layers with their readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_graphsurgeon as gs
import torch

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import constant_value, is_float, require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import HANDED_BACK, replace_constants
from onnx_rnn_prune.model.integers import (
    Integers,
    holds_integers,
    integers_of,
    scale_and_zero,
    set_weight,
)
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import bodies_of, node_key, nodes_by_key
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.recovery.distill.elementwise import ELEMENTWISE, REDUCES
from onnx_rnn_prune.recovery.distill.kernels import MOVES, Call, Function, Kernel
from onnx_rnn_prune.recovery.distill.products import INTEGERS, LAYERS, PRODUCTS
from onnx_rnn_prune.trace.states import plain_outputs

Tensors = Mapping[str, torch.Tensor]
# The operators that can be computed with gradients.
OPERATORS: Mapping[str, Kernel] = {
    **ELEMENTWISE,
    **MOVES,
    **REDUCES,
    **PRODUCTS,
    **INTEGERS,
    **LAYERS,
}


@dataclass(frozen=True, eq=False)
class Operation:
    """One node.

    Attributes:
        op: the operator.
        call: its attributes.
        function: its kernel.
        inputs: names of tensors, empty for omitted ones.
        outputs: names of tensors.
    """

    op: str
    call: Call
    function: Function
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """A region that can be run with gradients.

    Attributes:
        steps: in topological order.
        constants: by name, in single precision, weights included, see `learned_value`.
        weights: constants that may be trained, by name, each with its node key and slot.
    """

    steps: tuple[Operation, ...]
    constants: Tensors
    weights: Mapping[str, tuple[tuple[str, int], ...]]

    def __call__(
        self, given: Tensors, weights: Tensors, wanted: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Computes the wanted tensors.

        Args:
            given: the region's inputs.
            weights: override constants of the same names.
            wanted: names of tensors of the region.
        """
        values = {**self.constants, **given, **weights}
        for step in self.steps:
            inputs = [values[name] if name else None for name in step.inputs]
            result = step.function(step.call, *inputs)
            outputs = result if isinstance(result, tuple) else (result,)
            values.update(zip(step.outputs, outputs, strict=False))
        return {name: values[name] for name in wanted}


def build(document: Document, region: Region) -> Network:
    """The network of a region of a document."""
    opset = document.graph.opset
    nodes = nodes_by_key(document.graph)
    chosen = [nodes[key] for key in region.nodes]
    constants: dict[str, torch.Tensor] = {}
    places: dict[str, list[tuple[str, int]]] = {}
    steps = []
    for key, node in zip(region.nodes, chosen, strict=True):
        row = OPERATORS[node.op]
        inputs = [tensor.name for tensor in node.inputs]
        for slot, tensor in enumerate(node.inputs):
            value = constant_value(tensor, opset) if tensor.name else None
            if value is None:
                continue
            if is_weight(node, slot, opset):
                places.setdefault(tensor.name, []).append((key, slot))
                value = learned_value(node, slot, opset)
                if holds_integers(node, slot, opset):  # learned relative to their zero point
                    _, zero = scale_and_zero(node, slot)
                    if zero < len(inputs):
                        inputs[zero] = ""
            constants.setdefault(tensor.name, to_torch(value))
        outputs = tuple(tensor.name for tensor in node.outputs)
        call = call_of(node, opset)
        steps.append(Operation(node.op, call, row.function, tuple(inputs), outputs))
    weights = {name: tuple(found) for name, found in places.items()}
    return Network(tuple(steps), constants, weights)


def unshared(document: Document, network: Network) -> dict[str, tuple[tuple[str, int], ...]]:
    """The weights of a network that nothing outside of it reads.

    Others would need a copy for the outside. Also left out are weights that only place entries of
    states that callers hand back, and the scales of integers, which follow from the integers.
    """
    nodes, opset = nodes_by_key(document.graph), document.graph.opset
    integers = {
        name: scale_and_zero(nodes[key], slot)[0].name
        for name, places in network.weights.items()
        for key, slot in places
        if holds_integers(nodes[key], slot, opset)
    }
    first = {name: (nodes[places[0][0]], places[0][1]) for name, places in network.weights.items()}
    return {
        name: network.weights[name]
        for name, (node, slot) in first.items()
        if not node.name.startswith(HANDED_BACK) and name not in integers.values()
        if name not in integers or len(network.weights[name]) == 1
        if _alone(node.inputs[slot], len(network.weights[name]))
    }


def to_torch(value: Array) -> torch.Tensor:
    """A copy as a tensor, with floats in single precision."""
    kind = np.float32 if is_float(value.dtype) else value.dtype
    return torch.from_numpy(np.array(value, dtype=kind, order="C"))


def _alone(tensor: gs.Tensor, readers: int) -> bool:
    """Whether a constant, and all that it is computed from, has no other readers."""
    node = None if isinstance(tensor, gs.Constant) or not tensor.inputs else tensor.inputs[0]
    if len(tensor.outputs) != readers or (node is not None and node.op == "DequantizeLinear"):
        return False
    return all(_alone(source, 1) for source in ([] if node is None else node.inputs) if source.name)


_SOFT = ("Softmax", "LogSoftmax")


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes that are computed with gradients.

    Attributes:
        nodes: keys of the nodes, in topological order.
        given: their inputs: tensors that they read but do not compute.
        targets: tensors that they compute and others read; training fits these.
        scores: the targets that are class scores (logits) along the last axis.
        missing: nodes after a pruned layer that cannot be computed, each with the reason.
        whole: whether no input depends on a pruned layer.
    """

    nodes: tuple[str, ...]
    given: tuple[str, ...]
    targets: tuple[str, ...]
    scores: tuple[str, ...]
    missing: Mapping[str, str]
    whole: bool


def find_region(
    document: Document, layers: Iterable[str], states: Mapping[str, str] = MappingProxyType({})
) -> Region:
    """The region after some layers.

    Args:
        document: the model; constants may be cut already.
        layers: names of the pruned layers.
        states: state inputs, each with the output that the next call continues from; the layers'
            results come back in them.
    """
    graph = document.graph
    nodes = [node for node in graph.nodes if not _is_constant(node)]
    behind = _behind(document, nodes, frozenset(layers), states)
    missing = {node_key(node): reason for node in behind if (reason := refuses(node, graph.opset))}
    known = [node for node in behind if node_key(node) not in missing]
    made = {tensor.name for node in known for tensor in node.outputs}
    inside = {id(node) for node in known}
    asked = {tensor.name for tensor in graph.outputs}
    asked |= {t.name for node in nodes if id(node) not in inside for t in _reads(node)}
    learning = _learning(known, graph.opset)
    scores = learning & _scores(nodes, asked, graph.opset)
    targets = asked & learning | scores
    useful = _needed(known, targets)
    read = [t.name for n in useful for t in n.inputs if t.name and constant_value(t) is None]
    given = tuple(dict.fromkeys(name for name in read if name not in made))
    lost = {tensor.name for node in behind for tensor in node.outputs} - made
    return Region(
        tuple(map(node_key, useful)),
        given,
        tuple(sorted(targets)),
        tuple(sorted(scores)),
        missing,
        whole=lost.isdisjoint(given),
    )


def labelled_outputs(document: Document, region: Region) -> tuple[str, ...]:
    """The model's outputs, other than states, for a loss on labels.

    Raises:
        PruneError: the region computes none.
    """
    found = tuple(name for name in plain_outputs(document) if name in region.targets)
    if not found:
        raise PruneError(
            f"gradients of the model's outputs are unavailable ({why_not(region)})",
            where="--loss",
            remedy="leave it out",
        )
    return found


def why_not(region: Region) -> str:
    """A message saying why nodes are not in a region."""
    return ", ".join(sorted(set(region.missing.values()))) or "it does not reach an output"


def is_weight(node: gs.Node, slot: int, opset: int) -> bool:
    """Whether an input is a trainable constant; scalars are not."""
    if slot not in OPERATORS[node.op].weights or not node.inputs[slot].name:
        return False
    value = constant_value(node.inputs[slot], opset)
    if value is None or value.ndim == 0:
        return False
    return is_float(value.dtype) or holds_integers(node, slot, opset)


def learned_value(node: gs.Node, slot: int, opset: int | None) -> Array:
    """A weight as it is trained: integers as floats relative to their zero point."""
    held = _integers(node, slot, opset)
    return require_constant(node.inputs[slot], opset) if held is None else held.steps()


def write_learned(graph: gs.Graph, readers: Sequence[tuple[gs.Node, int]], value: Array) -> None:
    """Writes a trained weight back to its nodes, see `learned_value`."""
    node, slot = readers[0]
    held = _integers(node, slot, graph.opset)
    if held is None:
        replace_constants(graph, list(readers), value)
    else:
        set_weight(graph, node, slot, value * held.scale)


def _integers(node: gs.Node, slot: int, opset: int | None) -> Integers | None:
    return integers_of(node, slot, opset) if holds_integers(node, slot, opset) else None


def refuses(node: gs.Node, opset: int) -> str:
    """Why a node cannot be computed with gradients; empty if it can."""
    row, domain = OPERATORS.get(node.op), node.domain or ""
    if row is None or row.domain != ("" if domain == "ai.onnx" else domain):
        return f"{node.op} is not supported"
    reason = row.refuses(call_of(node, opset))
    return f"{node.op} {reason}" if reason else ""


def call_of(node: gs.Node, opset: int) -> Call:
    """A node's attributes as kernels take them."""
    attrs = {
        name: constant_value(value) if isinstance(value, gs.Tensor) else value
        for name, value in node.attrs.items()
    }
    outputs = [place for place, tensor in enumerate(node.outputs, start=1) if tensor.name]
    return Call(attrs, opset, max(outputs, default=0))


def _behind(
    document: Document, nodes: Sequence[gs.Node], layers: frozenset[str], states: Mapping[str, str]
) -> list[gs.Node]:
    """The nodes of the main graph that depend on the layers, these included."""
    first = {layer.key for layer in all_layers(document.graph) if layer.name in layers}
    coming: set[str] = set()
    while True:
        found, reached = _reached(nodes, first, coming)
        more = {source for source, result in states.items() if result in reached}
        if more <= coming:
            return found
        coming |= more


def _reached(
    nodes: Sequence[gs.Node], first: set[str], coming: set[str]
) -> tuple[list[gs.Node], set[str]]:
    """The given nodes and all that depend on them or on some inputs; and their outputs."""
    reached = set(coming)
    found = []
    for node in nodes:
        own = node_key(node) in first or any(
            node_key(inner) in first for body in bodies_of(node).values() for inner in body.nodes
        )
        if own or any(tensor.name in reached for tensor in _reads(node)):
            reached.update(tensor.name for tensor in node.outputs if tensor.name)
            found.append(node)
    return found, reached


def _learning(nodes: Sequence[gs.Node], opset: int) -> set[str]:
    """The tensors that depend on a weight."""
    found: set[str] = set()
    for node in nodes:
        slots = range(len(node.inputs))
        if any(node.inputs[slot].name in found or is_weight(node, slot, opset) for slot in slots):
            found.update(tensor.name for tensor in node.outputs if tensor.name)
    return found


def _scores(nodes: Sequence[gs.Node], asked: set[str], opset: int) -> set[str]:
    """Tensors called logits, or that become probabilities or a choice at the end of a graph."""
    found = {name for name in asked if "logit" in name.lower()}
    for node in nodes:
        chosen = node.op == "ArgMax" or (node.op in _SOFT and node.outputs[0].name in asked)
        if chosen and _is_over_last(node, opset):
            found.add(node.inputs[0].name)
    return found


def _is_over_last(node: gs.Node, opset: int) -> bool:
    default = 0 if node.op == "ArgMax" else -1 if opset >= 13 else 1
    axis, shape = node.attrs.get("axis", default), node.inputs[0].shape
    return bool(axis == -1 or (shape is not None and axis == len(shape) - 1))


def _reads(node: gs.Node) -> list[gs.Tensor]:
    """The inputs of a node, and the outer tensors that its subgraphs read."""
    captured = [
        tensor
        for body in bodies_of(node).values()
        for inner in body.nodes
        for tensor in (*_reads(inner), *body.outputs)
    ]
    return [tensor for tensor in (*node.inputs, *captured) if tensor.name]


def _needed(nodes: Sequence[gs.Node], targets: set[str]) -> list[gs.Node]:
    """The nodes that lead to a target."""
    wanted, found = set(targets), []
    for node in reversed(nodes):
        if any(tensor.name in wanted for tensor in node.outputs):
            wanted.update(tensor.name for tensor in node.inputs)
            found.append(node)
    return found[::-1]


def _is_constant(node: gs.Node) -> bool:
    return all(constant_value(tensor) is not None for tensor in node.outputs if tensor.name)
