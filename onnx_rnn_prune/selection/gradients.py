"""Sensitivity of the outputs to scaling a unit.

With a factor m_u on all signals read from unit u, the derivative by m_u at 1 is the sum of w dL/dw
over the readers' weights w for it, so gradients of the weights suffice. L is a loss on labels if
the user names one, for each feed with labels. Otherwise it would compare the original with itself
and have no slope; instead there are probes L = sum v y / std(y) with random signs v (Hutchinson
1990): the mean square of dL/dm_u over them is the sum of squares of all dy/dm_u.

    taylor   mean |dL/dm_u|     (Molchanov et al. 2017, 2019)
    fisher   mean (dL/dm_u)^2   (Theis et al. 2018)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.recovery.distill.batches import Batch, Teacher
from onnx_rnn_prune.recovery.distill.configuration import Answers, Loss
from onnx_rnn_prune.recovery.distill.network import (
    Network,
    build,
    find_region,
    labelled_outputs,
    why_not,
)
from onnx_rnn_prune.selection.context import ScoringContext
from onnx_rnn_prune.trace.bindings import own_bindings
from onnx_rnn_prune.trace.propagation import Binding
from onnx_rnn_prune.traced_model import TracedModel

_PROBES = 4

Losses = Callable[[dict[str, torch.Tensor]], Iterable[torch.Tensor]]


def mean_slope(context: ScoringContext, measure: Callable[[Matrix], Matrix]) -> Matrix:
    """The mean of a measure of dL/dm over losses and feeds, [units]."""
    total, count = np.zeros(context.traced.trace.units.count), 0
    for slope in slopes(context):
        total += measure(slope)
        count += 1
    return total / max(count, 1)


def slopes(context: ScoringContext) -> Iterator[Matrix]:
    """dL/dm by unit, for every loss of each feed.

    Raises:
        PruneError: a reader of units cannot be computed with gradients, or the loss on labels is
            NaN.
    """
    document, trace = context.traced.document, context.traced.trace
    region = find_region(document, trace.units.lanes)
    readers = reading(context.traced)
    for binding in readers:
        if binding.node not in region.nodes or (context.data.loss and not region.whole):
            raise PruneError(
                f"gradients are unavailable ({why_not(region)})",
                where=binding.node,
                remedy="use --criterion=reconstruction",
            )
    if not readers:  # nothing depends on any unit
        return
    keep = np.ones(trace.units.count, dtype=bool)
    teacher = Teacher(document, trace, keep, region, context.data.calibration.states)
    network, count = build(document, region), trace.units.count
    if context.data.loss is None:
        signs = probes(np.random.default_rng(context.seed))
        slope = Slope(network, region.targets, readers, count)
        for feed in context.data.calibration:
            yield from slope(teacher(feed), signs)
        return
    slope = Slope(network, labelled_outputs(document, region), readers, count)
    for feed in context.data.calibration:
        answers = Answers.of(feed)
        if answers is not None:
            yield from slope(teacher(feed), comparison(context.data.loss, answers))


def reading(traced: TracedModel) -> list[Binding]:
    """The weights that read units: in products, and for inputs and states of layers."""
    trace = traced.trace
    found = [binding for binding in trace.bindings if binding.bound.reads is not None]
    layers = [layer for layer in traced.layers if "R" in layer.cell.inputs]
    for layer in layers:
        recurrence = layer.slot("R")
        for binding in own_bindings(layer, trace.units.lanes[layer.name], trace.labels):
            if binding.bound.slot == recurrence and binding.bound.axis == -1:
                found.append(binding)
    return found


def probes(rng: np.random.Generator) -> Losses:
    """Probe losses: several draws of random signs on all outputs."""

    def losses(outputs: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        scaled = [value / value.detach().std().clamp(min=1e-12) for value in outputs.values()]
        for _ in range(_PROBES):
            signs = [torch.from_numpy(rng.choice([-1.0, 1.0], value.shape)) for value in scaled]
            parts = [(value * sign).sum() for value, sign in zip(scaled, signs, strict=True)]
            yield torch.stack(parts).sum()

    return losses


def comparison(loss: Loss, answers: Answers) -> Losses:
    """A loss of the outputs against labels."""

    def losses(outputs: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        value = loss(outputs, answers)
        if not torch.isfinite(value):
            raise PruneError(
                f"the loss {loss.name} is {value.item()}",
                where=answers.feed,
                remedy="fix it, or the labels",
            )
        yield value

    return losses


@dataclass(frozen=True, eq=False)
class Slope:
    """Computes derivatives by factors on units.

    Attributes:
        network: the model's network.
        outputs: names of the outputs that losses are computed from.
        readers: the weights that read units.
        count: number of units.
    """

    network: Network
    outputs: Sequence[str]
    readers: Sequence[Binding]
    count: int

    def __call__(self, batch: Batch, losses: Losses) -> Iterator[Matrix]:
        """dL/dm by unit, for each loss on one batch."""
        names = {place: name for name, held in self.network.weights.items() for place in held}
        read = [names[binding.node, binding.bound.slot] for binding in self.readers]
        weights = {name: self.network.constants[name].clone().requires_grad_() for name in read}
        outputs = self.network(batch.given, weights, self.outputs)
        for loss in losses(outputs):
            gradients = torch.autograd.grad(
                loss, list(weights.values()), retain_graph=True, materialize_grads=True
            )
            products = {
                name: (weight.detach() * gradient).numpy().astype(np.float64)
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            yield self._summed(products, read)

    def _summed(self, products: Mapping[str, Matrix], read: Sequence[str]) -> Matrix:
        """w dL/dw summed over the weights that read each unit."""
        total = np.zeros(self.count)
        for binding, name in zip(self.readers, read, strict=True):
            labels = np.broadcast_to(binding.bound.labels, products[name].shape)
            owned = labels >= 0
            total += np.bincount(labels[owned], products[name][owned], minlength=self.count)
        return total
