"""Outputs of two models on the same feeds, side by side, and which of them hold sequences."""

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

# The most bytes of outputs that are kept in memory.
_MOST_BYTES = 1 << 24
# Larger constants are not shapes, and inference does without their values.
_SHAPES = 64

Numbers = npt.NDArray[np.float64]

# Entries per part, few enough that several copies in double precision take little memory.
_PART = 1 << 16


def pairs(one: object, other: object, name: str, where: str) -> list[tuple[Array, Array]]:
    """The arrays of two values of one output, checked to be alike; sequences are unpacked.

    They may differ in length along one axis, since lengths may depend on values.

    Raises:
        PruneError: their numbers, types or shapes differ.
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
    """Two arrays of the same rank, cut to their common shape."""
    if one.shape == other.shape:
        return one, other
    common = tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
    return one[common], other[common]


def parts(one: Array, other: Array) -> Iterator[tuple[Array, Array]]:
    """Two arrays of one shape, [n, ...], in parts along n that need little memory."""
    rows = max(1, _PART * len(one) // max(one.size, 1))
    for start in range(0, len(one), rows):
        yield one[start : start + rows], other[start : start + rows]


def same_places(one: Numbers, other: Numbers) -> bool:
    """Whether the entries that are not finite are equal."""
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
    """A `Runner`, or a wrapper of one."""

    name: str
    outputs: list[str]

    def __call__(self, feed: Feed) -> Mapping[str, Array]:
        """Runs one feed."""

    @property
    def runner(self) -> Callable[[Feed], Mapping[str, Array]]:
        """Runs a feed that is ready; only this is timed."""

    def ready(self, feed: Feed) -> Feed:
        """A feed in the form that `runner` takes."""


@dataclass(frozen=True, eq=False)
class Result:
    """The outputs of two models for one feed: `wanted` of the original, `found` of the other."""

    feed: Feed
    labels: Array | None
    wanted: Mapping[str, Array]
    found: Mapping[str, Array]

    @property
    def follows(self) -> bool:
        """Whether the feed continues the previous one."""
        return bool(getattr(self.feed, "follows", None))


@dataclass(frozen=True, eq=False)
class Outcome:
    """The results of a model on some feeds; can be iterated repeatedly.

    Attributes:
        results: starts an iteration.
        run: runs the model on a feed of the caller's, who carries the states.
    """

    results: Callable[[], Iterator[Result]]
    run: Callable[[object], dict[str, Array]]

    def __iter__(self) -> Iterator[Result]:
        return self.results()


class Recorded:
    """A model that runs each feed once, as long as the outputs fit into memory."""

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
        """Closes the model if all outputs are in memory; another feed opens it again."""
        if self._fits and self._kept:
            self._runner = None

    def ready(self, feed: Feed) -> Feed:
        """The feed itself."""
        return feed

    def __call__(self, feed: Feed) -> Mapping[str, Array]:
        """All outputs; only feeds with a name are remembered."""
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
    """Runs two models on feeds, each carrying its own states.

    Args:
        outputs: which to compare; all by default.

    Raises:
        PruneError: they have different outputs.
    """
    if set(a.outputs) != set(b.outputs):
        raise PruneError(
            f"their outputs differ: {', '.join(a.outputs)} and {', '.join(b.outputs)}",
            where=f"{a.name} and {b.name}",
            remedy="compare models with the same outputs",
        )
    one, other = Streaming(a), Streaming(b)
    names = [name for name in b.outputs if outputs is None or name in outputs]
    for feed in feeds:
        wanted, found = ({n: side[n] for n in names} for side in (one(feed), other(feed)))
        yield Result(feed, getattr(feed, "labels", None), wanted, found)


def time_axes(document: Document) -> dict[str, int]:
    """The outputs that hold time steps, each with the axis of these.

    Shape inference propagates the name of a layer's first axis, if its size may vary, to the
    outputs. Declared shapes of other tensors are ignored: many exporters invent a name for each,
    and some sizes are outdated. Fixed sizes, and those that inference cannot follow, tell nothing.

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
    # If batches are declared to be as large as sequences are long, the two cannot be told apart.
    sizes -= {dim for name in read if name in known for dim in known[name][1:]}
    found = {}
    for port in signature.outputs(inferred):
        axes = [n for n, dim in enumerate(port.dims or ()) if isinstance(dim, str) and dim in sizes]
        if len(axes) == 1:
            found[port.name] = axes[0]
    return found


def _name_sizes(inputs: Sequence[onnx.ValueInfoProto]) -> None:
    """Gives open sizes without a name a unique one."""
    for value, port in zip(inputs, signature.ports(inputs), strict=True):
        for axis, dim in enumerate(port.dims or ()):
            if dim is None:
                value.type.tensor_type.shape.dim[axis].dim_param = f"{OWN}{port.name}_{axis}"
