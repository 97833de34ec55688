"""Collects calibration evidence: the moments of all signals that units enter."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.gates import GateReader
from onnx_rnn_prune.evidence.matrices import LARGE, Matrix
from onnx_rnn_prune.evidence.moments import MomentStore
from onnx_rnn_prune.evidence.readers import Lookup, Reader, Taps
from onnx_rnn_prune.evidence.runs import Runs
from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import fresh_name, replace_constant
from onnx_rnn_prune.model.intermediate import intermediate_outputs
from onnx_rnn_prune.model.runner import Array, Feed, Runner, Streaming
from onnx_rnn_prune.model.scratch import trim
from onnx_rnn_prune.model.walk import tensors_of
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.trace.trace import Trace

# Samples enough for the emphasis of a reader's outputs: it is a mean of squares, and takes longer
# to compute than everything else.
_ENOUGH = 20_000
SAMPLES = 64
"""Samples per entry of a signal that are enough for a fit."""
# Streams run to measure how many samples a stream has.
_PROBES = 8


Seen = dict[str, list[Any]]
"""By tensor, its values in order, one for each time it was computed; arrays or array-likes."""


def let_go(seen: Seen) -> None:
    """Frees the tensors of one feed before the next one runs."""
    size = sum(getattr(value, "nbytes", 0) for values in seen.values() for value in values)
    seen.clear()
    if size > LARGE:
        trim()


def _hold_constants(document: Document, layer: Layer) -> None:
    """Folds weights that nodes assemble, so that they are not computed for every feed."""
    for slot, tensor in enumerate(layer.node.inputs):
        if tensor.name and not isinstance(tensor, gs.Constant):
            value = constant_value(tensor, document.graph.opset)
            if value is not None:
                replace_constant(document.graph, layer.node, slot, value)


class Tapped:
    """Runs a document and returns the signals of its readers.

    Args:
        document: not modified.
        readers: readers whose signals are wanted.
        states: see `Feeds.states`; the document carries its own from feed to feed.
        runs: cached results, so that each feed runs once; None not to cache.
    """

    def __init__(
        self,
        document: Document,
        readers: Sequence[Reader],
        states: Mapping[str, str],
        runs: Runs | None = None,
    ) -> None:
        self._document = document.copy()
        for layer in find_layers(self._document.graph):
            _hold_constants(self._document, layer)
            if layer.output("Y") is None:
                name = fresh_name(self._document.graph, f"{layer.name}_Y")
                layer.node.name = layer.name
                if layer.node.outputs:
                    layer.node.outputs[0] = gs.Variable(name)
        graph = self._document.graph
        self.lookup = Lookup.of(self._document)
        self._widths = {reader.name: sum(reader.widths(self.lookup)) for reader in readers}
        self._taps = {reader.name: reader.taps(self.lookup) for reader in readers}
        taps = {tap for names in self._taps.values() for tap in names}
        fed = {tensor.name for tensor in graph.inputs}
        constants = {t.name for t in tensors_of(graph) if isinstance(t, gs.Constant)}
        self._fed = sorted(taps & fed)
        self._shown = intermediate_outputs(
            self._document, sorted(taps - fed - constants), np.float32
        )
        self._outputs = {*self._shown.outputs, *states.values()}
        self._runs = runs
        self._streaming = Streaming(self._run, set(states.values()))

    def __call__(self, feed: Feed) -> Seen:
        """Runs one feed; returns the tapped tensors, each with one value per computation."""
        values = self._streaming(feed)
        return self._shown.calls(values) | {name: [values[name]] for name in self._fed}

    def _run(self, feed: Feed) -> dict[str, npt.ArrayLike]:
        found = self._runs(feed, self._outputs, self._ask) if self._runs else self._ask(feed)
        return {**{name: feed[name] for name in self._fed}, **found}

    def _ask(self, feed: Feed) -> dict[str, Array]:
        return self._runner(feed)

    @cached_property
    def _runner(self) -> Runner:
        """The session, loaded on first use."""
        return Runner(self._document, outputs=sorted(self._outputs), optimize=False)

    def emphasis(self, reader: Reader, seen: Seen) -> Matrix:
        """How much errors in a reader's outputs matter, [outputs]."""
        found = [reader.emphasis(self.lookup, taps) for taps in self.calls(reader, seen)]
        return np.mean(found, axis=0) if found else np.zeros(len(reader.outputs(self.lookup)))

    def importance(self, reader: Reader, seen: Seen, emphasis: Matrix) -> Matrix | None:
        """How much errors in each sample of a reader matter, [N]; None if all matter the same."""
        calls = self.calls(reader, seen)
        found = [reader.importance(self.lookup, taps, emphasis) for taps in calls]
        known = [each for each in found if each is not None]
        return np.concatenate(known) if known else None

    def signal(self, reader: Reader, seen: Seen) -> Array:
        """The signal of a reader, [N, n]; N is 0 if its branch was not taken.

        Raises:
            PruneError: its width does not match the weight; only the nodes before it have run.
        """
        width = self._widths[reader.name]
        found = [reader.signal(self.lookup, taps) for taps in self.calls(reader, seen)]
        for signal in found:
            if signal.shape[1] != width:
                raise PruneError(
                    f"{reader.name.partition('#')[0]} gets {signal.shape[1]} values, but its weight"
                    f" takes {width}",
                    where="calibration",
                    remedy="give data on which the model runs",
                )
        return np.concatenate(found) if found else np.zeros((0, width))

    def calls(self, reader: Reader, seen: Seen) -> Iterator[Taps]:
        """A reader's tensors for each time it ran; those outside of its subgraph stay the same."""
        names = [name for name in self._taps[reader.name] if name in seen]
        inside = [len(seen[name]) for name in names if self._is_inside(name)]
        for call in range(min(inside, default=1)):
            shown = {name: seen[name][call if self._is_inside(name) else 0] for name in names}
            yield {name: np.asarray(value) for name, value in shown.items()}

    def _is_inside(self, name: str) -> bool:
        return name in self._shown.inner


