"""Shapes and small integer values of a model's tensors, as seen in one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.intermediate import ask_shapes, homes_of, intermediate_outputs
from onnx_rnn_prune.model.runnable import computable
from onnx_rnn_prune.model.runner import Array, Feed, Runner
from onnx_rnn_prune.model.walk import all_nodes, links_of, ports_of
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.moves import move
from onnx_rnn_prune.operators.table import Shape, rule_of

# Maximum number of runs to reach every branch.
_RUNS = 16


@dataclass(frozen=True)
class Observation:
    """What runs revealed about the tensors downstream of the recurrent layers.

    Attributes:
        shapes: by tensor name.
        values: by tensor name, for parameters of operators that move entries.
        runs: by tensor name, the number of the first run that reached it; missing for tensors in
            branches that no run took.
    """

    shapes: Mapping[str, Shape]
    values: Mapping[str, Array]
    runs: Mapping[str, int]

    def together(self, names: Iterable[str]) -> bool:
        """Whether one run reached all of some tensors, so that their sizes are consistent.

        Nothing is known about tensors that no run reached: where units meet one, it may be
        anything.
        """
        found = {self.runs.get(name) for name in names}
        return len(found) < 2 and None not in found


def observe(
    document: Document,
    layers: Sequence[Layer],
    feeds: Iterable[Feed],
    sources: Iterable[str] = (),
) -> Observation:
    """Records every tensor that labels may reach, in as many runs as it takes to reach all layers.

    Args:
        document: the model.
        layers: whose outputs carry labels.
        feeds: to run it on.
        sources: inputs of the model that carry labels, too.
    """
    shapes, values = _wanted(document, layers, sources)
    watched = document.copy()
    sizes = ask_shapes(homes_of(watched.graph), shapes)
    shown = intermediate_outputs(watched, [*sizes.values(), *values], np.int64)
    order = ort.ExecutionOrder.PRIORITY_BASED
    runner = Runner(watched, outputs=shown.outputs, optimize=False, order=order)
    found_shapes: dict[str, Shape] = {}
    found_values: dict[str, Array] = {}
    runs: dict[str, int] = {}
    for number, feed in enumerate(islice(feeds, _RUNS)):
        seen = shown.calls(runner(feed))
        for name in shapes:
            calls = seen[sizes[name]]
            if calls and name not in runs:
                runs[name] = number
                found_shapes[name] = tuple(int(size) for size in calls[-1])
                if name in values:
                    found_values[name] = seen[name][-1]
        if all(was_seen(layer, runs) for layer in layers):
            break
    return Observation(found_shapes, found_values, runs)


def was_seen(layer: Layer, runs: Mapping[str, int]) -> bool:
    """Whether a run reached a layer."""
    return all(tensor.name in runs for tensor in layer.node.outputs if tensor.name)


def _wanted(
    document: Document, layers: Sequence[Layer], sources: Iterable[str]
) -> tuple[list[str], list[str]]:
    """The tensors whose shapes are recorded, and those whose values are."""
    source = document.outline()
    reachable = computable(source) | {port.name for port in source.graph.input}
    shapes: dict[str, None] = dict.fromkeys(sources)
    values: dict[str, None] = {}
    for node in _behind(document.graph, layers, shapes):
        handed = (
            [tensor for link in links_of(node) for tensor in link[:2]] if ports_of(node) else ()
        )
        for tensor in (*node.inputs, *node.outputs, *handed):
            if tensor.name in reachable and not isinstance(tensor, gs.Constant):
                shapes[tensor.name] = None
        how = node.inputs[1:] if rule_of(node) is move else ()  # input 0 is moved
        values.update(dict.fromkeys(tensor.name for tensor in how if tensor.name in shapes))
    return list(shapes), list(values)


def _behind(graph: gs.Graph, layers: Sequence[Layer], sources: Iterable[str]) -> list[gs.Node]:
    """The layers, and nodes reachable from them or a source through operators with a rule.

    Loop-carried values lead back to nodes that stand before their producer.
    """
    reached = {id(layer.node) for layer in layers}
    names = {tensor.name for layer in layers for tensor in layer.node.outputs if tensor.name}
    names.update(sources)
    found: dict[int, gs.Node] = {}
    nodes, before = list(all_nodes(graph)), -1
    links = {id(node): list(links_of(node)) for node in nodes if ports_of(node) is not None}
    while before < len(names):
        before = len(names)
        for node in nodes:
            inner = links.get(id(node), ())
            arriving = [*node.inputs, *(source for source, _, _ in inner)]
            if id(node) in reached or any(tensor.name in names for tensor in arriving):
                if rule_of(node) is None and not inner:
                    continue
                found[id(node)] = node
                made = node.outputs if not inner else ()
                names.update(tensor.name for tensor in made if tensor.name)
                names.update(target.name for source, target, _ in inner if source.name in names)
        if not links:
            break
    return list(found.values())
