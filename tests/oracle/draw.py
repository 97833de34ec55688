"""A whole model at random."""

from __future__ import annotations

import random

from models import Builder
from oracle.consumers import CONSUMERS
from oracle.layers import Drawn, draw_layer
from oracle.merges import merge_last, merge_steps
from oracle.wirings import draw_wiring

OPSETS = [7, 9, 11, 13, 17, 21]


def draw_model(seed: int) -> Builder:
    """The model of a number: one to three layers in a row or side by side, wired at random."""
    rng = random.Random(seed)
    b = Builder(rng, rng.choice(OPSETS))
    steps = rng.choice(["T", "T", 5])
    x = b.feed("x", steps, rng.choice(["B", "B", 3]), rng.randint(1, 6))
    if rng.random() < 0.2:
        layers = _parallel(b, x)
    else:
        layers = [draw_layer(b, x, wanted=("Y",))]
    for layer in layers:
        _wire(b, layer, x)
    return b


def _parallel(b: Builder, x) -> list[Drawn]:
    first = draw_layer(b, x, wanted=("Y",))
    if b.rng.random() < 0.5:
        return [first, draw_layer(b, x, wanted=("Y",))]
    direction = "bidirectional" if first.directions == 2 else "reverse"
    b.used.append("shared W and R")
    second = draw_layer(
        b, x, hidden=first.hidden, direction=direction, wanted=("Y",), share=first
    )
    return [first, second]


def _wire(b: Builder, layer: Drawn, x) -> None:
    rng = b.rng
    for name, value in layer.outputs.items():
        if name != "Y" and rng.random() < 0.3:
            b.output(value)
    if rng.random() < 0.3:
        features = merge_last(b, layer)
    else:
        features = merge_steps(b, layer)
    for _ in range(rng.randint(0, 3)):
        wiring = draw_wiring(rng)
        b.used.append(wiring.__name__)
        features = wiring(b, features, x)
    consumer = rng.choice(CONSUMERS)
    b.used.append(consumer.__name__)
    consumer(b, features)
