"""What two models make of the same feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Array, Feed, Runner, Streaming

# What outputs of feeds that come again may take in memory.
_MOST_BYTES = 1 << 24


class Called(Protocol):
    """What is called with feeds: a `Runner`, or what stands in front of one."""

    name: str
    outputs: list[str]

    def __call__(self, feed: Feed) -> Mapping[str, Array]:
        """Runs one feed."""

    def ready(self, feed: Feed) -> Feed:
        """A feed as it is run, which may take time that is not the model's."""


@dataclass(frozen=True, eq=False)
class Result:
    """What two models make of one feed.

    Attributes:
        feed: the inputs.
        labels: the right answers, where they are known.
        wanted: outputs of the original.
        found: those of the other model.
    """

    feed: Feed
    labels: Array | None
    wanted: Mapping[str, Array]
    found: Mapping[str, Array]

    @property
    def follows(self) -> bool:
        """Whether the feed goes on from the one before."""
        return bool(getattr(self.feed, "follows", None))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a model makes of some feeds beside the original, as often as it is asked for.

    Attributes:
        results: starts a run through the feeds.
        run: runs the model on a feed of the caller's, whose states the caller carries.
    """

    results: Callable[[], Iterator[Result]]
    run: Callable[[object], dict[str, Array]]

    def __iter__(self) -> Iterator[Result]:
        return self.results()


class Recorded:
    """A model that runs each feed once, as long as what it made of them fits into memory.

    Attributes:
        runner: the model.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._kept: dict[str, Mapping[str, Array]] = {}
        self._bytes = 0
        self.name, self.outputs = runner.name, runner.outputs

    def ready(self, feed: Feed) -> Feed:
        """The feed itself."""
        return feed

    def __call__(self, feed: Feed) -> Mapping[str, Array]:
        """All outputs; feeds without a name are not known again."""
        name = str(getattr(feed, "name", ""))
        if name in self._kept:
            return self._kept[name]
        found = self.runner(feed)
        size = sum(int(getattr(value, "nbytes", _MOST_BYTES)) for value in found.values())
        if name and self._bytes + size <= _MOST_BYTES:
            self._kept[name] = found
            self._bytes += size
        return found


def results(a: Called, b: Called, feeds: Iterable[Feed]) -> Iterator[Result]:
    """Runs both models on one feed after the other, each with its own states carried along.

    Raises:
        PruneError: they have different outputs.
    """
    if set(a.outputs) != set(b.outputs):
        raise PruneError(
            f"their outputs are {', '.join(a.outputs)} and {', '.join(b.outputs)}",
            where=f"{a.name} and {b.name}",
            remedy="compare models with the same outputs",
        )
    one, other = Streaming(a), Streaming(b)
    for feed in feeds:
        yield Result(feed, getattr(feed, "labels", None), one(feed), other(feed))
