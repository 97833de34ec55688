"""Units that provably change nothing, found in the weights alone.

Four kinds, each a fixed point over all layers at once:

zero       The gate that makes new values (the last of a cell) sums only zero units, and its biases
           and the initial state are 0. So the state stays 0, whatever the other gates do. The
           largest such set.
constant   All gates sum only zero units, so a step is s' = a s + b with fixed a and b, and the
           first step reaches the fixed point. If the initial state differs from it, the unit's own
           layer must not read it: the first step sees the initial state.
dead       The unit is read only by dead, zero or constant units. The largest such set.
duplicate  Two units have the same biases and initial states, and the same weights once the columns
           of equal units are summed: the coarsest such partition, found by refinement (Hopcroft
           1971; as lumping in Markov chains).

Operators between a unit and its reader matter: a constant counts only if its entries are merely
moved, and a zero only if they preserve zeros.

With fixed gates, a step is s' = a s + b (for an LSTM's cell state; else for the state itself):

    RNN   a = 0   b = f(i)           GRU   a = z   b = (1 - z) n         LSTM   a = f   b = i g

The first step goes from the initial state to s; all others stay there if s = a s + b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.evidence.gates import GateReader
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.evidence.products import ReaderMatrix, find_matrices
from onnx_rnn_prune.evidence.readers import ProductReader
from onnx_rnn_prune.evidence.steps import Function, activation_of
from onnx_rnn_prune.lossless.refine import refine
from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.integers import sums_integers
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.trace.bindings import STATES
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Ids
from onnx_rnn_prune.traced_model import TracedModel

# Far below single-precision rounding.
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class ConstantStates:
    """States that never change.

    Attributes:
        known: whether a unit's state is the same after every step, [units].
        from_start: whether it is so before the first step as well, [units].
        state: its value, [units].
        reset: its value times a GRU's reset gate, [units].
    """

    known: Mask
    from_start: Mask
    state: Matrix
    reset: Matrix


def constant_states(trace: Trace, layers: Sequence[Layer], still: Mask) -> ConstantStates:
    """The constant states of units whose gates read nothing that changes.

    Args:
        still: which units these are, [units].
    """
    count = trace.units.count
    known, from_start = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    state, reset = np.zeros(count), np.zeros(count)
    for layer in layers:
        for direction, lane in enumerate(trace.units.lanes[layer.name]):
            found = _held(layer, direction) if still[lane].any() else None
            if found is not None:
                known[lane] = found.known & still[lane]
                from_start[lane] = found.from_start & known[lane]
                state[lane], reset[lane] = found.state, found.reset
    return ConstantStates(known, from_start, state, reset)


def _held(layer: Layer, direction: int) -> ConstantStates | None:
    """The constant states that the biases of one direction produce; None if unknown."""
    names = layer.cell.activations
    functions = [activation_of(layer, direction, place) for place in range(len(names))]
    known = [function for function in functions if function is not None]
    starts = [_start(layer, name, direction) for name in ("initial_h", "initial_c")]
    shown = layer.input("sequence_lens") is not None  # outputs beyond a sequence's end are zero
    altered = layer.node.attrs.get("clip") or layer.node.attrs.get("input_forget")
    if shown or altered or layer.input("P") is not None or len(known) < len(names):
        return None
    if any(start is None for start in starts) or layer.cell.gates not in _CELLS:
        return None
    bias, gates = layer.constant("B"), len(layer.cell.gates)
    sums = np.zeros((2, gates, layer.hidden))
    if bias is not None:
        sums = bias[direction].astype(np.float64).reshape(sums.shape)
    start_h, start_c = (start for start in starts if start is not None)
    return _CELLS[layer.cell.gates](layer, sums, known, start_h, start_c)


def _start(layer: Layer, name: str, direction: int) -> Matrix | None:
    """The initial state, [H]; None if it is unknown or differs between sequences."""
    if layer.input(name) is None:
        return np.zeros(layer.hidden)
    value = layer.constant(name)
    if value is None or not value.shape[1] or np.any(value != value[:, :1]):
        return None
    return np.asarray(value[direction, 0], dtype=np.float64)


def _settled(factor: Matrix, term: Matrix, start: Matrix) -> tuple[Matrix, Mask]:
    """The state after the first step of s' = a s + b, and whether it stays there."""
    state = factor * start + term
    left = (1.0 - factor) * _TOLERANCE * np.maximum(1.0, np.abs(state))
    return state, np.abs(term - (1.0 - factor) * state) <= left


def _rnn(
    _: Layer, sums: Matrix, functions: list[Function], start: Matrix, __: Matrix
) -> ConstantStates:
    state = functions[0](sums[:, 0].sum(axis=0))
    return ConstantStates(
        np.ones(len(state), dtype=bool), _same(state, start), state, np.zeros_like(state)
    )


def _gru(
    layer: Layer, sums: Matrix, functions: list[Function], start: Matrix, _: Matrix
) -> ConstantStates:
    gate, candidate = functions
    z, r = gate(sums[:, 0].sum(axis=0)), gate(sums[:, 1].sum(axis=0))
    linear = layer.node.attrs.get("linear_before_reset", 0)
    new = candidate(sums[0, 2] + (r if linear else 1.0) * sums[1, 2])
    state, known = _settled(z, (1.0 - z) * new, start)
    return ConstantStates(known, _same(state, start), state, r * state)


