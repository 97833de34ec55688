"""States as inputs and outputs of a model, with the entries of kept units only.

By default a cut layer selects the entries that it needs from a state that stays at full width, and
brings its final state back to that width, so that callers see no difference. Here both are taken
out again, where one input and one output of the model are the two ends of one state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.cells import RecurrentLayer, find_layers
from onnx_rnn_prune.model.constants import constant_value, require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.passes.cleanup import DropUnread

_ENDS = {"initial_h": "Y_h", "initial_c": "Y_c"}


@dataclass(frozen=True, eq=False)
class State:
    """A state that became narrower.

    Attributes:
        layer: the name of its layer.
        source: the model's input that it starts from.
        result: the model's output that it ends in.
        inner: what the layer gives, in the document before.
        outer: the same, in the document after.
        width: entries before.
        matrix: picks the entries that stay, [width, kept] for each direction.
    """

    layer: str
    source: str
    result: str
    inner: str
    outer: str
    width: int
    matrix: Array

    @property
    def kept(self) -> int:
        """Entries after."""
        return int(self.matrix.shape[-1])

    def select(self, value: Array) -> Array:
        """What is fed now in place of a state at full width."""
        return np.asarray(value @ self.matrix.astype(value.dtype))


@dataclass(frozen=True, eq=False)
class NarrowStates:
    """Takes the full width of states away; a pass that says what it did.

    Attributes:
        layers: the cut layers as they were at full width.
        narrowed: the states that became narrower; filled by running.
        reasons: by layer and state, why it stays; filled by running.
    """

    layers: Sequence[RecurrentLayer]
    narrowed: list[State] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    def __call__(self, document: Document) -> bool:
        known = {layer.name: layer for layer in self.layers}
        for layer in find_layers(document.graph):
            for name, output in _ENDS.items():
                select = _select(layer, name)
                if layer.name not in known or select is None:
                    continue
                before = known[layer.name]
                found = _find(document.graph, layer, select, before.hidden, before.output(output))
                if isinstance(found, str):
                    self.reasons[f"{layer.name} {name}"] = found
                    continue
                state, ways = found
                _narrow(layer, select, state, ways)
                self.narrowed.append(state)
        return DropUnread()(document) or bool(self.narrowed)


def _select(layer: RecurrentLayer, name: str) -> gs.Node | None:
    """What picks entries of a state for a cut layer."""
    tensor = layer.input(name)
    node = tensor.inputs[0] if tensor is not None and tensor.inputs else None
    return node if node is not None and node.name.startswith(OWN) else None


def _find(
    graph: gs.Graph, layer: RecurrentLayer, select: gs.Node, width: int, full: gs.Tensor | None
) -> tuple[State, list[gs.Tensor]] | str:
    """A state between an input and an output and the tensors on its way, or why it is none."""
    back = [select.inputs[0]]
    while back[-1].inputs and _keeps_last_axis(back[-1].inputs[0]):
        back.append(back[-1].inputs[0].inputs[0])
    if not any(back[-1] is tensor for tensor in graph.inputs) or isinstance(back[-1], gs.Constant):
        return "it does not come straight from an input of the model"
    if any(len(tensor.outputs) > 1 for tensor in back):
        return f"others read the input '{back[-1].name}', too"
    given = graph.tensors().get(full.name) if full is not None else None
    if given is None:
        return "the model does not give it back"
    on = [given]
    while len(on[-1].outputs) == 1 and _keeps_last_axis(on[-1].outputs[0]):
        on.append(on[-1].outputs[0].outputs[0])
    if on[-1].outputs or not any(on[-1] is tensor for tensor in graph.outputs):
        return "its final value does not go straight to an output of the model"
    if any(tensor is other for tensor in on[:-1] for other in graph.outputs):
        return "two outputs of the model give its final value"
    matrix = _picked(select, width)
    if matrix.ndim > 2 and len(back) > 1:
        return "it is rearranged, and there are two directions"
    inner = given
    while inner.inputs[0] is not layer.node:
        if not inner.inputs[0].name.startswith(OWN):
            return "its final value is computed with"
        inner = inner.inputs[0].inputs[0]
    ends = layer.name, back[-1].name, on[-1].name
    return State(*ends, inner.name, given.name, width, matrix), [*back, *on]


def _picked(select: gs.Node, width: int) -> Array:
    """What a Gather or a product picks, as a matrix for each direction."""
    values = require_constant(select.inputs[1])
    return np.eye(width)[:, values] if select.op == "Gather" else values


def _keeps_last_axis(node: gs.Node) -> bool:
    """Whether a node only rearranges the axes in front of the last one; a state has two or more."""
    if node.op == "Transpose":
        order: Sequence[int] = node.attrs.get("perm", (0,))
        return order[-1] == len(order) - 1
    if node.op in ("Squeeze", "Unsqueeze"):
        axes = node.attrs.get("axes")
        if len(node.inputs) > 1:
            axes = constant_value(node.inputs[1])
        return axes is not None and set(np.ravel(axes).tolist()) <= {0, 1}
    return bool(node.op == "Identity")


def _narrow(layer: RecurrentLayer, select: gs.Node, state: State, ways: list[gs.Tensor]) -> None:
    for tensor in ways:
        shape = tensor.shape
        if shape is not None and shape and isinstance(shape[-1], int):
            tensor.shape = [*shape[:-1], state.kept]
    slot = next(i for i, t in enumerate(layer.node.inputs) if t is select.outputs[0])
    layer.node.inputs[slot] = select.inputs[0]
    full = next(tensor for tensor in ways if tensor.name == state.outer)
    inner = next(tensor for tensor in layer.node.outputs if tensor.name == state.inner)
    full.inputs.clear()
    layer.node.outputs[layer.node.outputs.index(inner)] = full
    for node in list(inner.outputs):
        for place, tensor in enumerate(node.inputs):
            if tensor is inner:
                node.inputs[place] = full
