"""Open sizes of random inputs: stated by the user, or found by running the model.

Sizes that follow from the graph are known already, see `shapes`. For the others, onnxruntime's
message at the failing node and the sizes of that node's inputs tell how far off they are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from math import prod

import onnx

from onnx_rnn_prune.data.shapes import Shapes, Size, layer_inputs, shapes_of
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.signature import Port
from onnx_rnn_prune.model.walk import Reads, messages

# Sizes by input name, or a single size by dimension name.
StatedSizes = Mapping[str, tuple[int, ...]]
_WHERE = "--size"


def settle(ports: Sequence[Port], asked: StatedSizes) -> tuple[tuple[Port, ...], dict[str, int]]:
    """The inputs, and the open sizes stated by the user, by their names in `Port.sizes`.

    Inputs of undeclared rank get the stated one.

    Raises:
        PruneError: a name is unknown, or the statement contradicts the model or itself.
    """
    names = {port.name: port for port in ports}
    dims = {dim for port in ports for dim in port.dims or () if isinstance(dim, str)}
    found: dict[str, int] = {}
    for name, sizes in asked.items():
        port = names.get(name)
        if port is not None and (name not in dims or len(sizes) == len(port.dims or ())):
            if port.dims is None:
                names[name] = replace(port, dims=sizes)
            _check_facing(port, sizes)
            for key, size in zip(names[name].sizes, sizes, strict=True):
                if isinstance(key, str):
                    _state(found, key, size)
        elif name in dims and len(sizes) == 1:
            _state(found, name, sizes[0])
        else:
            raise _unknown(name, ports, dims)
    return tuple(names[port.name] for port in ports), found


def check_entries(ports: Sequence[Port], pinned: Mapping[str, int], most: int) -> None:
    """Refuses inputs of absurd size, whoever claims it, and empty ones.

    At length 0, onnxruntime's recurrent operators end the process.

    Raises:
        PruneError: an input would have more than `most` entries, or none.
    """
    for port in ports:
        shape = [size if isinstance(size, int) else pinned.get(size, 1) for size in port.sizes]
        if 0 in shape:
            raise PruneError(
                f"axis {shape.index(0)} of input '{port.name}' has size 0, so the model cannot run",
                where="random feeds",
                remedy="export the model again with that axis dynamic",
            )
        if prod(shape) > most:
            axis = shape.index(max(shape))
            raise PruneError(
                f"axis {axis} of input '{port.name}' has size {shape[axis]}, too large"
                " for random inputs",
                where="random feeds",
                remedy="give data, or "
                f"{'lower --size' if port.sizes[axis] in pinned else 'declare a smaller size'}",
            )


def _check_facing(port: Port, sizes: tuple[int, ...]) -> None:
    """Refuses sizes that contradict an input's declaration."""
    dims = sizes if port.dims is None else port.dims
    if len(dims) != len(sizes):
        raise PruneError(
            f"it has {len(dims)} axes, but {'x'.join(map(str, sizes))} has {len(sizes)}",
            where=f"{_WHERE}: input '{port.name}'",
            remedy=f"give one size for each axis of {port}",
        )
    for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
        if isinstance(dim, int) and dim != size:
            raise PruneError(
                f"it has size {size} on axis {axis}, but the model expects {dim}",
                where=f"{_WHERE}: input '{port.name}'",
                remedy=f"give a shape that fits {port}",
            )


def _state(found: dict[str, int], key: str, size: int) -> None:
    if found.setdefault(key, size) != size:
        raise PruneError(
            f"'{key}' cannot be both {found[key]} and {size}",
            where=_WHERE,
            remedy="give one size for it",
        )


def _unknown(name: str, ports: Sequence[Port], dims: set[str]) -> PruneError:
    known = [*(port.name for port in ports), *sorted(dims)]
    near = get_close_matches(name, known, 1)
    return PruneError(
        f"the model has no input or dimension named '{name}'",
        where=_WHERE,
        remedy=f"did you mean '{near[0]}'?"
        if near
        else f"its inputs are {'; '.join(map(str, ports))}",
    )


