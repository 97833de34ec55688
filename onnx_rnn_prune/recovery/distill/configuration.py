"""Settings and summary of training, and the loss on labels in feeds.

PyTorch is imported only where a loss is computed, so options can be read without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_rnn_prune.data.sources import FAILURES, is_function_name, named_function
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.runner import Feed, NamedFeed, Runner, Streaming
from onnx_rnn_prune.record import Record

if TYPE_CHECKING:
    import torch


def require_torch(where: str) -> None:
    """Raises an error if PyTorch is missing.

    Args:
        where: the option that needs it.

    Raises:
        PruneError: PyTorch is not installed.
    """
    if find_spec("torch") is None:
        raise PruneError(
            "needs PyTorch, which is not installed",
            where=where,
            remedy="run pip install 'onnx_rnn_prune[distill]'",
        )


_FORMS = "choose cross-entropy, or a module:function that takes outputs and labels"


@dataclass(frozen=True, eq=False)
class Answers:
    """The labels of a feed.

    Attributes:
        labels: as in the feed; floats in single precision, integers in 64 bits.
        feed: its name in error messages.
    """

    labels: torch.Tensor
    feed: str

    @staticmethod
    def of(feed: Feed) -> Answers | None:
        """The labels of a feed; None if it has none.

        Raises:
            PruneError: they are not numbers.
        """
        import torch

        if not isinstance(feed, NamedFeed) or feed.labels is None:
            return None
        labels = feed.labels
        if not (is_float(labels.dtype) or labels.dtype.kind in "biu"):
            raise PruneError(
                f"its labels are {labels.dtype.name}",
                where=feed.name,
                remedy="give numbers, such as class indices",
            )
        kind = {"b": np.bool_, "i": np.int64, "u": np.int64}.get(labels.dtype.kind, np.float32)
        return Answers(torch.from_numpy(np.array(labels, dtype=kind, order="C")), feed.name)


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss of outputs against labels.

    Attributes:
        name: as users write it.
        function: takes the model's outputs by name and the labels; returns a scalar.
    """

    name: str
    function: Callable[[dict[str, torch.Tensor], torch.Tensor], Any]

    def __call__(self, outputs: dict[str, torch.Tensor], answers: Answers) -> torch.Tensor:
        """The loss of one feed.

        Raises:
            PruneError: the function fails on the outputs or labels, or returns anything but a
                scalar that depends on the outputs.
        """
        import torch

        try:
            value = self.function(dict(outputs), answers.labels)
        except _Unfit as error:
            raise PruneError(
                str(error), where=answers.feed, remedy="change the labels, or give your own --loss"
            ) from error
        except FAILURES as error:  # it is the user's code
            raise PruneError(
                f"the loss {self.name} failed with {type(error).__name__}: {error}",
                where=answers.feed,
                remedy=f"fix it, or the labels; the outputs are {', '.join(outputs)}",
            ) from error
        if not isinstance(value, torch.Tensor) or value.ndim or not value.is_floating_point():
            raise self._refused(f"returned {_shown(value)}", answers)
        learns = any(output.requires_grad for output in outputs.values())
        if learns and not value.requires_grad:
            raise self._refused("does not depend on the outputs", answers)
        return value

    def _refused(self, why: str, answers: Answers) -> PruneError:
        return PruneError(
            f"the loss {self.name} {why}",
            where=answers.feed,
            remedy="return a scalar tensor computed from the outputs in PyTorch",
        )

    def of_runs(self, run: Runner, feeds: Iterable[Feed], outputs: Sequence[str]) -> float:
        """The mean loss over the feeds that have labels; infinite if it is NaN.

        Args:
            run: a model in onnxruntime.
            feeds: at least one has labels.
            outputs: outputs to look at; those that are not real numbers are left out.
        """
        import torch

        found, streaming = [], Streaming(run)
        for feed in feeds:
            answers, computed = Answers.of(feed), streaming(feed)
            if answers is not None:
                values = {
                    name: torch.from_numpy(computed[name].astype(np.float32))
                    for name in outputs
                    if is_float(computed[name].dtype)
                }
                found.append(float(self(values, answers)))
        mean = float(np.mean(found))
        return mean if math.isfinite(mean) else math.inf


