"""What the samples share: the record of a finished sample, training, export and checks."""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Feed = dict[str, NDArray[Any]]
OPSET = 17
SEED = 20240


@dataclass(frozen=True)
class Sample:
    """A trained network with all that is needed to export, calibrate and judge it."""

    name: str
    network: nn.Module
    example: tuple[Tensor, ...]
    inputs: dict[str, dict[int, str]]
    outputs: dict[str, dict[int, str]]
    calibration: list[Feed]
    heldout: list[Feed]
    card: dict[str, str]


def start_over() -> None:
    """One thread and fixed seeds, so that a sample does not depend on those made before it."""
    torch.set_num_threads(1)
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


def read_card(path: Path) -> dict[str, str]:
    """The card in the metadata of a model file."""
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def train(
    network: nn.Module,
    epoch: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    rate: float,
    weight_decay: float = 0.0,
) -> None:
    """Fit `network` in place: AdamW, with a rate that warms up and then follows a cosine.

    `epoch` gives the batches of one more pass through the data each time it is called.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=weight_decay)
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / 50, 0.51 + 0.5 * math.cos(math.pi * step / steps)),
    )
    endless = (batch for _ in itertools.count() for batch in epoch())
    recent: list[float] = []
    network.train()
    for step, (x, y) in zip(range(1, steps + 1), endless, strict=False):
        optimizer.zero_grad()
        value = loss(network(x), y)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        shape.step()
        recent.append(float(value.detach()))
        if step % (steps // 10) == 0:
            print(f"  step {step}/{steps}: loss {np.mean(recent):.4f}", flush=True)
            recent.clear()
    network.eval()


def logits_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits [..., classes] against labels [...]."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def export(sample: Sample, path: Path) -> None:
    """Write the network as ONNX, with the sample's card in its metadata."""
    warnings.filterwarnings("ignore", module="torch.onnx")
    torch.onnx.export(
        sample.network,
        sample.example,
        path,
        input_names=list(sample.inputs),
        output_names=list(sample.outputs),
        dynamic_axes={**sample.inputs, **sample.outputs},
        opset_version=OPSET,
        dynamo=False,
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, sample.card)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _complete(sample: Sample, feed: Feed) -> Feed:
    """The feed without its labels, with zero states [1, batch, hidden] where it has none."""
    batch = len(next(iter(feed.values())))
    full: Feed = {}
    for name, example in zip(sample.inputs, sample.example, strict=True):
        zeros = np.zeros((1, batch, example.shape[-1]), np.float32)
        full[name] = feed.get(name, zeros)
    return full


def check_against_torch(sample: Sample, path: Path) -> float:
    """Largest difference between onnxruntime and torch on held-out data; raises if not small."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for feed in sample.heldout:
        full = _complete(sample, feed)
        with torch.no_grad():
            expected = sample.network(*(torch.from_numpy(value) for value in full.values()))
        expected = (expected,) if isinstance(expected, Tensor) else expected
        for got, want in zip(session.run(None, full), expected, strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-3, atol=1e-4)
            worst = max(worst, float(np.abs(got - want.numpy()).max()))
    return worst


def _write_feeds(folder: Path, feeds: list[Feed]) -> None:
    """One compressed file per feed: 000.npz, 001.npz, ..."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for index, feed in enumerate(feeds):
        arrays: dict[str, Any] = dict(feed)
        np.savez_compressed(folder / f"{index:03}.npz", **arrays)


def save(sample: Sample, out: Path) -> None:
    """Write NAME.onnx, NAME/calibration/*.npz and NAME/heldout/*.npz below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{sample.name}.onnx"
    export(sample, path)
    worst = check_against_torch(sample, path)
    print(f"  onnxruntime and torch differ by at most {worst:.1e}")
    _write_feeds(out / sample.name / "calibration", sample.calibration)
    _write_feeds(out / sample.name / "heldout", sample.heldout)
