"""Documents whose weights were fitted before the cut."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_rnn_prune.data import open_feeds
from onnx_rnn_prune.evidence.evidence import collect
from onnx_rnn_prune.evidence.products import find_readers
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.passes.prepared import Prepared
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.recovery.least_squares import Recover, teacher_fits


def recovered(prepared: Prepared, keep: Mask, feeds: Sequence[Feed], ridge: float) -> Document:
    """A copy of a prepared document in which the kept units stand in for the cut ones."""
    source = open_feeds(list(feeds), signature.inputs(prepared.document.source), frozenset())
    readers = find_readers(prepared.document, prepared.trace)
    moments = collect(prepared.document, prepared.trace, readers, source, silent).moments
    fits = teacher_fits(prepared.document, readers, keep, moments, ridge)
    document = prepared.document.copy()
    Recover(readers, keep, fits)(document)
    return document
