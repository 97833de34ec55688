"""Calibration, validation and test sets of a model, and evidence from calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import onnx

from onnx_rnn_prune.data import Feeds, open_feeds, random_feeds
from onnx_rnn_prune.data.streams import Streams, as_streams, possible_pairs
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.evidence import Evidence, collect
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed, Runner, runs
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.progress import Progress, silent
from onnx_rnn_prune.recovery.distill.configuration import Loss, read_loss, require_torch
from onnx_rnn_prune.trace.states import known_states, plain_outputs, state_inputs
from onnx_rnn_prune.traced_model import TracedModel

# The number of random feeds without data; the shares of feeds kept from calibration.
_RANDOM_FEEDS = 3
_VALIDATION = 0.25
_VALIDATION_AND_TEST = 0.4
# The largest validation set: enough to tell candidates apart; more feeds are better spent on
# calibration. Of an hour of calls of a denoiser, that is a twentieth.
_MOST_VALIDATION = 20_000
# A search keeps limits with a margin of one standard error, which is large and uncertain with few
# streams: up to half of all are kept from calibration, until there are this many to validate on.
_JUDGES = 16
# Other input sizes to prove on: small ones, and fractions for models that need long inputs.
_PROOFS = 2
_RESIZINGS: tuple[Callable[[int], int], ...] = (
    lambda size: min(size, 13),
    lambda size: 2 if size == 1 else min(size, 5),
    lambda size: max(1, 3 * size // 4),
    lambda size: max(1, size // 2),
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration, validation and test sets; disjoint unless `calibration.shared` says otherwise.

    Attributes:
        calibration: feeds to fit on.
        validation: feeds to judge candidates on.
        test: feeds to report drift on.
        given: whether the user gave data; random feeds are not used for calibration.
        warnings: for the user.
        loss: loss on their labels, if used.
        streams: see `stream_row`.
    """

    calibration: Feeds
    validation: Feeds
    test: Feeds
    given: bool
    warnings: tuple[str, ...] = ()
    loss: Loss | None = None
    streams: Streams | None = None

    @property
    def tested(self) -> bool:
        """Whether drift is reported on feeds that no candidate was judged on."""
        return self.test is not self.validation and not self.validation.shared

    @property
    def count(self) -> int:
        """The number of calibration and validation feeds."""
        return len(self.calibration) + (0 if self.calibration.shared else len(self.validation))

    def evidence(self, traced: TracedModel, progress: Progress = silent) -> Evidence | None:
        """The evidence of the calibration feeds, collected once; None if they are random."""
        feeds, known = self.calibration, traced.evidence
        if self.given and feeds not in known:
            known[feeds] = collect(traced.document, traced.trace, traced.readers, feeds, progress)
        return known.get(feeds)


def made_up(document: Document, run: Callable[[Feed], object], inputs: Inputs) -> Feeds:
    """Random feeds for a model, of the sizes asked for.

    Raises:
        PruneError: the model runs on none of the feeds tried.
    """
    return random_feeds(
        document,
        run,
        seed=inputs.seed,
        count=_RANDOM_FEEDS,
        states=state_inputs(document),
        asked=inputs.size or {},
    )


def open_data(opened: OpenedModel, inputs: Inputs) -> Calibration:
    """Opens the user's data, or makes random feeds if there are none.

    Raises:
        PruneError: data cannot be read, or the model runs on no random feeds.
    """
    eval_data, stream = inputs.eval_data, inputs.stream
    if inputs.data is None:
        made = made_up(opened.document, opened.run(), inputs)
        test = made if eval_data is None else opened_feeds(opened, eval_data, stream)
        note = (
            "nothing was calibrated; with typical inputs (--data), units are ranked by their effect"
            " and the remaining weights are refitted, which loses far less quality"
        )
        streams = stream_row(opened.document, stream, test)
        return Calibration(made, made, test, given=False, warnings=(note,), streams=streams)
    feeds = opened_feeds(opened, inputs.data, stream)
    calibration, validation = feeds.split(validation_share(len(feeds)))
    test = validation if eval_data is None else opened_feeds(opened, eval_data, stream)
    note = "there is only one feed, used for both calibration and validation; give several"
    notes = (note,) if calibration.shared else ()
    streams = stream_row(opened.document, stream, test, calibration, validation)
    return Calibration(calibration, validation, test, True, notes, streams=streams)


def validation_share(feeds: int) -> float:
    """The share of feeds that a prune reserves for validation."""
    return min(_VALIDATION, _MOST_VALIDATION / feeds)


