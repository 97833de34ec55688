"""Prices of cuts: in units, parameters, operations, or time on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from onnx_rnn_prune.cost.cost import Cost, Counts
from onnx_rnn_prune.cost.stopwatch import Stopwatch
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.operators.layers import Layer, find_duplicates
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.trace.bindings import traced_layers
from onnx_rnn_prune.trace.trace import Trace

Price = Callable[[Counts], float]
"""The cost of a model by the number of units that each group keeps."""


def price_of(kind: str, document: Document, trace: Trace, cost: Callable[[], Cost]) -> Price:
    """The price function for cuts.

    Args:
        kind: one of `options.PRICES`.
        document: the prepared document.
        trace: its trace.
        cost: returns the cost of cuts; called only if needed.
    """
    if kind == "units":
        first, own = find_duplicates(trace.layers), np.zeros(trace.units.count)
        for name in set(first.values()):  # layers that share weights, as steps do, count once
            own[trace.units.lanes[name]] = 1.0
        each = [sum(own[atoms[0]].sum() for atoms in group.atoms) for group in trace.groups]
        return lambda counts: float(np.dot(counts, each))
    if kind == "ms":
        times = Counter(layer_times(document, trace).values())
        return lambda counts: sum(times[price] * price(counts) for price in times)
    known = cost()
    if kind == "params":
        return lambda counts: float(known("params", counts))
    return lambda counts: float(known("flops", counts))


def layer_times(document: Document, trace: Trace) -> Mapping[str, Price]:
    """The time of each cut layer's operator, by name; readers of the layers are left out.

    Layers with the same time for all counts, such as unrolled steps, share one price.
    """
    layers = traced_layers(document, trace)
    stopwatch = Stopwatch(layers, {name: labels.shape for name, labels in trace.labels.items()})
    group_of = {name: n for n, group in enumerate(trace.groups) for name in group.layers}

    def price_of_layer(layer: Layer) -> Price:
        fixed, factors = _inputs(trace, layer.key, layer.input_size)
        group = group_of[layer.name]
        key = (stopwatch.operators[layer.name], fixed, factors.tobytes(), group)
        return known.setdefault(
            key,
            lambda counts: stopwatch(
                layer.name,
                counts[group] * trace.groups[group].each,
                round(fixed + factors @ np.asarray(counts)),
            ),
        )

    known: dict[object, Price] = {}
    return {layer.name: price_of_layer(layer) for layer in layers}


def node_parts(document: Document, trace: Trace) -> Mapping[str, Matrix]:
    """The share of a node's work per unit of each group, by node key, [groups].

    Covers nodes with labels in their inputs or outputs, except cut and recurrent layers; work is
    taken as proportional to the largest such tensor.
    """
    layers = [*traced_layers(document, trace), *find_layers(document.graph)]
    apart = {layer.key for layer in layers}
    group_of = np.full(trace.units.count + 1, -1)  # also for entries without a unit
    for number, group in enumerate(trace.groups):
        for atoms in group.atoms:
            group_of[atoms] = number
    sizes = np.array([group.size for group in trace.groups])
    found = {}
    for key, node in nodes_by_key(document.graph).items():
        signals = [
            trace.labels[t.name] for t in (*node.inputs, *node.outputs) if t.name in trace.labels
        ]
        if key in apart or not signals:
            continue
        labels = max(signals, key=lambda labels: labels.size)
        owners = group_of[labels.reshape(-1)]
        counts = np.bincount(owners[owners >= 0], minlength=len(sizes))
        found[key] = counts / (sizes * max(labels.size, 1))
    return found


def _inputs(trace: Trace, key: str, input_size: int) -> tuple[int, Matrix]:
    """The width of a layer's input: a fixed part, and entries for each kept unit of a group."""
    factors = np.zeros(len(trace.groups))
    owned = np.zeros(0, dtype=np.int64)
    for binding in trace.bindings:
        if binding.node == key and binding.bound.reads is not None:
            labels = binding.bound.labels.reshape(-1)
            # A grouped convolution has one line per output.
            owned = np.unique(labels) if len(labels) > input_size else labels
            owned = owned[owned >= 0]
    for number, group in enumerate(trace.groups):
        units = np.concatenate([atoms.reshape(-1) for atoms in group.atoms])
        factors[number] = np.isin(owned, units).sum() / group.size
    return input_size - len(owned), factors
