"""Putting what was learnt where the units stay, in the model of full width."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.model.constants import require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import replace_constants
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.operators.labels import Mask, compress, kept
from onnx_rnn_prune.operators.table import Bound
from onnx_rnn_prune.trace.bindings import all_bounds
from onnx_rnn_prune.trace.trace import Trace

Places = tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class Learnt:
    """Writes constants of the cut model into the places that stay; the others keep their values.

    Attributes:
        trace: of the document at full width.
        keep: per unit, True where it stays.
        values: by where they are read (node key, slot), the constants of the cut model.
    """

    trace: Trace
    keep: Mask
    values: Mapping[Places, Array]

    def __call__(self, document: Document) -> bool:
        nodes = nodes_by_key(document.graph)
        bounds = all_bounds(document, self.trace)
        for places, value in self.values.items():
            alike = defaultdict(list)
            for key, slot in places:  # what is read by several may be cut in several ways
                labels = b"".join(bound.labels.tobytes() for bound in bounds.get((key, slot), []))
                alike[nodes[key].inputs[slot].name, labels].append((key, slot))
            for group in alike.values():
                key, slot = group[0]
                before = require_constant(nodes[key].inputs[slot], document.graph.opset)
                after = scattered(before, bounds.get((key, slot), []), self.keep, value)
                readers = [(nodes[key], slot) for key, slot in group]
                replace_constants(document.graph, readers, after)
        return bool(self.values)


def scattered(before: Array, bounds: Sequence[Bound], keep: Mask, value: Array) -> Array:
    """A constant at full width with other numbers where its units stay.

    Cutting the positions of its entries as the entries are cut says where each one comes from.
    """
    shapes = [bound.labels.shape for bound in bounds]
    full = np.array(np.broadcast_to(before, np.broadcast_shapes(before.shape, *shapes)))
    places: Array = np.arange(full.size).reshape(full.shape)
    for bound in bounds:
        places = compress(places, kept(bound.labels, keep), bound.axis % places.ndim)
    full.reshape(-1)[places.reshape(-1)] = value.astype(full.dtype).reshape(-1)
    return full
