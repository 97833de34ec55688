"""Random feeds, for use without data, and the meaning of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_rnn_prune.data.feeds import Feeds, check_feed
from onnx_rnn_prune.data.shapes import (
    Shapes,
    Size,
    layer_inputs,
    numbered,
    outline,
    ranked,
    shapes_of,
    solved,
)
from onnx_rnn_prune.data.sizes import (
    Failure,
    SizeByName,
    SizeSearch,
    StatedSizes,
    check_entries,
    settle,
)
from onnx_rnn_prune.data.sources import Listed
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.constants import MOVING
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed, NamedFeed, Runner, runs
from onnx_rnn_prune.model.signature import Port
from onnx_rnn_prune.model.walk import Reads, messages
from onnx_rnn_prune.operators.recurrent import RECURRENT

# Operators that only move numbers: of all inputs, or of the first.
_MOVED = MOVING | {"Cast", "CastLike", "Pad"}
# Operators whose results are lengths if their inputs are.
_COUNTING = {
    "Abs", "Add", "Ceil", "Clip", "Div", "Floor", "Max", "Min", "Mul", "ReduceMax", "Round", "Sub",
    "TopK", "Where",
}  # fmt: skip
# The inputs of operators that are lengths or counts.
_LENGTHS: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(RECURRENT, frozenset((4,))),
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual"), frozenset((0, 1))),
    "ReverseSequence": frozenset((1,)),
    "Range": frozenset((1,)),
    "Slice": frozenset((2,)),
    "Expand": frozenset((1,)),
    "ConstantOfShape": frozenset((0,)),
    "Loop": frozenset((0,)),
}
# Other names that exporters give the batch size.
_BATCHES = {"n", "b", "bs"}
# The fields of a tensor that hold numbers.
_NUMBERS = {"raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data"}


@dataclass(frozen=True)
class Meaning:
    """What the numbers in an input mean.

    Attributes:
        rows: the number of rows of the table that they index; None if they are no indices.
        choices: values that the graph compares a single number with.
        length: they are lengths of sequences.
    """

    rows: int | None = None
    choices: tuple[float, ...] = ()
    length: bool = False


def meanings(model: onnx.ModelProto, ports: Sequence[Port], shapes: Shapes) -> dict[str, Meaning]:
    """What the numbers in each input mean."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    reads = Reads()
    for node in messages(model.graph, onnx.NodeProto):
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    values = dict(_constants(model.graph))
    return {port.name: _meaning(port, readers, values, shapes) for port in ports}


def batch_sizes(
    model: onnx.ModelProto, ports: Sequence[Port], solved: Mapping[str, Size]
) -> tuple[str, ...]:
    """The free sizes that are batch sizes, according to layers, or else to their names."""
    free = dict.fromkeys(size for size in solved.values() if isinstance(size, str))
    read = layer_inputs(model, shapes_of(model, ports, solved))
    named = {solved[key] for key in solved if "batch" in key.lower()}
    named -= {size for shape in read for size in shape[:1]}
    counted = {size for shape in read for size in shape[1:2]} | named
    letters = {solved[key] for key in solved if key.lower() in _BATCHES}
    found = counted & free.keys() or letters & free.keys() or set(list(free)[:1])
    alone = {size for port in ports if len(port.sizes) == 1 for size in port.sizes}
    return tuple(key for key in free if key in found | alone)


