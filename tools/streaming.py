"""Voice detection as its users run it: chunk by chunk, with the state carried along.

The loop is that of the published package: 512 samples at 16 kHz at a time, with the last 64 of the
chunk before in front of them.
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
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from pages import markdown
from speech import RATE, Audio, read_wave, split

CHUNK, CONTEXT = 512, 64
KEEP = "50%"
CALIBRATION, EVALUATION = 30.0, 60.0
PAUSE = 0.7
THRESHOLD = 0.5
HEADER = ("model", "chunks", "speech in", "mean difference", "agreement", "size left")


@dataclass(frozen=True)
class Detector:
    """How a model is called.

    Attributes:
        states: the output that each state input becomes in the next call.
        shapes: of the state inputs.
        constants: inputs that stay as they are.
        probability: the output that says whether there is speech.
    """

    states: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, npt.NDArray[np.int64]]
    probability: str


def _with_one_state(constants: Mapping[str, npt.NDArray[np.int64]]) -> Detector:
    return Detector({"state": "stateN"}, {"state": (2, 1, 128)}, constants, "output")


SAMPLE_RATE = {"sr": np.array(RATE, np.int64)}
DETECTORS = {
    "silero_vad": _with_one_state(SAMPLE_RATE),
    "silero_vad_op15": _with_one_state(SAMPLE_RATE),
    "silero_vad_half": _with_one_state({}),
    "silero_vad_sequence": Detector(
        {"h": "hn", "c": "cn"}, {"h": (1, 1, 128), "c": (1, 1, 128)}, {}, "speech_probs"
    ),
}


def listen(detector: Detector, runner: Runner, audio: Audio) -> tuple[list[float], list[Feed]]:
    """The probability of speech in each chunk, and the feeds that the model was called with."""
    states: Feed = {name: np.zeros(shape, np.float32) for name, shape in detector.shapes.items()}
    context = np.zeros((1, CONTEXT), np.float32)
    probabilities, feeds = [], []
    for start in range(0, audio.size - CHUNK + 1, CHUNK):
        chunk = audio[None, start : start + CHUNK].astype(np.float32)
        feed: Feed = {"input": np.concatenate([context, chunk], 1), **states, **detector.constants}
        outputs = runner(feed)
        states = {name: outputs[output] for name, output in detector.states.items()}
        context = chunk[:, -CONTEXT:]
        probabilities.append(float(outputs[detector.probability].reshape(())))
        feeds.append(feed)
    return probabilities, feeds


def recordings(models: Path) -> tuple[Audio, Audio]:
    """Audio to calibrate with and other audio to compare on: speech where there is some."""
    folder = models / "speech"
    if not folder.is_dir():
        print(f"no {folder}: synthetic audio instead", file=sys.stderr)
        return synthetic(CALIBRATION, 0), synthetic(EVALUATION, 1)
    sets = split(folder)
    return _joined(sets["calibration"], CALIBRATION), _joined(sets["evaluation"], EVALUATION)


def _joined(paths: Sequence[Path], seconds: float) -> Audio:
    """Recordings one after the other, with pauses of faint noise."""
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


def compare(name: str, path: Path, calibration: Audio, evaluation: Audio) -> list[str]:
    """The row of one model, pruned with what it was fed on the audio to calibrate with."""
    detector = DETECTORS[name]
    original = Runner(onnx.load(path), name=name)
    feeds = listen(detector, original, calibration)[1]
    result = prune(path, keep=KEEP, data=feeds)
    pruned = Runner(result.model, name=f"{name}, pruned")
    before, after = (
        np.array(listen(detector, runner, evaluation)[0]) for runner in (original, pruned)
    )
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
    """The rows of the voice detectors that are present, in Markdown, and whether all have one."""
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
