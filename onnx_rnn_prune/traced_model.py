"""A traced model: all units of some layers can be cut, and all their readers are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import ConstraintError, PruneError
from onnx_rnn_prune.evidence.evidence import Evidence
from onnx_rnn_prune.evidence.products import find_readers
from onnx_rnn_prune.evidence.readers import Lookup, Reader
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import hold_unsigned, sums_integers
from onnx_rnn_prune.model.runnable import computable
from onnx_rnn_prune.model.runner import OURS, Array, Feed, Runner
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.labels import kept, squeeze_to, varying_axes
from onnx_rnn_prune.operators.layers import Layer, find_duplicates
from onnx_rnn_prune.options import AS_BEFORE, Interface
from onnx_rnn_prune.passes import Pipeline
from onnx_rnn_prune.passes.biases import AddBiasSlots, DropUnusedBiases
from onnx_rnn_prune.passes.cleanup import DropUnread, PickEntries, ShareDuplicates
from onnx_rnn_prune.passes.cut import Shrink, Zero
from onnx_rnn_prune.passes.prepare import (
    DropZeroStates,
    PickUnits,
    Restore,
    SelectStates,
    Widen,
)
from onnx_rnn_prune.passes.states import (
    NarrowInterface,
    OpenStates,
    come_back_in_place,
    open_states,
)
from onnx_rnn_prune.progress import Progress, silent
from onnx_rnn_prune.trace.bindings import traced_layers
from onnx_rnn_prune.trace.observe import observe, was_seen
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.trace.propagation import Outlet
from onnx_rnn_prune.trace.states import (
    ENDS,
    InitialState,
    StatePair,
    handed_back,
    leaves_only,
    state_inputs,
    turning_states,
)
from onnx_rnn_prune.trace.trace import Trace, trace
from onnx_rnn_prune.validate import EXACT, QUANTIZED, Oracle, either_order
from onnx_rnn_prune.validate.narrow_states import NarrowState, StateRunner


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A model in which every unit of some layers can be cut.

    Attributes:
        opened: the model itself.
        interface: the interface of cut models.
        feeds: the feeds it was traced on.
        document: at full width; computes what the original computes, and is never changed.
        trace: the document's trace; nothing is left to restore.
        readers: all readers of units.
        ends: by outlet of the original, the nodes that absorb its units.
        restored: by outlet of the original, why it had to be restored.
        left: layers that are left alone, each with the reason.
        outside: the model as callers see it.
        evidence: cached evidence, see `Calibration.evidence`.
    """

    opened: OpenedModel
    interface: Interface
    feeds: Iterable[Feed]
    document: Document
    trace: Trace
    readers: list[Reader]
    ends: Mapping[Outlet, tuple[str, ...]]
    restored: Mapping[Outlet, str]
    left: Mapping[str, str]
    outside: NarrowInterface
    evidence: dict[Feeds, Evidence] = field(default_factory=dict, init=False, repr=False)

    @property
    def layers(self) -> list[Layer]:
        """The layers whose units can be cut."""
        return traced_layers(self.document, self.trace)

    @cached_property
    def original(self) -> OpenedModel:
        """The original, for comparison with cuts, in which tensors that hold units differ.

        Raises:
            PruneError: everything that depends on units is random.
        """
        return self.opened.beside_cuts(self.trace)

    def for_plan(self, plan: Plan, progress: Progress = silent) -> TracedModel:
        """The same for only the layers that a plan cuts; layers that keep all units are untouched.

        Raises:
            PruneError: layers that share a state keep different numbers of units.
        """
        if plan.cut() == tuple(self.trace.units.lanes):
            check_states(self, plan)
            return self
        return trace_plan(self.opened, plan, self.feeds, self.interface, progress)

    def cut(self, plan: Plan, mode: str, document: Document | None = None) -> Document:
        """Cuts the model by a plan, with states at full width.

        Args:
            mode: shrink, or zero to keep all shapes.
            document: the model with other weights; not modified.
        """
        return _cut((document or self.document).copy(), self.trace, plan, mode)

    def cut_outside(self, plan: Plan, mode: str, document: Document | None = None) -> Document:
        """The same with states that hold kept units only, if asked for and possible."""
        result = (document or self.document).copy()
        OpenStates(self.trace, self.outside.states)(result)
        return _cut(result, self.outside.trace, plan, mode)

    def prove(self, plan: Plan, document: Document, feeds: Sequence[Feed]) -> Oracle:
        """Compares the zeroed with the shrunk model.

        Args:
            document: the model with the weights to be written.

        Raises:
            ConstraintError: they differ.
        """
        opened, outputs = self.original, self.original.judged.proven

        def load(rewritten: bool) -> tuple[Runner, Runner]:
            zeroed, shrunk = (
                as_proven(self.cut(plan, mode, document), f"the {name} model", rewritten, outputs)
                for mode, name in (("zero", "zeroed"), ("shrink", "shrunk"))
            )
            return zeroed, shrunk

        def original(feed: Feed) -> Mapping[str, Array]:
            """Runs the original; needed only for infinities."""
            if outputs is None:
                return opened.run()(feed)
            return Runner(opened.document, outputs=outputs, name=opened.name)(feed)

        found = either_order(load, feeds, tolerance_of(document), original)
        if not found:
            raise ConstraintError(
                f"the shrunk model is not proven to compute the same as the zeroed one"
                f" ({found.reason})",
                where=opened.name,
                remedy=remedy_of(found),
            )
        return found

    def narrow(
        self, plan: Plan, document: Document, shrunk: Document, feeds: Sequence[Feed]
    ) -> Narrowed:
        """The cut as callers get it: states hold kept units only, if asked for.

        Args:
            document: the model with the weights to be written.
            shrunk: its cut with states at full width, already proven.

        Raises:
            ConstraintError: it does not compute the same.
        """
        if not self.interface.shrink_states:
            return Narrowed(shrunk, (), ())
        notes = [
            f"{layer} {start} stays at full width: {reason}"
            for (layer, start), reason in sorted(self.outside.reasons.items())
        ]
        if not self.outside.states:
            nothing = (
                "no state of a pruned layer is both input and output of the model; none was shrunk"
            )
            known = state_inputs(self.original.document)
            return Narrowed(shrunk, (), tuple(notes if known and notes else [nothing]))
        trace = self.outside.trace
        states = tuple(_narrowed(trace, plan, state) for state in self.outside.states)
        zeroed, result = (self.cut_outside(plan, mode, document) for mode in ("zero", "shrink"))
        outputs = self.original.judged.proven
        _prove_narrow(self.opened.name, states, (shrunk, zeroed, result), outputs, feeds)
        return Narrowed(result, states, tuple(notes))


