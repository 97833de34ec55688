"""Mini-batches: inputs of a region of the cut model, with the original's outputs as targets.

The original (teacher) can label any input, so a few real sequences are augmented: crops start at
random steps, and some integers, which encode categories, are swapped for others that occur. Floats
are left as they are: the cut model has no capacity to spare for louder, mixed or abruptly changing
signals (on a speech denoiser, all three did more harm than good).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed, Runner, Streaming
from onnx_rnn_prune.model.signature import Dim, Port
from onnx_rnn_prune.operators.labels import Mask, compress, kept, uniform
from onnx_rnn_prune.recovery.distill.configuration import Answers
from onnx_rnn_prune.recovery.distill.network import Region, Tensors, to_torch
from onnx_rnn_prune.trace.bindings import STATES, traced_layers
from onnx_rnn_prune.trace.trace import Trace


@dataclass(frozen=True, eq=False)
class Batch:
    """A mini-batch: one feed or several side by side, with targets from the original.

    Attributes:
        given: the region's inputs.
        wanted: its targets.
        answers: labels to compare outputs with as well, each with the index of those outputs.
    """

    given: Tensors
    wanted: Tensors
    answers: Sequence[tuple[tuple[int, ...], Answers]] = ()


class Teacher:
    """The original, which computes inputs and targets for a region of the cut model.

    Args:
        document: the prepared model at full width; not modified.
        trace: its trace.
        keep: per unit, True if kept.
        region: the region of the cut model.
        states: see `Feeds.states`; the teacher carries its own from feed to feed.
    """

    def __init__(
        self,
        document: Document,
        trace: Trace,
        keep: Mask,
        region: Region,
        states: Mapping[str, str],
    ) -> None:
        fed = {tensor.name for tensor in document.graph.inputs}
        self._region, self._keep = region, keep
        self._labels = {name: (trace.labels[name], axis) for name, axis in trace.axes.items()}
        for layer in traced_layers(document, trace):
            starts = [layer.input(name) for name in STATES]
            lanes = trace.units.lanes[layer.name][:, None, :]  # [D, B, H]
            self._labels.update((start.name, (lanes, 2)) for start in starts if start is not None)
        names = dict.fromkeys([*region.given, *region.targets, *states.values()])
        self._runner = Runner(
            document, outputs=[name for name in names if name not in fed], optimize=False
        )
        self._streaming = Streaming(self._run)

    def __call__(self, feed: Feed) -> Batch:
        """The batch made from one feed."""
        values = self._streaming(feed)
        given, wanted = (
            {name: to_torch(self._narrowed(name, values[name])) for name in names}
            for names in (self._region.given, self._region.targets)
        )
        return Batch(given, wanted)

    def _run(self, feed: Feed) -> Feed:
        return {**feed, **self._runner(feed)}

    def _narrowed(self, name: str, value: Array) -> Array:
        """A tensor without the entries of removed units."""
        if name not in self._labels:
            return value
        labels, axis = self._labels[name]
        for place in range(labels.ndim):
            if uniform(labels, place):
                labels = labels[(slice(None),) * place + (slice(0, 1),)]
        return compress(value, np.broadcast_to(kept(labels, self._keep), value.shape), axis)


# Limits of a batch: total steps, steps per sequence, and sequences. Crops start from zero states,
# which real sequences soon leave behind: 600 batches of NSNet2 at 80 of 400 units led to a gain
# RMSE of 0.070 on other recordings with crops of 128 steps, and of 0.067 with 256. Short sequences
# allow more rows: with 256 instead of 32, a splitter of domain names improved from an error of
# 0.169 to 0.167 in 3 minutes instead of not at all.
_WHOLE = 2048
_STEPS = 256
_ROWS = 256
# Input entries in a batch in total; keeps batches of images small.
_NUMBERS = 1 << 19
# The largest share of integers replaced in a sequence.
_REPLACED = 0.2
# Bytes of feeds held in memory; further feeds are skipped.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Axes:
    """The batch and time axes of an input.

    Attributes:
        batch: the batch axis; None if all sequences share one value.
        time: the time axis; None if there is none, or none that may be cropped.
    """

    batch: int | None
    time: int | None


Layout = Mapping[str, Axes]


class Augmentation:
    """An endless iterable of augmented feeds.

    Args:
        feeds: the real feeds.
        ports: the model's inputs.
        seed: random seed.
    """

    def __init__(self, feeds: Iterable[Feed], ports: Sequence[Port], seed: int) -> None:
        self._feeds = _affordable(feeds)
        self._layout = find_axes(ports, self._feeds)
        self._seed = seed

    def __iter__(self) -> Iterator[tuple[Feed, Feed]]:
        """Augmented feeds, each with a real one to fall back on if the model rejects it."""
        rng = np.random.default_rng(self._seed)
        while True:
            for number in rng.permutation(len(self._feeds)):
                feed = self._feeds[number]
                layout = self._layout
                yield feed if layout is None else self._mixed(feed, layout, rng), feed

    def _mixed(self, first: Feed, layout: Layout, rng: np.random.Generator) -> Feed:
        """A batch of crops: of the given feed, and of others that match it in shape."""
        length = _length(first, layout)
        steps = None if length is None else min(length, _STEPS)
        rest = _rest(first, layout)
        numbers = (steps or 1) * sum(map(math.prod, rest))
        rows = max(1, min(_ROWS, _WHOLE // max(1, steps or 1), _NUMBERS // max(1, numbers)))
        fitting = [
            feed
            for feed in self._feeds
            if _rest(feed, layout) == rest and (_length(feed, layout) or 0) >= (steps or 0)
        ]
        pieces = [
            _piece(fitting[rng.integers(len(fitting))], layout, steps, rng) for _ in range(rows)
        ]
        return {
            name: _joined([piece[name] for piece in pieces], axes, rng)
            for name, axes in layout.items()
            if name in first
        }


def find_axes(ports: Sequence[Port], feeds: Sequence[Feed]) -> Layout | None:
    """The batch and time axes of all inputs; None if feeds may not fit into one batch.

    Args:
        ports: the model's inputs.
        feeds: real feeds, which show which inputs count steps.
    """
    opens = [port.dims[0] for port in ports if port.dims and not isinstance(port.dims[0], int)]
    named = [dim for port in ports for dim in port.dims or () if "batch" in str(dim).lower()]
    if not opens and not named:
        return None
    label = [*named, *opens][0]
    found: dict[str, Axes] = {}
    for port in ports:
        batch = _batch_axis(port, label)
        if port.dims is None or (port.dims and batch is None):
            return None
        others = [n for n, dim in enumerate(port.dims) if not isinstance(dim, int) and n != batch]
        found[port.name] = Axes(batch, others[0] if others else None)
    times = {port.name: found[port.name].time for port in ports}
    labels = {port.dims[t] for port in ports if port.dims and (t := times[port.name]) is not None}
    single = [port.name for port in ports if len(port.dims or ()) == 1]
    if len(labels) > 1 or not all(_counts_steps(name, found, feeds) for name in single):
        return {name: Axes(axes.batch, None) for name, axes in found.items()}
    return found


def _counts_steps(name: str, layout: Layout, feeds: Sequence[Feed]) -> bool:
    """Whether an input with one number per sequence holds the sequence lengths."""
    return all(
        name in feed and feed[name].size and feed[name].max() == _length(feed, layout)
        for feed in feeds
    )


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
    """The number of steps of a feed's sequences; None if they may not be cropped."""
    for name, axes in layout.items():
        if axes.time is not None and name in feed:
            return int(feed[name].shape[axes.time])
    return None


