"""How much each unit matters. A criterion is a function from a subject to one score per unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.learn.extra import require_torch
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
        evidence: from calibration data, or None where there is no data, or none was looked at.
        seed: for criteria that draw.
        feeds: calibration data; None where there is none.
    """

    document: Document
    trace: Trace
    readers: Sequence[Reader]
    evidence: Evidence | None
    seed: int
    feeds: Feeds | None = None


@dataclass(frozen=True)
class Criterion:
    """A way of scoring units.

    Attributes:
        score: gives one number per unit, larger where it matters more.
        looks: whether it needs evidence from data.
        learns: whether it needs data and PyTorch.
    """

    score: Callable[[Subject], Matrix]
    looks: bool = False
    learns: bool = False


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


def taylor(subject: Subject) -> Matrix:
    """Mean |dL/dm| for a factor m on all that reads a unit (Molchanov et al. 2017, 2019)."""
    return _slopes(subject, "taylor", np.abs)


def fisher(subject: Subject) -> Matrix:
    """Mean (dL/dm)^2 for a factor m on all that reads a unit (Theis et al. 2018)."""
    return _slopes(subject, "fisher", np.square)


CRITERIA: Mapping[str, Criterion] = {
    "random": Criterion(random),
    "l1": Criterion(l1),
    "l2": Criterion(l2),
    "activation": Criterion(activation, looks=True),
    "variance": Criterion(variance, looks=True),
    "reconstruction": Criterion(reconstruction, looks=True),
    "taylor": Criterion(taylor, learns=True),
    "fisher": Criterion(fisher, learns=True),
}


def _evidence(subject: Subject, name: str) -> Evidence:
    if subject.evidence is None:
        raise _no_data(name)
    return subject.evidence


def _no_data(name: str) -> PruneError:
    return PruneError(
        f"the criterion {name} looks at activations, and there is no data",
        where="--criterion",
        remedy="pass --data, or choose l1, l2 or random",
    )


def _slopes(subject: Subject, name: str, measure: Callable[[Matrix], Matrix]) -> Matrix:
    """The mean of a measure over probes; PyTorch is imported only here."""
    if subject.feeds is None:
        raise _no_data(name)
    require_torch(f"--criterion {name}")
    from onnx_rnn_prune.score.gradients import slopes

    found = slopes(subject.document, subject.trace, subject.feeds, subject.seed)
    total, count = np.zeros(subject.trace.units.count), 0
    for slope in found:
        total += measure(slope)
        count += 1
    return total / max(count, 1)


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
