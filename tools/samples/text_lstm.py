"""A word language model: two stacked LSTMs trained on Python's own documentation."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .common import Feed, Sample, logits_loss, train
from .sources import python_documentation

HIDDEN = 192
EMBEDDING = 64
WORDS = 1000
DROPOUT = 0.4
WINDOW = 64
STEPS = 2400
# Lower-case words; digits and other signs one by one, so that numbers and code need no words.
WORD = re.compile(r"[a-z]+|\d|[^\sa-z\d]|\n")
UNKNOWN = "<unk>"
CARD = {
    "task": f"next word of English technical prose; {WORDS} words, the rest is {UNKNOWN}",
    "network": f"embedding {EMBEDDING}, 2 stacked LSTMs of {HIDDEN} units, linear",
    "data": "Python {version} documentation: `pydoc_data.topics` and docstrings of the library",
    "licence": "PSF-2.0",
}


class TextLstm(nn.Module):
    """Tokens [batch, time] to logits [batch, time, WORDS] of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, num_layers=2, batch_first=True, dropout=DROPOUT)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(HIDDEN, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.dropout(self.embedding(tokens)))
        logits: Tensor = self.head(self.dropout(states))
        return logits


def encode(documents: list[list[str]], vocabulary: list[str]) -> NDArray[np.int64]:
    """All documents one after the other as tokens [length]."""
    index = {word: token for token, word in enumerate(vocabulary)}
    unknown = index[UNKNOWN]
    return np.array([index.get(word, unknown) for text in documents for word in text], np.int64)


def windows(tokens: NDArray[np.int64], offset: int = 0) -> NDArray[np.int64]:
    """Windows [count, WINDOW + 1]; the last token of one is the first of the next."""
    starts = np.arange(offset, len(tokens) - WINDOW, WINDOW)
    rows: NDArray[np.int64] = tokens[starts[:, None] + np.arange(WINDOW + 1)]
    return rows


def epoch(tokens: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled windows, cut at a random offset."""
    rows = torch.from_numpy(windows(tokens, int(torch.randint(WINDOW, ()))))
    for chosen in torch.split(torch.randperm(len(rows)), 32):
        yield rows[chosen, :-1], rows[chosen, 1:]


def build(_cache: Path) -> Sample:
    """Train on 15 of 16 documents; windows of the others are held out."""
    documents = [WORD.findall(text.lower()) for text in python_documentation()]
    known = [text for index, text in enumerate(documents) if index % 16 != 7]
    counts = Counter(word for text in known for word in text)
    vocabulary = [UNKNOWN, *(word for word, _ in counts.most_common(WORDS - 1))]
    learnt = encode(known, vocabulary)
    unseen = windows(
        encode([text for index, text in enumerate(documents) if index % 16 == 7], vocabulary)
    )
    print(f"  {len(learnt)} words to train on, {unseen[:, 1:].size} held out")
    network = TextLstm()
    train(network, lambda: epoch(learnt), logits_loss, STEPS, rate=4e-3, weight_decay=0.01)
    seen = windows(learnt)
    calibration: list[Feed] = [{"tokens": part[:, :-1]} for part in np.split(_some(seen, 512), 16)]
    held = _some(unseen, 256)
    heldout: list[Feed] = [
        {"tokens": part[:, :-1], "labels": part[:, 1:]} for part in np.split(held, 8)
    ]
    version = "{}.{}.{}".format(*sys.version_info[:3])
    card = {**CARD, "data": CARD["data"].format(version=version)}
    return Sample(
        name="text_lstm",
        network=network,
        example=(torch.from_numpy(held[:2, :-1]),),
        inputs={"tokens": {0: "batch", 1: "time"}},
        outputs={"logits": {0: "batch", 1: "time"}},
        calibration=calibration,
        heldout=heldout,
        card={**card, "vocabulary": json.dumps(vocabulary)},
    )


def _some(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """That many rows from all over."""
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
