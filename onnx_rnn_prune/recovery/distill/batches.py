"""Lessons: what a region of the cut model reads, and what the original computes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed, Runner, Streaming
from onnx_rnn_prune.operators.labels import Mask, compress, kept, uniform
from onnx_rnn_prune.recovery.distill.loss import Answers
from onnx_rnn_prune.recovery.distill.network import Tensors, to_torch
from onnx_rnn_prune.recovery.distill.region import Region
from onnx_rnn_prune.trace.bindings import STATES, traced_layers
from onnx_rnn_prune.trace.trace import Trace


@dataclass(frozen=True, eq=False)
class Lesson:
    """One feed, or several side by side, as the original computes it.

    Attributes:
        given: what the region reads.
        wanted: its targets.
        answers: to compare the outputs with besides, each with the place of those.
    """

    given: Tensors
    wanted: Tensors
    answers: Sequence[tuple[tuple[int, ...], Answers]] = ()


class Teacher:
    """The original, which shows what a region of the cut model needs.

    Args:
        document: the prepared model at full width; it is not changed.
        trace: of it.
        keep: per unit, True where it stays.
        region: of the cut model.
        states: in which feeds go on, see `Feeds.states`; it carries its own along.
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

    def __call__(self, feed: Feed) -> Lesson:
        """One lesson."""
        values = self._streaming(feed)
        given, wanted = (
            {name: to_torch(self._narrowed(name, values[name])) for name in names}
            for names in (self._region.given, self._region.targets)
        )
        return Lesson(given, wanted)

    def _run(self, feed: Feed) -> Feed:
        return {**feed, **self._runner(feed)}

    def _narrowed(self, name: str, value: Array) -> Array:
        """Without the entries of cut units."""
        if name not in self._labels:
            return value
        labels, axis = self._labels[name]
        for place in range(labels.ndim):
            if uniform(labels, place):
                labels = labels[(slice(None),) * place + (slice(0, 1),)]
        return compress(value, np.broadcast_to(kept(labels, self._keep), value.shape), axis)
