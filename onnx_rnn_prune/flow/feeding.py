"""Feeds by what they are for: to fit on, to judge by, to report on, to prove with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx

from onnx_rnn_prune.data import Asked, Feeds, open_feeds, random_feeds, read_asked
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.flow.opening import Opened, runs
from onnx_rnn_prune.learn.loss import Loss
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed
from onnx_rnn_prune.trace.states import state_inputs

# Feeds made up where there is no data; a part of the feeds that is kept from fitting.
_RANDOM_FEEDS = 3
_HELD_OUT = 0.25
_TWO_HELD_OUT = 0.4
_NOTHING: Asked = MappingProxyType({})
# Other sizes to prove on: small ones, and parts of what a model takes that needs long inputs.
_PROOFS = 2
_RESIZINGS: tuple[Callable[[int], int], ...] = (
    lambda size: min(size, 13),
    lambda size: 2 if size == 1 else min(size, 5),
    lambda size: max(1, 3 * size // 4),
    lambda size: max(1, size // 2),
)


@dataclass(frozen=True, eq=False)
class Data:
    """Feeds by what they are for; the three sets share nothing unless `fitting.shared` says so.

    Attributes:
        fitting: what is calibrated on.
        held_out: what candidates are judged by.
        judging: what drift is reported on.
        given: whether the user gave data; made-up feeds calibrate nothing.
        warnings: what the user should know about them.
        loss: of the labels that lie in them, if that is to be looked at.
    """

    fitting: Feeds
    held_out: Feeds
    judging: Feeds
    given: bool
    warnings: tuple[str, ...] = ()
    loss: Loss | None = None


def asked_sizes(data: object, size: object) -> Asked:
    """What the user says of the sizes of made-up feeds, see `data.read_asked`.

    Raises:
        PruneError: it cannot be read, or there are data, which have sizes of their own.
    """
    asked = read_asked(size)
    if asked and data is not None:
        raise PruneError(
            "the sizes are those of --data", where="--size", remedy="leave one of the two out"
        )
    return asked


def made_up(document: Document, run: Callable[[Feed], object], asked: Asked, seed: int) -> Feeds:
    """Feeds for a model where there are no data.

    Raises:
        PruneError: the model runs on no feed that can be made up.
    """
    states = state_inputs(document)
    return random_feeds(document, run, seed=seed, count=_RANDOM_FEEDS, states=states, asked=asked)


def open_data(
    opened: Opened, data: object, eval_data: object, seed: int, asked: Asked = _NOTHING
) -> Data:
    """Opens the user's data, or makes up feeds of the sizes that are asked for.

    Raises:
        PruneError: data cannot be read, or the model does not run on made-up feeds.
    """
    ports = signature.inputs(opened.model)
    states = state_inputs(opened.document)
    if data is None:
        made = made_up(opened.document, opened.run(), asked, seed)
        judging = made if eval_data is None else open_feeds(eval_data, ports, states)
        note = (
            "nothing was calibrated: with --data and some typical inputs, units are chosen by what"
            " they do and the kept ones make up for the removed ones, which loses far less"
        )
        return Data(made, made, judging, given=False, warnings=(note,))
    feeds = open_feeds(data, ports, states)
    fitting, held_out = feeds.split(_HELD_OUT)
    judging = held_out if eval_data is None else open_feeds(eval_data, ports, states)
    notes = []
    if fitting.shared:
        notes.append("there is one feed only: it was fitted on and judged by; give several")
    return Data(fitting, held_out, judging, given=True, warnings=tuple(notes))


def open_three(opened: Opened, data: object, eval_data: object) -> Data:
    """Opens data for a search: what chooses, what selects among candidates, and what is reported.

    Three disjoint sets, unless there are too few feeds: then a warning says what was shared.

    Raises:
        PruneError: data cannot be read.
    """
    ports = signature.inputs(opened.model)
    states = state_inputs(opened.document)
    feeds = open_feeds(data, ports, states)
    if eval_data is None:
        # Of three feeds and more, each set gets one.
        fitting, rest = feeds.split(max(_TWO_HELD_OUT, 2 / max(len(feeds), 3)))
        held_out, judging = rest.split(0.5)
    else:
        fitting, held_out = feeds.split(_HELD_OUT)
        judging = open_feeds(eval_data, ports, states)
    notes = []
    if fitting.shared:
        notes = ["there is one feed only: it was fitted on, selected by and reported on"]
    elif held_out.shared and eval_data is None:
        notes = ["there are two feeds only: one was fitted on, one selected by and reported on"]
    return Data(fitting, held_out, judging, given=True, warnings=tuple(notes))


def proof_feeds(opened: Opened, feeds: Feeds) -> list[Feed]:
    """Feeds to prove on: a real one, and the same in other sizes where the model takes them.

    Raises:
        PruneError: the model does not run on the first feed.
    """
    real = iter(feeds)
    first = next(real)
    run = opened.run()
    run(first)  # what does not suit the original is no fault of what is made of it
    accepts = runs(run)
    found: list[Feed] = [first]
    if feeds.random:  # they are few, and of several sizes
        found += filter(accepts, real)
    for resize in _RESIZINGS:
        other = _resized(opened.model, first, resize)
        if len(found) <= _PROOFS and other is not None and accepts(other):
            found.append(other)
    return found


def _resized(
    model: onnx.ModelProto, feed: Feed, resize: Callable[[int], int]
) -> dict[str, Array] | None:
    """A feed with other sizes on all open axes, entries repeated or left out."""
    result = dict(feed)
    for port in signature.inputs(model):
        value = result.get(port.name)
        if value is None or port.dims is None:
            return None
        for axis, dim in enumerate(port.dims):
            if not isinstance(dim, int):
                size = value.shape[axis]
                value = np.take(value, np.arange(resize(size)) % size, axis=axis)
        result[port.name] = value
    same = all(np.shape(result[name]) == np.shape(feed[name]) for name in feed)
    return None if same else result
