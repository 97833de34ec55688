"""All constants that a cut touches: those found by tracing, and the layers' own parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import integers_of
from onnx_rnn_prune.model.walk import node_key, nodes_by_key
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.table import Bound
from onnx_rnn_prune.trace.propagation import Binding
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Ids

STATES = ("initial_h", "initial_c")

Bounds = Mapping[tuple[str, int], list[Bound]]


def traced_layers(document: Document, trace: Trace) -> list[Layer]:
    """The layers of a trace, in this copy of its graph."""
    lanes = trace.units.lanes
    found = [layer for layer in all_layers(document.graph) if layer.name in lanes]
    return [layer.in_lanes(len(lanes[layer.name])) for layer in found]


def all_bounds(document: Document, trace: Trace) -> Bounds:
    """What is bound at each constant input, by (node key, slot)."""
    found: dict[tuple[str, int], list[Bound]] = defaultdict(list)
    for layer in traced_layers(document, trace):
        for binding in own_bindings(layer, trace.units.lanes[layer.name], trace.labels):
            found[binding.node, binding.bound.slot].append(binding.bound)
    for binding in trace.bindings:
        found[binding.node, binding.bound.slot].append(binding.bound)
    nodes = nodes_by_key(document.graph)
    for (key, slot), bounds in found.items():
        integers = integers_of(nodes[key], slot, document.graph.opset)
        if integers is not None:
            found[key, slot] = [replace(bound, dead=integers.zero) for bound in bounds]
    return found


def own_bindings(layer: Layer, lanes: Ids, labelled: Container[str]) -> list[Binding]:
    """The bindings of a layer's own parameters and initial states to its units.

    Args:
        layer: the layer.
        lanes: its unit ids, shape [D, H].
        labelled: tensors that carry labels; a state among them is cut at its source.
    """
    found = []
    for name in layer.cell.unit_axes:
        tensor = layer.input(name)
        if tensor is None or tensor.name in labelled:
            continue
        places = [(layer.node, layer.slot(name))]
        if constant_value(tensor) is None:
            places = _select_of(layer, tensor)
        dead = None if name in layer.cell.scales else 0.0
        for axis, labels in layer.own_labels(name, lanes):
            bound = (axis, labels, dead)
            found += [Binding(node_key(node), Bound(slot, *bound)) for node, slot in places]
    return found


def _select_of(layer: Layer, state: gs.Tensor) -> list[tuple[gs.Node, int]]:
    """The selection matrix in front of an initial state, and any term added to the product."""
    places = []
    node = state.inputs[0] if state.inputs else None
    if node is not None and node.op == "Add":
        slot = 0 if constant_value(node.inputs[1]) is None else 1
        places.append((node, slot))
        node = node.inputs[1 - slot].inputs[0]
    assert node is not None and node.op == "MatMul", f"{layer.name}: state without select"
    return [(node, 1), *places]
