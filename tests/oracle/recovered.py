"""Documents whose weights were fitted before the cut."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_rnn_prune.data import open_feeds
from onnx_rnn_prune.evidence.evidence import collect
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.recovery.least_squares import Recover, teacher_fits
from onnx_rnn_prune.traced_model import TracedModel


def recovered(traced: TracedModel, keep: Mask, feeds: Sequence[Feed], ridge: float) -> Document:
    """A copy of a prepared document in which the kept units stand in for the cut ones."""
    source = open_feeds(list(feeds), signature.inputs(traced.document.source), frozenset())
    readers = traced.readers
    moments = collect(traced.document, traced.trace, readers, source, silent).moments
    fits = teacher_fits(traced, keep, moments, ridge)
    document = traced.document.copy()
    Recover(readers, keep, fits)(document)
    return document