@dataclass(frozen=True)
class Sampling:
    """The part of the data that is used: some streams, and some rows of each signal.

    Attributes:
        streams: indices of the streams.
        shares: the share of the rows, by reader's pool.
    """

    streams: tuple[int, ...]
    shares: Mapping[str, float]

    @staticmethod
    def whole(feeds: Feeds, readers: Sequence[Reader]) -> Sampling:
        """All of the data."""
        return Sampling(tuple(range(feeds.streams)), {reader.pool: 1.0 for reader in readers})

    def rows(self, pool: str, count: int, number: int) -> slice | npt.NDArray[np.int64]:
        """The rows of a signal that are used: a random draw, the same one each time.

        Args:
            pool: the reader's pool.
            count: number of rows of the signal.
            number: index of the feed; each feed has its own draw.
        """
        left = math.ceil(self.shares[pool] * count)
        return slice(None) if left >= count else _drawn(count, left, number)


@lru_cache(maxsize=64)  # signals of several readers have the same number of rows
def _drawn(count: int, left: int, number: int) -> npt.NDArray[np.int64]:
    return np.sort(np.random.default_rng([count, number]).choice(count, left, replace=False))


@dataclass(frozen=True, eq=False)
class Evidence:
    """Results of calibration.

    Attributes:
        moments: moments of the signal, by reader's pool.
        emphasis: weights of squared errors in each output, by reader's pool.
        activity: mean absolute state, per unit.
        sampling: the part of the data that was used.
        seconds: time taken.
        runs: cached results of the document.
    """

    moments: MomentStore
    emphasis: Mapping[str, Matrix]
    activity: Matrix
    sampling: Sampling
    seconds: float
    runs: Runs


@dataclass(frozen=True, eq=False)
class Tally:
    """Sums over feeds; tallies of parts of the data merge into one of the whole.

    Attributes:
        moments: moments of the signal, by reader's pool.
        emphasis: sums of the weights of squared errors in each output, by reader's pool.
        weighed: number of feeds in that sum, by reader's pool.
        absolute: sum of absolute states, per unit.
        samples: number of states, per unit.
        sampling: the part of the data that was used.
        seconds: time taken.
    """

    moments: MomentStore
    emphasis: Mapping[str, Matrix]
    weighed: Mapping[str, int]
    absolute: Matrix
    samples: Matrix
    sampling: Sampling
    seconds: float

    def merge(self, other: Tally) -> Tally:
        """The sums over both; consumes the moments of both.

        Rounding makes the result depend on the order in which parts are merged.
        """
        self.moments.merge(other.moments)
        return Tally(
            moments=self.moments,
            emphasis={name: own + other.emphasis[name] for name, own in self.emphasis.items()},
            weighed={name: own + other.weighed[name] for name, own in self.weighed.items()},
            absolute=self.absolute + other.absolute,
            samples=self.samples + other.samples,
            sampling=replace(self.sampling, streams=self.sampling.streams + other.sampling.streams),
            seconds=self.seconds + other.seconds,
        )

    def evidence(self, runs: Runs | None = None) -> Evidence:
        """Turns the sums into evidence."""
        emphasis = {name: total / self.weighed[name] for name, total in self.emphasis.items()}
        activity = self.absolute / np.maximum(self.samples, 1)
        return Evidence(
            self.moments, emphasis, activity, self.sampling, self.seconds, runs or Runs()
        )


