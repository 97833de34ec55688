"""Units in another order, which no output can tell."""

from __future__ import annotations

import random

import numpy as np

from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import add_constant, set_input
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.operators.labels import Labels
from onnx_rnn_prune.operators.table import Bound
from onnx_rnn_prune.trace.bindings import all_bounds
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Ids


def draw_order(trace: Trace, rng: random.Random) -> Ids:
    """For each unit, the one whose place it takes; atoms move as one."""
    order = np.arange(trace.units.count)
    for group in trace.groups:
        for atoms in group.atoms:
            order[atoms] = atoms[rng.sample(range(group.size), group.size)]
    return order


def permuted(document: Document, trace: Trace, order: Ids) -> Document | None:
    """A copy with all bound constants permuted; None where one reads just some of the units."""
    result = document.copy()
    nodes = nodes_by_key(result.graph)
    for (key, slot), bounds in all_bounds(result, trace).items():
        value = constant_value(nodes[key].inputs[slot], result.graph.opset)
        for bound in bounds:
            value = _permute(value, bound, order)
            if value is None:
                return None
        made = add_constant(result.graph, f"{key}_{slot}_permuted", value)
        set_input(nodes[key], slot, made)
    return result


def _permute(value: Array, bound: Bound, order: Ids) -> Array | None:
    value = np.broadcast_to(value, np.broadcast_shapes(value.shape, bound.labels.shape))
    lines = np.moveaxis(bound.labels, bound.axis, -1)
    flat = lines.reshape(-1, lines.shape[-1])
    places = [_places(line, order) for line in flat]
    if any(place is None for place in places):
        return None
    index = np.moveaxis(np.reshape(places, lines.shape), -1, bound.axis)
    shape = list(value.shape)
    shape[bound.axis] = index.shape[bound.axis]
    return np.take_along_axis(value, np.broadcast_to(index, shape), bound.axis)


def _places(line: Labels, order: Ids) -> Ids | None:
    """Where each entry of a line comes from; repeated units by their number of appearance."""
    found: dict[int, list[int]] = {}
    for place, unit in enumerate(line.tolist()):
        found.setdefault(unit, []).append(place)
    result = np.arange(len(line))
    for unit, places in found.items():
        if unit >= 0:
            sources = found.get(int(order[unit]), [])
            if len(sources) != len(places):
                return None
            result[places] = sources
    return result