def _rest(feed: Feed, layout: Layout) -> list[tuple[int, ...]]:
    """The sizes that must match for sequences to share a batch."""
    return [
        tuple(n for axis, n in enumerate(feed[name].shape) if axis not in (axes.batch, axes.time))
        for name, axes in layout.items()
        if name in feed
    ]


def _piece(feed: Feed, layout: Layout, steps: int | None, rng: np.random.Generator) -> Feed:
    """A random crop of one sequence of a feed."""
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
        elif steps is not None and value.ndim == 1:  # sequence lengths
            value = np.clip(value - first, 1, steps)
        found[name] = value
    return found


def _joined(pieces: Sequence[Array], axes: Axes, rng: np.random.Generator) -> Array:
    """Crops stacked along the batch axis; some integers with a time axis are swapped for others."""
    if axes.batch is None:
        return pieces[0]
    value: Array = np.concatenate(pieces, axes.batch)
    if axes.time is None or value.dtype.kind not in "iu":
        return value
    shape = [size if axis == axes.batch else 1 for axis, size in enumerate(value.shape)]
    others = rng.permutation(value.reshape(-1)).reshape(value.shape)
    return np.where(rng.random(value.shape) < rng.uniform(0.0, _REPLACED, shape), others, value)


# Consecutive windows of a stream before others take their places.
_WINDOWS = 4
# Windows start at multiples of this many calls, so only the states there are kept: for a denoiser
# with as many states as inputs and outputs, that halves the memory.
APART = 16
# Bytes of training data; further streams are skipped. For DTLN that is an hour of speech; it
# overfitted to a quarter of that.
_MOST_STREAM_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive calls of one stream with equal shapes, as the original computes them.

    Attributes:
        given: the region's inputs, [calls, ...].
        starts: the states at possible window starts, [calls / APART, ...].
        wanted: targets, [calls, ...].
        answers: labels to compare outputs with as well, by call.
    """

    given: Tensors
    starts: Tensors
    wanted: Tensors
    answers: Mapping[int, Answers]

    @staticmethod
    def of(
        calls: Sequence[tuple[Batch, Answers | None]],
        states: frozenset[str],
        targets: Sequence[str],
    ) -> Piece:
        """Stacks a teacher's calls; `states` are the inputs carried from window to window."""
        given = [batch.given for batch, _ in calls]
        return Piece(
            _stacked(given, given[0].keys() - states),
            _stacked(given[::APART], states),
            _stacked([batch.wanted for batch, _ in calls], targets),
            {n: a for n, (_, a) in enumerate(calls) if a is not None},
        )

    def __len__(self) -> int:
        return len(next(iter(self.wanted.values())))

    @property
    def nbytes(self) -> int:
        """The size of all its tensors."""
        parts = (self.given, self.starts, self.wanted)
        return sum(value.nbytes for part in parts for value in part.values())

    @property
    def sizes(self) -> list[torch.Size]:
        """The shapes of one call's inputs and targets."""
        values = (*self.given.values(), *self.starts.values(), *self.wanted.values())
        return [value.shape[1:] for value in values]


