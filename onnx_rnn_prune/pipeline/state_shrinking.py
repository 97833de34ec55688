"""A cut model whose states hold the entries of kept units only, and the proof of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_rnn_prune.errors import Unmet
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed, Runner
from onnx_rnn_prune.operators.labels import Mask, compress, kept, squeeze_to, varying_axes
from onnx_rnn_prune.options import Interface
from onnx_rnn_prune.passes.state_metadata import update_widths
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.trace.states import Carried
from onnx_rnn_prune.traced_model import TracedModel, as_proven, tolerance_of
from onnx_rnn_prune.validate import either_order
from onnx_rnn_prune.validate.narrow_states import write_kept

Change = Callable[["State", Array], Array]


@dataclass(frozen=True, eq=False)
class State:
    """A state that became narrower.

    Attributes:
        layers: the names of those that it is of.
        source: the model's input in which it comes.
        result: the model's output in which it leaves.
        axis: the one that got shorter.
        mask: True where an entry stays; its other axes may be 1.
    """

    layers: tuple[str, ...]
    source: str
    result: str
    axis: int
    mask: Mask

    @property
    def width(self) -> int:
        """Entries before."""
        return int(self.mask.shape[self.axis])

    @property
    def kept(self) -> int:
        """Entries after."""
        return int(np.moveaxis(self.mask, self.axis, -1).reshape(-1, self.width)[0].sum())

    def select(self, value: Array) -> Array:
        """What stays of the state at full width."""
        return compress(value, self.mask, self.axis)

    def blank(self, value: Array) -> Array:
        """The state at full width, with zeros where entries go."""
        return np.where(self.mask, value, np.zeros((), value.dtype))


@dataclass(frozen=True, eq=False)
class Narrowed:
    """A document with the interface that was asked for.

    Attributes:
        document: the result.
        states: those that became narrower.
        notes: why others did not.
    """

    document: Document
    states: Sequence[State]
    notes: tuple[str, ...]


def narrow(
    traced: TracedModel,
    plan: Plan,
    document: Document,
    shrunk: Document,
    feeds: Sequence[Feed],
) -> Narrowed:
    """The cut of a recovered document that callers get.

    Args:
        traced: the model.
        plan: which units are kept.
        document: at full width.
        shrunk: its cut with states at full width, which is proven.
        feeds: to prove on.

    Raises:
        Unmet: it does not compute the same.
    """
    outside = traced.outside
    notes = [
        f"{layer} {start} stays at full width: {reason}"
        for (layer, start), reason in sorted(outside.reasons.items())
    ]
    if not outside.states:
        nothing = "no input and output of the model are the two ends of a state of a cut layer"
        return Narrowed(shrunk, (), tuple(notes or [nothing]))
    states = tuple(_narrowed(traced, plan, state) for state in outside.states)
    zeroed, result = (traced.cut_outside(plan, mode, document) for mode in ("zero", "shrink"))
    outputs = traced.original.judged.proven
    _prove(traced.opened.name, states, (shrunk, zeroed, result), outputs, feeds)
    return Narrowed(result, states, tuple(notes))


def _prove(
    name: str,
    states: Sequence[State],
    documents: tuple[Document, Document, Document],
    outputs: Sequence[str] | None,
    feeds: Sequence[Feed],
) -> None:
    """Runs narrow states against the same ones zeroed, and against those of full width.

    Raises:
        Unmet: they differ.
    """
    shrunk, zeroed, result = documents
    ends = {state.result for state in states}

    def slim(rewritten: bool) -> _Seen:
        runner = as_proven(result, "its narrow form", rewritten, outputs)
        return _Seen(runner, states, State.select, _as_is)

    def zero(rewritten: bool) -> tuple[_Seen, _Seen]:
        runner = as_proven(zeroed, "its zeroed form", rewritten, outputs)
        return _Seen(runner, states, State.blank, State.select), slim(rewritten)

    def wide(rewritten: bool) -> tuple[_Seen, _Seen]:
        runner = as_proven(shrunk, "the shrunk model", rewritten, outputs)
        seen = _Seen(runner, states, _as_is, State.select)
        seen.outputs = [output for output in seen.outputs if output not in ends]
        return seen, slim(rewritten)

    # What is infinite there was proven to be so in the original.
    proven = _Seen(as_proven(shrunk, "the shrunk model", False), states, _as_is, State.select)
    for load in (zero, wide):
        found = either_order(load, feeds, tolerance_of(result), proven)
        if not found:
            raise Unmet(
                f"with small states the model computes something else ({found.reason})",
                where=name,
                remedy="report this, and leave --shrink-states out; no file was written",
            )


class _Seen:
    """A model as seen by who holds states at full width, or wants them narrow."""

    def __init__(
        self, runner: Runner, states: Sequence[State], takes: Change, gives: Change
    ) -> None:
        self.name, self.outputs = runner.name, list(runner.outputs)
        self._runner, self._takes, self._gives = runner, takes, gives
        self._states = states

    def __call__(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        taken = dict(feed)
        for state in self._states:
            taken[state.source] = self._takes(state, np.asarray(feed[state.source]))
        found = self._runner(taken, outputs)
        for state in self._states:
            if state.result in found:
                found[state.result] = self._gives(state, found[state.result])
        return found


def _as_is(_: State, value: Array) -> Array:
    return value


def _narrowed(traced: TracedModel, plan: Plan, state: Carried) -> State:
    trace = traced.outside.trace
    labels, axis = trace.labels[state.source], trace.axes[state.source]
    reduced = squeeze_to(labels, (*varying_axes(labels), axis))
    assert reduced is not None
    layers = tuple(sorted({name for name, _ in state.starts}))
    mask = kept(reduced, plan.mask(trace))
    return State(layers, state.source, state.result, axis, mask)


def say_states(
    model: onnx.ModelProto, interface: Interface, states: Sequence[State]
) -> tuple[str, ...]:
    """Writes which entries states hold, and their width where that was asked for.

    Returns:
        Warnings of other places that may hold the width of a state.

    Raises:
        PruneError: what was asked for holds the width of no state that shrinks, or of several.
    """
    widths: dict[int, set[int]] = {}
    for state in states:
        widths.setdefault(state.width, set()).add(state.kept)
    notes = update_widths(model, interface.state_metadata, widths)
    if states:
        write_kept(model, {state.source: state.mask for state in states})
    return tuple(notes)
