"""Held-out metric of each sample model, or of a pruned version of it; needs onnxruntime only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]
Feed = dict[str, Array]
SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
CHUNK = 16


def heldout(sample_name: str, root: Path = SAMPLES) -> Iterator[tuple[Feed, Array]]:
    """Feeds and labels of `root`/NAME/heldout/*.npz."""
    files = sorted((root / sample_name / "heldout").glob("*.npz"))
    if not files:
        raise FileNotFoundError(f"no .npz file in {root / sample_name / 'heldout'}")
    for file in files:
        with np.load(file) as archive:
            feed = {name: archive[name] for name in archive.files}
        yield feed, feed.pop("labels")


def _logits(session: ort.InferenceSession, feed: Feed) -> NDArray[np.float64]:
    return np.asarray(session.run(["logits"], feed)[0], np.float64)


def accuracy(session: ort.InferenceSession, sample_name: str, root: Path = SAMPLES) -> float:
    """Share of rows whose largest logit, [batch, classes], is the label's, [batch]."""
    right, count = 0, 0
    for feed, labels in heldout(sample_name, root):
        right += int((_logits(session, feed).argmax(-1) == labels).sum())
        count += labels.size
    return right / count


def perplexity(session: ort.InferenceSession, sample_name: str, root: Path = SAMPLES) -> float:
    """exp of the mean cross entropy of logits [batch, time, vocabulary]; 1 is perfect."""
    surprise, count = 0.0, 0
    for feed, labels in heldout(sample_name, root):
        logits = _logits(session, feed)
        peak = logits.max(-1, keepdims=True)
        normalizer = peak[..., 0] + np.log(np.exp(logits - peak).sum(-1))
        chosen = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
        surprise += float((normalizer - chosen).sum())
        count += labels.size
    return math.exp(surprise / count)


def stream(session: ort.InferenceSession, values: Array, chunk: int = CHUNK) -> Array:
    """Forecasts [batch, time, 1] of values [batch, time, 1], fed chunk by chunk.

    The states h and c start at zero and go from each call's outputs to the next call's inputs.
    """
    hidden = {node.name: node.shape[-1] for node in session.get_inputs()}
    state = {name: np.zeros((1, len(values), hidden[name]), np.float32) for name in ("h", "c")}
    forecasts = []
    for start in range(0, values.shape[1], chunk):
        feed = {"input": values[:, start : start + chunk], **state}
        forecast, h, c = session.run(["forecast", "h_out", "c_out"], feed)
        state = {"h": h, "c": c}
        forecasts.append(forecast)
    return np.concatenate(forecasts, 1)


def snr_db(session: ort.InferenceSession, sample_name: str, root: Path = SAMPLES) -> float:
    """Power of the series over the power of the forecast's error, in decibels."""
    signal, noise = [], []
    for feed, labels in heldout(sample_name, root):
        signal.append((labels - labels.mean()).ravel())
        noise.append((stream(session, feed["input"]) - labels).ravel())
    power = [
        float(np.square(np.concatenate(part), dtype=np.float64).sum()) for part in (signal, noise)
    ]
    return 10 * math.log10(power[0] / power[1])


METRICS: dict[str, Callable[[ort.InferenceSession, str, Path], float]] = {
    "digits_gru": accuracy,
    "vowels_bilstm": accuracy,
    "text_lstm": perplexity,
    "stream_lstm": snr_db,
}
HIGHER_IS_BETTER = {"accuracy": True, "perplexity": False, "snr_db": True}


def evaluate(
    model: str | PathLike[str] | bytes, sample_name: str, root: Path = SAMPLES, threads: int = 1
) -> tuple[str, float]:
    """Name and value of the sample's metric for a model file or its bytes, on held-out data."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else str(model)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    metric = METRICS[sample_name]
    return metric.__name__, metric(session, sample_name, root)
