"""Models with a task, inputs for calibration, and a metric of how well they do.

Evaluation and calibration data are disjoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bench_nsnet2 import CALIBRATION, KINDS, LONG, SHORT, feed, listen
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from sample_metrics import SAMPLES, evaluate
from segmentation import Text
from speech import Mixture, mixtures, split

Feed = dict[str, npt.NDArray[Any]]
NOISY_SECONDS = 100.0


@dataclass(frozen=True)
class Task:
    """A model and its task.

    Attributes:
        name: of the model.
        metric: the name of its metric.
        text: the format of its values.
        rises: whether higher is better.
        keep: the share of units at which methods are compared.
        keeps: shares for a curve.
        path: its file, for the folder of published models.
        feeds: inputs for calibration, given that folder and a seed.
        score: the metric of the original or a pruned model, given that folder.
    """

    name: str
    metric: str
    text: str
    rises: bool
    keep: str
    keeps: tuple[str, ...]
    path: Callable[[Path], Path]
    feeds: Callable[[Path, int], Sequence[Feed]]
    score: Callable[[Path, onnx.ModelProto], float]


def _sample(name: str, metric: str, text: str, rises: bool) -> Task:
    return Task(
        name=name,
        metric=metric,
        text=text,
        rises=rises,
        keep="50%",
        keeps=("75%", "50%", "35%", "25%"),
        path=lambda folder: SAMPLES / f"{name}.onnx",
        feeds=partial(_sample_feeds, name),
        score=lambda folder, model: evaluate(model.SerializeToString(), name)[1],
    )


def _sample_feeds(name: str, folder: Path, seed: int) -> list[Feed]:
    """All feeds there are; the seed shuffles them, and so decides which are held out."""
    paths = sorted((SAMPLES / name / "calibration").glob("*.npz"))
    feeds = []
    for number in np.random.default_rng(seed).permutation(len(paths)):
        with np.load(paths[number]) as archive:
            feeds.append(dict(archive))
    return feeds


def _speech_feeds(folder: Path, seed: int) -> list[Feed]:
    recordings = split(_speech(folder))["calibration"]
    return [dict(feed(piece)) for piece in mixtures(recordings, CALIBRATION, SHORT, seed, KINDS)]


@cache
def _noisy(folder: Path) -> list[Mixture]:
    """Noisy speech without babble, which even the original makes worse."""
    kinds = [kind for kind in KINDS if kind != "babble"]
    return mixtures(split(_speech(folder))["evaluation"], NOISY_SECONDS, LONG, 2, kinds)


def _speech(folder: Path) -> Path:
    if not (folder / "speech").is_dir():
        remedy = f"run python tools/fetch_models.py speech --to {folder}"
        raise PruneError("no speech", where=str(folder), remedy=remedy)
    return folder / "speech"


def _snr(folder: Path, model: onnx.ModelProto) -> float:
    return float(np.mean(listen(Runner(model, name="nsnet2"), _noisy(folder)).snr_db))


@cache
def _text(folder: Path, seed: int) -> Text:
    return Text.read(folder, seed)


TASKS = {
    task.name: task
    for task in (
        _sample("digits_gru", "accuracy", "{:.1%}", rises=True),
        _sample("vowels_bilstm", "accuracy", "{:.1%}", rises=True),
        _sample("text_lstm", "perplexity", "{:.2f}", rises=False),
        _sample("stream_lstm", "SNR", "{:.1f} dB", rises=True),
        Task(
            name="nsnet2",
            metric="SNR",
            text="{:.2f} dB",
            rises=True,
            keep="30%",
            keeps=("60%", "40%", "30%", "20%"),
            path=lambda folder: folder / "nsnet2.onnx",
            feeds=_speech_feeds,
            score=_snr,
        ),
        Task(
            name="lac",
            metric="F1",
            text="{:.1%}",
            rises=True,
            keep="50%",
            keeps=("75%", "50%", "35%", "25%"),
            path=lambda folder: folder / "lac.onnx",
            feeds=lambda folder, seed: [dict(each) for each in _text(folder, seed).feeds()],
            score=lambda folder, model: _text(folder, 0).f1(model),
        ),
    )
}
