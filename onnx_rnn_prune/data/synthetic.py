"""Random feeds, for when there is no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_rnn_prune.data.check import check_feed
from onnx_rnn_prune.data.feeds import Feeds
from onnx_rnn_prune.data.sources import Listed
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Array, Feed, NamedFeed
from onnx_rnn_prune.model.signature import Dim, Port

_BATCH = 2
_LENGTH = 7


def random_feeds(
    ports: Sequence[Port],
    *,
    seed: int,
    count: int,
    sizes: Mapping[str, int] | None = None,
    run: Callable[[Feed], object] | None = None,
) -> Feeds:
    """Seeded feeds: floats from the standard normal distribution, integers 0 or 1.

    Sizes that the model leaves open are guessed: 2 for a batch, 7, 8, ... for all others. Exporters
    often give one size several names (or none), and then such a guess does not run: some more are
    tried, down to 1 for every open size.

    Args:
        ports: the model's inputs.
        seed: feeds are the same for the same seed and ports.
        count: the number of feeds.
        sizes: sizes to use, by dimension name, or `input[axis]` for a dimension without one.
        run: runs the model on a feed, or raises a PruneError; without it the first guess is taken.

    Raises:
        PruneError: an input is no tensor or has an undeclared rank, or the model runs on no guess,
            or not on the only sizes that it takes.
    """
    for port in ports:
        if port.dtype is None or port.dims is None:
            raise PruneError(
                f"the model does not say which shape the input '{port.name}' has, so random feeds "
                "cannot be made",
                where="random feeds",
                remedy="give data",
            )
    reason = ""
    for guess in _guesses(ports):
        feeds = _feeds(ports, {**guess, **(sizes or {})}, seed, count)
        if run is None:
            return feeds
        try:
            run(next(iter(feeds)))
        except PruneError as error:
            if not guess:  # all sizes are fixed: there are no others to try
                raise
            reason = error.what
        else:
            return feeds
    raise PruneError(
        "the model runs on none of the sizes that were guessed for its inputs "
        f"({'; '.join(map(str, ports))}); at last, {reason}",
        where="random feeds",
        remedy="give data",
    )


def _feeds(ports: Sequence[Port], sizes: Mapping[str, int], seed: int, count: int) -> Feeds:
    def load(number: int) -> dict[str, Array]:
        rng = np.random.default_rng([seed, number])
        return {port.name: _draw(port, sizes, rng) for port in ports}

    def check(raw: object, label: str) -> NamedFeed:
        return check_feed(raw, ports, frozenset(), label)

    labels = [f"random feed {number}" for number in range(count)]
    return Feeds(Listed(f"random, seed {seed}", labels, load), check, random=True)


def _draw(port: Port, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    shape = [
        dim if isinstance(dim, int) else sizes[_key(port, axis, dim)]
        for axis, dim in enumerate(port.dims or ())
    ]
    dtype: np.dtype[Any] = port.dtype or np.dtype(np.float32)
    if dtype.kind == "O":
        return np.full(shape, "a", dtype)
    if dtype.kind in "biu":
        # Valid as an index, a flag, a length and a token of nearly every model.
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _guesses(ports: Sequence[Port]) -> Iterator[dict[str, int]]:
    """Sizes to try, from the most telling (all different) to the most likely to run."""
    named: list[str] = []
    nameless: list[str] = []
    for port in ports:
        for axis, dim in enumerate(port.dims or ()):
            key = _key(port, axis, dim)
            if dim is None:
                nameless.append(key)
            elif isinstance(dim, str) and key not in named:
                named.append(key)
    keys = named + nameless
    batch = [key for key in keys if _is_batch(key)] or keys[:1]
    others = [key for key in keys if key not in batch]
    yield dict.fromkeys(batch, _BATCH) | {key: _LENGTH + i for i, key in enumerate(others)}
    yield dict.fromkeys(batch, _BATCH) | dict.fromkeys(others, _LENGTH)
    yield dict.fromkeys(batch, 1) | dict.fromkeys(others, _LENGTH)
    yield dict.fromkeys(batch, _BATCH) | dict.fromkeys(others, 1)
    yield dict.fromkeys(keys, _LENGTH)
    yield dict.fromkeys(keys, 1)


def _key(port: Port, axis: int, dim: Dim) -> str:
    return dim if isinstance(dim, str) else f"{port.name}[{axis}]"


def _is_batch(name: str) -> bool:
    lower = name.lower()
    return "batch" in lower or lower in {"n", "b", "bs"}
