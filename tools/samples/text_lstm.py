"""A character language model: two stacked LSTMs trained on Python's own documentation."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .common import Feed, Sample, logits_loss, train
from .sources import python_documentation

HIDDEN = 128
WINDOW = 128
STEPS = 3000
VOCABULARY = ["\n", *(chr(code) for code in range(32, 127))]
CARD = {
    "task": "next character of English technical prose; 96 characters",
    "network": f"embedding 64, 2 stacked LSTMs of {HIDDEN} units, linear",
    "data": "Python {version} documentation: `pydoc_data.topics` and docstrings of the library",
    "licence": "PSF-2.0",
    "vocabulary": json.dumps(VOCABULARY),
}


class TextLstm(nn.Module):
    """Tokens [batch, time] to logits [batch, time, 96] of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), 64)
        self.lstm = nn.LSTM(64, HIDDEN, num_layers=2, batch_first=True)
        self.head = nn.Linear(HIDDEN, len(VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.head(states)
        return logits


def encode(documents: list[str]) -> NDArray[np.int64]:
    """All documents one after the other as tokens [length]."""
    index = {character: token for token, character in enumerate(VOCABULARY)}
    return np.array([index[character] for text in documents for character in text], np.int64)


def windows(tokens: NDArray[np.int64], offset: int = 0) -> NDArray[np.int64]:
    """Windows [count, WINDOW + 1]; the last token of one is the first of the next."""
    starts = np.arange(offset, len(tokens) - WINDOW, WINDOW)
    rows: NDArray[np.int64] = tokens[starts[:, None] + np.arange(WINDOW + 1)]
    return rows


def epoch(tokens: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled windows, cut at a random offset."""
    rows = torch.from_numpy(windows(tokens, int(torch.randint(WINDOW, ()))))
    for chosen in torch.split(torch.randperm(len(rows)), 16):
        yield rows[chosen, :-1], rows[chosen, 1:]


def build(_cache: Path) -> Sample:
    """Train on 15 of 16 documents; 256 windows of the others are held out."""
    documents = python_documentation()
    known = encode([text for index, text in enumerate(documents) if index % 16 != 7])
    unseen = windows(encode([text for index, text in enumerate(documents) if index % 16 == 7]))
    print(f"  {len(known)} characters to train on, {unseen[:, 1:].size} held out")
    network = TextLstm()
    train(network, lambda: epoch(known), logits_loss, STEPS, rate=4e-3)
    held = unseen[:: max(1, len(unseen) // 256)][:256]
    seen = windows(known)
    seen = seen[:: len(seen) // 128][:128]
    heldout: list[Feed] = [
        {"tokens": part[:, :-1], "labels": part[:, 1:]} for part in np.split(held, 8)
    ]
    calibration: list[Feed] = [{"tokens": part[:, :-1]} for part in np.split(seen, 8)]
    version = "{}.{}.{}".format(*sys.version_info[:3])
    return Sample(
        name="text_lstm",
        network=network,
        example=(torch.from_numpy(held[:2, :-1]),),
        inputs={"tokens": {0: "batch", 1: "time"}},
        outputs={"logits": {0: "batch", 1: "time"}},
        calibration=calibration,
        heldout=heldout,
        card={**CARD, "data": CARD["data"].format(version=version)},
    )