def watch(
    teacher: Teacher, feeds: Feeds, states: Iterable[str], targets: Sequence[str]
) -> list[Piece]:
    """Runs a teacher on streams; returns its calls, split where their shapes change.

    Args:
        teacher: the original.
        feeds: streams.
        states: the inputs carried from window to window.
        targets: names of the targets.
    """
    states = frozenset(states)
    pieces: list[Piece] = []
    calls: list[tuple[Batch, Answers | None]] = []
    held, sizes = 0, None
    for feed in feeds:
        batch = teacher(feed)
        now = [value.shape for value in (*batch.given.values(), *batch.wanted.values())]
        if calls and (not feed.follows or now != sizes):
            pieces.append(Piece.of(calls, states, targets))
            held, calls = held + pieces[-1].nbytes, []
            if not feed.follows and held > _MOST_STREAM_BYTES:
                return pieces
        sizes = now
        calls.append((batch, Answers.of(feed)))
    return [*pieces, Piece.of(calls, states, targets)]


def windows(pieces: Sequence[Piece], calls: int, rows: int, seed: int) -> Iterator[Batch]:
    """An endless iterator of windows, each a batch.

    A window continues from the states that the previous one left; if that was elsewhere, it starts
    from the original's states.

    Args:
        pieces: the training data.
        calls: approximate number of calls per window.
        rows: batch size.
        seed: random seed.
    """
    rng = np.random.default_rng(seed)
    while True:
        for number in rng.permutation(len(pieces)):
            first = pieces[number]
            fit = [p for p in pieces if len(p) >= len(first) and p.sizes == first.sizes]
            others = [fit[n] for n in rng.integers(len(fit), size=rows - 1)]
            length = min(len(first), _WINDOWS * calls)
            starts = [
                APART * int(rng.integers((len(p) - length) // APART + 1)) for p in (first, *others)
            ]
            bounds = np.linspace(0, length, -(-length // calls) + 1).astype(int).tolist()
            for begin, end in pairwise(bounds):
                spans = [
                    (p, at + begin, at + end)
                    for p, at in zip((first, *others), starts, strict=True)
                ]
                yield _window(spans, begin == 0)


def _window(spans: Sequence[tuple[Piece, int, int]], anew: bool) -> Batch:
    """Stacks spans of pieces, [calls, rows, ...]; labels are those of the first row only."""
    piece, begin, end = spans[0]
    given = {n: torch.stack([p.given[n][b:e] for p, b, e in spans], 1) for n in piece.given}
    if anew:
        for name in piece.starts:
            given[name] = torch.stack([p.starts[name][b // APART] for p, b, _ in spans])
    wanted = {n: torch.stack([p.wanted[n][b:e] for p, b, e in spans], 1) for n in piece.wanted}
    answers = [((n - begin, 0), piece.answers[n]) for n in range(begin, end) if n in piece.answers]
    return Batch(given, wanted, answers)


def _stacked(calls: Sequence[Tensors], names: Iterable[str]) -> Tensors:
    return {name: torch.stack([call[name] for call in calls]) for name in sorted(names)}


Item = TypeVar("Item")


def ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Prefetches an iterable: each item is made in another thread while the previous one is used.

    Items are made one at a time, so they and their order stay the same. An exception is raised
    where its item would have been yielded. Closing waits for the item in progress and leaves no
    thread behind.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item  # type: ignore[misc]
