"""Leaving layers whole whose cut would not make the file smaller.

Where units can be followed no further, and where states come in, matrices bring a layer's signals
to full width and back. In a small layer they may take more room than the units that go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from onnx_rnn_prune.flow.feeding import Data
from onnx_rnn_prune.flow.opening import Opened
from onnx_rnn_prune.flow.studying import Studied, cut, settle
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.passes.prepare import STATES
from onnx_rnn_prune.plan.allocation import choose
from onnx_rnn_prune.plan.plan import Plan, fingerprint
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.trace.bindings import traced_layers

REASON = "to bring its states and outputs to full width takes as many bytes as fewer units save"


def pin_losses(opened: Opened, data: Data, studied: Studied, plan: Plan, refits: bool) -> Plan:
    """A plan that leaves layers whole where cutting them makes the file no smaller.

    Args:
        opened: the model.
        data: a feed of it serves to follow units with.
        studied: what is known of the layers that may be cut.
        plan: what is to be cut.
        refits: whether recovery may write to all weights that read units. Where it then does not,
            the result is smaller than is counted here.
    """

    def size(candidate: Plan, known: Studied | None) -> int:
        if not candidate.cut():
            return whole
        found = settle(opened, known, candidate, data, silent)
        document = filled(found) if refits else found.prepared.document
        return int(cut(document, found, candidate, "shrink").write().ByteSize())

    adapted = _adapted(studied)
    if not adapted:
        return plan
    whole = int(opened.document.write().ByteSize())
    least = size(plan, studied)
    for group in studied.prepared.trace.groups:
        if adapted.isdisjoint(group.layers) or set(group.layers).isdisjoint(plan.cut()):
            continue
        other = _pinned(plan, group.layers)
        after = size(other, None)
        if after <= least:
            plan, least = other, after
    return _pinned(plan, plan.cut()) if plan.cut() and least >= whole else plan


def never_worth(opened: Opened, data: Data, studied: Studied) -> Mapping[str, str]:
    """Layers that no cut makes smaller, and why: not even one that leaves a single unit."""
    trace = studied.prepared.trace
    keep = choose(trace, np.zeros(trace.units.count), [1] * len(trace.groups))
    plan = Plan.from_mask(fingerprint(opened.model), trace, keep)
    return pin_losses(opened, data, studied, plan, refits=False).pinned


def filled(studied: Studied) -> Document:
    """A copy of a prepared document in which all that recovery may write to holds numbers.

    Then nothing that makes room for them can be dropped.
    """
    document = studied.prepared.document.copy()
    for reader in studied.readers:
        values = np.full_like(reader.weight(document), 0.5)
        rows, columns = map(np.arange, values.shape)
        reader.store(document, (rows, columns), values, np.ones(len(rows)))
    return document


def _adapted(studied: Studied) -> set[str]:
    """The layers that something was put before or behind."""
    prepared = studied.prepared
    found = {outlet.layer for outlet in prepared.restored}
    for layer in traced_layers(prepared.document, prepared.trace):
        states = [layer.input(name) for name in STATES]
        makers = [node for state in states if state is not None for node in state.inputs]
        if any(node.name.startswith(OWN) for node in makers):
            found.add(layer.name)
    return found


def _pinned(plan: Plan, names: Iterable[str]) -> Plan:
    """A plan in which some layers keep all units."""
    layers, reasons = dict(plan.layers), dict(plan.pinned)
    for name in names:
        layer = layers[name]
        everything = tuple(range(layer.hidden_size))
        layers[name] = replace(layer, keep=(everything,) * len(layer.keep))
        reasons[name] = REASON
    return replace(plan, layers=layers, pinned=reasons)
