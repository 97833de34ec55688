"""Feeds on which a rolled model must agree with the original."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from math import prod
from types import MappingProxyType

import numpy as np

from onnx_rnn_prune.data import StatedSizes, random_feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.constants import constant_shape, constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed, Runner, runs
from onnx_rnn_prune.model.walk import all_nodes

# Lengths and batches to try, if the model takes them.
_LENGTHS = (1, 2, 31)
_BATCHES = (3, 1, 3)
# Random feeds of several sizes; the first holds two sequences, the second one.
_COUNT = 3
# Operators whose integer constants may be positions; if they are, lengths beyond them are tried.
_PLACING = ("Slice", "Gather", "Add", "Sub", "Max", "Min")
_FARTHEST = 4096
_NOTHING: StatedSizes = MappingProxyType({})


def proof_feeds(
    document: Document, runner: Runner, asked: StatedSizes = _NOTHING, seed: int = 0
) -> list[Feed]:
    """Made-up feeds: batches of 1 and 3, lengths of 1, 2, odd and many, and steps that are zero.

    If positions are taken from the end, a longer sequence than any of them is among the feeds.

    Args:
        document: the model.
        runner: runs it.
        asked: sizes for the first feed.
        seed: of the numbers.

    Raises:
        PruneError: no generated feed runs.
    """
    own = random_feeds(document, runner, seed=seed, count=1, asked=asked) if asked else ()
    made = random_feeds(document, runner, seed=seed, count=_COUNT)
    found: list[Feed] = [dict(feed) for feed in made]
    found += [_with_gaps(found[0], seed)]
    beyond = _farthest(document) + 2
    tried = [*zip(_LENGTHS, _BATCHES, strict=True)]
    tried += [(beyond, 1)] if beyond > max(_LENGTHS) else []
    for length, batch in tried:
        sizes = _sizes(document, found, length, batch)
        if sizes:
            with suppress(PruneError):  # these sizes do not fit
                found += map(dict, random_feeds(document, runner, seed=seed, count=1, asked=sizes))
    return [*(dict(feed) for feed in own), found[0], *filter(partial(runs, runner), found[1:])]


def _farthest(document: Document) -> int:
    """The largest number among constants that may be positions, whether from the front or back."""
    found = [0]
    for node in all_nodes(document.graph):
        for tensor in node.inputs if node.op in _PLACING and not node.domain else ():
            shape = constant_shape(tensor)
            value = constant_value(tensor) if shape is not None and prod(shape) <= 4 else None
            if value is not None and value.dtype.kind == "i":
                found += [abs(int(number)) for number in value.reshape(-1)]
        for name in ("starts", "ends") if node.op == "Slice" else ():
            found += [abs(int(number)) for number in node.attrs.get(name, ())]
    return max(number for number in found if number <= _FARTHEST)


def _sizes(
    document: Document, feeds: Sequence[Feed], length: int, batch: int
) -> dict[str, tuple[int, ...]]:
    """Sizes of the inputs with another length and batch; axes that differ between feeds are either.

    In the second feed, an axis of size 1 is a batch.
    """
    found = {}
    for port in signature.inputs(document.source):
        one, two = feeds[0][port.name].shape, feeds[1][port.name].shape
        pairs = list(zip(one, two, strict=True))
        if pairs and any(a != b for a, b in pairs):
            found[port.name] = tuple(a if a == b else batch if b == 1 else length for a, b in pairs)
    return found


def _with_gaps(feed: Feed, seed: int) -> Feed:
    """A feed with some rows zeroed, which is how models mark masked steps."""
    rng = np.random.default_rng(seed)

    def gapped(value: Array) -> Array:
        if value.ndim < 2 or value.dtype.kind not in "fiu":
            return value
        axes = value.shape[:2] if value.ndim > 2 else value.shape
        kept = rng.random(axes) > 0.4
        kept = kept.reshape(*kept.shape, *[1] * (value.ndim - kept.ndim))
        return (value * kept).astype(value.dtype)

    return {name: gapped(value) for name, value in feed.items()}
