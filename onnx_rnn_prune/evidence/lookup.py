"""Finding the nodes and layers of a document, once for all who look for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.layers import Layer


@dataclass(frozen=True, eq=False)
class Lookup:
    """A document in which readers find their nodes.

    It stays right while constants change, and no longer than the nodes stay the same.

    Attributes:
        graph: of the document.
        nodes: by key.
        layers: by name.
        copies: constants that were changed, by `id`.
    """

    graph: gs.Graph
    nodes: Mapping[str, gs.Node]
    layers: Mapping[str, Layer]
    copies: dict[int, Array] = field(default_factory=dict)

    @staticmethod
    def of(document: Document) -> Lookup:
        """Looks through a document."""
        graph = document.graph
        return Lookup(
            graph, nodes_by_key(graph), {layer.name: layer for layer in all_layers(graph)}
        )

    def own(self, value: Array) -> Array:
        """An array of this document alone, to write into: a copy, but for one given out before."""
        if self.copies.get(id(value)) is not value:
            value = value.copy()
            self.copies[id(value)] = value
        return value
