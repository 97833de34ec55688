"""Another model beside the original: its states of another width, and what judges both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
"""The key of metadata that says which entries of the original's states a narrower one holds."""


@dataclass(frozen=True, eq=False)
class Narrow:
    """A state that another model holds in another width.

    Attributes:
        source: the input in which it comes.
        result: the output in which it leaves; empty where that is not known.
        axis: the one that is shorter.
        width: its length there.
        keep: True where the original's entry is in it, of the state's rank; None where that is not
            known.
    """

    source: str
    result: str
    axis: int
    width: int
    keep: Mask | None

    def start(self, value: Array) -> Array:
        """The state of the other model that is nearest to one of the original; else zeros."""
        if self.keep is not None:
            return compress(value, np.broadcast_to(self.keep, value.shape), self.axis)
        shape = [*value.shape]
        shape[self.axis] = self.width
        return np.zeros(shape, value.dtype)


class NarrowRunner:
    """A model as seen by who holds the original's states.

    Args:
        runner: the other model.
        states: those of another width.
    """

    def __init__(self, runner: Runner, states: Sequence[Narrow]) -> None:
        self._runner, self._states = runner, states
        self.name, self.outputs = runner.name, runner.outputs
        self._ready: Feed | None = None

    def __call__(self, feed: Feed) -> Mapping[str, Array]:
        return self._runner(feed if feed is self._ready else self.ready(feed))

    def ready(self, feed: Feed) -> Feed:
        """The feed with states of its own width."""
        if any(feed[state.source].shape[state.axis] != state.width for state in self._states):
            starts = {state.source: state.start(feed[state.source]) for state in self._states}
            feed = NamedFeed({**feed, **starts}, getattr(feed, "name", "the feed"))
        self._ready = feed
        return feed


def narrow_states(
    first: onnx.ModelProto, second: onnx.ModelProto, names: Sequence[str]
) -> list[Narrow]:
    """The states that the second of two models holds in another width than the first.

    Raises:
        PruneError: other inputs or outputs are of other sizes.
    """
    sizes = [_unequal(side(first), side(second)) for side in (signature.inputs, signature.outputs)]
    if not any(sizes):
        return []
    document = Document.read(first)
    states, ends = state_inputs(document), known_states(document)
    kept = _kept(second)
    found = [
        Narrow(source, ends.get(source, ""), axis, width, kept.get(source))
        for source, (axis, width) in sizes[0].items()
        if source in states
    ]
    known = {name for state in found for name in (state.source, state.result)}
    for name in sorted({*sizes[0], *sizes[1]} - known):
        raise PruneError(
            f"'{name}' has different sizes in the two",
            where=" and ".join(names),
            remedy="compare models whose inputs and outputs, except states, have the same shapes",
        )
    return found


def _unequal(first: Sequence[Port], second: Sequence[Port]) -> dict[str, tuple[int, int]]:
    """By name, the axis whose fixed size is another one, and that size."""
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
    except (ValueError, TypeError, AttributeError):  # another program has been at it
        return {}


def _mask(shape: Sequence[int], bits: str) -> Mask:
    packed = np.frombuffer(bytes.fromhex(bits), np.uint8)
    mask: Mask = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape) == 1
    return mask


def judged_beside(first: onnx.ModelProto, second: onnx.ModelProto) -> Judged:
    """What outputs of two models are judged by; signals are those that both have."""
    judged, later = (
        (find_judged(document), document)
        for document in (Document.read(model) for model in (first, second))
    )
    there = {tensor.name for node in all_nodes(later[1].graph) for tensor in node.outputs}
    wanted = {name for names in judged[0].signals.values() for name in names}
    return judged[0].without(wanted - there)