def open_three(opened: OpenedModel, inputs: Inputs) -> Calibration:
    """Opens data for a search: calibration, validation and test sets.

    They are disjoint unless there are too few feeds: then a warning says what is shared.

    Raises:
        PruneError: data cannot be read.
    """
    eval_data, stream = inputs.eval_data, inputs.stream
    feeds = opened_feeds(opened, inputs.data, stream)
    if eval_data is None:
        # From three streams on, each set gets at least one.
        least = max(_VALIDATION_AND_TEST, 2 / max(feeds.streams, 3))
        calibration, rest = feeds.split(max(least, min(0.5, 2 * _JUDGES / feeds.streams)))
        validation, test = rest.split(0.5)
    else:
        calibration, validation = feeds.split(max(_VALIDATION, min(0.5, _JUDGES / feeds.streams)))
        test = opened_feeds(opened, eval_data, stream)
    notes: tuple[str, ...] = ()
    if calibration.shared:
        notes = ("there is only one feed, used for calibration, validation and test; give several",)
    elif validation.shared and eval_data is None:
        notes = ("there are only two feeds: one for calibration, one for both validation and test",)
    streams = stream_row(opened.document, stream, test, calibration, validation)
    return Calibration(calibration, validation, test, True, notes, streams=streams)


def stream_row(
    document: Document, asked: bool | None, test: Feeds, *others: Feeds
) -> Streams | None:
    """How states that callers carry along were treated, for reports; None without states."""
    states = {**known_states(document), **test.states}
    if not states:
        return None
    sets = list({id(feeds): feeds for feeds in (test, *others)}.values())
    count = sum(feeds.streams for feeds in sets) if test.states else 0
    return Streams(states, count, sum(map(len, sets)), asked)


def opened_feeds(opened: OpenedModel, source: object, stream: bool | None) -> Feeds:
    """The user's data as feeds for a model, see `feeds_for`."""
    return feeds_for(opened.document, opened.run, source, stream)


def feeds_for(
    document: Document, run: Callable[[], Runner], source: object, stream: bool | None
) -> Feeds:
    """The user's data as feeds for a model, joined to streams.

    Args:
        source: see `data.open_feeds`.
        stream: True if each folder, or iterable, is a stream in order; False if each feed is
            independent; None if the states in the feeds tell.

    Raises:
        PruneError: data cannot be read, or `stream` does not suit the model.
    """
    ports = signature.inputs(document.source)
    pairs = possible_pairs(ports, signature.outputs(document.source))
    known, likely = state_inputs(document), frozenset(name for name, _ in pairs)
    left_out = frozenset(known | likely if stream else known)
    feeds, runner = open_feeds(source, ports, left_out, likely), cache(run)
    return as_streams(feeds, pairs, known_states(document), lambda feed: runner()(feed), stream)


def proof_feeds(opened: OpenedModel, feeds: Feeds) -> list[Feed]:
    """Feeds to prove on: a real one, and the same in other sizes that the model takes.

    Raises:
        PruneError: the model does not run on the first feed.
    """
    real = iter(feeds)
    first = next(real)
    run = opened.run()
    run(first)  # if the original rejects it, the cut is not to blame
    accepts = partial(runs, run)
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
    """A feed resized on all open axes, by repeating or dropping entries."""
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


def labelled(data: Calibration, loss: object, opened: OpenedModel, *learning: bool) -> Calibration:
    """The data with a loss on their labels.

    Args:
        loss: the user's option.
        learning: for each step that can learn from a loss, whether it is asked for.

    Raises:
        PruneError: there is no such loss, or no step learns from it; PyTorch, data or labels are
            missing, or the loss and the first labels do not suit each other.
    """
    found = read_loss(loss)
    if found is None:
        return data
    if not any(learning):
        raise PruneError(
            "no step uses it",
            where="--loss",
            remedy="add --criterion=taylor or fisher, or --recover=distill, or leave it out",
        )
    require_torch("--loss")
    if not data.given:
        raise PruneError("there is no data", where="--loss", remedy="pass --data with labels")
    first = next((feed for feed in data.calibration if feed.labels is not None), None)
    if first is None:
        raise PruneError(
            "no calibration feed has labels",
            where=data.calibration.source,
            remedy="put an array 'labels' in each feed, next to the inputs, or leave --loss out",
        )
    found.of_runs(opened.run(), [first], plain_outputs(opened.document))
    return replace(data, loss=found)
