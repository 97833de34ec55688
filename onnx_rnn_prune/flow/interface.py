"""The interface of a result: states at full width, or with the entries of kept units only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from onnx_rnn_prune.errors import PruneError, Unmet
from onnx_rnn_prune.flow.arguments import globs
from onnx_rnn_prune.flow.opening import Opened
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed, Runner
from onnx_rnn_prune.passes.states import NarrowStates, State
from onnx_rnn_prune.validate import oracle


@dataclass(frozen=True)
class Interface:
    """What callers of the result see.

    Attributes:
        shrink_states: whether states hold the entries of kept units only, where that can be.
        metadata: keys of metadata that hold the width of a state, to be brought up to date.
    """

    shrink_states: bool = False
    metadata: tuple[str, ...] = ()


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


def read_interface(shrink_states: object, metadata: object, mode: str) -> Interface:
    """Arguments as a value that means something.

    Raises:
        PruneError: one of them means nothing.
    """
    if not isinstance(shrink_states, bool):
        raise PruneError(
            f"{shrink_states!r} is neither True nor False",
            where="--shrink-states",
            remedy="give one",
        )
    keys = globs(metadata, "--state-metadata")
    if keys and not shrink_states:
        raise PruneError(
            "states stay as they are", where="--state-metadata", remedy="add --shrink-states"
        )
    if shrink_states and mode == "zero":
        raise PruneError(
            "zeros leave states as they are", where="--shrink-states", remedy="use --mode shrink"
        )
    return Interface(shrink_states, keys)


def narrow(
    opened: Opened, document: Document, interface: Interface, feeds: Iterable[Feed]
) -> Narrowed:
    """Gives a shrunk document the interface that was asked for.

    Raises:
        Unmet: it does not compute the same any more.
    """
    if not interface.shrink_states:
        return Narrowed(document, (), ())
    result = document.copy()
    narrowing = NarrowStates(opened.layers)
    narrowing(result)
    states = narrowing.narrowed
    _prove(opened.name, document, result, states, feeds)
    notes = [f"{name} stays at full width: {reason}" for name, reason in narrowing.reasons.items()]
    if not states and not notes:
        notes = ["no input and output of the model are the two ends of a state of a cut layer"]
    return Narrowed(result, states, tuple(notes))


def update_metadata(model: onnx.ModelProto, interface: Interface, states: Sequence[State]) -> None:
    """Writes the new width of states where metadata holds the former one.

    Raises:
        PruneError: an entry is missing, or holds the width of no state that shrinks, or of several.
    """
    known = ", ".join(entry.key for entry in model.metadata_props) or "none"
    for key in interface.metadata:
        entry = next((item for item in model.metadata_props if item.key == key), None)
        if entry is None:
            raise PruneError(
                "the model has no such entry",
                where=f"--state-metadata {key}",
                remedy=f"its entries are {known}",
            )
        kept = {str(state.kept) for state in states if str(state.width) == entry.value}
        if len(kept) != 1:
            raise PruneError(
                f"it holds '{entry.value}', the width of "
                + ("states that differ now" if kept else "no state that shrinks"),
                where=f"--state-metadata {key}",
                remedy="leave it out",
            )
        entry.value = kept.pop()


class _Seen:
    """A model whose states are taken as they leave their layers, under the outputs' names."""

    def __init__(
        self, document: Document, places: dict[str, str], takes: Sequence[State], name: str
    ) -> None:
        self.name, self.outputs = name, list(places)
        self._places = places
        self._takes = {state.source: state for state in takes}
        self._runner = Runner(document, outputs=list(dict.fromkeys(places.values())), name=name)

    def __call__(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        taken = {
            name: self._takes[name].select(value) if name in self._takes else value
            for name, value in feed.items()
        }
        values = self._runner(taken)
        return {name: values[place] for name, place in self._places.items()}


def _prove(
    name: str, before: Document, after: Document, states: Sequence[State], feeds: Iterable[Feed]
) -> None:
    """Runs the two interfaces against each other: the one before was proven in full.

    Raises:
        Unmet: they differ.
    """
    plain = {tensor.name: tensor.name for tensor in before.graph.outputs}
    wide = _Seen(before, plain | {s.result: s.inner for s in states}, (), "the shrunk model")
    slim = _Seen(after, plain | {s.result: s.outer for s in states}, states, "its narrow form")
    found = oracle(wide, slim, feeds)
    if not found:
        raise Unmet(
            f"with small states the model computes something else ({found.reason})",
            where=name,
            remedy="report this, and leave --shrink-states out; no file was written",
        )
