"""A bidirectional LSTM that tells nine speakers apart by how they say two vowels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .common import Feed, Sample, logits_loss, train
from .sources import wheel_member

HIDDEN = 64
CHANNELS = 12
CARD = {
    "task": "which of 9 speakers says these two vowels; 7 to 29 steps",
    "network": f"bidirectional LSTM, {HIDDEN} units each way, mean over time, linear",
    "data": "JapaneseVowels (UCI; Kudo, Toyama and Shimbo), carried by the aeon 1.6.0 wheel",
    "licence": "CC BY 4.0",
}


class VowelsBiLstm(nn.Module):
    """Cepstra [batch, time, 12] to logits [batch, 9]; scales its input itself."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.lstm = nn.LSTM(CHANNELS, HIDDEN, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * HIDDEN, 9)

    def forward(self, cepstra: Tensor) -> Tensor:
        states, _ = self.lstm((cepstra - self.mean) / self.deviation)
        logits: Tensor = self.head(self.dropout(states.mean(1)))
        return logits


def parse(text: str) -> list[tuple[NDArray[np.float32], int]]:
    """Utterances ([time, 12], speaker 0..8) of a .ts file: channels parted by colons."""
    rows = text.split("@data", 1)[1].split("\n")[1:]
    utterances = []
    for row in filter(None, (row.strip() for row in rows)):
        *channels, speaker = row.split(":")
        values = [np.array(channel.split(","), np.float32) for channel in channels]
        utterances.append((np.stack(values, 1), int(speaker) - 1))
    return utterances


def by_length(utterances: list[tuple[NDArray[np.float32], int]]) -> list[Feed]:
    """One feed per length, shortest first: input [batch, time, 12] and labels [batch]."""
    groups: dict[int, list[tuple[NDArray[np.float32], int]]] = defaultdict(list)
    for cepstra, speaker in utterances:
        groups[len(cepstra)].append((cepstra, speaker))
    return [
        {
            "input": np.stack([cepstra for cepstra, _ in groups[length]]),
            "labels": np.array([speaker for _, speaker in groups[length]], np.int64),
        }
        for length in sorted(groups)
    ]


def epoch(utterances: list[tuple[NDArray[np.float32], int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled batches, each cut at random places to its shortest utterance."""
    for rows in torch.split(torch.randperm(len(utterances)), 10):
        chosen = [utterances[int(row)] for row in rows]
        length = min(len(cepstra) for cepstra, _ in chosen)
        starts = [int(torch.randint(len(x) - length + 1, ())) for x, _ in chosen]
        cut = [x[at : at + length] for (x, _), at in zip(chosen, starts, strict=True)]
        inputs = torch.from_numpy(np.stack(cut))
        yield inputs + 0.03 * torch.randn_like(inputs), torch.tensor([y for _, y in chosen])


def build(cache: Path) -> Sample:
    """Train on the published training part; the published test part is held out."""
    folder = "aeon/datasets/data/JapaneseVowels/JapaneseVowels"
    known, unseen = (
        parse(wheel_member(cache, "aeon==1.6.0", f"{folder}_{part}.ts").decode())
        for part in ("TRAIN", "TEST")
    )
    frames = torch.from_numpy(np.concatenate([cepstra for cepstra, _ in known]))
    network = VowelsBiLstm(frames.mean(0), frames.std(0))
    train(network, lambda: epoch(known), logits_loss, 2000, 3e-3, weight_decay=1e-2)
    calibration: list[Feed] = [{"input": feed["input"]} for feed in by_length(known)]
    return Sample(
        name="vowels_bilstm",
        network=network,
        example=(torch.from_numpy(known[0][0])[None].repeat(2, 1, 1),),
        inputs={"input": {0: "batch", 1: "time"}},
        outputs={"logits": {0: "batch"}},
        calibration=calibration,
        heldout=by_length(unseen),
        card=CARD,
    )
