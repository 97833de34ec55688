"""What two models make of the same feeds: outputs side by side, and which hold sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.runner import Array, Feed, Runner, Streaming
from onnx_rnn_prune.operators.recurrent import find_layers

# What outputs of feeds that come again may take in memory.
_MOST_BYTES = 1 << 24
# Entries of the largest constant whose values inference looks at: shapes have no more.
_SHAPES = 64

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


class Called(Protocol):
    """What is called with feeds: a `Runner`, or what stands in front of one."""

    name: str
    outputs: list[str]

    def __call__(self, feed: Feed) -> Mapping[str, Array]:
        """Runs one feed."""

    @property
    def runner(self) -> Callable[[Feed], Mapping[str, Array]]:
        """What runs a feed that is ready: only the time that this takes is the model's."""

    def ready(self, feed: Feed) -> Feed:
        """A feed as it is run."""


@dataclass(frozen=True, eq=False)
class Result:
    """What two models make of one feed.

    Attributes:
        wanted: outputs of the original.
        found: those of the other model.
    """

    feed: Feed
    labels: Array | None
    wanted: Mapping[str, Array]
    found: Mapping[str, Array]

    @property
    def follows(self) -> bool:
        """Whether the feed goes on from the one before."""
        return bool(getattr(self.feed, "follows", None))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a model makes of some feeds beside the original, as often as it is asked for.

    Attributes:
        results: starts a run through the feeds.
        run: runs the model on a feed of the caller's, whose states the caller carries.
    """

    results: Callable[[], Iterator[Result]]
    run: Callable[[object], dict[str, Array]]

    def __iter__(self) -> Iterator[Result]:
        return self.results()


class Recorded:
    """A model that runs each feed once, as long as what it made of them fits into memory."""

    def __init__(self, load: Callable[[], Runner]) -> None:
        self._load = load
        self._runner: Runner | None = load()
        self._kept: dict[str, Mapping[str, Array]] = {}
        self._bytes, self._fits = 0, True
        self.name, self.outputs = self._runner.name, self._runner.outputs

    @property
    def runner(self) -> Runner:
        """The model, opened."""
        if self._runner is None:
            self._runner = self._load()
        return self._runner

    def rest(self) -> None:
        """Closes the model where it is known what it makes of all feeds; others open it again."""
        if self._fits and self._kept:
            self._runner = None

    def ready(self, feed: Feed) -> Feed:
        """The feed itself."""
        return feed

    def __call__(self, feed: Feed) -> Mapping[str, Array]:
        """All outputs; feeds without a name are not known again."""
        name = str(getattr(feed, "name", ""))
        if name in self._kept:
            return self._kept[name]
        found = self.runner(feed)
        size = sum(int(getattr(value, "nbytes", _MOST_BYTES)) for value in found.values())
        self._fits = bool(name) and self._bytes + size <= _MOST_BYTES
        if self._fits:
            self._kept[name] = found
            self._bytes += size
        return found


def results(
    a: Called, b: Called, feeds: Iterable[Feed], outputs: Sequence[str] | None = None
) -> Iterator[Result]:
    """Runs both models on one feed after the other, each with its own states carried along.

    Args:
        outputs: those that are looked at; all by default.

    Raises:
        PruneError: they have different outputs.
    """
    if set(a.outputs) != set(b.outputs):
        raise PruneError(
            f"their outputs are {', '.join(a.outputs)} and {', '.join(b.outputs)}",
            where=f"{a.name} and {b.name}",
            remedy="compare models with the same outputs",
        )
    one, other = Streaming(a), Streaming(b)
    names = [name for name in b.outputs if outputs is None or name in outputs]
    for feed in feeds:
        wanted, found = ({n: side[n] for n in names} for side in (one(feed), other(feed)))
        yield Result(feed, getattr(feed, "labels", None), wanted, found)


def time_axes(document: Document) -> dict[str, int]:
    """The outputs that hold time steps, each with the axis on which they lie.

    The size of a layer's first axis has a name, if it may vary, and shape inference carries that
    on to the outputs. What other tensors are declared to be is left aside: many exporters make up a
    name for each, and an outdated size would be believed, however large. A size that is fixed
    tells nothing, nor does one that inference cannot follow.

    Args:
        document: a model whose layers are all laid out with time first.
    """
    model = document.outline(_SHAPES)
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    _name_sizes(model.graph.input)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    values = [*inferred.graph.input, *inferred.graph.value_info]
    known = {port.name: port.dims for port in signature.ports(values) if port.dims}
    read = [tensor.name for layer in find_layers(document.graph) if (tensor := layer.input("X"))]
    sizes = {known[name][0] for name in read if name in known}
    # Where batches are said to be as large as sequences are long, there is no telling them apart.
    sizes -= {dim for name in read if name in known for dim in known[name][1:]}
    found = {}
    for port in signature.outputs(inferred):
        axes = [n for n, dim in enumerate(port.dims or ()) if isinstance(dim, str) and dim in sizes]
        if len(axes) == 1:
            found[port.name] = axes[0]
    return found


def _name_sizes(inputs: Sequence[onnx.ValueInfoProto]) -> None:
    """Gives open sizes that have no name of their own one that nothing else has."""
    for value, port in zip(inputs, signature.ports(inputs), strict=True):
        for axis, dim in enumerate(port.dims or ()):
            if dim is None:
                value.type.tensor_type.shape.dim[axis].dim_param = f"{OWN}{port.name}_{axis}"
