"""How much each unit matters. A criterion is a function from a subject to one score per unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import weight_value
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.score.evidence import Evidence
from onnx_rnn_prune.score.moments import Matrix
from onnx_rnn_prune.score.readers import Reader
from onnx_rnn_prune.score.reconstruction import reconstruction_gains
from onnx_rnn_prune.trace.bindings import all_bounds
from onnx_rnn_prune.trace.trace import Trace


@dataclass(frozen=True, eq=False)
class Subject:
    """What there is to judge units by.

    Attributes:
        document: the prepared model.
        trace: of it.
        readers: all that read units.
        evidence: from calibration data, or None where there is no data.
        seed: for criteria that draw.
    """

    document: Document
    trace: Trace
    readers: Sequence[Reader]
    evidence: Evidence | None
    seed: int


Criterion = Callable[[Subject], Matrix]


def random(subject: Subject) -> Matrix:
    """A seeded draw: the baseline that every other criterion has to beat."""
    return np.random.default_rng(subject.seed).random(subject.trace.units.count)


def l1(subject: Subject) -> Matrix:
    """Sum of |w| over all weights that belong to a unit: its rows, and all that read it."""
    return _pooled(subject, np.abs)


def l2(subject: Subject) -> Matrix:
    """Root of the sum of w^2 over all weights that belong to a unit (Wen et al. 2018, ISS)."""
    return np.sqrt(_pooled(subject, np.square))


def activation(subject: Subject) -> Matrix:
    """Mean |h| on calibration data."""
    return _evidence(subject, "activation").activity


def variance(subject: Subject) -> Matrix:
    """Variance of h on calibration data: a unit that hardly changes is nearly a bias."""
    evidence = _evidence(subject, "variance")
    scores = np.zeros(subject.trace.units.count)
    for reader in subject.readers:
        units = reader.labels >= 0
        spread = evidence.moments[reader.pool].variance
        np.maximum.at(scores, reader.labels[units], spread[units])
    return scores


def reconstruction(subject: Subject) -> Matrix:
    """How much better the readers' signals are known once a unit is kept, picked greedily."""
    evidence = _evidence(subject, "reconstruction")
    return reconstruction_gains(subject.document, subject.trace, subject.readers, evidence)


CRITERIA: Mapping[str, Criterion] = {
    "random": random,
    "l1": l1,
    "l2": l2,
    "activation": activation,
    "variance": variance,
    "reconstruction": reconstruction,
}
# Those that look at what units do, and need evidence for it.
LOOKING = frozenset({"activation", "variance", "reconstruction"})


def _evidence(subject: Subject, name: str) -> Evidence:
    if subject.evidence is None:
        raise PruneError(
            f"the criterion {name} looks at activations, and there is no data",
            where="--criterion",
            remedy="pass --data, or choose l1, l2 or random",
        )
    return subject.evidence


def _pooled(subject: Subject, measure: Callable[[Matrix], Matrix]) -> Matrix:
    """Sums a measure of every weight over the units that it belongs to; biases left out."""
    nodes = nodes_by_key(subject.document.graph)
    scores = np.zeros(subject.trace.units.count)
    for (node, slot), bounds in all_bounds(subject.document, subject.trace).items():
        value = weight_value(nodes[node], slot, subject.document.graph.opset)
        if value.ndim < 2 or not is_float(value.dtype):
            continue
        amount = measure(value.astype(np.float64))
        for bound in bounds:
            labels = np.broadcast_to(bound.labels, value.shape)
            owned = labels >= 0
            scores += np.bincount(labels[owned], amount[owned], minlength=len(scores))
    return scores
