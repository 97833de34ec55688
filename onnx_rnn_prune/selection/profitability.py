"""Leaves layers whole if cutting them would not make the file smaller.

Where units cannot be traced further, and where states come in, matrices bring a layer's signals to
full width and back. In a small layer they may take more space than the removed units.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_rnn_prune.cost.price import Price
from onnx_rnn_prune.evidence.readers import Lookup
from onnx_rnn_prune.model.constants import require_constant
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.external import stored_bytes
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.recovery.least_squares import Fit, Recover, place_states
from onnx_rnn_prune.report.schema import PruneReport
from onnx_rnn_prune.report.wording import SLOWER, faster
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.trace.bindings import STATES
from onnx_rnn_prune.trace.plan import Plan, fingerprint
from onnx_rnn_prune.trace.units import Group
from onnx_rnn_prune.traced_model import TracedModel

REASON = (
    "restoring its states and outputs to full width takes as much space as removing units saves"
)

# The most bytes of one matrix besides its entries: its nodes and their names.
_NAMES = 4096


def pin_unprofitable(traced: TracedModel, plan: Plan, refits: bool) -> Plan:
    """Changes a plan to leave layers whole if cutting them does not make the file smaller.

    Args:
        traced: the model, with the layers that may be cut.
        plan: the plan.
        refits: whether recovery may write to all weights that read units. If it then does not, the
            result is smaller than computed here.
    """

    opened = traced.opened

    def size(candidate: Plan) -> int:
        if not candidate.cut():
            return whole
        found = traced.for_plan(candidate)
        document = filled(found) if refits else found.document.copy()
        place(document, found, candidate)
        return stored_bytes(found.cut_outside(candidate, "shrink", document).write(), opened.model)

    trace = traced.trace
    doubtful = _doubtful(traced, plan)
    groups = [group.layers for group in trace.groups if not doubtful.isdisjoint(group.layers)]
    if not groups:
        return plan
    whole = stored_bytes(opened.document.write(), opened.model)
    least = size(plan)
    for names in groups:
        other = _pinned(traced, plan, names)
        after = size(other)
        if after <= least:
            plan, least = other, after
    return _pinned(traced, plan, plan.cut()) if plan.cut() and least >= whole else plan


def unprofitable_layers(traced: TracedModel) -> Mapping[str, str]:
    """Layers that no cut makes smaller, not even one that leaves a single unit, with reasons."""
    trace = traced.trace
    keep = choose(trace, np.zeros(trace.units.count), [1] * len(trace.groups))
    plan = Plan.from_mask(fingerprint(traced.opened.model), trace, keep)
    return pin_unprofitable(traced, plan, refits=False).pinned


def restores_width(traced: TracedModel, group: Group) -> bool:
    """Whether cutting a group needs nodes that bring its states or outputs to full width."""
    if any(outlet.layer in group.layers for outlet in traced.restored):
        return True
    return any(_selects(layer) for layer in traced.layers if layer.name in group.layers)


def sample_cut(traced: TracedModel, plan: Plan) -> Document:
    """The document that prune writes for a plan, apart from the values of weights."""
    found = traced.for_plan(plan)
    document = filled(found)
    place(document, found, plan)
    return found.cut(plan, "shrink", document)


def place(document: Document, traced: TracedModel, plan: Plan) -> None:
    """Writes the placement of states that are only handed back into a full-width document."""
    keep = plan.mask(traced.trace)
    fits = place_states(traced, keep)
    Recover(traced.readers, keep, fits)(document)


@dataclass(frozen=True, eq=False)
class ProfitableCuts:
    """Restores groups to full width if cutting them does not pay.

    Attributes:
        full: numbers of units of the groups.
        doubtful: indices of groups whose states or outputs are brought to full width.
        prices: prices that must all fall for a cut to pay.
    """

    full: tuple[int, ...]
    doubtful: tuple[int, ...]
    prices: Sequence[Price]

    def __call__(self, counts: Sequence[int]) -> tuple[int, ...]:
        """The counts, with groups that are better left whole at full width."""
        found = list(counts)
        for number in self.doubtful:
            whole = [*found[:number], self.full[number], *found[number + 1 :]]
            if any(price(found) >= price(whole) for price in self.prices):
                found = whole
        return tuple(found)


def filled(traced: TracedModel) -> Document:
    """A copy of a prepared document with values in all constants that recovery may write.

    Then no node added for them is dropped as redundant. Readers that only place entries stay as is.
    """
    document = traced.document.copy()
    lookup, fits = Lookup.of(document), {}
    for reader in traced.readers:
        if not reader.places:
            values = np.full_like(reader.weight(lookup), 0.5)
            fits[reader.name] = Fit(values, np.ones(len(values)))
    everything = np.ones(traced.trace.units.count, dtype=bool)
    Recover(traced.readers, everything, fits)(document)
    return document


def _doubtful(traced: TracedModel, plan: Plan) -> set[str]:
    """Layers next to matrices that may take more space than removed units save."""
    restored = {(outlet.layer, outlet.output) for outlet in traced.restored}
    found = set()
    for layer in traced.layers:
        count = sum(1 for name, _ in restored if name == layer.name) + _selects(layer)
        kept = len(plan.layers[layer.name].keep[0]) // layer.lanes
        itemsize = require_constant(layer.node.inputs[layer.slot("W")]).itemsize
        saved = itemsize * (layer.params() - layer.params(kept))
        cost = itemsize * layer.directions * layer.hidden * (kept + 1) + _NAMES
        if kept < layer.hidden and saved <= count * cost:
            found.add(layer.name)
    return found


def _selects(layer: Layer) -> int:
    """The number of a layer's initial states that are picked from full-width ones."""
    states = [layer.input(name) for name in STATES if name in layer.cell.inputs]
    makers = [node for state in states if state is not None for node in state.inputs]
    return sum(node.name.startswith(OWN) for node in makers)


def _pinned(traced: TracedModel, plan: Plan, names: Iterable[str]) -> Plan:
    """A plan in which some layers keep all units, with the reason that stops them."""
    layers, reasons = dict(plan.layers), dict(plan.pinned)
    stops = {outlet.layer: reason for outlet, reason in traced.restored.items()}
    for name in names:
        layer = layers[name]
        everything = tuple(range(layer.hidden_size))
        layers[name] = replace(layer, keep=(everything,) * len(layer.keep))
        reasons[name] = f"{REASON} ({stops[name]})" if name in stops else REASON
    return replace(plan, layers=layers, pinned=reasons)


def worse(report: PruneReport, pays: Container[str] = ("bytes", "ms")) -> str | None:
    """What a cut model is worse in than its original, before any further processing, or None.

    Args:
        report: the report of the cut.
        pays: what a cut must save: bytes, and ms of a run.
    """
    cut = report.stages[0] if report.stages else None
    spent = report.latency if cut is None else cut
    before = report.totals.bytes_before
    after = report.totals.bytes_after if cut is None else cut.bytes
    if "bytes" in pays and after > before:
        return f"the file is larger than the original ({after} bytes instead of {before})"
    ratio, quartiles = spent.speedup, spent.speedup_quartiles
    if "ms" in pays and quartiles[1] < 1.0 and ratio < SLOWER:
        return f"the result is {faster(ratio, quartiles)} than the original"
    return None
