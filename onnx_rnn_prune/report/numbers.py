"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def amount(value: float) -> str:
    """A count to three digits: `950`, `12.3 k`, `1.23 M`."""
    return _scaled(value, ("", " k", " M", " G", " T"))


def size(value: float) -> str:
    """A number of bytes: `950 B`, `12.3 kB`, `1.23 MB`."""
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def duration(ms: float) -> str:
    """A time given in milliseconds: `0.412 ms`, `12.3 ms`, `1.23 s`."""
    return f"{_digits(ms / 1000)} s" if ms >= 999.5 else f"{_digits(ms)} ms"


def percent(share: float | None) -> str:
    """A share: `2.1 %`, `under 0.01 %`; never rounded to 0 or 100 % when it is not."""
    if share is None or not math.isfinite(share):
        return "unknown"
    value = 100 * share
    if 0 < value < 0.01:
        return "under 0.01 %"
    if 99.9 < value < 100:
        return "over 99.9 %"
    return f"{_digits(value, 2)} %" if value < 10 else f"{value:.1f} %".replace(".0 %", " %")


# Quartiles of a speedup that lie further apart than this share of it are shown.
_WIDE = 0.2
# Below this, two digits of a speedup would say 1.0x.
_NEAR = 1.05


def faster(ratio: float, quartiles: Sequence[float] | None = None) -> str:
    """A speedup: `3.1x faster`, `1.2x slower`, `equally fast`, `2.1x faster (1.7x to 2.6x)`.

    Args:
        ratio: the median of the time before over the time after.
        quartiles: of that, where they are known. Where 1 lies between them, runs did not differ by
            more than they do anyway; where they are far apart, they are shown.
    """
    if 0.98 < ratio < 1.02:
        return "equally fast"
    low, high = quartiles or (ratio, ratio)
    if low <= 1 <= high:
        return "not measurably faster"
    if ratio < 1:
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
        word = "slower"
    else:
        word = "faster"
    spread = f" ({_digits(low, 2)}x to {_digits(high, 2)}x)" if high - low > _WIDE * ratio else ""
    return f"{_digits(ratio, 3 if ratio < _NEAR else 2)}x {word}{spread}"


def times(ratio: float, quartiles: Sequence[float] | None = None) -> str:
    """A speedup as a factor, `2.50x`, with its quartiles where they are far apart or hold 1."""
    low, high = quartiles or (ratio, ratio)
    plain = high - low <= _WIDE * ratio and not low <= 1 <= high
    return f"{ratio:.2f}x" if plain or low == high else f"{ratio:.2f}x ({low:.2f}x to {high:.2f}x)"


def fewer(before: float, after: float) -> str:
    """What a change from before to after means: `67 % less`, `3 % more`, `the same`."""
    if before == after or not before:
        return "the same"
    return f"{percent(abs(after / before - 1))} {'less' if after < before else 'more'}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = 0
    # What three digits would round up to the next unit belongs there.
    while value >= 999.5 and power < len(units) - 1:
        value /= 1000
        power += 1
    return f"{value:.0f}{units[0]}" if power == 0 else f"{_digits(value)}{units[power]}"


def _digits(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, without an exponent, whole parts in full."""
    if value == 0:
        return "0"
    # The exponent of the rounded number: 0.9996 to three digits is 1.00.
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    places = digits - 1 - exponent
    return f"{value:.{max(0, places)}f}"
