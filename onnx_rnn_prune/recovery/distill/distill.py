"""From a cut model to a better one that computes more nearly what the original does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.distill.ahead import ahead
from onnx_rnn_prune.recovery.distill.augmentation import Variety
from onnx_rnn_prune.recovery.distill.batches import Lesson, Teacher
from onnx_rnn_prune.recovery.distill.calls import Calls, Piece, watch, windows
from onnx_rnn_prune.recovery.distill.configuration import Course, Learning
from onnx_rnn_prune.recovery.distill.loss import Answers, Loss
from onnx_rnn_prune.recovery.distill.network import build, unshared
from onnx_rnn_prune.recovery.distill.region import find_region, labelled_outputs
from onnx_rnn_prune.recovery.distill.training import Task, Values, train
from onnx_rnn_prune.recovery.distill.write_back import Learnt
from onnx_rnn_prune.trace.states import state_outputs
from onnx_rnn_prune.trace.trace import Trace

# The variance of an output that never changes.
_FLOOR = 1e-12


@dataclass(frozen=True, eq=False)
class Pupil:
    """What is trained.

    Attributes:
        original: the prepared document at full width.
        trace: of it.
        keep: per unit, True where it stays.
        cut: the document that is left, with the weights to start from.
    """

    original: Document
    trace: Trace
    keep: Mask
    cut: Document


def distill(
    pupil: Pupil,
    feeds: Feeds,
    judge: Callable[[Learnt], float],
    course: Course,
    progress: Progress,
) -> tuple[Learnt, Learning]:
    """Trains a cut model.

    Args:
        pupil: the model.
        feeds: what it learns on.
        judge: the error of what was learnt on other feeds.
        course: limits.
        progress: is told how far it is.

    Returns:
        What was learnt, and how it went; nothing where nothing better was found.
    """
    region = find_region(pupil.cut, pupil.trace.units.lanes, feeds.states)
    states = state_outputs(pupil.original) | set(feeds.states.values())
    targets = tuple(name for name in region.targets if name not in states) or region.targets
    network = build(pupil.cut, region)
    places = unshared(pupil.cut, network)
    teacher = Teacher(pupil.original, pupil.trace, pupil.keep, region, feeds.states)
    loss = course.loss
    labelled = () if loss is None else labelled_outputs(pupil.original, region)
    pieces = watch(teacher, feeds) if feeds.states else []
    scales = _scales(pieces or map(teacher, feeds), targets)

    def learnt(values: Values) -> Learnt:
        found = {places[name]: value for name, value in values.items()}
        return Learnt(pupil.trace, pupil.keep, found)

    if pieces:
        calls = Calls.of(network, feeds.states, targets, pieces[0].call(0))
        made = windows(pieces, calls.states, calls.count, calls.rows, course.seed)
        task = Task(calls, tuple(places), scales, region.scores, labelled, loss)
    else:
        variety = Variety(feeds, signature.inputs(pupil.original.source), course.seed)
        made = _lessons(teacher, variety, loss)
        task = Task(network, tuple(places), scales, region.scores, labelled, loss)
    # onnxruntime computes the next lesson on another core while PyTorch learns the last one: of a
    # step of NSNet2 at 80 of 400 units, teaching takes 0.20 s and learning 0.19 s.
    with closing(ahead(made)) as lessons:
        found = train(task, lessons, lambda values: judge(learnt(values)), course, progress)
    return learnt(found.values), Learning(
        whole=region.whole,
        missing=region.missing,
        weights=len(places),
        before=found.before,
        after=found.error,
        steps=found.steps,
        taken=found.taken,
        seconds=found.seconds,
    )


def _lessons(teacher: Teacher, variety: Variety, loss: Loss | None) -> Iterator[Lesson]:
    """As many as are asked for.

    With a loss of labels, a feed that has some is a lesson of its own besides, as it is: they say
    nothing of what was made up, and their shape does not tell which of them go with a piece.
    """
    for made, real in variety:
        try:
            lesson = teacher(made)
        except PruneError:  # what was made up need not suit the model
            lesson = teacher(real)
        yield lesson
        if loss is not None and (answers := Answers.of(real)) is not None:
            yield replace(teacher(real), answers=[((), answers)])


def _scales(shown: Iterable[Lesson | Piece], targets: Sequence[str]) -> Mapping[str, float]:
    """The variance of each target over all that was shown."""
    sums = {name: np.zeros(3) for name in targets}
    for each in shown:
        for name in targets:
            values = each.wanted[name].numpy().astype(np.float64)
            sums[name] += values.size, values.sum(), np.square(values).sum()
    return {
        name: max(squares / count - (total / count) ** 2, _FLOOR)
        for name, (count, total, squares) in sums.items()
    }
