"""Products with what is known of what their columns read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import dequantized, integers_of
from onnx_rnn_prune.score.evidence import find_products
from onnx_rnn_prune.score.gates import GateReader
from onnx_rnn_prune.score.lookup import Lookup
from onnx_rnn_prune.score.moments import Matrix
from onnx_rnn_prune.score.passing import MOVES, ZEROS, passing
from onnx_rnn_prune.score.readers import ProductReader, Reader
from onnx_rnn_prune.trace.labels import Labels, Mask
from onnx_rnn_prune.trace.trace import Trace


@dataclass(frozen=True, eq=False)
class Product:
    """A reader with what is known of its columns.

    Attributes:
        reader: the reader.
        weight: [outputs, n].
        outputs: the unit behind each output, [outputs].
        labels: the unit behind each column, [n].
        moved: True where a column reads the state of a unit as it is, [n].
        zeros: True where it reads 0 of a unit that is 0, [n].
        exact: whether the weight is held in real numbers, which a sum does not round anew.
    """

    reader: Reader
    weight: Matrix
    outputs: Labels
    labels: Labels
    moved: Mask
    zeros: Mask
    exact: bool

    def reads_zero(self, zero: Mask) -> Mask:
        """The columns that always read 0, [n], where those units do."""
        return (self.labels >= 0) & self.zeros & zero[self.labels]


def find_matrices(document: Document, trace: Trace, lookup: Lookup) -> list[Product]:
    """All products of a document, front to back; none where there are no units to read."""
    if not trace.units.count:
        return []
    moved, zeros = (passing(document, trace, ops) for ops in (MOVES, ZEROS))
    found = []
    for reader in find_products(document, trace):
        own = np.zeros(len(reader.labels), dtype=bool)
        name = reader.source(lookup)
        if isinstance(reader, GateReader):
            own[reader.widths(lookup)[0] if "X" in reader.sources else 0 :] = True
        found.append(
            Product(
                reader=reader,
                weight=reader.weight(lookup).astype(np.float64),
                outputs=reader.outputs(lookup),
                labels=reader.labels,
                moved=own | (name in moved),
                zeros=own | (name in zeros),
                exact=_is_exact(reader, lookup),
            )
        )
    return found


def _is_exact(reader: Reader, lookup: Lookup) -> bool:
    if isinstance(reader, GateReader):
        node = lookup.layers[reader.layer].node
        slots: Sequence[int] = (1, 2)
    else:
        assert isinstance(reader, ProductReader)
        node, slots = lookup.nodes[reader.binding.node], (reader.binding.bound.slot,)
    tensors = [node.inputs[slot] for slot in slots]
    real = all(dequantized(tensor) is None for tensor in tensors)
    return real and all(integers_of(node, slot) is None for slot in slots)
