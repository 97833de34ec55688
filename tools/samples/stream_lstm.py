"""A streaming LSTM that forecasts the next value of an ECG; its states are in its interface."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import decimate
from torch import Tensor, nn

from .common import Feed, Sample, train
from .sources import wheel_member

HIDDEN = 96
WARM_UP = 20
CARD = {
    "task": "next value of an ECG in mV at 120 Hz, in chunks of any length; states in and out",
    "network": f"LSTM, {HIDDEN} units, linear, added to the present value",
    "data": "MIT-BIH Arrhythmia Database (PhysioNet; Moody and Mark), 5 minutes of record 208, "
    "carried by the scipy 1.11.4 wheel",
    "licence": "ODC-By 1.0",
}


class StreamLstm(nn.Module):
    """Values [batch, time, 1] and states [1, batch, hidden] to forecasts and new states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, values: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, (h_out, c_out) = self.lstm(values, (h, c))
        return values + self.head(states), h_out, c_out


class FromRest(nn.Module):
    """The forecasts alone, from zero states, without the first few: what training looks at."""

    def __init__(self, network: StreamLstm) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        zeros = torch.zeros(1, len(values), HIDDEN)
        forecast: Tensor = self.network(values, zeros, zeros)[0]
        return forecast[:, WARM_UP:]


def ecg(cache: Path) -> NDArray[np.float32]:
    """The recording in mV at 120 Hz, [36000, 1]."""
    raw = wheel_member(cache, "scipy==1.11.4", "scipy/misc/ecg.dat")
    with np.load(io.BytesIO(raw)) as archive:
        millivolts = (archive["ecg"].astype(np.float64) - 1024) / 200
    return np.asarray(decimate(millivolts, 3, ftype="fir"), np.float32)[:, None]


def cut(series: NDArray[np.float32], length: int, step: int, offset: int = 0) -> list[Feed]:
    """Windows every `step` values: input [1, length, 1] and labels, the values one later."""
    starts = range(offset, len(series) - length, step)
    return [
        {"input": series[at : at + length][None], "labels": series[at + 1 : at + 1 + length][None]}
        for at in starts
    ]


def stacked(feeds: list[Feed]) -> Feed:
    """Several windows as one batch."""
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def epoch(parts: list[NDArray[np.float32]]) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled windows, cut at a random offset."""
    offset = int(torch.randint(64, ()))
    rows = stacked([window for part in parts for window in cut(part, 256, 64, offset)])
    x, y = torch.from_numpy(rows["input"]), torch.from_numpy(rows["labels"])
    for chosen in torch.split(torch.randperm(len(x)), 16):
        yield x[chosen], y[chosen, WARM_UP:]


def persistence_db(series: NDArray[np.float32]) -> float:
    """Signal-to-noise ratio of the forecast that repeats the last value."""
    return float(10 * np.log10(series.var() / np.square(np.diff(series[:, 0])).mean()))


def build(cache: Path) -> Sample:
    """Train on four of the five minutes; the fourth one is held out."""
    known = np.array_split(ecg(cache), 5)
    unseen = known.pop(3)

    network = StreamLstm()
    train(FromRest(network), lambda: epoch(known), nn.functional.mse_loss, 2500, rate=4e-3)
    calibration: list[Feed] = []
    for series in known:
        windows = cut(series, 400, 400)
        for start in range(0, 16, 8):
            calibration.append({"input": stacked(windows[start : start + 8])["input"]})
    heldout = [stacked(cut(unseen, 1775, 1775))]
    state = torch.zeros(1, 2, HIDDEN)
    states = {1: "batch"}
    return Sample(
        name="stream_lstm",
        network=network,
        example=(torch.from_numpy(unseen[None, :10]).repeat(2, 1, 1), state, state),
        inputs={"input": {0: "batch", 1: "time"}, "h": states, "c": states},
        outputs={"forecast": {0: "batch", 1: "time"}, "h_out": states, "c_out": states},
        calibration=calibration,
        heldout=heldout,
        card={**CARD, "baseline": f"{persistence_db(unseen):.1f} dB by repeating the last value"},
    )