def _meaning(
    port: Port,
    readers: Mapping[str, list[onnx.NodeProto]],
    values: Mapping[str, Array],
    shapes: Shapes,
) -> Meaning:
    """Follows the numbers of an input to the nodes that interpret them."""
    single = all(dim == 1 for dim in port.dims or ())
    rows: set[int] = set()
    choices: dict[float, None] = {}
    length = False
    waiting, seen = [(port.name, True)], {port.name}
    for name, same in waiting:  # `same`: these are the input's own numbers
        for node in readers.get(name, ()):
            slots = [slot for slot, read in enumerate(node.input) if read == name]
            if same:
                rows.update(_rows(node, slots, values, shapes))
            if same and single and node.op_type == "Equal":
                for other in node.input:
                    choices.update(dict.fromkeys(map(float, values.get(other, np.zeros(0)).flat)))
            length |= not _LENGTHS.get(node.op_type, frozenset()).isdisjoint(slots)
            moved = node.op_type in _MOVED and (0 in slots or node.op_type == "Concat")
            if moved or node.op_type in _COUNTING:
                fresh = [result for result in node.output if result and result not in seen]
                waiting += [(result, same and moved) for result in fresh]
                seen.update(fresh)
    if len(choices) == 1:  # anything else takes the other branch
        choices.update(dict.fromkeys(value // 2 if value else 1.0 for value in tuple(choices)))
    return Meaning(min(rows, default=None), tuple(choices), length)


def _rows(
    node: onnx.NodeProto, slots: Sequence[int], values: Mapping[str, Array], shapes: Shapes
) -> Iterator[int]:
    """The rows of the table that a node indexes."""
    if node.op_type == "Gather" and 1 in slots:
        table = shapes.get(node.input[0], ())
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        size = table[axis] if -len(table) <= axis < len(table) else 0
        if isinstance(size, int) and size > 1:
            yield size
    if node.op_type == "OneHot" and 0 in slots:
        yield from map(int, values.get(node.input[1], np.zeros(0)).flat)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, Array]]:
    """Constants whose values the outline of a model holds, those in bodies included."""
    graphs = messages(graph, onnx.GraphProto)
    tensors = {tensor.name: tensor for each in graphs for tensor in each.initializer}
    for node in messages(graph, onnx.NodeProto):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.type == onnx.AttributeProto.TENSOR:
                tensors[node.output[0]] = attribute.t
    for name, tensor in tensors.items():
        if any(field.name in _NUMBERS for field, _ in tensor.ListFields()):
            yield name, numpy_helper.to_array(tensor)


# Entries of the largest random feed.
_MOST_ENTRIES = 1 << 24
# The scale of random states; a model's own are small.
_STATE = 0.1
# Inputs of fixed size with at most this many numbers are settings rather than signals.
_SETTINGS = 8
_NOTHING: StatedSizes = MappingProxyType({})
# Sizes for examples in error messages, by the input's rank.
_EXAMPLES = {3: 100, 4: 224}


