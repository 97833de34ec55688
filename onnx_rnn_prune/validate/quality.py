"""Metrics: how well a model does its job, as one number over many feeds.

Each is a function of the outputs of the model and the original, and of labels. `nrmse`, `kl` and
`agreement` compare with the original and need no labels.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.data.sources import FAILURES, is_function_name, named_function
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.validate.drift import deviations
from onnx_rnn_prune.validate.results import Outcome, Result, up_to_shorter

Measure = Callable[[Iterable[Result]], float]

_LEAST = 1e-12


@dataclass(frozen=True)
class Quality:
    """A measure of how well a model does its job.

    Attributes:
        name: as users call it.
        higher: whether higher values are better.
        measure: computes it, in its own units.
        source: the source of a user's function, if known, which tells whether it has changed.
    """

    name: str
    higher: bool
    measure: Measure
    source: str = ""

    def loss(self, before: float, after: float) -> float:
        """By how much a model is worse than the original; infinite if that is not finite."""
        loss = before - after if self.higher else after - before
        return loss if math.isfinite(loss) else math.inf


def nrmse(results: Iterable[Result]) -> float:
    """The largest NRMSE of an output: RMSE / standard deviation of the original's."""
    found = deviations(results, "the two models")
    return max((values.nrmse for values in found.values()), default=0.0)


def agreement(results: Iterable[Result]) -> float:
    """How often the largest entry along the last axis is at the original's index.

    Of the output that agrees least; for other types than floats, the share of equal entries. NaN if
    NaN or infinities differ.
    """
    found = deviations(results, "the two models").values()
    if any(math.isinf(values.max_abs) for values in found):
        return math.nan
    shares = [values.top1_agreement for values in found if values.top1_agreement is not None]
    if not shares:
        raise _unfit("agreement", "no output has classes along its last axis")
    return min(shares)


def accuracy(results: Iterable[Result]) -> float:
    """How often the label is the output, or the index of its largest entry on the last axis."""
    right, count = 0, 0
    for result in results:
        labels = _labels(result, "accuracy")
        if any(np.isnan(value).any() for value in _floats(result.found)):
            return math.nan  # such scores have no largest one
        chosen = _chosen(result.found, labels.shape)
        right += int(np.count_nonzero(chosen == labels))
        count += labels.size
    return right / max(count, 1)


def perplexity(results: Iterable[Result]) -> float:
    """exp of the mean cross entropy of labels, with scores of classes along the last axis."""
    total, count = 0.0, 0
    for result in results:
        labels = _labels(result, "perplexity")
        logs = _log_shares(_scores(result.found, labels.shape, "perplexity"))
        most = logs.shape[-1] - 1
        if labels.dtype.kind not in "iu" or np.any((labels < 0) | (labels > most)):
            raise _unfit("perplexity", f"labels are not class indices from 0 to {most}")
        total -= float(np.take_along_axis(logs, labels[..., None].astype(np.int64), -1).sum())
        count += labels.size
    mean = total / max(count, 1)
    return math.exp(mean) if mean < 700 else math.inf


def kl(results: Iterable[Result]) -> float:
    """The mean Kullback-Leibler divergence of class probabilities from the original's."""
    total, count = 0.0, 0
    for result in results:
        sides = (_scores(side, None, "kl") for side in (result.wanted, result.found))
        theirs, ours = map(_log_shares, up_to_shorter(*sides))
        shares = np.exp(theirs)
        # A class with a score of -inf adds nothing.
        total += float(np.where(shares == 0, 0.0, shares * (theirs - ours)).sum())
        count += theirs[..., 0].size
    return total / max(count, 1)


def snr(results: Iterable[Result]) -> float:
    """Signal-to-noise ratio, with labels as signals: the mean over feeds, in dB."""
    ratios = []
    for result in results:
        labels = _labels(result, "snr")
        found = next((v for v in _floats(result.found) if v.shape == labels.shape), None)
        if found is None:
            raise _unfit("snr", f"no output has the shape of the labels, {list(labels.shape)}")
        signal = labels.astype(np.float64)
        noise = np.square(found.astype(np.float64) - signal).sum()
        power = np.square(signal).sum()
        if not math.isfinite(noise):
            return math.nan
        ratios.append(10.0 * math.log10(max(power, _LEAST) / max(noise, _LEAST)))
    return float(np.mean(ratios)) if ratios else 0.0


NRMSE = Quality("nrmse", False, nrmse)
QUALITIES = (
    NRMSE,
    Quality("agreement", True, agreement),
    Quality("accuracy", True, accuracy),
    Quality("perplexity", False, perplexity),
    Quality("kl", False, kl),
    Quality("snr", True, snr),
)


