"""The inputs of criteria, and helpers for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.evidence.evidence import Evidence
from onnx_rnn_prune.evidence.matrices import Matrix, blocks
from onnx_rnn_prune.evidence.readers import Reader
from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.integers import weight_value
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.operators.labels import Labels
from onnx_rnn_prune.operators.layers import MATRICES
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.trace.bindings import all_bounds
from onnx_rnn_prune.traced_model import TracedModel


@dataclass(frozen=True, eq=False)
class ScoringContext:
    """The inputs of criteria.

    Attributes:
        traced: the model.
        data: feeds; generated if the user gave none.
        seed: random seed.
        progress: progress callback.
    """

    traced: TracedModel
    data: Calibration
    seed: int
    progress: Progress

    @property
    def readers(self) -> list[Reader]:
        """All readers of units, except of states that are handed back: nobody looks at the entries
        of removed units there.
        """
        return [reader for reader in self.traced.readers if not reader.places]

    @property
    def seen(self) -> Evidence:
        """The evidence of the feeds, for criteria that need it."""
        evidence = self.data.evidence(self.traced)
        assert evidence is not None
        return evidence


@dataclass(frozen=True)
class Criterion:
    """A measure of how much each unit matters.

    Attributes:
        score: one score per unit, [units]; higher scores are kept.
        needs: only weights; weights, and evidence if there is data; feeds to run; or evidence, the
            moments of all readers' signals.
        learns: whether it needs PyTorch.
        name: as users write it.
    """

    score: Callable[[ScoringContext], Matrix]
    needs: Literal["weights", "either", "feeds", "evidence"]
    learns: bool = False
    name: str = ""


def owned_weights(context: ScoringContext) -> Iterator[tuple[Array, Labels]]:
    """Every weight matrix with rows or columns of units, and their labels.

    These are the units' own rows, and the columns of their readers; a matrix with both comes twice.
    Biases, peepholes, states, and constants that are only added or multiplied are left out.
    """
    document = context.traced.document
    nodes = nodes_by_key(document.graph)
    own = {
        (layer.key, layer.slot(name))
        for layer in context.traced.layers
        for name in MATRICES
        if name in layer.cell.inputs
    }
    for (node, slot), bounds in all_bounds(document, context.traced.trace).items():
        bounds = [bound for bound in bounds if (node, slot) in own or bound.reads is not None]
        value = weight_value(nodes[node], slot, document.graph.opset) if bounds else None
        if value is None or not is_float(value.dtype):
            continue
        for bound in bounds:
            yield value, np.broadcast_to(bound.labels, value.shape)


def owned_amounts(value: Array, labels: Labels) -> Iterator[tuple[Matrix, Labels]]:
    """The absolute values of such a weight, and their labels, a few rows at a time."""
    width = value.shape[-1]
    lines, owners = value.reshape(-1, width), labels.reshape(-1, width)
    for rows in blocks(len(lines)):
        owned = owners[rows] >= 0
        yield np.abs(lines[rows][owned].astype(np.float64)), owners[rows][owned]


def summed(context: ScoringContext, measure: Callable[[Matrix], Matrix]) -> Matrix:
    """Sums a measure of the absolute values of weights by unit.

    Args:
        context: has the weights.
        measure: elementwise measure of absolute values.
    """
    scores = np.zeros(context.traced.trace.units.count)
    for value, labels in owned_weights(context):
        for amounts, units in owned_amounts(value, labels):
            scores += np.bincount(units, measure(amounts), minlength=len(scores))
    return scores


def order_of_leaving(likeness: Matrix, weight: Matrix) -> Matrix:
    """Scores units by removing one of the most similar pair, repeatedly.

    Args:
        likeness: similarity of each pair, from 0 to 1, symmetric, [H, H].
        weight: the unit of a pair with less weight is removed, [H].

    Returns:
        1 - the similarity to the most similar unit left when it is removed, [H]; never decreasing
        in the order of removal; 1 for the last unit.
    """
    size = len(likeness)
    left = likeness.astype(np.float64).copy()
    np.fill_diagonal(left, -1.0)
    scores = np.ones(size)
    nearest = left.argmax(axis=1)
    last = 0.0
    for _ in range(size - 1):
        closest = left[np.arange(size), nearest]
        one = int(closest.argmax())
        other = int(nearest[one])
        gone, kept = (one, other) if weight[one] <= weight[other] else (other, one)
        last = max(last * (1 + 1e-12), 1.0 - float(left[gone, kept]))
        scores[gone] = last
        left[gone], left[:, gone] = -1.0, -1.0
        stale = (nearest == gone) & (left.max(axis=1) >= 0)
        nearest[stale] = left[stale].argmax(axis=1)
    return scores
