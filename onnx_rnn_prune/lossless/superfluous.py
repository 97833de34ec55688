"""Units that provably change nothing, found in the weights alone.

Four kinds, each a fixed point over all layers at once:

zero       The gate that makes new values (the last of a cell) sums nothing but zero units, its
           biases are 0, and so is where the state starts. So the state stays 0, whatever the other
           gates say. The largest such set.
constant   All gates sum nothing but zero units, so that a step is s' = a s + b with fixed a and b,
           and the first step reaches the fixed point. Where the initial state is another number,
           the unit's own layer must not read it: at the first step, that sees the initial state.
dead       No one reads the unit but units that are dead, zero or constant. The largest such set.
duplicate  Two units have the same biases and initial states, and the same weights once the columns
           of units that are equal are summed up: the coarsest partition of which that is true,
           found by refinement (Hopcroft 1971; as lumping in Markov chains).

What is read through operators that change values is judged with care: a constant counts only where
its entries are merely moved, and a zero where what stands in the way keeps zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.evidence.gates import GateReader
from onnx_rnn_prune.evidence.lookup import Lookup
from onnx_rnn_prune.evidence.products import Product, find_matrices
from onnx_rnn_prune.evidence.readers import ProductReader
from onnx_rnn_prune.lossless.constant_states import Held, held_states
from onnx_rnn_prune.lossless.refine import refine
from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.integers import sums_integers
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.trace.bindings import STATES
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Ids
from onnx_rnn_prune.traced_model import TracedModel


@dataclass(frozen=True, eq=False)
class Superfluous:
    """What can be said of each unit; the kinds share none.

    Attributes:
        dead: nobody reads it, [units].
        zero: it is 0 at all times, [units].
        constant: it is one number at all times, [units].
        held: which number.
        first: the first unit of those that are equal, [units]; of most, the unit itself.
    """

    dead: Mask
    zero: Mask
    constant: Mask
    held: Held
    first: Ids

    @property
    def duplicate(self) -> Mask:
        """Whether another unit is the first of its kind, [units]."""
        duplicate: Mask = self.first != np.arange(len(self.first))
        return duplicate


KINDS = ("dead", "zero", "constant", "duplicate")


def find_superfluous(traced: TracedModel) -> Superfluous:
    """Looks at all units of a model."""
    document, trace = traced.document, traced.trace
    lookup = Lookup.of(document)
    products = find_matrices(document, trace, lookup)
    layers = [lookup.layers[name] for name in trace.units.lanes]
    rest = _resting_units(trace, layers, products)
    zero = _all_of_atom(trace, rest & ~_seen_otherwise(trace, products))
    held = held_states(trace, layers, _still(trace, products, rest))
    if sums_integers(document.graph):  # what goes may change the range of what 8 bits stand for
        nothing = np.zeros_like(zero)
        return Superfluous(nothing, zero, nothing, held, np.arange(trace.units.count))
    constant = _all_of_atom(trace, _foldable(products, held) & ~zero)
    dead = _dead_units(trace, products, zero | constant) & ~(zero | constant)
    alive = _mergeable(trace, layers, products) & ~(zero | constant | dead)
    first = refine(document, trace, products, layers, rest, _all_of_atom(trace, alive))
    return Superfluous(dead, zero, constant, held, first)


def _all_of_atom(trace: Trace, units: Mask) -> Mask:
    """What holds for all units that live or die together, for each of them."""
    result = np.zeros_like(units)
    for group in trace.groups:
        for atoms in group.atoms:
            result[atoms] = units[atoms].all(axis=1, keepdims=True)
    return result


def _resting_units(trace: Trace, layers: Sequence[Layer], products: list[Product]) -> Mask:
    """Units whose state is always 0, [units]."""
    zero = np.zeros(trace.units.count, dtype=bool)
    for layer in layers:
        if layer.rests_at_zero:
            zero[trace.units.lanes[layer.name]] = _starts_at_zero(layer)
    candidates = {layer.name: layer.cell.gates[-1] for layer in layers}
    while True:
        before = zero.copy()
        for product in products:
            rows = _making(product, candidates)
            read = (product.weight != 0) & ~product.reads_zero(zero)
            rows &= read.any(axis=1) & (product.outputs >= 0)
            zero[product.outputs[rows]] = False
        zero = _all_of_atom(trace, zero)
        if np.array_equal(zero, before):
            return zero


def _making(product: Product, candidates: Mapping[str, str]) -> Mask:
    """The outputs that make new values: of gates the last one's, of other products all."""
    reader, rows = product.reader, np.ones(len(product.outputs), dtype=bool)
    if not isinstance(reader, GateReader):
        return rows
    letters = np.array(list(reader.gates)) == candidates.get(reader.layer, "")
    return np.repeat(letters, len(reader.lane))


