"""What is known of a model's units, and the cut that follows from a plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnx_rnn_prune.errors import PruneError, Unmet
from onnx_rnn_prune.flow.feeding import Data
from onnx_rnn_prune.flow.opening import Opened
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import sums_integers
from onnx_rnn_prune.model.runner import OURS, Feed, Runner
from onnx_rnn_prune.passes.base import Pipeline
from onnx_rnn_prune.passes.cleanup import DropUnread, PickEntries, ShareTwins
from onnx_rnn_prune.passes.cut import Shrink, Zero
from onnx_rnn_prune.passes.prepared import Prepared, prepare
from onnx_rnn_prune.passes.room import DropRoom
from onnx_rnn_prune.plan.plan import Plan
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.score.evidence import Evidence, collect, find_readers
from onnx_rnn_prune.score.lookup import Lookup
from onnx_rnn_prune.score.readers import Reader
from onnx_rnn_prune.validate import QUANTIZED, Oracle, either_order, oracle


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


def study(opened: Opened, names: Iterable[str], data: Data, progress: Progress) -> Studied:
    """Prepares some layers for the cut."""
    progress("following units", 0, None)
    prepared = prepare(opened.document, tuple(names), data.fitting)
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
    """The model that a plan makes of a recovered document."""
    keep = plan.mask(studied.prepared.trace)
    result = document.copy()
    if mode == "zero":
        Pipeline((Zero(studied.prepared.trace, keep), DropUnread()))(result)
    else:
        shrink = Shrink(studied.prepared.trace, keep)
        Pipeline((shrink, DropRoom(), PickEntries(), ShareTwins(), DropUnread()))(result)
    return result


def prove(
    opened: Opened, studied: Studied, plan: Plan, document: Document, feeds: Sequence[Feed]
) -> Oracle:
    """Runs the zeroed and the shrunk model against each other.

    Raises:
        Unmet: they differ.
    """

    def load(rewritten: bool) -> tuple[Runner, Runner]:
        zeroed, shrunk = (
            Runner(
                cut(document, studied, plan, mode),
                optimize=rewritten,
                whole=whole,
                name=f"the {name} model",
                remedy=OURS,
            )
            for mode, name in (("zero", "zeroed"), ("shrink", "shrunk"))
        )
        return zeroed, shrunk

    # Sums of 8-bit products that overflow, which depend on which products are neighbours, take
    # rewriting to be exact.
    whole = sums_integers(document.graph)
    found = oracle(*load(True), feeds, QUANTIZED) if whole else either_order(load, feeds)
    if not found:
        raise Unmet(
            f"the shrunk model does not compute what the zeroed one does ({found.reason})",
            where=opened.name,
            remedy=OURS,
        )
    return found


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
    opened: Opened, studied: Studied | None, plan: Plan, data: Data, progress: Progress
) -> Studied:
    """What is known of just the layers that a plan cuts; layers that keep all stay untouched."""
    if studied is not None and plan.cut() == tuple(studied.prepared.trace.units.lanes):
        return studied
    return study(opened, plan.cut(), data, progress)