def read_quality(name: object, better: str | None) -> Quality:
    """A quality by its name, or a function of the user's.

    Args:
        name: one of QUALITIES, None for `nrmse`; `module:function` or a function that takes an
            iterable of pairs (the feed with its labels, the outputs), both dicts of arrays, and
            returns a number. A parameter `run`, if it has one, is a function from a feed to all
            outputs of the judged model by name; states left out of the feed are zero.
        better: for a function, whether higher (the default) or lower values are better.

    Raises:
        PruneError: there is no such quality.
    """
    known = {quality.name: quality for quality in QUALITIES}
    if name is None:
        return NRMSE
    if isinstance(name, str) and name in known:
        if better is not None:
            raise PruneError(
                f"the better direction of {name} is already known",
                where="--better",
                remedy="leave it out",
            )
        return known[name]
    higher = better != "lower"
    if callable(name):
        text = getattr(name, "__name__", "the metric")
        return Quality(text, higher, _of_user(name, text), _source(name))
    if isinstance(name, str) and is_function_name(name):
        function = named_function(name, "give a function of (feed, outputs) pairs")
        return Quality(name, higher, _of_user(function, name), _source(function))
    raise PruneError(
        f"unknown metric {name!r}",
        where="--metric",
        remedy=f"choose one of {', '.join(known)}, or give a function as module:function",
    )


def _source(function: Callable[..., object]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""


def _of_user(function: Callable[..., object], name: str) -> Measure:
    runs = _takes_run(function)

    def measure(results: Iterable[Result]) -> float:
        failed: list[PruneError] = []

        def pairs() -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
            try:
                for result in results:
                    labels = {} if result.labels is None else {"labels": result.labels}
                    yield {**result.feed, **labels}, dict(result.found)
            except PruneError as error:  # of the model, not of the function
                failed.append(error)
                raise

        def run(feed: object) -> dict[str, Array]:
            assert isinstance(results, Outcome)
            try:
                return results.run(feed)
            except PruneError as error:  # about the feed
                failed.append(error)
                raise

        try:
            value = function(pairs(), run=run) if runs else function(pairs())
        except FAILURES as error:
            if failed:
                raise failed[0] from error
            raise PruneError(
                f"it failed with {type(error).__name__}: {error}", where=name, remedy="fix it"
            ) from error
        if isinstance(value, bool) or not isinstance(value, Real | np.number):
            raise PruneError(
                f"it returned {type(value).__name__}", where=name, remedy="return a number"
            )
        return float(value)

    return measure


def _takes_run(function: Callable[..., object]) -> bool:
    """Whether a user's function runs the model itself."""
    try:
        return "run" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # not a Python function
        return False


def _labels(result: Result, name: str) -> Array:
    if result.labels is None:
        raise PruneError(
            "the feeds have no labels",
            where=f"--metric={name}",
            remedy="add an array named labels to each feed, next to the inputs",
        )
    return result.labels


def _floats(outputs: Mapping[str, Array]) -> list[Array]:
    return [v for v in outputs.values() if isinstance(v, np.ndarray) and is_float(v.dtype)]


def _scores(outputs: Mapping[str, Array], shape: tuple[int, ...] | None, name: str) -> Array:
    """The first output with classes along the last axis, and other axes of this shape."""
    for value in _floats(outputs):
        if value.ndim and value.shape[-1] > 1 and shape in (None, value.shape[:-1]):
            return value
    wanted = "" if shape is None else f" for labels of shape {list(shape)}"
    raise _unfit(name, f"no output has class scores along its last axis{wanted}")


def _chosen(outputs: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """Classes: an output of this shape, or the indices of the largest scores."""
    for value in outputs.values():
        if isinstance(value, np.ndarray) and not is_float(value.dtype) and value.shape == shape:
            return value
    chosen: Array = _scores(outputs, shape, "accuracy").argmax(-1)
    return chosen


def _log_shares(scores: Array) -> npt.NDArray[np.float64]:
    """Logarithms of class probabilities, of scores that are probabilities or logits."""
    values = scores.astype(np.float64)
    if values.size and values.min() >= 0 and np.allclose(values.sum(-1), 1.0, atol=1e-3):
        shares: npt.NDArray[np.float64] = np.log(np.maximum(values, _LEAST))
        return shares
    values -= values.max(-1, keepdims=True)
    logs: npt.NDArray[np.float64] = values - np.log(np.exp(values).sum(-1, keepdims=True))
    return logs


def _unfit(name: str, why: str) -> PruneError:
    return PruneError(
        why, where=f"--metric={name}", remedy="give your own function as module:function"
    )
