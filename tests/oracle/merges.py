"""From a layer's outputs to features: [T, B, F] of all steps, or [B, F] of one."""

from __future__ import annotations

from models import Builder, Value
from oracle.layers import Drawn


def merge_steps(b: Builder, layer: Drawn) -> Value:
    """Y as [T, B, F]."""
    y = layer.outputs["Y"]
    if layer.directions == 1:
        return b.rng.choice([_squeeze, _flat, _flat_computed, _pick, _split_one])(b, y)
    ways = [_flat, _flat, _flat_computed, _pick, _split_concat, _split_add, _sum, _rows_mean]
    return b.rng.choice(ways)(b, y)


def merge_last(b: Builder, layer: Drawn) -> Value:
    """One step as [B, F]."""
    ways = [way for way in (_last_step, _final) if way is not _final or "Y_h" in layer.outputs]
    return b.rng.choice(ways)(b, layer)


def _squeeze(b: Builder, y: Value) -> Value:
    return b.squeeze(y, 1)


def _flat(b: Builder, y: Value) -> Value:
    """Directions side by side, by a Reshape with constant sizes."""
    moved = b.transpose(y, 0, 2, 1, 3)
    width = y.width * int(y.shape[1])
    target = b.rng.choice([(0, 0, -1), (0, 0, width), (0, -1, width)])
    return b.reshape(moved, b.ints(*target), y.shape[0], y.shape[2], width)


def _flat_computed(b: Builder, y: Value) -> Value:
    """The same with sizes computed while the model runs."""
    moved = b.transpose(y, 0, 2, 1, 3)
    width = y.width * int(y.shape[1])
    last = b.ints(b.rng.choice([-1, width]))
    if b.rng.random() < 0.3:
        last = b.size_of(y, 3)
        if y.shape[1] == 2:
            last = b.like("Mul", last, b.ints(2))
    target = b.concat(0, b.size_of(y, 0), b.size_of(y, 2), last)
    return b.reshape(moved, target, y.shape[0], y.shape[2], width)


def _pick(b: Builder, y: Value) -> Value:
    """One direction."""
    which = b.rng.randrange(int(y.shape[1]))
    if b.rng.random() < 0.5:
        return b.gather(y, 1, which)
    return b.squeeze(b.slice(y, 1, which, which + 1), 1)


def _split_one(b: Builder, y: Value) -> Value:
    return b.squeeze(b.split(y, 1, 1)[0], 1)


def _split_concat(b: Builder, y: Value) -> Value:
    parts = [b.squeeze(part, 1) for part in b.split(y, 1, 1, 1)]
    b.rng.shuffle(parts)
    return b.concat(2, *parts)


def _split_add(b: Builder, y: Value) -> Value:
    left, right = (b.squeeze(part, 1) for part in b.split(y, 1, 1, 1))
    return b.like("Add", left, right)


def _sum(b: Builder, y: Value) -> Value:
    """Lets the units of both directions meet without naming them."""
    op = b.rng.choice(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"])
    return b.reduce(op, y, 1, keepdims=0)


def _rows_mean(b: Builder, y: Value) -> Value:
    """A constant per direction, then the directions side by side."""
    shape = b.rng.choice([(2, 1, 1), (2, 1, y.width), (1, 1, y.width), (y.width,)])
    scaled = b.like("Mul", y, b.const(b.numbers(*shape)))
    return _flat(b, scaled)


def _last_step(b: Builder, layer: Drawn) -> Value:
    steps = merge_steps(b, layer)
    place = -1 if b.opset >= 11 else 0
    if b.rng.random() < 0.5:
        return b.gather(steps, 0, place)
    return b.squeeze(b.slice(steps, 0, 0, 1), 0)


def _final(b: Builder, layer: Drawn) -> Value:
    name = "Y_c" if "Y_c" in layer.outputs and b.rng.random() < 0.4 else "Y_h"
    final = layer.outputs[name]
    if layer.directions == 1:
        return b.squeeze(final, 0)
    if b.rng.random() < 0.5:
        moved = b.transpose(final, 1, 0, 2)
        return b.reshape(moved, b.ints(0, -1), final.shape[1], 2 * final.width)
    return b.concat(1, b.gather(final, 0, 0), b.gather(final, 0, 1))
