"""Feeds that may follow one another, and models that carry their states from call to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from onnx_rnn_prune.model.runner import Array, Feed


class NamedFeed(dict[str, Array]):
    """A feed that errors can call by its name.

    Args:
        values: by input name.
        name: such as the file that it comes from.
        labels: the right answers, where they are known; no model reads them.
        follows: where it goes on from the feed before, the state inputs, each with the output in
            which the call before left its value; none where it starts anew.
    """

    def __init__(
        self,
        values: Feed,
        name: str,
        labels: Array | None = None,
        follows: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(values)
        self.name = name
        self.labels = labels
        self.follows = follows


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
        return self.gave(self._run(self.given(feed)))

    def given(self, feed: Feed) -> Feed:
        """The next feed as the model gets it, with its own states."""
        if not isinstance(feed, NamedFeed) or not feed.follows:
            return feed
        states = {name: self._last[output] for name, output in feed.follows.items()}
        return NamedFeed({**feed, **states}, feed.name, feed.labels, feed.follows)

    def gave(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Takes the states that the model left, for the feed after this one."""
        self._last = outputs
        return outputs
