"""Graph inputs and outputs that are recurrent states."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from onnx_rnn_prune.cells import CELLS, find_layers
from onnx_rnn_prune.model.document import Document

_MOVING = {"Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"}
_MOVING |= {"Transpose", "Unsqueeze"}
# What prepare may have put behind a state: its restore and an addition.
_RESTORING = {"MatMul", "Add"}
_OPS = {cell.op for cell in CELLS}


def state_inputs(document: Document) -> frozenset[str]:
    """The inputs that reach an initial state of a layer by moves alone."""
    inputs = {tensor.name for tensor in document.graph.inputs}
    found: set[str] = set()
    for layer in find_layers(document.graph):
        for name in ("initial_h", "initial_c"):
            tensor = layer.input(name)
            if tensor is not None:
                found.update(source.name for source in _sources(tensor, _MOVING))
    return frozenset(found & inputs)


def state_outputs(document: Document) -> frozenset[str]:
    """The outputs that are final states Y_h and Y_c of layers, moved or brought to full width."""
    return frozenset(
        tensor.name
        for tensor in document.graph.outputs
        if all(map(_is_state, _sources(tensor, _MOVING | _RESTORING)))
    )


def _sources(tensor: gs.Tensor, through: set[str]) -> Iterator[gs.Tensor]:
    """Where a tensor comes from, back through some operators; constants left out."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        item = waiting.pop()
        node = item.inputs[0] if item.inputs else None
        if node is None or node.op not in through:
            if not isinstance(item, gs.Constant):
                yield item
            continue
        wanted = node.inputs if node.op in {"Concat", *_RESTORING} else node.inputs[:1]
        waiting += [other for other in wanted if id(other) not in seen]
        seen.update(map(id, wanted))


def _is_state(tensor: gs.Tensor) -> bool:
    node = tensor.inputs[0] if tensor.inputs else None
    return node is not None and node.op in _OPS and node.outputs[0] is not tensor
