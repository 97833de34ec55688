"""What is known of a model's units, and the cut that follows from a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnx_rnn_prune.errors import PruneError, Unmet
from onnx_rnn_prune.evidence.evidence import Evidence, collect
from onnx_rnn_prune.evidence.lookup import Lookup
from onnx_rnn_prune.evidence.products import find_readers
from onnx_rnn_prune.evidence.readers import Reader
from onnx_rnn_prune.interface import Interface
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import hold_unsigned, sums_integers
from onnx_rnn_prune.model.runner import OURS, Array, Feed, Runner
from onnx_rnn_prune.passes.base import Pipeline
from onnx_rnn_prune.passes.bias_slots import DropRoom
from onnx_rnn_prune.passes.cleanup import DropUnread, PickEntries, ShareTwins
from onnx_rnn_prune.passes.cut import Shrink, Zero
from onnx_rnn_prune.passes.prepared import Prepared, prepare
from onnx_rnn_prune.passes.states import OpenStates, come_back_in_place, open_states
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.study.feeding import Data
from onnx_rnn_prune.study.opening import Opened
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.trace.states import handed_back
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.validate import EXACT, QUANTIZED, Oracle, either_order


@dataclass(frozen=True, eq=False)
class Studied:
    """A prepared model with all that is known about its units.

    Attributes:
        prepared: ready to be cut.
        readers: all that read units.
        evidence: from data, None where there is none, or none was looked at.
    """

    prepared: Prepared
    readers: list[Reader] = field(default_factory=list)
    evidence: Evidence | None = None


def study(
    opened: Opened,
    names: Iterable[str],
    data: Data,
    interface: Interface,
    progress: Progress,
) -> Studied:
    """Prepares some layers for the cut."""
    progress("following units", 0, None)
    document = opened.document
    states = come_back_in_place(document, handed_back(document), data.fitting)
    prepared = prepare(document, tuple(names), data.fitting, states)
    if interface.shrink_states:
        prepared = open_states(prepared, opened.document, data.fitting)
    readers = find_readers(prepared.document, prepared.trace)
    _check_weights(prepared.document, readers)
    return Studied(prepared, readers)


def look(studied: Studied, data: Data, progress: Progress) -> Studied:
    """The same with what data says about the units, unless that is known or there is no data."""
    if studied.evidence is not None or not data.given:
        return studied
    prepared, readers = studied.prepared, studied.readers
    evidence = collect(prepared.document, prepared.trace, readers, data.fitting, progress)
    return replace(studied, evidence=evidence)


def cut(document: Document, studied: Studied, plan: Plan, mode: str) -> Document:
    """The model that a plan makes of a recovered document, with states at full width."""
    return _cut(document.copy(), studied.prepared.trace, plan, mode)


def cut_outside(document: Document, studied: Studied, plan: Plan, mode: str) -> Document:
    """The same with states that hold kept units only, where that was asked for and can be."""
    outside, result = studied.prepared.outside, document.copy()
    OpenStates(studied.prepared.trace, outside.states)(result)
    return _cut(result, outside.trace, plan, mode)


def _cut(document: Document, trace: Trace, plan: Plan, mode: str) -> Document:
    keep = plan.mask(trace)
    if mode == "zero":
        Pipeline((Zero(trace, keep), DropUnread()))(document)
    else:
        shrink = Shrink(trace, keep)
        Pipeline((shrink, DropRoom(), PickEntries(), ShareTwins(), DropUnread()))(document)
    return document


def prove(
    opened: Opened, studied: Studied, plan: Plan, document: Document, feeds: Sequence[Feed]
) -> Oracle:
    """Runs the zeroed and the shrunk model against each other.

    Raises:
        Unmet: they differ.
    """
    outputs = opened.judged.proven

    def load(rewritten: bool) -> tuple[Runner, Runner]:
        zeroed, shrunk = (
            as_proven(cut(document, studied, plan, mode), f"the {name} model", rewritten, outputs)
            for mode, name in (("zero", "zeroed"), ("shrink", "shrunk"))
        )
        return zeroed, shrunk

    def original(feed: Feed) -> Mapping[str, Array]:
        """Only what is infinite asks for it."""
        if outputs is None:
            return opened.run()(feed)
        return Runner(opened.document, outputs=outputs, name=opened.name)(feed)

    found = either_order(load, feeds, tolerance_of(document), original)
    if not found:
        raise Unmet(
            f"it is not proven that the shrunk model computes what the zeroed one does"
            f" ({found.reason})",
            where=opened.name,
            remedy=remedy_of(found),
        )
    return found


def remedy_of(failed: Oracle) -> str:
    """What to do about a proof that fails: where there are numbers, that is a defect of ours."""
    if failed.no_number:
        return "give --data on which all outputs are finite; no file was written"
    return OURS


def as_proven(
    document: Document, name: str, rewritten: bool, outputs: Sequence[str] | None = None
) -> Runner:
    """Loads a cut model in the way in which another cut of it can be compared with it.

    Args:
        document: the cut model.
        name: how errors call it.
        rewritten: whether onnxruntime may rewrite it.
        outputs: what is compared; all outputs where nothing is named.
    """
    exact = document.copy()
    hold_unsigned(exact.graph)
    return Runner(exact, outputs=outputs, optimize=rewritten, name=name, remedy=OURS)


def tolerance_of(document: Document) -> float:
    """By how much two cuts of a model may differ."""
    return QUANTIZED if sums_integers(document.graph) else EXACT


def _check_weights(document: Document, readers: Iterable[Reader]) -> None:
    lookup = Lookup.of(document)
    for reader in readers:
        if not np.isfinite(reader.weight(lookup)).all():
            raise PruneError(
                "a weight that reads units holds entries that are infinite or not a number",
                where=reader.name.partition("#")[0],
                remedy="export the model again from weights that are numbers",
            )


def settle(
    opened: Opened,
    studied: Studied | None,
    plan: Plan,
    data: Data,
    interface: Interface,
    progress: Progress,
) -> Studied:
    """What is known of just the layers that a plan cuts; layers that keep all stay untouched.

    Raises:
        PruneError: layers that share a state keep different numbers of units.
    """
    if studied is None or plan.cut() != tuple(studied.prepared.trace.units.lanes):
        studied = study(opened, plan.cut(), data, interface, progress)
    for state in studied.prepared.outside.states:
        kept = {name: len(plan.layers[name].keep[0]) for name, _ in sorted(state.starts)}
        if len(set(kept.values())) > 1:
            raise PruneError(
                f"the input '{state.source}' is shared, but "
                + ", ".join(f"{name} keeps {count} units" for name, count in kept.items()),
                where="--shrink-states",
                remedy="make the plan with --shrink-states, or leave that out",
            )
    return studied
