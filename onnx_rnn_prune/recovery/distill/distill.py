"""Distillation: trains a cut model to compute what the original computes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.operators.base import Bound, without_cut
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.distill.batches import (
    Augmentation,
    Batch,
    Piece,
    Teacher,
    ahead,
    watch,
    windows,
)
from onnx_rnn_prune.recovery.distill.calls import Calls
from onnx_rnn_prune.recovery.distill.configuration import (
    Answers,
    Loss,
    TrainingConfig,
    TrainingSummary,
)
from onnx_rnn_prune.recovery.distill.network import (
    build,
    find_region,
    labelled_outputs,
    learned_value,
    unshared,
    write_learned,
)
from onnx_rnn_prune.recovery.distill.training import Task, Values, train
from onnx_rnn_prune.trace.bindings import all_bounds
from onnx_rnn_prune.trace.states import state_outputs
from onnx_rnn_prune.trace.trace import Trace

Places = tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class WriteBack:
    """Writes the cut model's constants back to full width; entries of removed units stay as is.

    Attributes:
        trace: the trace of the document at full width.
        keep: per unit, True if kept.
        values: the constants of the cut model, by where they are read (node key, slot).
    """

    trace: Trace
    keep: Mask
    values: Mapping[Places, Array]

    def __call__(self, document: Document) -> bool:
        nodes = nodes_by_key(document.graph)
        bounds = all_bounds(document, self.trace)
        for places, value in self.values.items():
            alike = defaultdict(list)
            for key, slot in places:  # several readers may cut it differently
                labels = b"".join(bound.labels.tobytes() for bound in bounds.get((key, slot), []))
                alike[nodes[key].inputs[slot].name, labels].append((key, slot))
            for group in alike.values():
                key, slot = group[0]
                before = learned_value(nodes[key], slot, document.graph.opset)
                after = scattered(before, bounds.get((key, slot), []), self.keep, value)
                write_learned(document.graph, [(nodes[key], slot) for key, slot in group], after)
        return bool(self.values)


def scattered(before: Array, bounds: Sequence[Bound], keep: Mask, value: Array) -> Array:
    """A constant at full width, with new values in the entries of kept units.

    Cutting an array of indices in the same way tells where each value belongs.
    """
    shapes = [bound.labels.shape for bound in bounds]
    full = np.array(np.broadcast_to(before, np.broadcast_shapes(before.shape, *shapes)))
    places: Array = np.arange(full.size).reshape(full.shape)
    places = without_cut(places, bounds, keep)
    full.reshape(-1)[places.reshape(-1)] = value.astype(full.dtype).reshape(-1)
    return full


# The least variance: that of an output that never changes.
_FLOOR = 1e-12


@dataclass(frozen=True, eq=False)
class Student:
    """The model to train.

    Attributes:
        original: the prepared document at full width.
        trace: its trace.
        keep: per unit, True if kept.
        cut: the cut document, with the initial weights.
    """

    original: Document
    trace: Trace
    keep: Mask
    cut: Document


def distill(
    student: Student,
    feeds: Feeds,
    judge: Callable[[WriteBack], float],
    config: TrainingConfig,
    progress: Progress,
) -> tuple[WriteBack, TrainingSummary]:
    """Trains a cut model to imitate the original.

    Args:
        student: the model.
        feeds: the training data.
        judge: the error of trained weights on other feeds.
        config: settings.
        progress: progress callback.

    Returns:
        The trained weights, and a summary; no weights if none were better than the initial ones.
    """
    region = find_region(student.cut, student.trace.units.lanes, feeds.states)
    states = state_outputs(student.original) | set(feeds.states.values())
    targets = tuple(name for name in region.targets if name not in states) or region.targets
    network = build(student.cut, region)
    places = unshared(student.cut, network)
    teacher = Teacher(student.original, student.trace, student.keep, region, feeds.states)
    loss = config.loss
    labelled = () if loss is None else labelled_outputs(student.original, region)

    def write_back(values: Values) -> WriteBack:
        found = {places[name]: value for name, value in values.items()}
        return WriteBack(student.trace, student.keep, found)

    if feeds.states:
        calls = Calls.of(network, feeds.states, targets, teacher(next(iter(feeds))).given)
        pieces = watch(teacher, feeds, calls.states, targets)
        made = windows(pieces, calls.count, calls.rows, config.seed)
        learning, scales = tuple(filter(calls.may_learn, places)), _scales(pieces, targets)
        task = Task(calls, learning, scales, region.scores, labelled, loss)
    else:
        scales = _scales(map(teacher, feeds), targets)
        augmentation = Augmentation(feeds, signature.inputs(student.original.source), config.seed)
        made = _batches(teacher, augmentation, loss)
        task = Task(network, tuple(places), scales, region.scores, labelled, loss)
    # onnxruntime computes the next batch on another core while PyTorch trains on this one: per step
    # of NSNet2 at 80 of 400 units, the teacher takes 0.20 s and the student 0.19 s.
    with closing(ahead(made)) as batches:
        values, summary = train(
            task, batches, lambda values: judge(write_back(values)), config, progress
        )
    return write_back(values), replace(summary, whole=region.whole, missing=region.missing)


def _batches(teacher: Teacher, augmentation: Augmentation, loss: Loss | None) -> Iterator[Batch]:
    """An endless iterator of batches.

    With a loss on labels, each labelled feed is also a batch of its own, unaugmented: labels do not
    hold for augmented data, and their shape does not tell which of them belong to a crop.
    """
    for made, real in augmentation:
        try:
            batch = teacher(made)
        except PruneError:  # the model may reject augmented feeds
            batch = teacher(real)
        yield batch
        if loss is not None and (answers := Answers.of(real)) is not None:
            yield replace(teacher(real), answers=[((), answers)])


def _scales(shown: Iterable[Batch | Piece], targets: Sequence[str]) -> Mapping[str, float]:
    """The variance of each target over all data."""
    sums = {name: np.zeros(3) for name in targets}
    for each in shown:
        for name in targets:
            values = each.wanted[name].numpy().astype(np.float64)
            sums[name] += values.size, values.sum(), np.square(values).sum()
    return {
        name: max(squares / count - (total / count) ** 2, _FLOOR)
        for name, (count, total, squares) in sums.items()
    }
