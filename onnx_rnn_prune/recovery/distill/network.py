"""A region of a graph in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
import torch

from onnx_rnn_prune.model.constants import constant_value, is_float
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import CARRIED
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.recovery.distill.operators import OPERATORS, Call
from onnx_rnn_prune.recovery.distill.operators.base import Function
from onnx_rnn_prune.recovery.distill.region import Region, call_of, is_weight

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """One node.

    Attributes:
        op: the operator.
        call: its attributes.
        function: of the table.
        inputs: names of tensors, empty where one is left out.
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
        steps: in an order in which each follows all that it reads.
        constants: by name, in single precision; also those that are weights.
        weights: constants that may be trained, by name, each with where it is read: node key, slot.
    """

    steps: tuple[Step, ...]
    constants: Tensors
    weights: Mapping[str, tuple[tuple[str, int], ...]]

    def __call__(
        self, given: Tensors, weights: Tensors, wanted: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """The wanted tensors.

        Args:
            given: what the region reads and does not compute.
            weights: in place of constants of the same names.
            wanted: names of tensors that it computes.
        """
        values = {**self.constants, **given, **weights}
        for step in self.steps:
            inputs = [values[name] if name else None for name in step.inputs]
            result = step.function(step.call, inputs)
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
        for slot, tensor in enumerate(node.inputs):
            value = constant_value(tensor, opset) if tensor.name else None
            if value is None:
                continue
            constants[tensor.name] = to_torch(value)
            if is_weight(node, slot, opset):
                places.setdefault(tensor.name, []).append((key, slot))
        names = [tuple(tensor.name for tensor in side) for side in (node.inputs, node.outputs)]
        steps.append(Step(node.op, call_of(node, opset), row.function, *names))
    weights = {name: tuple(found) for name, found in places.items()}
    return Network(tuple(steps), constants, weights)


def unshared(document: Document, network: Network) -> dict[str, tuple[tuple[str, int], ...]]:
    """Those of a network's weights that nothing outside of it reads, and that are real numbers.

    Others would need a copy beside what is read outside, or be rounded to integers. What places the
    entries of states that callers only hand back stays what it is, too.
    """
    nodes = nodes_by_key(document.graph)
    first = {name: (nodes[places[0][0]], places[0][1]) for name, places in network.weights.items()}
    return {
        name: network.weights[name]
        for name, (node, slot) in first.items()
        if not node.name.startswith(CARRIED)
        if _alone(node.inputs[slot], len(network.weights[name]))
    }


def to_torch(value: Array) -> torch.Tensor:
    """A tensor of its own; all floats in single precision."""
    kind = np.float32 if is_float(value.dtype) else value.dtype
    return torch.from_numpy(np.array(value, dtype=kind, order="C"))


def _alone(tensor: gs.Tensor, readers: int) -> bool:
    """Whether a constant, and all that it is computed from, is read on this way only."""
    node = None if isinstance(tensor, gs.Constant) or not tensor.inputs else tensor.inputs[0]
    if len(tensor.outputs) != readers or (node is not None and node.op == "DequantizeLinear"):
        return False
    return all(_alone(source, 1) for source in ([] if node is None else node.inputs) if source.name)