def read_loss(value: object) -> Loss | None:
    """The loss that `--loss` names; None if it is not given.

    Args:
        value: cross-entropy, `module:function`, a function, or None.

    Raises:
        PruneError: there is no such loss.
    """
    if value is None:
        return None
    if isinstance(value, str) and value in _LOSSES:
        return Loss(value, _LOSSES[value])
    if isinstance(value, str) and is_function_name(value):
        return Loss(value, named_function(value, _FORMS))
    if callable(value):
        return Loss(getattr(value, "__name__", type(value).__name__), value)
    shown = f"'{value}'" if isinstance(value, str) else repr(value)
    raise PruneError(f"unknown loss {shown}", where="--loss", remedy=_FORMS)


class _Unfit(Exception):
    """The outputs or labels do not suit a built-in loss."""


def cross_entropy(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """The mean of -log p of the right classes.

    Args:
        outputs: a single output with scores along the last axis, [..., classes]; what sums to 1
            there is taken for probabilities.
        labels: class indices, [...]; negative ones are ignored.
    """
    import torch

    if len(outputs) != 1:
        shown = ", ".join(outputs) or "none"
        raise _Unfit(f"cross-entropy needs a single output, but the model has {shown}")
    ((name, scores),) = outputs.items()
    if labels.dtype != torch.int64 or labels.shape != scores.shape[:-1]:
        kind = str(labels.dtype).removeprefix("torch.")
        raise _Unfit(
            f"cross-entropy takes integers {list(scores.shape[:-1])} as labels of '{name}', and"
            f" those are {kind} {list(labels.shape)}"
        )
    if labels.numel() and int(labels.max()) >= scores.shape[-1]:
        raise _Unfit(
            f"there is a label {int(labels.max())}, and '{name}' has {scores.shape[-1]} classes,"
            " counted from 0"
        )
    chances = scores.clamp(min=1e-12).log() if _is_chance(scores) else scores.log_softmax(-1)
    right = chances.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    counts = labels >= 0
    return -(right * counts).sum() / counts.sum().clamp(min=1)


def _is_chance(scores: torch.Tensor) -> bool:
    """Whether the last axis holds probabilities throughout."""
    values = scores.detach()
    return bool((values >= 0).all() and ((values.sum(-1) - 1).abs() < 1e-3).all())


def _shown(value: object) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} {list(shape)}"


_LOSSES = {"cross-entropy": cross_entropy}


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of training.

    Attributes:
        minutes: time limit.
        seed: random seed for the order of batches.
        loss: loss on labels, for feeds that have them.
        steps: the most gradient steps; a denoiser of 64 units was still learning after 30,000.
        rate: peak learning rate, relative to the size of a weight's entries.
        norm: gradients are clipped to this norm.
        trials: the number of evaluations.
        patience: early stopping after this many evaluations without improvement.
        until: the `time.monotonic` time after which no other recovery is tried.
    """

    minutes: float = 10.0
    seed: int = 0
    loss: Loss | None = None
    steps: int = 100000
    rate: float = 0.01
    norm: float = 1.0
    trials: int = 30
    patience: int = 10
    until: float = math.inf


@dataclass(frozen=True, eq=False)
class TrainingSummary(Record):
    """How training went.

    Attributes:
        whole: whether everything after the first pruned layer was trained end to end; otherwise
            it was trained piece by piece, between unsupported operators.
        missing: why nodes after a pruned layer could not be computed with gradients, by node.
        weights: number of constants trained.
        before: initial error on held-out feeds, as candidates are judged.
        after: error of the best weights.
        steps: gradient steps made.
        taken: the step of the best weights; 0 for the initial ones.
        seconds: time taken.
    """

    whole: bool
    missing: Mapping[str, str]
    weights: int
    before: float
    after: float
    steps: int = 0
    taken: int = 0
    seconds: float = 0.0