@dataclass(frozen=True, eq=False)
class Narrowed:
    """A document with the interface asked for.

    Attributes:
        states: the states that became narrower.
        notes: why others did not.
    """

    document: Document
    states: Sequence[NarrowState]
    notes: tuple[str, ...]


def trace_model(
    opened: OpenedModel,
    names: Iterable[str],
    feeds: Iterable[Feed],
    interface: Interface = AS_BEFORE,
    progress: Progress = silent,
) -> TracedModel:
    """Prepares a copy of a model for cutting some layers, and traces their units.

    Args:
        opened: the model; not modified.
        feeds: feeds to run it on, for shapes.

    Raises:
        PruneError: a weight that reads units is NaN or infinite.
    """
    progress("tracing units", 0, None)
    source = opened.document
    states = come_back_in_place(source, handed_back(source), feeds)
    document = source.copy()
    wanted, left = _reached(document, tuple(names), feeds)
    turning = turning_states(document)
    Pipeline((DropZeroStates(wanted), SelectStates(wanted, turning)))(document)
    first = _trace(document, wanted, feeds)
    if turning and SelectStates(wanted, first.labels)(document):
        first = _trace(document, wanted, feeds)
    left |= first.left
    wanted = tuple(name for name in wanted if name not in left)
    adapted = Pipeline((PickUnits(first.selects), Widen(first)))(document)
    inner = _trace(document, wanted, feeds) if adapted else first
    absorbing = AddBiasSlots(wanted, inner.bindings)
    leaving = only_leaving(source, first.restored, states)
    restore = Restore(wanted, inner.restored, leaving)
    changed = Pipeline((absorbing, restore))(document)
    final = _trace(document, wanted, feeds) if changed else inner
    outside = NarrowInterface(final)
    if interface.shrink_states:
        outside = open_states(document, final, source, feeds)
        final = replace(final, groups=outside.trace.groups)  # layers that share a state are tied
    readers = find_readers(document, final)
    _check_weights(document, readers)
    return TracedModel(
        opened=opened,
        interface=interface,
        feeds=feeds,
        document=document,
        trace=final,
        readers=readers,
        ends=first.ends,
        restored={**first.restored, **first.edge_outlets},
        left={**left, **final.left},
        outside=outside,
    )


def trace_plan(
    opened: OpenedModel,
    plan: Plan,
    feeds: Iterable[Feed],
    interface: Interface = AS_BEFORE,
    progress: Progress = silent,
) -> TracedModel:
    """The same for only the layers that a plan cuts.

    Raises:
        PruneError: one of them cannot be cut, or layers that share a state keep different numbers
            of units.
    """
    traced = trace_model(opened, plan.cut(), feeds, interface, progress)
    for name, reason in traced.left.items():
        raise PruneError(
            f"it cannot be pruned: {reason}",
            where=f"plan for {name}",
            remedy="let it keep all units",
        )
    check_states(traced, plan)
    return traced


def check_states(traced: TracedModel, plan: Plan) -> None:
    """Checks that layers that share a state keep equally many units.

    Raises:
        PruneError: they do not.
    """
    for state in traced.outside.states:
        kept = {name: len(plan.layers[name].keep[0]) for name, _ in sorted(state.starts)}
        if len(set(kept.values())) > 1:
            raise PruneError(
                f"the input '{state.source}' is shared, but "
                + ", ".join(f"{name} keeps {count} units" for name, count in kept.items()),
                where="--shrink-states",
                remedy="make the plan with --shrink-states, or leave it out here",
            )


