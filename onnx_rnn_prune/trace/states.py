"""Graph inputs that are recurrent states."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_rnn_prune.cells import find_layers
from onnx_rnn_prune.model.document import Document

_MOVING = [
    "Cast",
    "Concat",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
]


def state_inputs(document: Document) -> frozenset[str]:
    """The inputs that reach an initial state of a layer by moves alone, and nothing else."""
    inputs = {tensor.name for tensor in document.graph.inputs}
    found: set[str] = set()
    for layer in find_layers(document.graph):
        for name in ("initial_h", "initial_c"):
            tensor = layer.input(name)
            while tensor is not None:
                if tensor.name in inputs:
                    found.add(tensor.name)
                tensor = _moved_from(tensor)
    return frozenset(found)


def _moved_from(tensor: gs.Tensor) -> gs.Tensor | None:
    node = tensor.inputs[0] if tensor.inputs else None
    return node.inputs[0] if node is not None and node.op in _MOVING and node.inputs else None
