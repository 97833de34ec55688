"""Sizes of inputs that the user states in words, where there are no feeds that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from math import prod
from numbers import Integral

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.signature import Port

# By name of an input its sizes, or by name of a dimension that one size.
Asked = Mapping[str, tuple[int, ...]]
_WHERE = "--size"
_FORMS = "give input=1x512 or dimension=4; from Python {'input': (1, 512), 'dimension': 4}"


def read_asked(value: object) -> dict[str, tuple[int, ...]]:
    """What a caller states of sizes, each as a tuple.

    Args:
        value: a mapping from names of inputs to their sizes, as a sequence of whole numbers or text
            such as 1x512, and from names of dimensions to one number; None for nothing.

    Raises:
        PruneError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PruneError(
            f"{value!r} does not say which input has which size", where=_WHERE, remedy=_FORMS
        )
    return {str(name): _read(str(name), sizes) for name, sizes in value.items()}


def _read(name: str, value: object) -> tuple[int, ...]:
    given: object = value.split("x") if isinstance(value, str) else value
    items = given if isinstance(given, Sequence) else [given]
    found = []
    for item in items:
        text = item.strip() if isinstance(item, str) else item
        whole = int(text) if isinstance(text, str) and text.isdecimal() else text
        if isinstance(whole, bool) or not isinstance(whole, Integral) or whole < 1:
            raise PruneError(f"{name}={value} is not a size", where=_WHERE, remedy=_FORMS)
        found.append(int(whole))
    return tuple(found)


def settle(ports: Sequence[Port], asked: Asked) -> tuple[tuple[Port, ...], dict[str, int]]:
    """The inputs, and the open sizes that the user states, by `Port.key`.

    An input of which the model says not even how many axes it has gets the stated ones.

    Raises:
        PruneError: a name is unknown, or what is stated contradicts the model or itself.
    """
    names = {port.name: port for port in ports}
    dims = {dim for port in ports for dim in port.dims or () if isinstance(dim, str)}
    found: dict[str, int] = {}
    for name, sizes in asked.items():
        port = names.get(name)
        if port is not None and (name not in dims or len(sizes) == len(port.dims or ())):
            if port.dims is None:
                names[name] = replace(port, dims=sizes)
            for axis, size in _facing(port, sizes):
                _state(found, port.key(axis), size)
        elif name in dims and len(sizes) == 1:
            _state(found, name, sizes[0])
        else:
            raise _unknown(name, ports, dims)
    return tuple(names[port.name] for port in ports), found


def check_sizes(ports: Sequence[Port], pinned: Mapping[str, int], most: int) -> None:
    """What a file or a user claims is believed up to a size, however small all others are.

    Nothing empty is fed: onnxruntime's recurrent operators end the process at length 0.

    Raises:
        PruneError: an input would have more entries, or none.
    """
    for port in ports:
        keys = [port.key(axis) for axis in range(len(port.dims or ()))]
        shape = [
            dim if isinstance(dim, int) else pinned.get(key, 1)
            for key, dim in zip(keys, port.dims or (), strict=True)
        ]
        if 0 in shape:
            raise PruneError(
                f"axis {shape.index(0)} of input '{port.name}' has size 0, and nothing runs on an"
                " empty input",
                where="random feeds",
                remedy="export the model again with that size open",
            )
        if prod(shape) > most:
            axis = shape.index(max(shape))
            raise PruneError(
                f"axis {axis} of input '{port.name}' has size {shape[axis]}, too large to make up",
                where="random feeds",
                remedy=f"give data, or {'ask --size for' if keys[axis] in pinned else 'declare'}"
                " less",
            )


def _facing(port: Port, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """The open axes of an input, each with its size."""
    dims = sizes if port.dims is None else port.dims
    if len(dims) != len(sizes):
        raise PruneError(
            f"it has {len(dims)} axes, and {'x'.join(map(str, sizes))} has {len(sizes)}",
            where=f"{_WHERE}: input '{port.name}'",
            remedy=f"give one size for each axis of {port}",
        )
    for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
        if isinstance(dim, int) and dim != size:
            raise PruneError(
                f"size {size} on axis {axis} contradicts the model, which takes {dim}",
                where=f"{_WHERE}: input '{port.name}'",
                remedy=f"give sizes as in {port}",
            )
    return [(n, s) for n, s in enumerate(sizes) if not isinstance(dims[n], int)]


def _state(found: dict[str, int], key: str, size: int) -> None:
    if found.setdefault(key, size) != size:
        raise PruneError(
            f"'{key}' cannot be {found[key]} and {size} at once",
            where=_WHERE,
            remedy="give one size for it",
        )


def _unknown(name: str, ports: Sequence[Port], dims: set[str]) -> PruneError:
    known = [*(port.name for port in ports), *sorted(dims)]
    near = get_close_matches(name, known, 1)
    return PruneError(
        f"the model has no input or dimension named '{name}'",
        where=_WHERE,
        remedy=f"did you mean '{near[0]}'?" if near else f"it has {'; '.join(map(str, ports))}",
    )
