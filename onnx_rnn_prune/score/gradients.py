"""How strongly the outputs answer when what is read of a unit is scaled.

With a factor m_u on all that is read of unit u, the derivative by m_u at 1 is the sum of
w dL/dw over the readers' weights w that read it, so gradients of the weights are all that is
needed. The outputs of the original differ in nothing from the original's, so that no loss of that
kind has a slope; in its place stand probes L = sum v y / std(y) with random signs v (Hutchinson
1990): the mean square of dL/dm_u over them is the sum of squares of all dy/dm_u.

    taylor   mean |dL/dm_u|     (Molchanov et al. 2017, 2019)
    fisher   mean (dL/dm_u)^2   (Theis et al. 2018)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.learn.lessons import Lesson, Teacher
from onnx_rnn_prune.learn.network import Network, build
from onnx_rnn_prune.learn.region import Region, find_region
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.score.moments import Matrix
from onnx_rnn_prune.score.subject import Subject
from onnx_rnn_prune.trace.bindings import own_bindings, traced_layers
from onnx_rnn_prune.trace.trace import Binding, Trace

_PROBES = 4


def mean_slope(subject: Subject, measure: Callable[[Matrix], Matrix]) -> Matrix:
    """The mean of a measure of dL/dm over probes and feeds, [units]."""
    total, count = np.zeros(subject.trace.units.count), 0
    for slope in slopes(subject.document, subject.trace, subject.feeds, subject.seed):
        total += measure(slope)
        count += 1
    return total / max(count, 1)


def slopes(document: Document, trace: Trace, feeds: Feeds, seed: int) -> Iterator[Matrix]:
    """dL/dm by unit, for several probes of each feed.

    Args:
        document: the prepared model.
        trace: of it.
        feeds: typical inputs.
        seed: of the probes' signs.

    Raises:
        PruneError: something that reads units cannot be computed with gradients.
    """
    region = find_region(document, trace.units.lanes)
    readers = reading(document, trace)
    for binding in readers:
        if binding.node not in region.nodes:
            raise PruneError(
                f"no gradients can be had there ({_reason(region)})",
                where=binding.node,
                remedy="choose the criterion reconstruction",
            )
    network = build(document, region)
    keep = np.ones(trace.units.count, dtype=bool)
    teacher = Teacher(document, trace, keep, region)
    probe = Probe(network, region.targets, readers, trace.units.count)
    rng = np.random.default_rng(seed)
    for feed in feeds:
        yield from probe(teacher(feed), rng)


def reading(document: Document, trace: Trace) -> list[Binding]:
    """Where weights read units: of products, of the next layers' inputs, and of states."""
    found = [binding for binding in trace.bindings if binding.bound.reads is not None]
    for layer in traced_layers(document, trace):
        recurrence = layer.slot("R")
        for binding in own_bindings(layer, trace.units.lanes[layer.name], trace.labels):
            if binding.bound.slot == recurrence and binding.bound.axis == -1:
                found.append(binding)
    return found


@dataclass(frozen=True, eq=False)
class Probe:
    """Derivatives by factors on units.

    Attributes:
        network: of the model.
        targets: its outputs.
        readers: where weights read units.
        count: of units.
    """

    network: Network
    targets: Sequence[str]
    readers: Sequence[Binding]
    count: int

    def __call__(self, lesson: Lesson, rng: np.random.Generator) -> Iterator[Matrix]:
        """dL/dm by unit for some random probes of one lesson."""
        names = {place: name for name, held in self.network.weights.items() for place in held}
        read = [names[binding.node, binding.bound.slot] for binding in self.readers]
        weights = {name: self.network.constants[name].clone().requires_grad_() for name in read}
        outputs = self.network(lesson.given, weights, self.targets)
        scaled = [value / value.detach().std().clamp(min=1e-12) for value in outputs.values()]
        for _ in range(_PROBES):
            signs = [torch.from_numpy(rng.choice([-1.0, 1.0], value.shape)) for value in scaled]
            probes = [(value * sign).sum() for value, sign in zip(scaled, signs, strict=True)]
            loss = torch.stack(probes).sum()
            gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
            products = {
                name: (weight.detach() * gradient).numpy().astype(np.float64)
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            total = np.zeros(self.count)
            for binding, name in zip(self.readers, read, strict=True):
                labels = np.broadcast_to(binding.bound.labels, products[name].shape)
                owned = labels >= 0
                total += np.bincount(labels[owned], products[name][owned], minlength=self.count)
            yield total


def _reason(region: Region) -> str:
    return ", ".join(sorted(set(region.missing.values()))) or "it leads to no output"
