"""What tells one search from another: two with the same key make the same trials."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from typing import Protocol

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.trace.plan import fingerprint
from onnx_rnn_prune.validate.quality import Quality


class Digest(Protocol):
    """Of hashlib's."""

    def update(self, data: bytes, /) -> None:
        """Takes in more."""


# What trials mean; to be changed when that does.
_FORMAT = "1"


def key_of(opened: OpenedModel, data: Calibration, quality: Quality, request: Request) -> str:
    """Of what is measured of this model, with these feeds and in this way."""
    found = hashlib.sha256()
    for part in (_FORMAT, version("onnx_rnn_prune"), fingerprint(opened.model)):
        found.update(part.encode())
    found.update(repr((quality.name, quality.higher, quality.source)).encode())
    chosen = (request.criterion_for(data).name, request.only, request.skip, request.bounds)
    found.update(repr((*chosen, request.seed)).encode())
    for feeds in (data.calibration, data.validation):
        found.update(repr(sorted(feeds.states.items())).encode())
        _digest(found, feeds)
    return found.hexdigest()[:16]


def _digest(found: Digest, feeds: Iterable[Feed]) -> None:
    for feed in feeds:
        labels = getattr(feed, "labels", None)
        if getattr(feed, "follows", None):
            found.update(b"follows ")
        for name, value in [*sorted(feed.items()), ("labels", labels)]:
            if value is not None:
                found.update(f"{name} {value.dtype} {value.shape} ".encode())
                found.update(
                    repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
                )
