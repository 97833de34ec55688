"""What is known of a model's units, and the cut that follows from a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from onnx_rnn_prune.errors import PruneError, Unmet
from onnx_rnn_prune.flow.feeding import Data
from onnx_rnn_prune.flow.opening import Opened
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import holds_steps, sums_integers
from onnx_rnn_prune.model.runner import Feed, Runner
from onnx_rnn_prune.passes.base import Pipeline
from onnx_rnn_prune.passes.cleanup import DropUnread, PickEntries
from onnx_rnn_prune.passes.cut import Shrink, Zero
from onnx_rnn_prune.passes.prepared import Prepared, prepare
from onnx_rnn_prune.passes.room import DropRoom
from onnx_rnn_prune.plan.plan import Plan
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.score.evidence import Evidence, collect, find_readers
from onnx_rnn_prune.score.readers import Reader
from onnx_rnn_prune.validate import EXACT, QUANTIZED, Oracle, oracle


@dataclass(frozen=True, eq=False)
class Studied:
    """A prepared model with all that is known about its units.

    Attributes:
        prepared: ready to be cut.
        readers: all that read units.
        evidence: from data, None where there is none.
    """

    prepared: Prepared
    readers: list[Reader] = field(default_factory=list)
    evidence: Evidence | None = None


def study(opened: Opened, names: Iterable[str], data: Data, progress: Progress) -> Studied:
    """Prepares some layers for the cut and collects what data says about their units."""
    progress("following units", 0, None)
    prepared = prepare(opened.document, tuple(names), next(iter(data.fitting)))
    readers = find_readers(prepared.document, prepared.trace)
    _check_weights(prepared.document, readers)
    if not data.given:
        return Studied(prepared, readers)
    evidence = collect(prepared.document, prepared.trace, readers, data.fitting, progress)
    return Studied(prepared, readers, evidence)


def cut(document: Document, studied: Studied, plan: Plan, mode: str) -> Document:
    """The model that a plan makes of a recovered document."""
    keep = plan.mask(studied.prepared.trace)
    result = document.copy()
    if mode == "zero":
        Zero(studied.prepared.trace, keep)(result)
    else:
        shrink = Shrink(studied.prepared.trace, keep)
        Pipeline((shrink, DropRoom(), PickEntries(), DropUnread()))(result)
    return result


def prove(
    opened: Opened, studied: Studied, plan: Plan, document: Document, feeds: Iterable[Feed]
) -> Oracle:
    """Runs the zeroed and the shrunk model against each other.

    Raises:
        Unmet: they differ.
    """
    # Sums of 8-bit products that overflow depend on which products are neighbours; and where
    # onnxruntime makes integers of activations on its own, on how many units share a scale.
    whole, steps = sums_integers(document.graph), holds_steps(document.graph)
    zeroed = Runner(
        cut(document, studied, plan, "zero"), optimize=whole, whole=whole, name="the zeroed model"
    )
    shrunk = Runner(
        cut(document, studied, plan, "shrink"),
        optimize=whole or not steps,
        whole=whole,
        name="the shrunk model",
    )
    found = oracle(zeroed, shrunk, feeds, QUANTIZED if whole or steps else EXACT)
    if not found:
        raise Unmet(
            f"the shrunk model does not compute what the zeroed one does ({found.reason})",
            where=opened.name,
            remedy="report this; no file was written",
        )
    return found


def _check_weights(document: Document, readers: Iterable[Reader]) -> None:
    for reader in readers:
        if not np.isfinite(reader.weight(document)).all():
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
