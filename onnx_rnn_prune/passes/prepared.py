"""A model made ready to be cut, with the trace of its units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.operators.layers import Layer, find_twins
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.passes.base import Pipeline
from onnx_rnn_prune.passes.bias_slots import MakeRoom
from onnx_rnn_prune.passes.prepare import DropZeroStates, Restore, SelectStates
from onnx_rnn_prune.trace.observe import observe, was_seen
from onnx_rnn_prune.trace.states import ENDS, Carried, Start, leaves_only
from onnx_rnn_prune.trace.trace import Outlet, Trace, trace


@dataclass(frozen=True, eq=False)
class Outside:
    """How a cut model looks to its callers.

    Attributes:
        trace: of the prepared document once the states are open; else its own.
        states: those that hold kept units only.
        reasons: by layer and state, why others stay at full width.
    """

    trace: Trace
    states: tuple[Carried, ...] = ()
    reasons: Mapping[Start, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A document in which every unit of some layers can be cut.

    Attributes:
        document: computes what the original computes.
        trace: of the document; nothing is left to restore.
        ends: by outlet of the original, the nodes that absorb its units.
        restored: by outlet of the original, why it had to be restored.
        left: layers that are left alone, each with the reason.
        outside: what callers see of it.
    """

    document: Document
    trace: Trace
    ends: Mapping[Outlet, tuple[str, ...]]
    restored: Mapping[Outlet, str]
    left: Mapping[str, str]
    outside: Outside


def prepare(
    source: Document,
    names: Sequence[str],
    feeds: Iterable[Feed],
    states: Sequence[Carried] = (),
) -> Prepared:
    """Prepares a copy of a document for cutting the named layers.

    Args:
        source: the model; it is not changed.
        names: the layers to follow.
        feeds: what the model runs on, to see shapes with.
        states: those that callers only hand back.
    """
    document = source.copy()
    wanted, left = _reached(document, names, feeds)
    Pipeline((DropZeroStates(wanted), SelectStates(wanted)))(document)
    first = _trace(document, wanted, feeds)
    absorbing = MakeRoom(wanted, first.bindings)
    leaving = only_leaving(source, first.restored, states)
    restore = Restore(wanted, first.restored, leaving)
    changed = Pipeline((absorbing, restore))(document)
    final = _trace(document, wanted, feeds) if changed else first
    return Prepared(document, final, first.ends, first.restored, left, Outside(final))


def only_leaving(
    source: Document, restored: Iterable[Outlet], states: Iterable[Carried]
) -> frozenset[Outlet]:
    """The outlets by which some states leave, and that nothing else reads."""
    results: dict[Start, str] = {}
    for state in states:
        results |= dict.fromkeys(state.starts, state.result)
    starts = {output: start for start, output in ENDS.items()}
    found = set()
    for outlet in restored:
        result = results.get((outlet.layer, starts.get(outlet.output, "")))
        if result is not None and leaves_only(source, outlet.consumer, {result}):
            found.add(outlet)
    return frozenset(found)


def _reached(
    document: Document, names: Sequence[str], feeds: Iterable[Feed]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The layers that can lose units, and why the others cannot.

    Some feed must run a layer, or one with which it shares its parameters.
    """
    layers = [layer for layer in find_layers(document.graph) if layer.name in names]
    left = {layer.name: "it has one unit" for layer in layers if layer.hidden == 1}
    if any(layer.scope for layer in layers):
        runs = observe(document, layers, feeds).runs
        twins = find_twins(layers)
        alive = {twins[layer.name] for layer in layers if was_seen(layer, runs)}
        left |= {
            layer.name: f"no input runs {layer.scope}, in which it is"
            for layer in layers
            if twins[layer.name] not in alive
        }
    return tuple(name for name in names if name not in left), left


def _trace(document: Document, names: tuple[str, ...], feeds: Iterable[Feed]) -> Trace:
    layers = [layer for layer in find_layers(document.graph) if layer.name in names]
    return trace(document, layers, observe(document, layers, feeds))


def choose_layers(
    layers: Sequence[Layer], only: Iterable[str], skip: Iterable[str]
) -> tuple[str, ...]:
    """The names of the layers that globs leave: those that match one of `only`, and none of `skip`.

    Raises:
        PruneError: a glob matches no layer, or no layer is left.
    """
    names = [layer.name for layer in layers]
    for glob in (*only, *skip):
        if not any(fnmatchcase(name, glob) for name in names):
            raise PruneError(
                f"no recurrent layer matches '{glob}'",
                where="--only and --skip",
                remedy=f"the layers are {', '.join(names)}",
            )
    chosen = [name for name in names if not only or any(fnmatchcase(name, g) for g in only)]
    chosen = [name for name in chosen if not any(fnmatchcase(name, glob) for glob in skip)]
    if not chosen:
        raise PruneError(
            "no recurrent layer is left to prune",
            where="--only and --skip",
            remedy=f"the layers are {', '.join(names)}",
        )
    return tuple(chosen)
