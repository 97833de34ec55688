"""Seeded inputs for the published models and those of tests/fixtures.

Random numbers suffice where a model reads measurements; token ids are within the model's table,
lengths within the sequence, audio and spectra at the level given by the model's own package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner, runs
from onnx_rnn_prune.opened_model import as_run
from onnx_rnn_prune.trace.states import state_inputs

Feed = dict[str, npt.NDArray[Any]]
Draw = Callable[[np.random.Generator, int, int], Feed]

# Batch and length of each feed; some exporters fix the length of 7 from their example.
SIZES = ((2, 24), (1, 40), (3, 9), (1, 17), (2, 7), (3, 7))


def _normal(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return rng.standard_normal(shape, np.float32)


def _powers(rng: np.random.Generator, batch: int, steps: int, bands: int) -> Feed:
    """Log powers of noise that swells and fades, at the level of speech."""
    swell = 2.0 * np.sin(np.arange(steps) / 5.0 + rng.uniform(0.0, 6.0))[None, :, None]
    return {"input": (_normal(rng, batch, steps, bands) + swell - 5.0).astype(np.float32)}


def _audio(rng: np.random.Generator, rows: int, samples: int) -> npt.NDArray[np.float32]:
    """A tone with harmonics in noise, with a different loudness in each row."""
    time = np.arange(samples) / 16000.0
    pitch = rng.uniform(90.0, 250.0, (rows, 1))
    tones = sum(np.sin(2 * np.pi * n * pitch * time) / n for n in range(1, 8))
    loudness = 10.0 ** rng.uniform(-3.0, -0.7, (rows, 1))
    noise = 0.02 * rng.standard_normal((rows, samples))
    return (loudness * tones + noise).astype(np.float32)


def _vad(rng: np.random.Generator, batch: int, steps: int) -> Feed:
    return {
        "input": _audio(rng, batch, 64 + 512),
        "state": 0.3 * _normal(rng, 2, batch, 128),
        "sr": np.array(16000),
    }


def _vad_both_rates(rng: np.random.Generator, batch: int, steps: int) -> Feed:
    """Feeds at 16 kHz, and shorter ones at 8 kHz, whose chunks have half the samples."""
    feed = _vad(rng, batch, steps)
    if steps < 16:
        feed.update(input=feed["input"][:, ::2], sr=np.array(8000))
    return feed


def _vad_16k(rng: np.random.Generator, batch: int, steps: int) -> Feed:
    feed = _vad(rng, batch, steps)
    return {name: feed[name] for name in ("input", "state")}


def _vad_sequence(rng: np.random.Generator, batch: int, steps: int) -> Feed:
    states = {name: 0.3 * _normal(rng, 1, 1, 128) for name in ("h", "c")}
    return {"input": _audio(rng, steps, 64 + 512), **states}


def _lac(rng: np.random.Generator, batch: int, steps: int) -> Feed:
    tokens = rng.integers(0, 58224, (batch, steps))
    return {"token_ids": tokens, "length": np.full(batch, steps)}


def _oskut(rng: np.random.Generator, batch: int, steps: int) -> Feed:
    """Characters around each position, their types, and bits from a dictionary and a guess."""
    rows, tables = steps * batch, {"input1": 178, "input2": 12, "input3": 12}
    return {
        name: rng.integers(0, size, (rows, 21)).astype(np.float32) for name, size in tables.items()
    }


def _tashkeel(rng: np.random.Generator, batch: int, steps: int) -> Feed:
    lengths = np.sort(rng.integers(max(1, steps // 2), steps + 1, batch))[::-1].copy()
    lengths[0] = steps
    inside = np.arange(steps)[None] < lengths[:, None]
    return {
        "char_inputs": rng.integers(1, 54, (batch, steps)) * inside,
        "diac_inputs": rng.integers(1, 16, (batch, steps)) * inside,
        "input_lengths": lengths,
    }


PUBLISHED: dict[str, Draw] = {
    "nsnet2": lambda rng, batch, steps: _powers(rng, batch, steps, 161),
    "nsnet2_48k": lambda rng, batch, steps: _powers(rng, batch, steps, 513),
    "silero_vad": _vad_both_rates,
    "silero_vad_op15": _vad,
    "silero_vad_half": _vad_16k,
    "silero_vad_sequence": _vad_sequence,
    "silero_vad_no_lstm": _vad_both_rates,
    "voice_embedder": lambda rng, batch, steps: {
        "mel_window": rng.uniform(-8.0, 2.0, (batch, 80, 40)).astype(np.float32)
    },
    "lac": _lac,
    "oskut": _oskut,
    "seizure": lambda rng, batch, steps: {"x": _normal(rng, batch, 100, 4 * steps)},
    "ppocr_rec": lambda rng, batch, steps: {
        "x": rng.uniform(-1.0, 1.0, (batch, 3, 32, 100)).astype(np.float32)
    },
    "captcha_crnn": lambda rng, batch, steps: {
        "image": rng.uniform(0.0, 255.0, (batch, 3, 60, 160)).astype(np.float32)
    },
    "tashkeel": _tashkeel,
    "rawi": lambda rng, batch, steps: {"input": rng.integers(2, 236, (batch, steps))},
    "dksplit": lambda rng, batch, steps: {"chars": rng.integers(2, 38, (batch, steps))},
}


def feeds_for(path: Path) -> list[Feed]:
    """Feeds of several sizes for a model file, as far as it runs on them.

    Raises:
        PruneError: the model does not load, or runs on none of them.
    """
    model = onnx.load(path)
    runner = Runner(as_run(model), name=path.name)
    draw = PUBLISHED.get(path.stem, _drawn_for(model))
    feeds = [
        draw(np.random.default_rng([17, number]), batch, steps)
        for number, (batch, steps) in enumerate(SIZES)
    ]
    found = list(filter(partial(runs, runner), feeds))
    if not found:
        runner(feeds[0])
    return found


def step_feeds(path: Path) -> list[Feed]:
    """One step of one sequence, as for a stateful model; empty for other models."""
    model = onnx.load(path)
    if not state_inputs(Document.read(model)):
        return []
    draw = PUBLISHED.get(path.stem, _drawn_for(model))
    feed = draw(np.random.default_rng(17), 1, 1)
    return list(filter(partial(runs, Runner(as_run(model), name=path.name)), [feed]))


def _drawn_for(model: onnx.ModelProto) -> Draw:
    """Feeds by the sizes that a fixture's inputs declare; without names, [batch, time, ...]."""
    ports = signature.inputs(model)

    def draw(rng: np.random.Generator, batch: int, steps: int) -> Feed:
        sizes: dict[object, int] = {"time": steps, "batch": batch, 0: batch, 1: steps}
        feed: Feed = {}
        for port in ports:
            shape = [
                dim if isinstance(dim, int) else sizes.get(dim, sizes.get(axis, 1))
                for axis, dim in enumerate(port.dims or ())
            ]
            if port.name == "lengths" and port.dtype is not None:
                lengths = rng.integers(1, steps + 1, shape)
                lengths[0] = steps
                feed[port.name] = np.sort(lengths)[::-1].astype(port.dtype)
            else:
                feed[port.name] = _normal(rng, *shape)
        return feed

    return draw
