"""A whole model at random."""

from __future__ import annotations

import random

from models import Builder, Value
from oracle.bodies import put_in_body
from oracle.consumers import CONSUMERS
from oracle.layers import Drawn, draw_layer, draw_quantized, draw_stacked
from oracle.merges import merge_last, merge_steps
from oracle.wirings import draw_wiring

OPSETS = [7, 9, 11, 13, 17, 21]


def draw_model(seed: int) -> Builder:
    """The model of a number: one to three layers in a row or side by side, wired at random."""
    rng = random.Random(seed)
    b = Builder(rng, rng.choice(OPSETS))
    steps = rng.choice(["T", "T", 5])
    x = b.feed("x", steps, rng.choice(["B", "B", 3]), rng.randint(1, 6))
    for layer in _layers(b, x):
        _wire(b, layer, x)
    if rng.random() < 0.15:
        put_in_body(b)
    return b


def _layers(b: Builder, x: Value) -> list[Drawn]:
    kind = b.rng.random()
    if kind < 0.3:
        return _parallel(b, x)
    if kind < 0.4:
        b.used.append("states side by side")
        return [draw_stacked(b, x)]
    if kind < 0.45 and b.opset >= 11:
        return [draw_quantized(b, x)]
    return [draw_layer(b, x, wanted=("Y",))]


def _parallel(b: Builder, x: Value) -> list[Drawn]:
    first = draw_layer(b, x, wanted=("Y",))
    if b.rng.random() < 0.4:
        return [first, draw_layer(b, x, wanted=("Y",))]
    if b.rng.random() < 0.5:
        return [_decoder(b, x)]
    direction = "bidirectional" if first.directions == 2 else "reverse"
    b.used.append("shared W and R")
    second = draw_layer(b, x, hidden=first.hidden, direction=direction, wanted=("Y",), share=first)
    return [first, second]


def _decoder(b: Builder, x: Value) -> Drawn:
    """A layer that goes on from the final states of another one."""
    b.used.append("states handed over")
    encoder = draw_layer(b, x, wanted=("Y_h",))
    start = {"initial_h": encoder.outputs["Y_h"]}
    if "Y_c" in encoder.outputs:
        start["initial_c"] = encoder.outputs["Y_c"]
    direction = "bidirectional" if encoder.directions == 2 else None
    if direction is None:
        direction = b.rng.choice(["forward", "reverse"])
    return draw_layer(b, x, hidden=encoder.hidden, direction=direction, wanted=("Y",), start=start)


def _wire(b: Builder, layer: Drawn, x: Value) -> None:
    rng = b.rng
    for name, value in layer.outputs.items():
        if name != "Y" and rng.random() < 0.15:
            b.output(value)
    merge = merge_last if rng.random() < 0.3 else merge_steps
    features = merge(b, layer)
    for _ in range(rng.randint(0, 3)):
        wiring = draw_wiring(rng)
        b.used.append(wiring.__name__)
        features = wiring(b, features, x)
    consumer = rng.choice(CONSUMERS)
    b.used.append(consumer.__name__)
    consumer(b, features)
