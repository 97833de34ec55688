"""A GRU that reads a handwritten digit row by row and classifies it from its last state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from .common import SEED, Feed, Sample, logits_loss, train

HIDDEN = 96
CARD = {
    "task": "handwritten digits, read row by row; 10 classes",
    "network": f"GRU, {HIDDEN} units, last state, linear",
    "data": "scikit-learn `load_digits` (UCI Optical Recognition of Handwritten Digits; "
    "Alpaydin and Kaynak)",
    "licence": "CC BY 4.0",
}


class DigitsGru(nn.Module):
    """Images [batch, 8 rows, 8 pixels] in 0..1 to logits [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(HIDDEN, 10)

    def forward(self, images: Tensor) -> Tensor:
        _, last = self.gru(images)
        logits: Tensor = self.head(self.dropout(last[0]))
        return logits


def build(_cache: Path) -> Sample:
    """Train on three quarters of the images; the rest is held out."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(
        images, labels.astype(np.int64), test_size=0.25, stratify=labels, random_state=SEED
    )
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.split(torch.randperm(len(inputs)), 32):
            noise = 0.05 * torch.randn(len(rows), 8, 8)
            yield inputs[rows] + noise, targets[rows]

    network = DigitsGru()
    train(network, epoch, logits_loss, steps=2500, rate=3e-3, weight_decay=1e-2)
    calibration: list[Feed] = [{"input": x[start : start + 32]} for start in range(0, 384, 32)]
    heldout: list[Feed] = [
        {"input": x_test[start : start + 150], "labels": y_test[start : start + 150]}
        for start in range(0, len(x_test), 150)
    ]
    return Sample(
        name="digits_gru",
        network=network,
        example=(inputs[:2],),
        inputs={"input": {0: "batch"}},
        outputs={"logits": {0: "batch"}},
        calibration=calibration,
        heldout=heldout,
        card=CARD,
    )