def only_leaving(
    source: Document, restored: Iterable[Outlet], states: Iterable[StatePair]
) -> frozenset[Outlet]:
    """The outlets that only serve to return states."""
    results: dict[InitialState, str] = {}
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

    Some feed must run a layer, or one that shares its parameters. If onnxruntime cannot run it, no
    cut can be proven.
    """
    layers = [layer for layer in all_layers(document.graph) if layer.name in names]
    left = {layer.name: "it has one unit" for layer in layers if layer.hidden == 1}
    known, lost = computable(document.outline()), "it depends on an operator that onnxruntime lacks"
    left |= {layer.name: lost for layer in layers if layer.key not in known}
    if any(layer.scope for layer in layers):
        runs = observe(document, layers, feeds).runs
        twins = find_duplicates(layers)
        alive = {twins[layer.name] for layer in layers if was_seen(layer, runs)}
        left |= {
            layer.name: f"no input runs {layer.scope}, in which it is"
            for layer in layers
            if twins[layer.name] not in alive
        }
    return tuple(name for name in names if name not in left), left


def _trace(document: Document, names: tuple[str, ...], feeds: Iterable[Feed]) -> Trace:
    layers = [layer for layer in all_layers(document.graph) if layer.name in names]
    return trace(document, layers, observe(document, layers, feeds))


def _cut(document: Document, trace: Trace, plan: Plan, mode: str) -> Document:
    keep = plan.mask(trace)
    if mode == "zero":
        Pipeline((Zero(trace, keep), DropUnread()))(document)
    else:
        shrink = Shrink(trace, keep)
        Pipeline((shrink, DropUnusedBiases(), PickEntries(), ShareDuplicates(), DropUnread()))(
            document
        )
    return document


def _prove_narrow(
    name: str,
    states: Sequence[NarrowState],
    documents: tuple[Document, Document, Document],
    outputs: Sequence[str] | None,
    feeds: Sequence[Feed],
) -> None:
    """Compares narrow states with the same ones zeroed, and with full-width ones.

    Raises:
        ConstraintError: they differ.
    """
    shrunk, zeroed, result = documents
    ends = {state.result for state in states}

    def slim(rewritten: bool) -> StateRunner:
        return StateRunner(as_proven(result, "its narrow form", rewritten, outputs), states)

    def zero(rewritten: bool) -> tuple[StateRunner, StateRunner]:
        runner = as_proven(zeroed, "its zeroed form", rewritten, outputs)
        return StateRunner(runner, states, NarrowState.blank, NarrowState.select), slim(rewritten)

    def wide(rewritten: bool) -> tuple[StateRunner, StateRunner]:
        runner = as_proven(shrunk, "the shrunk model", rewritten, outputs)
        seen = StateRunner(runner, states, NarrowState.same, NarrowState.select)
        seen.outputs = [output for output in seen.outputs if output not in ends]
        return seen, slim(rewritten)

    # Infinities there are proven to be in the original, too.
    whole = as_proven(shrunk, "the shrunk model", False, outputs)
    proven = StateRunner(whole, states, NarrowState.same, NarrowState.select)
    for load in (zero, wide):
        found = either_order(load, feeds, tolerance_of(result), proven)
        if not found:
            raise ConstraintError(
                f"with shrunk states, the model computes something different ({found.reason})",
                where=name,
                remedy="leave --shrink-states out, and report this; no file was written",
            )


def _narrowed(trace: Trace, plan: Plan, state: StatePair) -> NarrowState:
    labels, axis = trace.labels[state.source], trace.axes[state.source]
    reduced = squeeze_to(labels, (*varying_axes(labels), axis))
    assert reduced is not None
    layers = tuple(sorted({name for name, _ in state.starts}))
    keep = kept(reduced, plan.mask(trace))
    width = int(np.moveaxis(keep, axis, -1).reshape(-1, keep.shape[axis])[0].sum())
    return NarrowState(state.source, state.result, axis, width, keep, layers)


def remedy_of(failed: Oracle) -> str:
    """The remedy for a failed proof; unless there are NaN or infinities, it is a bug of ours."""
    if failed.no_number:
        return "give --data on which all outputs are finite; no file was written"
    return OURS


def as_proven(
    document: Document, name: str, rewritten: bool, outputs: Sequence[str] | None = None
) -> Runner:
    """Loads a cut model for comparison with another cut.

    Args:
        rewritten: whether onnxruntime may rewrite it.
        outputs: the outputs to compare; all by default.
    """
    exact = document.copy()
    hold_unsigned(exact.graph)
    return Runner(exact, outputs=outputs, optimize=rewritten, name=name, remedy=OURS)


def tolerance_of(document: Document) -> float:
    """The tolerance for differences between two cuts of a model."""
    return QUANTIZED if sums_integers(document.graph) else EXACT


def _check_weights(document: Document, readers: Iterable[Reader]) -> None:
    lookup = Lookup.of(document)
    for reader in readers:
        if not np.isfinite(reader.weight(lookup)).all():
            raise PruneError(
                "a weight that reads units has entries that are infinite or NaN",
                where=reader.name.partition("#")[0],
                remedy="export the model again with finite weights",
            )
