"""The two ways to cut by a mask: Zero keeps all shapes, Shrink changes them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import like_constant, replace_constants, set_input
from onnx_rnn_prune.model.integers import (
    Integers,
    dequantized,
    own_dequantize,
    write_dequantized,
)
from onnx_rnn_prune.model.intermediate import misdeclared
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import all_nodes, nodes_by_key, places
from onnx_rnn_prune.operators.base import Bound, Cut, without_cut
from onnx_rnn_prune.operators.labels import NOBODY, Mask, kept
from onnx_rnn_prune.operators.table import operator_of
from onnx_rnn_prune.trace.bindings import all_bounds, traced_layers
from onnx_rnn_prune.trace.trace import Trace

Change = Callable[[Array, list[Bound], Mask], Array]


@dataclass(frozen=True, eq=False)
class Zero:
    """Sets cut units to zero and keeps all shapes.

    Attributes:
        trace: of the document; nothing in it needs restoring.
    """

    trace: Trace
    keep: Mask

    def __call__(self, document: Document) -> bool:
        return _rewrite(document, self.trace, self.keep, _zeroed)


@dataclass(frozen=True, eq=False)
class Shrink:
    """Removes cut units from every weight, and adapts shapes; attributes as in `Zero`."""

    trace: Trace
    keep: Mask

    def __call__(self, document: Document) -> bool:
        layers = traced_layers(document, self.trace)
        changed = _rewrite(document, self.trace, self.keep, without_cut)
        resize(document, self.trace, self.keep)
        for layer in layers:
            if layer.cell.attribute:
                lanes = self.trace.units.lanes[layer.name]
                layer.node.attrs[layer.cell.attribute] = int(self.keep[lanes[0]].sum())
        return changed


@dataclass(frozen=True, eq=False)
class Unshare:
    """Gives readers of a shared constant that may lose different entries a copy each."""

    trace: Trace

    def __call__(self, document: Document) -> bool:
        graph = document.graph
        nodes = nodes_by_key(graph)
        known: dict[str, bytes] = {}
        atoms = np.append(self.trace.first_of_atom, NOBODY)  # -1 is the last
        changed = False
        for (key, slot), bounds in all_bounds(document, self.trace).items():
            tensor = nodes[key].inputs[slot]
            # Units of different layers that go together count as the same.
            labels = b"".join(atoms[bound.labels].tobytes() for bound in bounds)
            if known.setdefault(tensor.name, labels) != labels:
                _separate(graph, nodes[key], slot)
                changed = True
        return changed


def _zeroed(value: Array, bounds: list[Bound], keep: Mask) -> Array:
    """A copy with cut entries zeroed, broadcast to the labels."""
    bounds = [bound for bound in bounds if bound.dead is not None]
    if not bounds:
        return value
    shapes = [bound.labels.shape for bound in bounds]
    zeroed = np.array(np.broadcast_to(value, np.broadcast_shapes(value.shape, *shapes)))
    for bound in bounds:
        dead = np.array(bound.dead, value.dtype)
        np.copyto(zeroed, dead, where=~kept(bound.labels, keep))
    return zeroed


def _rewrite(
    document: Document,
    trace: Trace,
    keep: Mask,
    change: Change,
) -> bool:
    """Rewrites every bound constant; readers that need equal values keep sharing them."""
    assert not trace.restored and not trace.edges, "prepare the document first"
    nodes = nodes_by_key(document.graph)
    readers: dict[tuple[str, bytes], list[tuple[gs.Node, int]]] = defaultdict(list)
    values: dict[tuple[str, bytes], Array] = {}
    keyed: dict[tuple[str, bytes], list[Bound]] = {}
    for (node_name, slot), bounds in all_bounds(document, trace).items():
        tensor = nodes[node_name].inputs[slot]
        value = require_constant(tensor, document.graph.opset)
        result = change(value, bounds, keep)
        key = tensor.name, _digest(result)
        readers[key].append((nodes[node_name], slot))
        values[key], keyed[key] = result, bounds
    for key, reading in readers.items():
        integers = _integers(document.graph, reading[0], keyed[key], keep, change)
        if integers is None:
            replace_constants(document.graph, reading, values[key])
        else:
            write_dequantized(document.graph, reading, integers)
    return bool(readers)


def _separate(graph: gs.Graph, node: gs.Node, slot: int) -> None:
    tensor = node.inputs[slot]
    if dequantized(tensor, graph.opset) is not None:
        own_dequantize(graph, [(node, slot)])
        return
    value = require_constant(tensor, graph.opset)
    set_input(node, slot, like_constant(graph, tensor, value))


def _integers(
    graph: gs.Graph,
    place: tuple[gs.Node, int],
    bounds: list[Bound],
    keep: Mask,
    change: Change,
) -> Integers | None:
    """The cut integers in front of a DequantizeLinear; None for other weights.

    Scales along an axis are cut with it. If the directions lose different entries of that axis, no
    scales suit both, and floats are written instead.
    """
    node, slot = place
    held = dequantized(node.inputs[slot], graph.opset)
    if held is None or any(bound.dead != 0.0 for bound in bounds):
        return None
    dead = [replace(bound, dead=held.zero) for bound in bounds]
    values = change(held.values, dead, keep)
    same = [replace(bound, dead=None) for bound in bounds]
    parts = []
    for part in (held.scale, held.zero):
        full = change(np.broadcast_to(part, held.values.shape), same, keep)
        if full.ndim != part.ndim:
            return None
        for axis in range(full.ndim):
            if part.shape[axis] == 1:
                first = full.take([0], axis)
                if not np.array_equal(np.broadcast_to(first, full.shape), full):
                    return None
                full = first
        parts.append(full)
    return Integers(values, *parts)


def _digest(value: Array) -> bytes:
    """A digest of values, to find equal ones without keeping them."""
    plain = np.ascontiguousarray(value).reshape(-1).view(np.uint8)  # bfloat16 has no buffer
    return hashlib.sha256(plain.data).digest()


def resize(document: Document, trace: Trace, keep: Mask) -> None:
    """Adapts operators and declared shapes along the units' paths.

    Raises:
        PruneError: a body declares another rank than its input has.
    """
    graph = document.graph
    cuts = {name: _cut(trace, name, keep) for name in trace.labels}
    for node in list(all_nodes(graph)):
        row = operator_of(node)
        if row is not None and row.resize is not None and node.inputs[0].name in cuts:
            row.resize(graph, node, cuts)
    made = [tensor for node in all_nodes(graph) for tensor in node.outputs]
    ports = [tensor for place in places(graph) for tensor in place.graph.inputs]
    for tensor in ports:
        if tensor.name in cuts and len(tensor.shape or ()) not in (0, cuts[tensor.name].rank):
            raise misdeclared()
    for tensor in (*ports, *made):
        if tensor.name in cuts:
            _declare(tensor, cuts[tensor.name])


def _cut(trace: Trace, name: str, keep: Mask) -> Cut:
    labels, axis = trace.labels[name], trace.axes[name]
    line = np.moveaxis(kept(labels, keep), axis, -1).reshape(-1, labels.shape[axis])[0]
    return Cut(axis, labels.ndim, line)


def _declare(tensor: gs.Tensor, cut: Cut) -> None:
    shape = getattr(tensor, "shape", None)
    if shape is not None and len(shape) == cut.rank and isinstance(shape[cut.axis], int):
        tensor.shape = [*shape[: cut.axis], cut.ratio[0], *shape[cut.axis + 1 :]]