def collect(
    document: Document,
    trace: Trace,
    readers: Sequence[Reader],
    feeds: Feeds,
    progress: Progress,
) -> Evidence:
    """Collects evidence: runs each feed needed once (see `needed`), one in memory at a time."""
    runs = Runs()
    sampling = needed(document, readers, feeds, runs)
    return tally(document, trace, readers, feeds, sampling, progress, runs).evidence(runs)


def needed(
    document: Document, readers: Sequence[Reader], feeds: Feeds, runs: Runs | None = None
) -> Sampling:
    """The part of the data to calibrate on: all, unless that is far more than needed.

    64 n samples, but at least 20,000, are enough for the moments of a signal with n entries: more
    take longer and change fits by noise only. The number of samples per stream is measured on
    a few streams. As many streams are run as the most demanding reader needs; the others use part
    of the rows, which is more informative than all rows of fewer streams. Both are random draws,
    the same each time.
    """
    drawn = np.random.default_rng(feeds.streams).permutation(feeds.streams)
    if len(drawn) <= 4 * _PROBES:
        return Sampling.whole(feeds, readers)
    tapped = Tapped(document, readers, feeds.states, runs)
    counts: Counter[str] = Counter()
    for feed in feeds.take(drawn[:_PROBES].tolist()):
        taps = tapped(feed)
        for reader in readers:
            counts[reader.pool] += len(tapped.signal(reader, taps))
    wanted = {
        reader.pool: _PROBES
        * max(SAMPLES * len(reader.labels), _ENOUGH)
        / max(counts[reader.pool], 1)
        for reader in readers
    }
    most = math.ceil(max(wanted.values(), default=_PROBES))
    chosen = sorted(drawn[:most].tolist())
    shares = {pool: min(1.0, streams / len(chosen)) for pool, streams in wanted.items()}
    return Sampling(tuple(chosen), shares)


def tally(
    document: Document,
    trace: Trace,
    readers: Sequence[Reader],
    feeds: Feeds,
    sampling: Sampling,
    progress: Progress,
    runs: Runs | None = None,
) -> Tally:
    """Runs feeds and returns the sums from which evidence is made.

    Args:
        document: not modified.
        trace: its trace.
        readers: readers of its units.
        feeds: the calibration set.
        sampling: the part of it to use.
        progress: progress callback.
        runs: cached results of the document.
    """
    feeds = feeds.take(sampling.streams)
    begun, tapped = time.monotonic(), Tapped(document, readers, feeds.states, runs)
    moments = MomentStore()
    emphasis: dict[str, Matrix] = {}
    weighed: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    absolute = np.zeros(trace.units.count)
    samples = np.zeros(trace.units.count)
    stateful = np.zeros(max(trace.units.count, 1), dtype=bool)
    for reader in readers:  # layers that read their own states show units best
        if isinstance(reader, GateReader):
            stateful[reader.lane[reader.lane >= 0]] = True
    total = len(feeds)
    for number, feed in enumerate(feeds):
        progress("calibrating", number, total)
        taps = tapped(feed)
        few = {reader.pool for reader in readers if seen[reader.pool] < _ENOUGH}
        weighed.update(few)
        for reader in readers:
            signal = tapped.signal(reader, taps)
            seen[reader.pool] += len(signal)
            signal = signal[sampling.rows(reader.pool, len(signal), number)]
            moments.gather(reader.pool, signal)
            if reader.pool in few:
                found = tapped.emphasis(reader, taps)
                emphasis[reader.pool] = emphasis.get(reader.pool, 0.0) + found
            shown = isinstance(reader, GateReader) and reader.sources[-1] == "H"
            units = (reader.labels >= 0) & (shown | ~stateful[reader.labels])
            if units.any():
                labels, sums = reader.labels[units], np.abs(signal).sum(axis=0)[units]
                absolute += np.bincount(labels, sums, minlength=len(absolute))
                samples += len(signal) * np.bincount(labels, minlength=len(samples))
        let_go(taps)
    progress("calibrating", total, total)
    seconds = time.monotonic() - begun
    return Tally(moments, emphasis, weighed, absolute, samples, sampling, seconds)