@dataclass(frozen=True)
class Recipe:
    """How random feeds are drawn.

    Attributes:
        solved: for each open size, its number, or the name of an equal one.
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
        """Whether feeds choose among branches."""
        return any(m.choices for m in self.meanings.values()) or any(map(_is_flag, self.ports))

    def feed(self, sizes: SizeByName, number: int = 0, choice: int = 0) -> dict[str, Array]:
        """A feed, determined by the arguments.

        Args:
            number: the feed's number, which seeds it.
            choice: which of the values that the graph compares an input with it takes.
        """
        rng = np.random.default_rng([self.seed, number])
        shapes = {port.name: _shape(port, sizes) for port in self.ports}
        if sum(map(prod, shapes.values())) > _MOST_ENTRIES:
            raise PruneError("the random feed would be too large", where="random feeds")
        return {
            port.name: self._draw(port, shapes[port.name], sizes, choice, rng)
            for port in self.ports
        }

    def _draw(
        self, port: Port, shape: list[int], sizes: SizeByName, choice: int, rng: np.random.Generator
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
        """0 or 1: valid indices, flags and tokens for nearly every model; no row is all 0."""
        values = rng.integers(1 if self.tame else 0, 2, shape)
        if len(shape) > 1:
            values[..., :1] = 1
        return values

    def _length(self, port: Port, sizes: SizeByName) -> int:
        """The length of the sequences whose lengths an input holds."""
        own = {*_shape(port, sizes), 1}
        fixed = []
        for other in self.ports:
            if other.name not in self.states and len(other.sizes) > 1:
                for key, size in zip(other.sizes, _shape(other, sizes), strict=True):
                    known = self.solved.get(str(key))
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
    asked: StatedSizes = _NOTHING,
) -> Feeds:
    """Random feeds that a model runs on, of different sizes if it takes them; no streams.

    Open sizes follow from the weights, or are found by running the model. Signals are normally
    distributed, token ids lie within their table, lengths are those of the sequences, and a number
    that the graph compares with some values takes each of them in turn.

    Args:
        run: runs the model, or raises a PruneError.
        seed: the same seed and model give the same feeds.
        asked: sizes that the user states, see `StatedSizes`.

    Raises:
        PruneError: an input is no tensor, sizes asked for do not fit, or the model runs on none of
            those tried.
    """
    ports, pinned = settle(signature.inputs(document.source), asked)
    if any(port.dtype is None for port in ports):
        raise _shapeless(next(port for port in ports if port.dtype is None))
    check_entries(ports, pinned, _MOST_ENTRIES)
    model = outline(document)
    twin = cache(lambda: Runner(numbered(document), optimize=False))
    refusal = None
    for each in ranked(model, ports):
        known = solved(model, each, pinned)
        batches = batch_sizes(model, each, known)
        found = meanings(model, each, shapes_of(model, each, known))
        for tame in (False, True):  # the model may reject the numbers
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
) -> SizeSearch:
    return SizeSearch(
        model,
        recipe.ports,
        recipe.solved,
        recipe.batches,
        run=lambda sizes: run(NamedFeed(recipe.feed(sizes), "random feed 0")),
        probe=lambda sizes: twin()(recipe.feed(sizes)),
    )


def _feeds(
    recipe: Recipe, search: SizeSearch, run: Callable[[Feed], object], sizes: SizeByName, count: int
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
        works = (each for each in options if runs(run, recipe.feed(each[0], number, each[1])))
        plans.append(next(works, (wanted, 0)))

    def load(number: int) -> dict[str, Array]:
        sizes, choice = plans[number]
        return recipe.feed(sizes, number, choice)

    def check(raw: object, label: str) -> NamedFeed:
        return check_feed(raw, recipe.ports, frozenset(), label)

    labels = [f"random feed {number}" for number in range(count)]
    source = Listed(f"random, seed {recipe.seed}", labels, load)
    return Feeds(source, check, random=True)


def _shape(port: Port, sizes: SizeByName) -> list[int]:
    return [size if isinstance(size, int) else sizes[size] for size in port.sizes]


def _is_flag(port: Port) -> bool:
    """Whether an input is a single boolean, such as whether to go on."""
    return port.dtype == np.dtype(bool) and all(dim == 1 for dim in port.dims or ())


def _is_setting(port: Port) -> bool:
    """Whether an input is a few positive numbers such as a speed, or one per sequence."""
    dims = port.dims or ()
    return len(dims) < 2 and prod(dim for dim in dims if isinstance(dim, int)) <= _SETTINGS


def _shapeless(port: Port) -> PruneError:
    what = f"the model does not declare the shape of input '{port.name}'"
    if port.dtype is None:
        what, remedy = f"{what}, so random feeds cannot be generated", "give data"
    else:
        what = f"{what}, not even its rank"
        remedy = f"give data, or its shape, such as --size={port.name}=1x100x80"
    return PruneError(what, where="random feeds", remedy=remedy)


def _refusal(
    search: SizeSearch, recipe: Recipe, pinned: SizeByName, failure: Failure
) -> PruneError:
    """The error if no sizes were found: for which axes, and how to give one."""
    reason = f"({'; '.join(map(str, recipe.ports))}); first error: {failure.error.what}"
    if pinned:
        given = ", ".join(f"{name}={size}" for name, size in pinned.items())
        return PruneError(
            f"the model does not run with {given}, whatever the other sizes {reason}",
            where="--size",
            remedy="give different sizes, or leave it out",
        )
    axes = search.blamed(failure) or search.blamed(replace(failure, place=""))
    if not axes:  # all sizes are fixed: nothing else to try
        return failure.error
    lengths = [(p, n) for p, n in axes if search.solved[str(p.sizes[n])] not in search.batches]
    named = ", ".join(f"axis {axis} of input '{port.name}'" for port, axis in lengths or axes)
    port = (lengths or axes)[0][0]
    example = "x".join(str(_example(search, port, size)) for size in port.sizes)
    return PruneError(
        f"found no size of {named} for which the model runs {reason}",
        where="random feeds",
        remedy=f"give data, or the sizes, such as --size={port.name}={example}",
    )


def _example(search: SizeSearch, port: Port, size: Size) -> int:
    found = search.solved[size] if isinstance(size, str) else size
    if isinstance(found, int):
        return found
    return 1 if found in search.batches else _EXAMPLES.get(len(port.sizes), 16000)
