"""What a file says of the widths of its states: in metadata, and in outputs that are constant."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import constant_value
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import add_constant, remove_node
from onnx_rnn_prune.validate.narrow_states import KEPT, NarrowState, write_kept

_OPTION = "--state-metadata"


@dataclass(frozen=True)
class _Place:
    """A place in a file that holds a number.

    Attributes:
        entry: the key of the metadata, or the output.
        path: the way to the number in JSON; empty where the entry is nothing but that number.
        value: the number.
    """

    entry: str
    path: tuple[str | int, ...]
    value: int

    @property
    def name(self) -> str:
        """What the option calls it."""
        return f"{self.entry}:{'.'.join(map(str, self.path))}" if self.path else self.entry


def write_states(
    model: onnx.ModelProto, keys: Sequence[str], states: Sequence[NarrowState]
) -> list[str]:
    """Writes which entries narrow states hold, and their width where that was asked for.

    Args:
        model: it is changed.
        keys: what holds the width of a state, see `update_widths`.
        states: those that became narrower.

    Returns:
        Warnings of other places that may hold the width of a state.

    Raises:
        PruneError: what was asked for holds the width of no state that shrinks, or of several.
    """
    widths: dict[int, set[int]] = {}
    for state in states:
        widths.setdefault(state.full, set()).add(state.width)
    notes = update_widths(model, keys, widths)
    if states:
        write_kept(model, {state.source: state.keep for state in states if state.keep is not None})
    return notes


def update_widths(
    model: onnx.ModelProto, keys: Sequence[str], widths: Mapping[int, set[int]]
) -> list[str]:
    """Writes the new widths of states where that is asked for.

    Args:
        model: it is changed.
        keys: entries of metadata, places in those that are JSON (`config:rnn.hidden_size`), and
            constant outputs.
        widths: by the width that states had, those that they have now.

    Returns:
        Warnings of other places that may hold the width of a state.

    Raises:
        PruneError: there is no such place, or it holds no width of a state, or more than one.
    """
    places = [*_metadata(model), *_outputs(model)]
    chosen = [_chosen(key, model, places, widths) for key in keys]
    for place in chosen:
        (after,) = widths[place.value]
        _write(model, place, after)
    return [
        f"'{place.name}' holds {place.value}, the former width of a state that now has "
        f"{min(widths[place.value])}: if it means that width, add {_OPTION}={place.name}"
        for place in places
        if place.value in widths and place not in chosen
    ]


def _chosen(
    key: str, model: onnx.ModelProto, places: Sequence[_Place], widths: Mapping[int, set[int]]
) -> _Place:
    where = f"{_OPTION}={key}"
    named = [place for place in places if key in (place.name, place.entry)]
    fitting = [place for place in named if place.value in widths]
    texts = {entry.key: entry.value for entry in model.metadata_props if entry.key != KEPT}
    if not named and key not in texts:
        raise PruneError(
            "the model has no such entry",
            where=where,
            remedy=f"its entries are {', '.join(texts) or 'none'}",
        )
    if len(fitting) > 1:
        raise PruneError(
            "it holds the width of a state in several places",
            where=where,
            remedy="name the right one: " + ", ".join(place.name for place in fitting),
        )
    if not fitting or len(widths[fitting[0].value]) > 1:
        held = named[0].value if len(named) == 1 else texts.get(key, "")
        raise PruneError(
            f"it holds '{held}', which was the width of states that now differ"
            if fitting
            else f"it holds '{held}', which is not the width of a state that shrinks",
            where=where,
            remedy="leave it out",
        )
    return fitting[0]


def _metadata(model: onnx.ModelProto) -> Iterator[_Place]:
    for entry in model.metadata_props:
        if entry.key != KEPT:
            for path, value in _numbers(_parsed(entry.value)):
                yield _Place(entry.key, path, value)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _numbers(value: object) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """The whole numbers in a value of JSON, each with the way to it."""
    waiting: list[tuple[tuple[str | int, ...], object]] = [((), value)]
    while waiting:
        path, item = waiting.pop(0)
        if isinstance(item, dict):
            waiting += [((*path, str(key)), inner) for key, inner in item.items()]
        elif isinstance(item, list):
            waiting += [((*path, number), inner) for number, inner in enumerate(item)]
        elif isinstance(item, int) and not isinstance(item, bool):
            yield path, item


def _outputs(model: onnx.ModelProto) -> Iterator[_Place]:
    """Outputs that are one whole number, whatever is fed, as Unity's `memory_size`."""
    for tensor in Document.read(model).graph.outputs:
        value = constant_value(tensor)
        if value is not None and value.size == 1 and value.dtype.kind in "fiu":
            number = float(value.reshape(())[()])
            if number.is_integer():
                yield _Place(tensor.name, (), int(number))


def _write(model: onnx.ModelProto, place: _Place, after: int) -> None:
    entry = next((item for item in model.metadata_props if item.key == place.entry), None)
    if entry is None:
        _write_output(model, place.entry, after)
        return
    if not place.path:
        entry.value = str(after)
        return
    whole = json.loads(entry.value)
    holder = whole
    for step in place.path[:-1]:
        holder = holder[step]
    holder[place.path[-1]] = after
    tight = None if " " in entry.value else (",", ":")
    entry.value = json.dumps(whole, separators=tight, ensure_ascii=False)


def _write_output(model: onnx.ModelProto, name: str, after: int) -> None:
    """Computes an output from a constant of its own, since others may read the one that it is."""
    document = Document.read(model)
    graph = document.graph
    number = next(n for n, tensor in enumerate(graph.outputs) if tensor.name == name)
    before = graph.outputs[number]
    value = constant_value(before)
    assert value is not None
    if before.outputs:
        raise PruneError(
            "nodes of the model also read it", where=f"{_OPTION}={name}", remedy="leave it out"
        )
    own = add_constant(graph, f"{name}_width", np.full_like(value, after))
    maker = before.inputs[0] if before.inputs else None
    if maker is not None and len(maker.outputs) == 1:
        remove_node(graph, maker)
    elif maker is not None:
        maker.outputs[maker.outputs.index(before)] = gs.Variable("")
    result = gs.Variable(name, value.dtype, value.shape)
    graph.outputs[number] = result
    graph.nodes.append(gs.Node("Identity", name, inputs=[own], outputs=[result]))
    model.CopyFrom(document.write())
