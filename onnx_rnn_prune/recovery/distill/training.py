"""Trains a cut model (student) to imitate the original (Hinton, Vinyals and Dean 2015).

The loss of an output is the squared difference from the original's, over the variance of the
latter. For class scores, the Kullback-Leibler divergence of their softmax from the original's is
added: on a language model with a perplexity of 6.4 before, that led to 5.2, squares alone to 5.4.
The learning rate of a weight is relative to the size of its entries (Shazeer and Stern 2018), which
differs tenfold from model to model. With labels in a batch and a loss on them, the total is the
mean (imitation + labels) / 2, as Hinton et al. average the losses of soft and hard targets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.recovery.distill.batches import Batch
from onnx_rnn_prune.recovery.distill.calls import Calls
from onnx_rnn_prune.recovery.distill.configuration import Loss, TrainingConfig, TrainingSummary
from onnx_rnn_prune.recovery.distill.network import Network, Tensors

_WARM_UP = 0.05
# For NSNet2 at 80 of 400 units, 600 steps led to a gain RMSE of 0.070 on other recordings; with
# 0.99 and half the learning rate, to 0.071.
_DECAY = (0.9, 0.999)
# The size assumed for a weight that starts at zero.
_LEAST = 1e-3
# The largest share of the time spent on evaluation.
_JUDGING = 0.15
# If the error exceeds this multiple of the initial one, or is never below that until patience runs
# out, the steps were too long: training restarts with steps shortened to this share. A word
# segmenter of 204 layers, with 32 decisions in a batch, went from an NRMSE of 0.12 to 1.19 within
# 160 steps.
_AWAY, _SHORTER = 3.0, 0.3

Values = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Task:
    """A network to train, and its losses.

    Attributes:
        network: its constants are the initial weights; states continue from the previous batch if
            they are not given.
        weights: names of the weights to train.
        variances: the variance of each target.
        scores: the targets that are class scores along their last axis.
        labelled: the tensors for the loss on labels.
        by_labels: the loss on labels, if any.
    """

    network: Network | Calls
    weights: Sequence[str]
    variances: Mapping[str, float]
    scores: Sequence[str]
    labelled: Sequence[str]
    by_labels: Loss | None

    def loss(self, batch: Batch, weights: Tensors, states: Tensors) -> tuple[torch.Tensor, Tensors]:
        """The imitation loss averaged over targets, in turn averaged with the loss on labels.

        Args:
            states: final states of the previous batch.

        Returns:
            The loss, and the final states of this batch.
        """
        found = self.network({**states, **batch.given}, weights, list(self.variances))
        left = {name: value.detach() for name, value in found.items() if name not in self.variances}
        parts = [
            (found[name] - batch.wanted[name]).square().mean() / variance
            for name, variance in self.variances.items()
        ]
        parts += [
            _divergence(found[name], batch.wanted[name])
            for name in self.scores
            if name in self.variances
        ]
        imitation = torch.stack(parts).mean()
        if self.by_labels is None or not batch.answers:
            return imitation, left
        right = [
            self.by_labels({name: found[name][place] for name in self.labelled}, answers)
            for place, answers in batch.answers
        ]
        return (imitation + torch.stack(right).mean()) / 2, left


def _divergence(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The Kullback-Leibler divergence, averaged over all but the last axis."""
    ours, theirs = torch.log_softmax(found, -1), torch.log_softmax(wanted, -1)
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()


def train(
    task: Task,
    batches: Iterable[Batch],
    judge: Callable[[Values], float],
    config: TrainingConfig,
    progress: Progress,
) -> tuple[Values, TrainingSummary]:
    """Trains the weights of a network; returns the best ones, and a summary.

    Args:
        task: network and losses.
        batches: an endless iterator.
        judge: the validation error of some weights; missing ones keep their initial values.
        config: settings.
        progress: progress callback.
    """
    begin = time.perf_counter()
    error = judge({})
    judging = time.perf_counter() - begin
    learner = _Learner(task, config.norm)
    best: Values = {}
    summary = TrainingSummary(True, {}, len(task.weights), error, error)
    step, trial, waited, done, nearest = 0, 1, 0, 0.0, math.inf
    rate, first = config.rate, 0.0
    with _one_thread():
        for batch in batches:
            progress("learning", round(done * config.steps), config.steps)
            learner(batch, rate * _pace((done - first) / (1.0 - first)))
            step += 1
            seconds = time.perf_counter() - begin
            done = max(step / config.steps, seconds / (60.0 * config.minutes))
            late = done * config.trials >= trial and trial * judging < _JUDGING * seconds
            if late or done >= 1.0:
                trial = int(done * config.trials) + 1
                found = judge(values := learner.values())
                # A well-fitted start may first get worse in training.
                waited = 0 if found < nearest else waited + 1
                nearest = min(nearest, found)
                if found < summary.after:
                    best, summary = values, replace(summary, after=found, taken=step)
                lost = waited >= config.patience and not summary.taken
                if (lost or not found <= _AWAY * error) and done < 1.0:
                    learner, rate, first = _Learner(task, config.norm), _SHORTER * rate, done
                    waited, nearest = 0, math.inf
            if done >= 1.0 or waited >= config.patience:
                break
    progress("learning", config.steps, config.steps)
    return best, replace(summary, steps=step, seconds=time.perf_counter() - begin)


class _Learner:
    """Adam on the weights of a network."""

    def __init__(self, task: Task, norm: float) -> None:
        constants = task.network.constants
        self._task, self._norm = task, norm
        self._weights = {name: constants[name].clone().requires_grad_() for name in task.weights}
        groups = [
            {"params": [part], "size": max(float(part.detach().square().mean().sqrt()), _LEAST)}
            for part in self._weights.values()
        ]
        self._optimizer = torch.optim.Adam(groups, betas=_DECAY)
        self._states: Tensors = {}

    def __call__(self, batch: Batch, rate: float) -> None:
        """One step; the learning rate is relative to the size of a weight's entries."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["size"]
        loss, self._states = self._task.loss(batch, self._weights, self._states)
        if torch.isfinite(loss):
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(self._weights.values()), self._norm)
            self._optimizer.step()

    def values(self) -> dict[str, Array]:
        """A copy of the weights."""
        return {name: part.detach().numpy().copy() for name, part in self._weights.items()}


def _pace(done: float) -> float:
    """The learning-rate schedule, as a share of the peak: warm-up, then a half cosine down to 0."""
    return min(1.0, (done + 1e-3) / _WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits torch to one thread: steps of recurrent layers are too small for several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
