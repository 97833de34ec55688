"""Voice detection as in practice: chunk by chunk, with the state carried along.

The loop is that of the published package: chunks of 512 samples at 16 kHz, each preceded by the
last 64 of the previous one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from model_feeds import Feed
from onnx_rnn_prune import prune
from onnx_rnn_prune.calibration import opened_feeds
from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner, Streaming
from onnx_rnn_prune.opened_model import open_model
from pages import markdown
from speech import RATE, Audio, read_wave, split

CHUNK, CONTEXT = 512, 64
KEEP = "50%"
CALIBRATION, EVALUATION = 30.0, 60.0
STREAMS = 6
PAUSE = 0.7
THRESHOLD = 0.5
HEADER = ("model", "chunks", "speech in", "mean difference", "agreement", "size left")


@dataclass(frozen=True)
class Detector:
    """How a model is called.

    Attributes:
        constants: inputs that never change.
        probability: the output that says whether there is speech.
    """

    constants: Mapping[str, npt.NDArray[np.int64]]
    probability: str


SAMPLE_RATE = {"sr": np.array(RATE, np.int64)}
DETECTORS = {
    "silero_vad": Detector(SAMPLE_RATE, "output"),
    "silero_vad_op15": Detector(SAMPLE_RATE, "output"),
    "silero_vad_half": Detector({}, "output"),
    "silero_vad_sequence": Detector({}, "speech_probs"),
    "silero_vad_no_lstm": Detector(SAMPLE_RATE, "output"),
}


def chunks(detector: Detector, audio: Audio) -> list[Feed]:
    """The inputs of a model's consecutive calls, without its states."""
    padded = np.concatenate([np.zeros(CONTEXT), audio]).astype(np.float32)
    starts = range(0, audio.size - CHUNK + 1, CHUNK)
    return [
        {"input": padded[None, at : at + CONTEXT + CHUNK], **detector.constants} for at in starts
    ]


def listen(detector: Detector, model: onnx.ModelProto, feeds: Feeds) -> npt.NDArray[np.float64]:
    """The probability of speech in each chunk of a stream."""
    outputs = map(Streaming(Runner(model)), feeds)
    return np.array([float(given[detector.probability].reshape(())) for given in outputs])


def recordings(models: Path) -> tuple[list[Audio], Audio]:
    """Streams for calibration, and another one for comparison: speech if available."""
    folder = models / "speech"
    if not folder.is_dir():
        print(f"no {folder}: synthetic audio instead", file=sys.stderr)
        return np.split(synthetic(CALIBRATION, 0), STREAMS), synthetic(EVALUATION, 1)
    sets = split(folder)
    return (
        [joined(sets["calibration"][n::STREAMS], CALIBRATION / STREAMS) for n in range(STREAMS)],
        joined(sets["evaluation"], EVALUATION),
    )


def joined(paths: Sequence[Path], seconds: float) -> Audio:
    """Concatenated recordings, with pauses of faint noise."""
    rng = np.random.default_rng(0)
    parts: list[Audio] = []
    while paths and sum(part.size for part in parts) < seconds * RATE:
        parts += [read_wave(paths[0]), np.zeros(round(PAUSE * RATE))]
        paths = paths[1:]
    audio = np.concatenate(parts)[: round(seconds * RATE)]
    return audio + 1e-3 * rng.standard_normal(audio.size)


def synthetic(seconds: float, seed: int) -> Audio:
    """Voiced sounds of changing pitch that come and go, in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(140.0 + 40.0 * np.sin(1.7 * time)) / RATE
    voice = sum(np.sin(n * phase) / n for n in range(1, 20))
    swell = np.maximum(0.0, np.sin(2 * np.pi * 0.4 * time)) * (1 + 0.7 * np.sin(25.0 * time))
    return 0.1 * voice * swell + 3e-3 * rng.standard_normal(time.size)


def compare(name: str, path: Path, calibration: Sequence[Audio], evaluation: Audio) -> list[str]:
    """The row of one model, pruned with its inputs for the calibration audio."""
    detector = DETECTORS[name]
    streams = [chunks(detector, audio) for audio in calibration]
    result = prune(path, keep=KEEP, data=streams, stream=True)
    feeds = opened_feeds(open_model(path), [chunks(detector, evaluation)], True)
    before, after = (listen(detector, each, feeds) for each in (onnx.load(path), result.model))
    totals = result.report["totals"]
    return [
        name,
        str(before.size),
        f"{np.mean(before > THRESHOLD):.0%}",
        f"{np.mean(np.abs(before - after)):.4f}",
        f"{np.mean((before > THRESHOLD) == (after > THRESHOLD)):.1%}",
        f"{totals['bytes_after'] / totals['bytes_before']:.0%}",
    ]


def table(models: Path, names: Sequence[str]) -> tuple[str, bool]:
    """The rows of the voice detectors present, in Markdown, and whether all succeeded."""
    wanted = [name for name in names if name in DETECTORS and (models / f"{name}.onnx").exists()]
    if not wanted:
        return "", True
    calibration, evaluation = recordings(models)
    rows, passed = [], True
    for name in wanted:
        print(f"streaming: {name}", file=sys.stderr)
        try:
            rows.append(compare(name, models / f"{name}.onnx", calibration, evaluation))
        except PruneError as error:
            rows.append([name, *[""] * 4, str(error).removeprefix(f"{models}/")])
            passed = False
    return markdown(HEADER, rows), passed
