"""Zeros in the place of single weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.compression.patterns import Pattern
from onnx_rnn_prune.compression.surgeon import by_magnitude, by_surgeon, second_moment
from onnx_rnn_prune.evidence.lookup import Lookup
from onnx_rnn_prune.evidence.moments import Moments
from onnx_rnn_prune.evidence.readers import Reader
from onnx_rnn_prune.model.document import Document


@dataclass(frozen=True, eq=False)
class Sparsify:
    """Writes zeros into products by a pattern; shapes stay as they are.

    Attributes:
        readers: the products.
        pattern: which weights may go.
        moments: of what a reader reads; None where magnitude decides. Where they hold no sample,
            since the branch of a product was not taken, it decides as well.
    """

    readers: Sequence[Reader]
    pattern: Pattern
    moments: Callable[[Reader], Moments] | None

    def __call__(self, document: Document) -> bool:
        lookup = Lookup.of(document)
        for reader in self.readers:
            held = reader.weight(lookup)
            weight, widths = held.astype(np.float64), reader.widths(lookup)
            known = None if self.moments is None else self.moments(reader)
            if known is None or not known.count:
                after = by_magnitude(weight, self.pattern, widths)
            else:
                after = by_surgeon(weight, second_moment(known), self.pattern, widths)
            rows, columns = map(np.arange, held.shape)
            none = np.zeros(len(rows), held.dtype)
            reader.store(lookup, (rows, columns), after.astype(held.dtype), none)
        return bool(self.readers)
