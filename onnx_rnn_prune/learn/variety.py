"""Feeds for training: pieces of sequences side by side, and varied.

The original says what is right for any input, so that a few real sequences can be made into more:
pieces start anywhere, and of integers, which stand for kinds of things, some are replaced by others
that occur. Numbers stay as they are: louder, mixed or suddenly changing signals are what the cut
model has no units to spare for (on a speech denoiser, all three cost more than they gave).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.model.runner import Array, Feed
from onnx_rnn_prune.model.signature import Dim, Port

# Sequences that are learnt side by side, and steps of each that are learnt at a time.
_ROWS = 16
_STEPS = 128
# The largest share of integers that are replaced in a sequence.
_REPLACED = 0.2
# What feeds may take in memory; those that follow are left out.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Axes:
    """Where an input holds sequences, and their steps.

    Attributes:
        batch: the axis along which sequences lie; None where all share one value.
        time: the axis of their steps; None where there is none, or none that may be cut.
    """

    batch: int | None
    time: int | None


Layout = Mapping[str, Axes]


class Variety:
    """As many feeds as are asked for, made of some.

    Args:
        feeds: real ones.
        ports: the model's inputs.
        seed: of all that is drawn.
    """

    def __init__(self, feeds: Iterable[Feed], ports: Sequence[Port], seed: int) -> None:
        self._feeds = _affordable(feeds)
        self._layout = find_axes(ports)
        self._seed = seed

    def __iter__(self) -> Iterator[tuple[Feed, Feed]]:
        """Each made feed, and a real one for where the model does not run on that."""
        rng = np.random.default_rng(self._seed)
        while True:
            for number in rng.permutation(len(self._feeds)):
                feed = self._feeds[number]
                layout = self._layout
                yield feed if layout is None else self._mixed(feed, layout, rng), feed

    def _mixed(self, first: Feed, layout: Layout, rng: np.random.Generator) -> Feed:
        """Pieces of sequences that go with those of a feed."""
        length = _length(first, layout)
        steps = None if length is None else min(length, _STEPS)
        rest = _rest(first, layout)
        fitting = [
            feed
            for feed in self._feeds
            if _rest(feed, layout) == rest and (_length(feed, layout) or 0) >= (steps or 0)
        ]
        pieces = [
            _piece(fitting[rng.integers(len(fitting))], layout, steps, rng) for _ in range(_ROWS)
        ]
        return {
            name: _joined([piece[name] for piece in pieces], axes, rng)
            for name, axes in layout.items()
            if name in first
        }


def find_axes(ports: Sequence[Port]) -> Layout | None:
    """Where inputs hold sequences; None where sequences of several feeds cannot be told to fit."""
    opens = [port.dims[0] for port in ports if port.dims and not isinstance(port.dims[0], int)]
    if not opens:
        return None
    found: dict[str, Axes] = {}
    for port in ports:
        batch = _batch_axis(port, opens[0])
        if port.dims is None or (port.dims and batch is None):
            return None
        others = [n for n, dim in enumerate(port.dims) if not isinstance(dim, int) and n != batch]
        found[port.name] = Axes(batch, others[0] if others else None)
    labels = {port.dims[a.time] for port in ports if port.dims and (a := found[port.name]).time}
    counts = any(len(port.dims or ()) == 1 for port in ports)  # such as lengths of sequences
    if len(labels) > 1 or counts:
        return {name: Axes(axes.batch, None) for name, axes in found.items()}
    return found


def _batch_axis(port: Port, label: Dim) -> int | None:
    if not port.dims:
        return None
    if label is not None and label in port.dims:
        return port.dims.index(label)
    return None if isinstance(port.dims[0], int) else 0


def _affordable(feeds: Iterable[Feed]) -> list[Feed]:
    found: list[Feed] = []
    for feed in feeds:
        found.append(feed)
        if sum(value.nbytes for item in found for value in item.values()) > _MOST_BYTES:
            break
    return found


def _length(feed: Feed, layout: Layout) -> int | None:
    """Steps of a feed's sequences, where they may be cut."""
    for name, axes in layout.items():
        if axes.time is not None and name in feed:
            return int(feed[name].shape[axes.time])
    return None


def _rest(feed: Feed, layout: Layout) -> list[tuple[int, ...]]:
    """The sizes that must be equal for sequences to lie side by side."""
    return [
        tuple(n for axis, n in enumerate(feed[name].shape) if axis not in (axes.batch, axes.time))
        for name, axes in layout.items()
        if name in feed
    ]


def _piece(feed: Feed, layout: Layout, steps: int | None, rng: np.random.Generator) -> Feed:
    """Some steps of one sequence of a feed."""
    name = next(name for name, axes in layout.items() if axes.batch is not None and name in feed)
    row = int(rng.integers(feed[name].shape[layout[name].batch or 0]))
    first = 0 if steps is None else int(rng.integers((_length(feed, layout) or 0) - steps + 1))
    found = {}
    for name, axes in layout.items():
        value = feed[name]
        if axes.batch is not None:
            value = value.take([row], axes.batch)
        if axes.time is not None and steps is not None:
            value = value.take(range(first, first + steps), axes.time)
        found[name] = value
    return found


def _joined(pieces: Sequence[Array], axes: Axes, rng: np.random.Generator) -> Array:
    """Side by side; of integers that go along with the steps, some are replaced by others."""
    if axes.batch is None:
        return pieces[0]
    value: Array = np.concatenate(pieces, axes.batch)
    if axes.time is None or value.dtype.kind not in "iu":
        return value
    shape = [size if axis == axes.batch else 1 for axis, size in enumerate(value.shape)]
    others = rng.permutation(value.reshape(-1)).reshape(value.shape)
    return np.where(rng.random(value.shape) < rng.uniform(0.0, _REPLACED, shape), others, value)