SizeByName = Mapping[str, int]
# Runs a model with given sizes, or raises a PruneError.
Run = Callable[[SizeByName], object]

_BATCH = 2
_LENGTH = 7
# Common sizes of images and spectra, then of audio.
_LADDER = (16, 32, 64, 96, 128, 224, 256, 512, 1600, 4096, 16000, 48000)
# Maximum value tried for several sizes at once, or for batches.
_SEVERAL = 512
# Maximum runs; number of consecutive sizes tried as a last resort; maximum size.
_RUNS = 200
_SCAN = 130
_LARGEST_SIZE = 1 << 17
# If a size above _SEVERAL fails after so many seconds, no larger one is tried.
_PATIENCE = 1.0
# Maximum steps to make one number equal to another.
_TURNS = 4
# With fewer steps, a recurrent layer reveals little about its time and units.
_STEPS = 4
_NODE = re.compile(r"Name:'(\d+)'")
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Failure:
    """Where and why a model fails to run.

    Attributes:
        place: the index of the node, which is its name; empty if unknown.
        numbers: those in the message, and the sizes of the node's inputs.
    """

    error: PruneError
    place: str
    numbers: tuple[int, ...]


class SizeSearch:
    """Finds sizes with which a model runs.

    Args:
        solved: for each open size, its number, or the name of an equal one.
        batches: batch sizes, see `synthetic.batch_sizes`.
        probe: runs it with nodes named as in the outline, so that errors give those names.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        ports: Sequence[Port],
        solved: Mapping[str, Size],
        batches: Sequence[str],
        run: Run,
        probe: Run,
    ) -> None:
        self._model, self._ports, self.solved, self.batches = model, ports, solved, batches
        self._run, self._probe = run, probe
        self._nodes = {node.name: node for node in messages(model.graph, onnx.NodeProto)}
        self._makers = _makers(model.graph)
        self._seen: dict[tuple[int, ...], Failure | None] = {}
        self._most = _LARGEST_SIZE
        sizes = (size for size in solved.values() if isinstance(size, str))
        self.free = tuple(dict.fromkeys(sizes))

    def full(self, free: SizeByName) -> dict[str, int]:
        """All open sizes, given those that nothing else determines."""
        return {
            name: free[size] if isinstance(size, str) else size
            for name, size in self.solved.items()
        }

    def find(self) -> SizeByName | Failure:
        """Sizes with which the model runs, or why none were found."""
        starts = list(self._starts())
        for start in starts:
            if self.attempt(start) is None:
                return self._lengthened(start)
        found = self._mended(starts[0])
        for start in starts[1:3]:
            other = self._mended(start) if isinstance(found, Failure) else found
            found = found if isinstance(other, Failure) else other
        return found

    def varied(self, free: SizeByName, batch: int, change: Callable[[int], int]) -> SizeByName:
        """Other sizes with which the model runs, as many of them changed as possible."""
        counted = {size for key, size in free.items() if key in self.batches}
        others = {k: batch if v in counted else max(1, change(v)) for k, v in free.items()}
        if self.attempt(others) is None:
            return others
        twice = {k: batch if v in counted else 2 * v for k, v in free.items()}
        alike = [[key for key in free if free[key] == v] for v in dict.fromkeys(free.values())]
        found = dict(free)
        for keys, wanted in product((*alike, *([key] for key in free)), (others, twice)):
            other = {**found, **{key: wanted[key] for key in keys if found[key] == free[key]}}
            found = other if self.attempt(other) is None else found
        return found

    def attempt(self, free: SizeByName) -> Failure | None:
        """Runs the model, unless these sizes were tried before; None if it succeeds."""
        key = tuple(free.values())
        if key not in self._seen:
            began = time.process_time()
            self._seen[key] = self._failure(self.full(free))
            if max(key, default=0) > _SEVERAL and time.process_time() - began > _PATIENCE:
                self._most = min(self._most, max(key))
        return self._seen[key]

    def blamed(self, failure: Failure) -> list[tuple[Port, int]]:
        """The open axes of inputs on which the failing node depends."""
        upstream = self._upstream(failure.place)
        return [
            (port, axis)
            for port in self._ports
            for axis, size in enumerate(port.sizes)
            if (port.name in upstream or not failure.place)
            and isinstance(self.solved.get(str(size)), str)
        ]

    def _failure(self, sizes: SizeByName) -> Failure | None:
        shapes = shapes_of(self._model, self._ports, sizes)
        try:
            if _steps(self._model, shapes) == 0:  # onnxruntime ends the process at some of these
                raise PruneError("a recurrent layer gets a sequence of length 0")
            self._run(sizes)
        except PruneError as error:
            return self._located(error, sizes, shapes)
        return None

    def _located(self, error: PruneError, sizes: SizeByName, shapes: Shapes) -> Failure:
        try:
            self._probe(sizes)
        except PruneError as other:
            text = other.what
        else:
            text = error.what
        names = _NODE.findall(text)
        place = names[-1] if names and names[-1] in self._nodes else ""
        numbers = [int(number) for number in _NUMBER.findall(text.rpartition("Message:")[2])]
        for name in self._nodes[place].input if place else ():
            numbers += [size for size in shapes.get(name, ()) if isinstance(size, int)]
        return Failure(copy(error), place, tuple(numbers))  # its frames keep the feed alive

    def _starts(self) -> Iterator[SizeByName]:
        """Initial sizes, from the most informative (all different) to the likeliest to run."""
        others = [key for key in self.free if key not in self.batches]
        for batch, sizes in (
            (_BATCH, range(_LENGTH, _LENGTH + len(others))),
            (1, range(_LENGTH, _LENGTH + len(others))),
            (_BATCH, [_LENGTH] * len(others)),
            (1, [_LENGTH] * len(others)),
            (_LENGTH, [_LENGTH] * len(others)),
            (_BATCH, [1] * len(others)),
            (1, [1] * len(others)),
        ):
            found = dict.fromkeys(self.batches, batch) | dict(zip(others, sizes, strict=True))
            yield {key: found[key] for key in self.free}

    def _mended(self, sizes: SizeByName) -> SizeByName | Failure:
        """Sizes with which the model runs, found by repairing one failure after another."""
        failure = self.attempt(sizes)
        passed: set[str] = set()
        while failure is not None:
            passed.add(failure.place)
            for other in self._proposals(sizes, failure):
                found = self.attempt(other)
                if found is None or self._is_further(found, failure, passed):
                    sizes, failure = other, found
                    break
                if len(self._seen) >= _RUNS:
                    return failure
            else:
                return failure
        return self._lengthened(sizes)

    def _is_further(self, found: Failure, failure: Failure, passed: set[str]) -> bool:
        if not found.place or found.place in passed:
            return False
        before = self._upstream(failure.place)
        return before.isdisjoint(self._nodes[found.place].output)

    def _proposals(self, sizes: SizeByName, failure: Failure) -> Iterator[SizeByName]:
        """Sizes that may repair a failure."""
        blamed = {port.sizes[axis] for port, axis in self.blamed(failure)}
        names = dict.fromkeys(str(self.solved[key]) for key in self.solved if key in blamed)
        keys = sorted(names or self.free, key=lambda key: key in self.batches)
        moved = {}
        for key in keys:
            doubled = {**sizes, key: 2 * sizes[key]}
            yield doubled
            found = self.attempt(doubled)
            if found is None or found.numbers != failure.numbers:
                moved[key] = found
        lengths = [key for key in keys if key not in self.batches]
        if len(lengths) > 1:
            several = (size for size in _LADDER if size <= _SEVERAL)
            yield from ({**sizes, **dict.fromkeys(lengths, size)} for size in several)
        for key, found in moved.items():
            if found is not None and found.place == failure.place:
                yield from self._aimed(sizes, key, failure.numbers, found.numbers)
        for key in moved or keys:
            tried = (*dict.fromkeys(sizes.values()), *_LADDER)
            yield from ({**sizes, key: s} for s in tried if s <= self._largest(key))
        for key in lengths:
            yield from ({**sizes, key: size} for size in range(1, _SCAN))

    def _aimed(
        self, sizes: SizeByName, key: str, numbers: Sequence[int], doubled: Sequence[int]
    ) -> Iterator[SizeByName]:
        """Secant steps on a size to make a number that depends on it equal to a constant one.

        Args:
            sizes: sizes with which the model fails.
            key: the name of the size to change.
            numbers: those of the failure.
            doubled: the same with that size doubled.
        """
        pairs = list(zip(numbers, doubled, strict=False))
        still = dict.fromkeys(a for a, b in pairs if a == b)
        moving = [at for at, (a, b) in enumerate(pairs) if a != b]
        for at, aim in product(moving, still):
            before, size = (sizes[key], numbers[at]), (2 * sizes[key], doubled[at])
            for _ in range(_TURNS):  # integer division may make the first step miss
                if size[1] in (aim, before[1]):
                    break
                slope = (size[0] - before[0]) / (size[1] - before[1])
                other = {**sizes, key: round(size[0] + (aim - size[1]) * slope)}
                if not 0 < other[key] <= self._largest(key):
                    break
                yield other
                found = self.attempt(other)
                if found is None or len(found.numbers) <= at:
                    break
                before, size = size, (other[key], found.numbers[at])

    def _largest(self, key: str) -> int:
        """The maximum for a size; lower for batches, as no model needs thousands of sequences."""
        return _SEVERAL if key in self.batches else self._most

    def _lengthened(self, sizes: SizeByName) -> SizeByName:
        """Sizes that give each recurrent layer a few steps, if possible."""
        for key in (key for key in self.free if key not in self.batches):
            longer = sorted({*_LADDER, *(turn * sizes[key] for turn in (4, 8, 16))})
            for size in (size for size in longer if size > sizes[key]):
                steps, other = self._steps(sizes), {**sizes, key: size}
                if steps is None or steps >= _STEPS:
                    return sizes
                if (self._steps(other) or 0) > steps and self.attempt(other) is None:
                    sizes = other
        return sizes

    def _steps(self, sizes: SizeByName) -> int | None:
        return _steps(self._model, shapes_of(self._model, self._ports, self.full(sizes)))

    def _upstream(self, place: str) -> set[str]:
        """All tensors on which a node depends."""
        waiting = list(Reads()(self._nodes[place])) if place else []
        seen = set(waiting)
        for name in waiting:
            fresh = self._makers.get(name, set()) - seen
            waiting += fresh
            seen |= fresh
        return seen


def _steps(model: onnx.ModelProto, shapes: Shapes) -> int | None:
    """The fewest steps of any recurrent layer, 0 without sequences; None if unknown."""
    known = [shape for shape in layer_inputs(model, shapes) if len(shape) > 1]
    if any(0 in shape[:2] for shape in known):
        return 0
    return min((shape[0] for shape in known if isinstance(shape[0], int)), default=None)


def _makers(graph: onnx.GraphProto) -> dict[str, Set[str]]:
    """For each tensor, the inputs of its node; for a body's inputs, those of the node around it."""
    found: dict[str, Set[str]] = {}
    reads = Reads()
    for node in messages(graph, onnx.NodeProto):
        for name in node.output:
            found[name] = reads(node)
        for attribute in node.attribute:
            for port in attribute.g.input if attribute.HasField("g") else ():
                found[port.name] = set(node.input)
    return found
