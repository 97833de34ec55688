"""The coarsest partition of units into classes of equal ones, by partition refinement.

Initially, units of a lane share a class if they have the same biases, initial states, weights on
anything but units, and constants along their paths. Then classes are split until all units of a
class have the same weights once the columns of each class are summed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.evidence.products import ReaderMatrix
from onnx_rnn_prune.model.constants import require_constant
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.operators.labels import Labels, Mask, occurrences
from onnx_rnn_prune.trace.bindings import STATES
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Ids
from onnx_rnn_prune.traced_model import TracedModel

# Equal sums of single-precision weights differ by rounding.
_ROUNDING = 1e-6


def refine(
    traced: TracedModel, products: Sequence[ReaderMatrix], zero: Mask, mergeable: Mask
) -> Ids:
    """The first unit of the class of each unit, [units].

    Args:
        zero: units that are always 0, [units]; their columns do not count.
        mergeable: units that may be merged with others at all, [units].
    """
    trace, own = traced.trace, _own(traced, products)
    arrays = [atoms for group in trace.groups for atoms in group.atoms]
    parts = []
    for atoms in arrays:
        keys = [
            b"".join(own[unit] for unit in atom) if mergeable[atom].all() else b"%d" % atom[0]
            for atom in atoms.tolist()
        ]
        known: dict[bytes, int] = {}
        parts.append(np.array([known.setdefault(key, n) for n, key in enumerate(keys)]))
    while any(len(np.unique(part)) < len(part) for part in parts):
        first = _first(trace, arrays, parts)
        lines = _summed(trace, products, zero, first)
        finer = [
            _split(part, np.concatenate([lines[units] for units in atoms.T], axis=1))
            for part, atoms in zip(parts, arrays, strict=True)
        ]
        same = all(np.array_equal(*pair) for pair in zip(finer, parts, strict=True))
        parts = finer
        if same:
            break
    return _first(trace, arrays, parts)


def _first(trace: Trace, arrays: Sequence[Ids], parts: Sequence[Ids]) -> Ids:
    first = np.arange(trace.units.count)
    for atoms, part in zip(arrays, parts, strict=True):
        first[atoms] = atoms[part]
    return first


def _own(traced: TracedModel, products: Sequence[ReaderMatrix]) -> list[bytes]:
    """All numbers of each unit except its weights on other units."""
    document, trace = traced.document, traced.trace
    found: list[list[bytes]] = [[] for _ in range(trace.units.count)]

    def note(labels: Labels, values: Matrix) -> None:
        """Takes values, [n, ...], each of the unit that its label names."""
        for unit, value in zip(labels.tolist(), values, strict=True):
            if unit >= 0:
                found[unit].append(value.tobytes())

    for product in products:
        note(product.outputs, product.weight[:, product.labels < 0])
    for layer in traced.layers:
        for name in ("B", "P", *STATES):
            value = layer.constant(name)
            if value is not None:
                lanes = trace.units.lanes[layer.name]
                stacked = value.reshape(len(lanes), -1, layer.hidden)
                for lane, lines in zip(lanes, stacked, strict=True):
                    note(lane, lines.T)
    nodes = nodes_by_key(document.graph)
    for binding in trace.bindings:
        bound = binding.bound
        if bound.reads is None:
            tensor = nodes[binding.node].inputs[bound.slot]
            value = require_constant(tensor, document.graph.opset)
            labels, values = np.broadcast_arrays(bound.labels, value)
            note(labels.reshape(-1), values.reshape(-1, 1))
    return [b"|".join(parts) for parts in found]


def _summed(trace: Trace, products: Sequence[ReaderMatrix], zero: Mask, first: Ids) -> Matrix:
    """The weights of each unit on other units, with columns of equal ones summed, [units, all]."""
    lines: dict[int, list[Matrix]] = {}
    for product in products:
        units = product.outputs[product.outputs >= 0]
        if not len(units):
            continue
        columns = np.flatnonzero((product.labels >= 0) & ~product.reads_zero(zero))
        keys = np.stack([first[product.labels[columns]], occurrences(product.labels)[columns]])
        _, groups = np.unique(keys, axis=1, return_inverse=True)
        sums = np.zeros((len(product.weight), int(groups.max(initial=-1)) + 1))
        np.add.at(sums.T, groups.reshape(-1), product.weight[:, columns].T)
        order = np.argsort(product.outputs, kind="stable")[-len(units) :]
        lane = np.unique(units)  # all have equally many rows
        for unit, line in zip(lane.tolist(), sums[order].reshape(len(lane), -1), strict=True):
            lines.setdefault(unit, []).append(line)
    joined = [np.concatenate(lines.get(unit, [np.zeros(0)])) for unit in range(trace.units.count)]
    result = np.zeros((len(joined), max(map(len, joined), default=0)))
    for unit, line in enumerate(joined):
        result[unit, : len(line)] = line
    return result


def _split(part: Ids, lines: Matrix) -> Ids:
    """Splits classes by equal lines; each class is given by its first member."""
    result = np.arange(len(part))
    for number in np.unique(part):
        left = np.flatnonzero(part == number)
        while len(left):
            head = left[0]
            limit = _ROUNDING * np.abs(lines[head]).max(initial=0.0)
            near = np.all(np.abs(lines[left] - lines[head]) <= limit, axis=1)
            result[left[near]] = head
            left = left[~near]
    return result
