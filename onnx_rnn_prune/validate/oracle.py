"""The oracle: the smaller model computes what the zeroed full-size model computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.runner import Array, Feed
from onnx_rnn_prune.record import Record
from onnx_rnn_prune.validate.results import Called, numbers, pairs, parts, same_places

# Rounding steps by which half-precision outputs may differ between orders of summation; the usual
# tolerance is finer than the resolution of such types.
_HALF_ROUNDINGS = 16
EXACT = 1e-5
"""The tolerance of models that compute in floating point."""
QUANTIZED = 4 / 255
"""The tolerance of models that quantize activations to 8 bits at run time.

Zero units change neither ranges nor integer sums, so the two models mostly agree to the last bit.
But a rounding difference may move a number to the next integer, an error of a few steps of 1 / 255.
"""


# A model may amplify rounding from step to step. Its cut may then differ by a few times the effect
# of the last bit of its inputs, if that is a small share of the output.
_ROUNDINGS, _MOST_OF_OUTPUT = 8.0, 0.05

_INFINITE, _NO_NUMBER = "is infinite", "is not a number"


@dataclass(frozen=True, eq=False)
class Oracle(Record):
    """Whether two models compute the same, to float rounding; true if they do.

    Attributes:
        max_abs_diff: the largest absolute difference over all outputs and feeds.
        feeds: the number of feeds they ran on.
        reason: where they differ most and how, or that the model amplifies rounding; else empty.
    """

    max_abs_diff: float
    passed: bool
    feeds: int
    reason: str = ""

    def __bool__(self) -> bool:
        return self.passed

    @property
    def no_number(self) -> bool:
        """Whether it failed because of infinities or NaN."""
        return any(text in self.reason for text in (_INFINITE, _NO_NUMBER))


# Runs the model before it was cut.
Original = Callable[[Feed], Mapping[str, Array]]


def oracle(
    zero: Called,
    shrunk: Called,
    feeds: Iterable[Feed],
    tolerance: float = EXACT,
    original: Original | None = None,
    reordered: Called | None = None,
) -> Oracle:
    """Whether the shrunk model computes what the zeroed one computes, on every feed.

    On feeds on which the model amplifies rounding, differences of that size pass, provided that
    there are none on another feed, such as a shorter one.

    Args:
        zero: the model with zeros in place of the removed units.
        shrunk: the model without them.
        feeds: the inputs, preferably of other sizes than those used to trace.
        tolerance: the largest difference allowed, relative to max(1, largest absolute entry of the
            output). Integers, booleans and strings must be equal.
        original: runs the original, whose infinities, such as masked scores, the others must share;
            without it, no infinity passes. NaN never does, since it would hide other differences.
        reordered: the zeroed model with its sums in another order. It shows rounding where the last
            bit of the inputs makes no difference, such as numbers of characters.

    Raises:
        PruneError: an output is missing or has another shape or type.
    """
    largest, worst, reason, amplified, count, exact = 0.0, 1.0, "", "", 0, False
    for feed in feeds:
        left, right, rounded = zero(feed), shrunk(feed), False
        for name in zero.outputs:
            both = pairs(left[name], right.get(name), name, f"{zero.name}, {shrunk.name}")
            for place, (one, other) in enumerate(both):
                if one.shape != other.shape:
                    sizes = f"is {list(one.shape)} in one and {list(other.shape)} in the other"
                    return Oracle(math.inf, False, count, f"output {name} {sizes}")
                difference, excess = _compare(one, other, tolerance)
                largest = max(largest, difference)
                known = (zero, feed, (name, place), one)
                if excess > 1 and difference <= _rounding(*known, reordered):
                    rounded, amplified = True, "the model amplifies rounding errors"
                elif excess > worst:
                    worst = excess
                    reason = f"output {name} differs by {difference:.3g} in feed {count}"
            beyond = any(not _is_finite(one) for one, _ in both)
            problem = _beyond(left[name], feed, name, original) if beyond else ""
            if problem:
                largest, reason = math.inf, f"output {name} {problem} in feed {count}"
        exact |= not rounded
        count += 1
    if count and not exact and not reason:
        reason = f"on all feeds, rounding errors are amplified to {largest:.3g}"
    return Oracle(largest, not reason, count, reason or amplified)


def _rounding(
    zero: Called, feed: Feed, output: tuple[str, int], value: Array, reordered: Called | None
) -> float:
    """The largest difference that passes as rounding.

    A small share of the output, and a few times what the last bit of the inputs makes, or another
    order of sums.

    Args:
        output: the name of the output, and the number of its tensor.
        value: that tensor.
    """
    if not is_float(value.dtype) or value.size == 0:
        return 0.0
    name, place = output
    moved = zero({name: _next(each) for name, each in feed.items()})
    made = 0.0
    for found in (moved, *([reordered(feed)] if reordered is not None else [])):
        tensors = pairs(found[name], found[name], name, zero.name)
        if place < len(tensors) and tensors[place][1].shape == value.shape:
            made = max(made, _compare(value, tensors[place][1], EXACT)[0])
    return min(_ROUNDINGS * made, _MOST_OF_OUTPUT * float(np.max(np.abs(numbers(value)))))


def _next(value: Array) -> Array:
    """The next larger floating-point numbers."""
    return np.nextafter(value, np.array(np.inf, value.dtype)) if value.dtype.kind == "f" else value


def _is_finite(value: Array) -> bool:
    return not is_float(value.dtype) or bool(np.isfinite(numbers(value)).all())


def _beyond(value: object, feed: Feed, name: str, original: Original | None) -> str:
    """What is wrong with entries that are not finite, or an empty string."""
    if original is None:
        return f"{_INFINITE} or not a number"
    places = pairs(original(feed)[name], value, name, "the original and its cut")
    floats = [(numbers(a), numbers(b)) for a, b in places if is_float(a.dtype)]
    if any(np.isnan(found).any() for _, found in floats):
        also = any(np.isnan(wanted).any() for wanted, _ in floats)
        return _NO_NUMBER + (" (nor is the original's)" if also else "")
    same = all(w.shape == f.shape and same_places(w, f) for w, f in floats)
    return "" if same else f"{_INFINITE} where the original's is not"


def either_order(
    load: Callable[[bool], tuple[Called, Called]],
    feeds: Sequence[Feed],
    tolerance: float = EXACT,
    original: Original | None = None,
) -> Oracle:
    """The oracle on models as written or, if that fails, as onnxruntime optimizes them.

    In one order of summation, a model may amplify rounding beyond the tolerance, as a steep
    function of large sums does. What is computed wrongly is wrong in every order.

    Args:
        load: the zeroed and the shrunk model; told whether onnxruntime may optimize them.
    """
    zero, shrunk = load(False)
    found = oracle(zero, shrunk, feeds, tolerance, original)
    del shrunk  # before others are loaded
    return found if found else oracle(*load(True), feeds, tolerance, original, zero)


def _compare(one: Array, other: Array, tolerance: float) -> tuple[float, float]:
    """The largest difference, and its ratio to the one allowed."""
    if one.size == 0:
        return 0.0, 0.0
    if not is_float(one.dtype):
        equal = bool(np.all(np.asarray(one == other)))
        excess = 0.0 if equal else math.inf
        if one.dtype.kind in "iu":
            return float(np.max(np.abs(numbers(one) - numbers(other)))), excess
        return float(not equal), excess
    if one.dtype.itemsize < 4:
        # The distance from 1 to the next number: float16 has 10 bits for it, bfloat16 has 7.
        step = 2.0**-10 if one.dtype == np.float16 else 2.0**-7
        tolerance = max(tolerance, _HALF_ROUNDINGS * step)
    difference = size = 0.0
    for part, same in parts(one.reshape(-1), other.reshape(-1)):
        left, right = numbers(part), numbers(same)
        if not same_places(left, right):
            return math.inf, math.inf
        finite = np.isfinite(left)
        left, right = left[finite], right[finite]
        difference = max(difference, float(np.max(np.abs(left - right), initial=0.0)))
        size = max(size, float(np.max(np.abs(left), initial=0.0)))
    return difference, difference / (tolerance * max(1.0, size))
