"""A model between two others of the same graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.model.constants import constant_value, is_float
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import replace_constant
from onnx_rnn_prune.model.walk import nodes_by_key


@dataclass(frozen=True, eq=False)
class Blend:
    """Moves every weight towards that of another document.

    Attributes:
        other: has the same nodes.
        share: of the other's weights; the document's own make up the rest.
    """

    other: Document
    share: float

    def __call__(self, document: Document) -> bool:
        graph, opset = document.graph, document.graph.opset
        others = nodes_by_key(self.other.graph)
        found = []
        for key, node in nodes_by_key(graph).items():
            for slot, tensor in enumerate(node.inputs):
                here = constant_value(tensor, opset) if tensor.name else None
                there = None if here is None else constant_value(others[key].inputs[slot], opset)
                if here is None or there is None or not is_float(here.dtype):
                    continue
                if here.shape == there.shape and not np.array_equal(here, there):
                    mixed = (1 - self.share) * here + self.share * there
                    found.append((node, slot, mixed.astype(here.dtype)))
        for node, slot, value in found:
            replace_constant(graph, node, slot, value)
        return bool(found)
