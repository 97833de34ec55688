"""Shapes and small integer values of a model's tensors, as seen in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.cells import RecurrentLayer
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.outputs import computable
from onnx_rnn_prune.model.runner import Array, Feed, Runner
from onnx_rnn_prune.trace.rules import Shape, rule_of

_SUFFIX = "__observed_shape"
# Inputs that say how an operator moves its data; their values are looked at.
_PARAMETERS = {
    "Expand": (1,),
    "Gather": (1,),
    "Reshape": (1,),
    "ReverseSequence": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
}


@dataclass(frozen=True)
class Observation:
    """What one run showed of the tensors behind the recurrent layers.

    Attributes:
        shapes: by tensor name.
        values: by tensor name, for parameters of operators that move entries.
    """

    shapes: Mapping[str, Shape]
    values: Mapping[str, Array]


def observe(document: Document, layers: list[RecurrentLayer], feed: Feed) -> Observation:
    """Runs a model once and looks at every tensor that labels may reach."""
    nodes = _behind(document.graph, layers)
    source = document.write(_unread)
    reachable = computable(source) | {port.name for port in source.graph.input}
    shapes: dict[str, None] = {}
    values: dict[str, None] = {}
    for node in nodes:
        for tensor in (*node.inputs, *node.outputs):
            if tensor.name in reachable and not isinstance(tensor, gs.Constant):
                shapes[tensor.name] = None
        for slot in _PARAMETERS.get(node.op, ()):
            if slot < len(node.inputs) and node.inputs[slot].name in shapes:
                values[node.inputs[slot].name] = None
    watched = document.copy()
    tensors = watched.graph.tensors()
    for name in shapes:
        shape = gs.Variable(name + _SUFFIX)
        watched.graph.nodes.append(gs.Node("Shape", inputs=[tensors[name]], outputs=[shape]))
    outputs = [name + _SUFFIX for name in shapes]
    runner = Runner(watched, outputs=[*outputs, *values], optimize=False)
    seen = runner(feed)
    return Observation(
        {name: tuple(int(size) for size in seen[name + _SUFFIX]) for name in shapes},
        {name: seen[name] for name in values},
    )


def _behind(graph: gs.Graph, layers: list[RecurrentLayer]) -> list[gs.Node]:
    """Nodes that a layer's output can reach through operators that have a rule, and the layers."""
    reached = {id(layer.node) for layer in layers}
    names = {tensor.name for layer in layers for tensor in layer.node.outputs if tensor.name}
    found = []
    for node in graph.nodes:
        if id(node) in reached or any(tensor.name in names for tensor in node.inputs):
            if rule_of(node) is None:
                continue
            found.append(node)
            names.update(tensor.name for tensor in node.outputs if tensor.name)
    return found


def _unread(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A tensor without its values."""
    return onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