def _seen_otherwise(trace: Trace, products: list[Product]) -> Mask:
    """Units of which some reader reads another number where their state is 0, [units]."""
    seen = np.zeros(trace.units.count, dtype=bool)
    for product in products:
        read = (product.labels >= 0) & product.weight.any(axis=0) & ~product.zeros
        seen[product.labels[read]] = True
    return seen


def _starts_at_zero(layer: Layer) -> Mask:
    """Units without initial states and biases of the gate that makes new values, [D, H]."""
    shape = layer.directions, layer.hidden
    result = np.ones(shape, dtype=bool)
    bias = layer.constant("B")
    if bias is not None:
        both = bias.reshape(layer.directions, -1, len(layer.cell.gates), layer.hidden)[:, :, -1]
        linear = layer.node.attrs.get("linear_before_reset", 0)
        result &= ~both.any(axis=1) if linear else both.astype(np.float64).sum(axis=1) == 0
    for name in STATES:
        if layer.input(name) is not None:
            value = layer.constant(name)
            result &= np.zeros(shape, bool) if value is None else ~value.any(axis=1)
    return result


def _still(trace: Trace, products: list[Product], zero: Mask) -> Mask:
    """Units all of whose gates read nothing that ever changes, [units]."""
    still = np.ones(trace.units.count, dtype=bool)
    for product in products:
        read = ((product.weight != 0) & ~product.reads_zero(zero)).any(axis=1)
        moving = product.outputs[read & (product.outputs >= 0)]
        still[moving] = False
    return still


def _foldable(products: list[Product], held: Held) -> Mask:
    """Constant units whose readers can all take them into their biases."""
    result = held.known.copy()
    for product in products:
        reader = product.reader
        read = (product.labels >= 0) & product.weight.any(axis=0)
        good = product.moved & product.exact
        if isinstance(reader, GateReader):
            own = np.isin(product.labels, reader.lane)
            good &= ~own | held.from_start[product.labels]
        elif isinstance(reader, ProductReader):
            good &= not reader.op.startswith("Conv")  # at padded borders it reads zeros
        result[product.labels[read & ~good]] = False
    return result


def _dead_units(trace: Trace, products: list[Product], gone: Mask) -> Mask:
    live = np.zeros(trace.units.count, dtype=bool)
    while True:
        before = live.copy()
        for product in products:
            outside = product.outputs < 0
            reading = outside | (live & ~gone)[product.outputs]
            columns = (product.labels >= 0) & product.weight[reading].any(axis=0)
            live[product.labels[columns]] = True
        live = ~_all_of_atom(trace, ~live)
        if np.array_equal(live, before):
            return ~live


def _mergeable(trace: Trace, layers: Sequence[Layer], products: list[Product]) -> Mask:
    """Units of lanes in which one may stand in for another, [units].

    Their weights are no integers, which a sum would round anew, their initial states are known, and
    who reads one unit of a lane reads all of them, equally often.
    """
    result = np.ones(trace.units.count, dtype=bool)
    for layer in layers:
        states = [layer.input(name) for name in STATES]
        if any(state is not None and constant_value(state) is None for state in states):
            result[trace.units.lanes[layer.name]] = False
    for product in products:
        counts = np.bincount(product.labels[product.labels >= 0], minlength=trace.units.count)
        for lanes in trace.units.lanes.values():
            for lane in lanes:
                uneven = len(set(counts[lane].tolist())) > 1
                if counts[lane].any() and (uneven or not product.exact):
                    result[lane] = False
    return result
