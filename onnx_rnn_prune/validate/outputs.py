"""Outputs of two models, side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Array

Numbers = npt.NDArray[np.float64]

# Entries of which several copies in double precision take little memory.
_PART = 1 << 16


def pairs(one: object, other: object, name: str, where: str) -> list[tuple[Array, Array]]:
    """The arrays of two values of one output, checked to be alike; sequences are unpacked.

    The two of a pair may differ in length along one axis, where values decide about that.
    """
    left, right = _arrays(one), _arrays(other)
    alike = len(left) == len(right) and all(map(_alike, left, right))
    if not alike:
        shapes = [[f"{v.dtype.name}{list(v.shape)}" for v in side] for side in (left, right)]
        texts = [", ".join(side) or "empty" for side in shapes]
        raise PruneError(
            f"output {name} is {texts[0]} in one and {texts[1]} in the other",
            where=where,
            remedy="compare models whose outputs have the same shapes",
        )
    return list(zip(left, right, strict=True))


def _alike(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or one.ndim != other.ndim:
        return False
    return sum(int(a != b) for a, b in zip(one.shape, other.shape, strict=True)) < 2


def up_to_shorter(one: Array, other: Array) -> tuple[Array, Array]:
    """The parts of two arrays of the same rank that both have."""
    if one.shape == other.shape:
        return one, other
    common = tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
    return one[common], other[common]


def parts(one: Array, other: Array) -> Iterator[tuple[Array, Array]]:
    """Cuts two arrays of one shape, [n, ...], along n: what is made of a part stays small."""
    rows = max(1, _PART * len(one) // max(one.size, 1))
    for start in range(0, len(one), rows):
        yield one[start : start + rows], other[start : start + rows]


def same_places(one: Numbers, other: Numbers) -> bool:
    """Whether the entries that are not finite are the same ones."""
    finite = np.isfinite(one) & np.isfinite(other)
    return bool(np.array_equal(one[~finite], other[~finite], equal_nan=True))


def numbers(array: Array) -> Numbers:
    """The entries in double precision."""
    return array.astype(np.float64)


def _arrays(value: object) -> list[Array]:
    """An output as arrays: onnxruntime gives lists for sequences, dicts for maps."""
    if value is None:
        return []
    if isinstance(value, dict):
        return [array for key in sorted(value) for array in _arrays(value[key])]
    if isinstance(value, list):
        return [array for item in value for array in _arrays(item)]
    return [np.asarray(value)]
