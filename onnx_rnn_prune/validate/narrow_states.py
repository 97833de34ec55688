"""Comparing a model with the original if its states have another width."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Array, Feed, NamedFeed, Runner
from onnx_rnn_prune.model.signature import Port
from onnx_rnn_prune.model.walk import all_nodes
from onnx_rnn_prune.operators.labels import Mask, compress
from onnx_rnn_prune.trace.judged import Judged, find_judged
from onnx_rnn_prune.trace.states import known_states, state_inputs

KEPT = "onnx_rnn_prune.kept_states"
"""The metadata key that tells which entries of the original's states a narrower model holds."""


@dataclass(frozen=True, eq=False)
class NarrowState:
    """A state that has another width in another model.

    Attributes:
        source: the input that holds it.
        result: the output that returns it; empty if unknown.
        axis: the shorter axis.
        width: the length of that axis.
        keep: True for the original's entries that remain, broadcast over the other axes; None if
            unknown.
        layers: the names of its layers, if known.
    """

    source: str
    result: str
    axis: int
    width: int
    keep: Mask | None
    layers: tuple[str, ...] = ()

    @property
    def full(self) -> int:
        """Its width in the original, if it is known what is kept."""
        assert self.keep is not None
        return int(self.keep.shape[self.axis])

    def select(self, value: Array) -> Array:
        """A state of the original's as the other model holds it, zero if unknown.

        The other model's own states stay as they are.
        """
        if value.shape[self.axis] == self.width:
            return value
        if self.keep is not None:
            return compress(value, self.keep, self.axis)
        shape = [*value.shape]
        shape[self.axis] = self.width
        return np.zeros(shape, value.dtype)

    def blank(self, value: Array) -> Array:
        """A state of the original's with removed entries set to zero."""
        assert self.keep is not None
        return np.where(self.keep, value, np.zeros((), value.dtype))

    def same(self, value: Array) -> Array:
        """A state as it is."""
        return value


Change = Callable[[NarrowState, Array], Array]


class StateRunner:
    """A model for callers that hold its states in another form.

    Args:
        takes: converts the caller's states to the model's.
        gives: converts the model's states to the caller's.
    """

    def __init__(
        self,
        runner: Runner,
        states: Sequence[NarrowState],
        takes: Change = NarrowState.select,
        gives: Change = NarrowState.same,
    ) -> None:
        self.runner, self._states = runner, states
        self._takes, self._gives = takes, gives
        self.name, self.outputs = runner.name, list(runner.outputs)

    def __call__(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        found = self.runner(self.ready(feed), outputs)
        for state in self._states:
            if state.result in found:
                found[state.result] = self._gives(state, found[state.result])
        return found

    def ready(self, feed: Feed) -> Feed:
        """The feed with states in the model's own form."""
        given = {s.source: self._takes(s, np.asarray(feed[s.source])) for s in self._states}
        if any(value is not feed[name] for name, value in given.items()):
            return NamedFeed({**feed, **given}, getattr(feed, "name", "the feed"))
        return feed


def check_inputs(models: Sequence[onnx.ModelProto], names: Sequence[str]) -> None:
    """Checks that the inputs of the first model suit the others.

    Raises:
        PruneError: another takes something else.
    """
    first, *others = [{port.name: port for port in signature.inputs(model)} for model in models]
    for ports, name in zip(others, names[1:], strict=True):
        for port in ports.values():
            given = first.get(port.name)
            ranks = {len(p.dims) for p in (given, port) if p is not None and p.dims is not None}
            if given is None or len(ranks) > 1:
                raise PruneError(
                    f"it takes {port}, but {names[0]} takes {given or 'no such input'}",
                    where=name,
                    remedy="give models with the same inputs, or fix this one with --freeze",
                )


def narrow_states(
    first: onnx.ModelProto, second: onnx.ModelProto, names: Sequence[str]
) -> list[NarrowState]:
    """The states whose width differs between two models.

    Raises:
        PruneError: other inputs or outputs differ in size.
    """
    sizes = [_unequal(side(first), side(second)) for side in (signature.inputs, signature.outputs)]
    if not any(sizes):
        return []
    document = Document.read(first)
    states, ends = state_inputs(document), known_states(document)
    kept = _kept(second)
    found = [
        NarrowState(source, ends.get(source, ""), axis, width, kept.get(source))
        for source, (axis, width) in sizes[0].items()
        if source in states
    ]
    known = {name for state in found for name in (state.source, state.result)}
    for name in sorted({*sizes[0], *sizes[1]} - known):
        raise PruneError(
            f"'{name}' has different sizes in the two models",
            where=" and ".join(names),
            remedy="compare models whose inputs and outputs, except states, have the same shapes",
        )
    return found


def _unequal(first: Sequence[Port], second: Sequence[Port]) -> dict[str, tuple[int, int]]:
    """By name, the axis whose fixed size differs, and its size in the second model."""
    later = {port.name: port.dims or () for port in second}
    found = {}
    for port in first:
        sizes = zip(port.dims or (), later.get(port.name, ()), strict=False)
        for axis, (own, other) in enumerate(sizes):
            if isinstance(own, int) and isinstance(other, int) and own != other:
                found[port.name] = axis, other
    return found


def write_kept(model: onnx.ModelProto, masks: Mapping[str, Mask]) -> None:
    """Writes into the metadata which entries of states a model holds, by input."""
    shown = {name: [mask.shape, np.packbits(mask).tobytes().hex()] for name, mask in masks.items()}
    entry = next((item for item in model.metadata_props if item.key == KEPT), None)
    entry = model.metadata_props.add(key=KEPT) if entry is None else entry
    entry.value = json.dumps(shown, separators=(",", ":"))


def _kept(model: onnx.ModelProto) -> dict[str, Mask]:
    said = next((entry.value for entry in model.metadata_props if entry.key == KEPT), "{}")
    try:
        return {name: _mask(*parts) for name, parts in json.loads(said).items()}
    except (ValueError, TypeError, AttributeError):  # another program changed it
        return {}


def _mask(shape: Sequence[int], bits: str) -> Mask:
    packed = np.frombuffer(bytes.fromhex(bits), np.uint8)
    mask: Mask = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape) == 1
    return mask


def judged_beside(first: onnx.ModelProto, second: onnx.ModelProto) -> Judged:
    """How outputs of two models are judged; by signals only if both have them."""
    judged, later = (
        (find_judged(document), document)
        for document in (Document.read(model) for model in (first, second))
    )
    there = {tensor.name for node in all_nodes(later[1].graph) for tensor in node.outputs}
    wanted = {name for names in judged[0].signals.values() for name in names}
    return judged[0].without(wanted - there)
