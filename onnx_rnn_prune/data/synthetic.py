"""Made-up feeds, for when there is no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from onnx_rnn_prune.data.asked import Asked, check_sizes, settle
from onnx_rnn_prune.data.check import check_feed
from onnx_rnn_prune.data.equal import Size
from onnx_rnn_prune.data.feeds import Feeds
from onnx_rnn_prune.data.meanings import Meaning, batch_sizes, meanings
from onnx_rnn_prune.data.needs import numbered, outline, ranked, shapes_of, solved
from onnx_rnn_prune.data.sizes import Failure, Search, Sizes
from onnx_rnn_prune.data.sources import Listed
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed, NamedFeed, Runner
from onnx_rnn_prune.model.signature import Port

# Entries of the largest feed that is made up.
_LARGEST = 1 << 24
# How large the numbers of states are, which are small where they are a model's own.
_STATE = 0.1
# So few numbers that are as many in every feed are settings rather than a signal.
_SETTINGS = 8
_NOTHING: Asked = MappingProxyType({})
# What the last axes of an input may be, by their number, where a refusal needs an example.
_EXAMPLES = {3: 100, 4: 224}


@dataclass(frozen=True)
class Recipe:
    """What the numbers in made-up feeds are.

    Attributes:
        ports: the model's inputs.
        solved: for each open size its number, or the name of the one that it equals.
        meanings: what the numbers in each input stand for.
        states: inputs that are states.
        seed: feeds are the same for the same seed.
        tame: whether all numbers lie between 0 and 1.
    """

    ports: Sequence[Port]
    solved: Mapping[str, Size]
    batches: Sequence[str]
    meanings: Mapping[str, Meaning]
    states: frozenset[str]
    seed: int
    tame: bool = False

    @property
    def chooses(self) -> bool:
        """Whether feeds differ in what they choose, not only in their numbers."""
        return any(m.choices for m in self.meanings.values()) or any(map(_is_flag, self.ports))

    def feed(self, sizes: Sizes, number: int = 0, choice: int = 0) -> dict[str, Array]:
        """A feed; the same for the same arguments.

        Args:
            sizes: all open sizes.
            number: feeds of other numbers hold other random ones.
            choice: which of the values it has that the graph asks for.
        """
        rng = np.random.default_rng([self.seed, number])
        shapes = {port.name: _shape(port, sizes) for port in self.ports}
        if sum(map(prod, shapes.values())) > _LARGEST:
            raise PruneError("the feed is too large to make up", where="random feeds")
        return {
            port.name: self._draw(port, shapes[port.name], sizes, choice, rng)
            for port in self.ports
        }

    def _draw(
        self, port: Port, shape: list[int], sizes: Sizes, choice: int, rng: np.random.Generator
    ) -> Array:
        dtype: np.dtype[Any] = port.dtype or np.dtype(np.float32)
        meaning = self.meanings[port.name]
        if dtype.kind == "O":
            return np.full(shape, "a", dtype)
        if meaning.choices:
            return np.full(shape, meaning.choices[choice % len(meaning.choices)]).astype(dtype)
        if meaning.rows is not None:
            return rng.integers(0, meaning.rows, shape).astype(dtype)
        if _is_flag(port):
            return np.full(shape, choice % 2 == 0)
        if dtype.kind in "iu" and meaning.length:
            return np.full(shape, self._length(port, sizes)).astype(dtype)
        if dtype.kind in "biu":
            return self._whole(shape, rng).astype(dtype)
        if port.name in self.states:
            return (_STATE * rng.standard_normal(shape)).astype(dtype)
        if self.tame or _is_setting(port):
            return rng.uniform(0.5, 1.0, shape).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)

    def _whole(self, shape: list[int], rng: np.random.Generator) -> Array:
        """0 or 1, valid as an index, a flag and a token of nearly every model; no row is all 0."""
        values = rng.integers(1 if self.tame else 0, 2, shape)
        if len(shape) > 1:
            values[..., :1] = 1
        return values

    def _length(self, port: Port, sizes: Sizes) -> int:
        """How long the sequences are whose lengths an input tells: along what is no batch."""
        own = {*_shape(port, sizes), 1}
        fixed = []
        for other in self.ports:
            if other.name not in self.states and len(other.dims or ()) > 1:
                for axis, size in enumerate(_shape(other, sizes)):
                    known = self.solved.get(other.key(axis))
                    if isinstance(known, str) and known not in self.batches:
                        return size
                    fixed += [] if isinstance(known, str) or size in own else [size]
        return fixed[0] if fixed else 1


def random_feeds(
    document: Document,
    run: Callable[[Feed], object],
    *,
    seed: int,
    count: int,
    states: frozenset[str] = frozenset(),
    asked: Asked = _NOTHING,
) -> Feeds:
    """Feeds of random numbers that a model runs on, each of other sizes where it takes them.

    Sizes that the model leaves open follow from its weights where these decide; the others are
    found by running. Signals are normal, token ids lie within their table, lengths are those of the
    sequences, and what the graph compares one number with is fed by turns. Feeds that follow on one
    another are no stream.

    Args:
        document: the model.
        run: runs it, or raises a PruneError.
        seed: feeds are the same for the same seed and model.
        count: the number of feeds.
        states: inputs that are states.
        asked: sizes that the user states, see `asked.read_asked`.

    Raises:
        PruneError: an input is no tensor or has an undeclared rank, what is asked for does not fit,
            or no sizes were found that the model runs on.
    """
    ports, pinned = settle(signature.inputs(document.source), asked)
    if any(port.dtype is None for port in ports):
        raise _shapeless(next(port for port in ports if port.dtype is None))
    check_sizes(ports, pinned, _LARGEST)
    model = outline(document)
    twin = cache(lambda: Runner(numbered(document), optimize=False))
    refusal = None
    for each in ranked(model, ports):
        known = solved(model, each, pinned)
        batches = batch_sizes(model, each, known)
        found = meanings(model, each, shapes_of(model, each, known))
        for tame in (False, True):  # it may be the numbers that do not suit the model
            recipe = Recipe(each, known, batches, found, states, seed, tame)
            search = _search(model, recipe, run, twin)
            sizes = search.find()
            if not isinstance(sizes, Failure):
                return _feeds(recipe, search, run, sizes, count)
            refusal = refusal or _refusal(search, recipe, pinned, sizes)
    raise refusal or _shapeless(next(port for port in ports if port.dims is None))


def _search(
    model: onnx.ModelProto,
    recipe: Recipe,
    run: Callable[[Feed], object],
    twin: Callable[[], Runner],
) -> Search:
    return Search(
        model,
        recipe.ports,
        recipe.solved,
        recipe.batches,
        run=lambda sizes: run(NamedFeed(recipe.feed(sizes), "random feed 0")),
        probe=lambda sizes: twin()(recipe.feed(sizes)),
    )


def _feeds(
    recipe: Recipe, search: Search, run: Callable[[Feed], object], sizes: Sizes, count: int
) -> Feeds:
    variants = (
        sizes,
        search.varied(sizes, 1, lambda size: size + size // 2 + 1),
        search.varied(sizes, 3, lambda size: size - size // 3),
    )
    plans = []
    for number in range(count):
        wanted = search.full(variants[number % len(variants)])
        options = [(wanted, number), (search.full(sizes), number)] if recipe.chooses else []
        works = (each for each in options if _runs(run, recipe.feed(each[0], number, each[1])))
        plans.append(next(works, (wanted, 0)))

    def load(number: int) -> dict[str, Array]:
        sizes, choice = plans[number]
        return recipe.feed(sizes, number, choice)

    def check(raw: object, label: str) -> NamedFeed:
        return check_feed(raw, recipe.ports, frozenset(), label)

    labels = [f"random feed {number}" for number in range(count)]
    source = Listed(f"random, seed {recipe.seed}", labels, load)
    return Feeds(source, check, random=True)


def _runs(run: Callable[[Feed], object], feed: Feed) -> bool:
    try:
        run(feed)
    except PruneError:
        return False
    return True


def _shape(port: Port, sizes: Sizes) -> list[int]:
    return [
        dim if isinstance(dim, int) else sizes[port.key(axis)]
        for axis, dim in enumerate(port.dims or ())
    ]


def _is_flag(port: Port) -> bool:
    """One truth value, such as whether to go on."""
    return port.dtype == np.dtype(bool) and all(dim == 1 for dim in port.dims or ())


def _is_setting(port: Port) -> bool:
    """A few numbers such as a speed, or one for each sequence; they are above 0 as a rule."""
    dims = port.dims or ()
    return len(dims) < 2 and prod(dim for dim in dims if isinstance(dim, int)) <= _SETTINGS


def _shapeless(port: Port) -> PruneError:
    what = f"the model does not say which shape the input '{port.name}' has"
    if port.dtype is None:
        return PruneError(
            f"{what}, so random feeds cannot be made", where="random feeds", remedy="give data"
        )
    return PruneError(
        f"{what}, not even how many axes",
        where="random feeds",
        remedy=f"give data, or its shape, as in --size {port.name}=1x100x80",
    )


def _refusal(search: Search, recipe: Recipe, pinned: Sizes, failure: Failure) -> PruneError:
    """Which axes no size was found for, and how to say one."""
    reason = f"({'; '.join(map(str, recipe.ports))}); at first, {failure.error.what}"
    if pinned:
        given = ", ".join(f"{name}={size}" for name, size in pinned.items())
        return PruneError(
            f"the model does not run with {given}, whatever its other sizes are {reason}",
            where="--size",
            remedy="give other sizes, or leave it out",
        )
    axes = search.blamed(failure) or search.blamed(replace(failure, place=""))
    if not axes:  # all sizes are fixed: there are no others to try
        return failure.error
    lengths = [(p, n) for p, n in axes if search.solved[p.key(n)] not in search.batches]
    named = ", ".join(f"axis {axis} of input '{port.name}'" for port, axis in lengths or axes)
    port = (lengths or axes)[0][0]
    example = "x".join(str(_example(search, port, axis)) for axis in range(len(port.dims or ())))
    return PruneError(
        f"no size was found for {named} with which the model runs {reason}",
        where="random feeds",
        remedy=f"give data, or the sizes, as in --size {port.name}={example}",
    )


def _example(search: Search, port: Port, axis: int) -> int:
    dims = port.dims or ()
    dim = dims[axis]
    size = dim if isinstance(dim, int) else search.solved[port.key(axis)]
    if isinstance(size, int):
        return size
    return 1 if size in search.batches else _EXAMPLES.get(len(dims), 16000)
