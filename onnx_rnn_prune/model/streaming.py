"""Models whose states are inputs and outputs, called as in use: each with the states it left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnx_rnn_prune.model.runner import Feed, NamedFeed


class Streaming:
    """A model that is called with feeds in order, and carries its own states along.

    Where a feed goes on from the one before, its state inputs are replaced by what this model gave
    for the call before; all other feeds are passed on as they are.

    Args:
        run: one call: what computes the outputs of a feed, state outputs included.
    """

    def __init__(self, run: Callable[[Feed], Mapping[str, Any]]) -> None:
        self._run = run
        self._last: Mapping[str, Any] = {}

    def __call__(self, feed: Feed) -> Mapping[str, Any]:
        """What the model gives for the next feed."""
        if isinstance(feed, NamedFeed) and feed.follows:
            states = {name: self._last[output] for name, output in feed.follows.items()}
            feed = NamedFeed({**feed, **states}, feed.name, feed.labels, feed.follows)
        self._last = self._run(feed)
        return self._last
