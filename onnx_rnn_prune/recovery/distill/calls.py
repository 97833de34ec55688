"""Calls in a row: each goes on from the states that the cut model itself left in the one before.

Gradients flow through the states that calls of one window pass on; those that a window starts from
are numbers (truncated back-propagation through time, Werbos 1990). Where calls pass on nothing but
states of recurrent layers, all calls of a layer are one run over more steps, and everything else is
computed for all of them at once: of a window of 256 calls of a denoiser, that takes a tenth of the
time. Otherwise a window is computed call by call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.recovery.distill.augmentation import STEPS, WHOLE
from onnx_rnn_prune.recovery.distill.batches import Lesson, Teacher
from onnx_rnn_prune.recovery.distill.joined import Joined, join
from onnx_rnn_prune.recovery.distill.loss import Answers
from onnx_rnn_prune.recovery.distill.network import Network, Tensors

# So many calls of a window are computed one after the other.
_IN_TURN = 64
# Windows that go on from one another, before others take their places.
_WINDOWS = 4
# What all that is learnt from may take in memory; streams that follow are left out.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class Calls:
    """A network that is called in a row.

    Attributes:
        network: one call.
        states: the inputs that it reads in which calls go on, each with the output that they left.
        count: the calls of a window.
        rows: how many windows are computed abreast.
        joined: how all calls are computed at once; None where they are computed in turn.
    """

    network: Network
    states: Mapping[str, str]
    count: int
    rows: int
    joined: Joined | None = None

    @staticmethod
    def of(
        network: Network, states: Mapping[str, str], wanted: Sequence[str], call: Tensors
    ) -> Calls:
        """The way to compute a network's calls.

        Args:
            network: of one call.
            states: inputs in which calls go on, each with the output that the call before left;
                those that the network does not read or leave are given in each call.
            wanted: what is asked for besides the states.
            call: what a call is given.
        """
        made = {name for step in network.steps for name in step.outputs}
        own = {name: output for name, output in states.items() if name in call and output in made}
        joined = join(network, own, wanted)
        if joined is None or not joined.passes_on(call):
            return Calls(network, own, _IN_TURN, 1)
        count = max(1, STEPS // joined.length(call))
        return Calls(network, own, count, WHOLE // STEPS, joined)

    @property
    def constants(self) -> Tensors:
        """Of the network."""
        return self.network.constants

    def __call__(
        self, given: Tensors, weights: Tensors, wanted: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """What some calls compute, and the states that the last one leaves.

        Args:
            given: what calls are given, [calls, rows, ...], and the first states, [rows, ...].
            weights: in place of constants of the same names.
            wanted: names of tensors.

        Returns:
            The wanted tensors, [calls, rows, ...], and the states that are left, [rows, ...], by
            the names of their inputs.
        """
        if self.joined is not None:
            return self.joined(given, weights, wanted)
        count = next(v.shape[1] for name, v in given.items() if name not in self.states)
        rows = [self._row(row, given, weights, wanted) for row in range(count)]
        found = {name: torch.stack([row[name] for row in rows], 1) for name in wanted}
        return {**found, **{name: torch.stack([row[name] for row in rows]) for name in self.states}}

    def _row(
        self, row: int, given: Tensors, weights: Tensors, wanted: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """One row, call by call."""
        state = {name: given[name][row] for name in self.states}
        series = {name: value[:, row] for name, value in given.items() if name not in self.states}
        found: list[dict[str, torch.Tensor]] = []
        names = [*wanted, *self.states.values()]
        for call in range(len(next(iter(series.values())))):
            inputs = {name: value[call] for name, value in series.items()}
            found.append(self.network({**inputs, **state}, weights, names))
            state = {name: found[-1][output] for name, output in self.states.items()}
        return {**{name: torch.stack([call[name] for call in found]) for name in wanted}, **state}


@dataclass(frozen=True, eq=False)
class Piece:
    """Calls of one stream, all of the same sizes, as the original computes them.

    Attributes:
        given: what the region reads in each call, the states before it included, [calls, ...].
        wanted: its targets, [calls, ...].
        answers: by call, to compare its outputs with besides.
    """

    given: Tensors
    wanted: Tensors
    answers: Mapping[int, Answers]

    def __len__(self) -> int:
        return len(next(iter(self.wanted.values())))

    def call(self, number: int) -> Tensors:
        """What one call is given."""
        return {name: value[number] for name, value in self.given.items()}

    @property
    def sizes(self) -> list[torch.Size]:
        """Of what a call is given and what is wanted of it."""
        return [value.shape[1:] for value in (*self.given.values(), *self.wanted.values())]


def watch(teacher: Teacher, feeds: Feeds) -> list[Piece]:
    """What a teacher does on streams, cut where the sizes of calls change."""
    pieces: list[Piece] = []
    calls: list[tuple[Lesson, Answers | None]] = []
    stored, sizes = 0, None
    for feed in feeds:
        if not feed.follows and stored > _MOST_BYTES:
            break
        lesson = teacher(feed)
        values = [*lesson.given.values(), *lesson.wanted.values()]
        now = [value.shape for value in values]
        if calls and (not feed.follows or now != sizes):
            pieces.append(_piece(calls))
            calls = []
        sizes = now
        calls.append((lesson, Answers.of(feed)))
        stored += sum(value.nbytes for value in values)
    return [*pieces, _piece(calls)]


def windows(
    pieces: Sequence[Piece], states: Iterable[str], calls: int, rows: int, seed: int
) -> Iterator[Lesson]:
    """Lessons without end.

    Args:
        pieces: to learn from.
        states: inputs in which a window goes on from the one before; only where that is of other
            calls, it is given what it starts from: what the original has there.
        calls: of a window, about.
        rows: how many pieces lie abreast.
        seed: of what is drawn.
    """
    rng, states = np.random.default_rng(seed), frozenset(states)
    while True:
        for number in rng.permutation(len(pieces)):
            first = pieces[number]
            fit = [p for p in pieces if len(p) >= len(first) and p.sizes == first.sizes]
            others = [fit[n] for n in rng.integers(len(fit), size=rows - 1)]
            length = min(len(first), _WINDOWS * calls)
            starts = [int(rng.integers(len(p) - length + 1)) for p in (first, *others)]
            bounds = np.linspace(0, length, -(-length // calls) + 1).astype(int).tolist()
            for begin, end in pairwise(bounds):
                spans = [
                    (p, at + begin, at + end)
                    for p, at in zip((first, *others), starts, strict=True)
                ]
                yield _window(spans, states, begin == 0)


def _window(spans: Sequence[tuple[Piece, int, int]], states: frozenset[str], anew: bool) -> Lesson:
    """Parts of pieces abreast, [calls, rows, ...]; the answers are those of the first row."""
    piece, begin, end = spans[0]
    given = {
        name: torch.stack([p.given[name][b:e] for p, b, e in spans], 1)
        for name in piece.given
        if name not in states
    }
    if anew:
        given |= {name: torch.stack([p.given[name][b] for p, b, _ in spans]) for name in states}
    wanted = {n: torch.stack([p.wanted[n][b:e] for p, b, e in spans], 1) for n in piece.wanted}
    answers = [((n - begin, 0), piece.answers[n]) for n in range(begin, end) if n in piece.answers]
    return Lesson(given, wanted, answers)


def _piece(calls: Sequence[tuple[Lesson, Answers | None]]) -> Piece:
    lessons = [lesson for lesson, _ in calls]
    given, wanted = (
        {name: torch.stack([side[name] for side in sides]) for name in sides[0]}
        for sides in ([each.given for each in lessons], [each.wanted for each in lessons])
    )
    return Piece(given, wanted, {n: a for n, (_, a) in enumerate(calls) if a is not None})