def _lstm(
    _: Layer, sums: Matrix, functions: list[Function], start: Matrix, cell: Matrix
) -> ConstantStates:
    gate, new, out = functions
    i, o, f = (gate(sums[:, place].sum(axis=0)) for place in range(3))
    inner, known = _settled(f, i * new(sums[:, 3].sum(axis=0)), cell)
    state = o * out(inner)
    return ConstantStates(known, _same(state, start), state, np.zeros_like(state))


def _same(state: Matrix, start: Matrix) -> Mask:
    """Whether two states are equal in single precision."""
    return np.abs(state - start) <= 1e-7 * np.maximum(1.0, np.abs(state))


_CELLS: dict[str, Callable[[Layer, Matrix, list[Function], Matrix, Matrix], ConstantStates]] = {
    "i": _rnn,
    "zrh": _gru,
    "iofc": _lstm,
}


@dataclass(frozen=True, eq=False)
class Superfluous:
    """What is known of each unit; the kinds are disjoint.

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
    held: ConstantStates
    first: Ids

    @property
    def duplicate(self) -> Mask:
        """Whether a unit equals an earlier one, [units]."""
        duplicate: Mask = self.first != np.arange(len(self.first))
        return duplicate


KINDS = ("dead", "zero", "constant", "duplicate")


def find_superfluous(traced: TracedModel) -> Superfluous:
    """Classifies all units of a model."""
    document, trace = traced.document, traced.trace
    products, layers = find_matrices(document, trace), traced.layers
    rest = _resting_units(trace, layers, products)
    zero = _all_of_atom(trace, rest & ~_seen_otherwise(trace, products))
    held = constant_states(trace, layers, _still(trace, products, rest))
    if sums_integers(document.graph):  # removing units may change quantization ranges
        nothing = np.zeros_like(zero)
        return Superfluous(nothing, zero, nothing, held, np.arange(trace.units.count))
    constant = _all_of_atom(trace, _foldable(products, held) & ~zero)
    dead = _dead_units(trace, products, zero | constant) & ~(zero | constant)
    alive = _mergeable(trace, layers, products) & ~(zero | constant | dead)
    first = refine(traced, products, rest, _all_of_atom(trace, alive))
    return Superfluous(dead, zero, constant, held, first)


def _all_of_atom(trace: Trace, units: Mask) -> Mask:
    """Restricts a property to atoms of which all units have it."""
    result = np.zeros_like(units)
    for group in trace.groups:
        for atoms in group.atoms:
            result[atoms] = units[atoms].all(axis=1, keepdims=True)
    return result


def _resting_units(trace: Trace, layers: Sequence[Layer], products: list[ReaderMatrix]) -> Mask:
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


def _making(product: ReaderMatrix, candidates: Mapping[str, str]) -> Mask:
    """The outputs that make new values: the last gate's, or for other products all."""
    reader, rows = product.reader, np.ones(len(product.outputs), dtype=bool)
    if not isinstance(reader, GateReader):
        return rows
    letters = np.array(list(reader.gates)) == candidates.get(reader.layer, "")
    return np.repeat(letters, len(reader.lane))


def _seen_otherwise(trace: Trace, products: list[ReaderMatrix]) -> Mask:
    """Units that some reader sees as another number when their state is 0, [units]."""
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


def _still(trace: Trace, products: list[ReaderMatrix], zero: Mask) -> Mask:
    """Units whose gates read nothing that ever changes, [units]."""
    still = np.ones(trace.units.count, dtype=bool)
    for product in products:
        read = ((product.weight != 0) & ~product.reads_zero(zero)).any(axis=1)
        moving = product.outputs[read & (product.outputs >= 0)]
        still[moving] = False
    return still


def _foldable(products: list[ReaderMatrix], held: ConstantStates) -> Mask:
    """Constant units that all readers can fold into their biases."""
    result = held.known.copy()
    for product in products:
        reader = product.reader
        read = (product.labels >= 0) & product.weight.any(axis=0)
        good = product.moved & product.exact
        if isinstance(reader, GateReader):
            own = np.isin(product.labels, reader.lane)
            good &= ~own | held.from_start[product.labels]
        elif isinstance(reader, ProductReader):
            good &= not reader.op.startswith("Conv")  # it reads zeros at padded borders
        result[product.labels[read & ~good]] = False
    return result


def _dead_units(trace: Trace, products: list[ReaderMatrix], gone: Mask) -> Mask:
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


def _mergeable(trace: Trace, layers: Sequence[Layer], products: list[ReaderMatrix]) -> Mask:
    """Units of lanes in which one unit may replace another, [units].

    Their weights are not integers, which a sum would round again, their initial states are known,
    and readers of one unit of a lane read all of them, equally often.
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


def keep_needed(trace: Trace, found: Superfluous) -> Mask:
    """The mask of units to keep: those needed or demanded by ties, and at least one per lane."""
    keep = np.ones(trace.units.count, dtype=bool)
    for group in trace.groups:
        # Units that may go, the simplest kinds first.
        free = [
            np.concatenate([atoms[np.all(getattr(found, kind)[atoms], axis=1)] for kind in KINDS])
            for atoms in group.atoms
        ]
        count = min(group.size - 1, *map(len, free))
        for atoms in free:
            keep[atoms[:count]] = False
    return keep
