"""Checks of a feed against a model's inputs: one error line instead of a crash in the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from onnx_rnn_prune.data.sources import FAILURES
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.constants import is_float
from onnx_rnn_prune.model.runner import Array, NamedFeed
from onnx_rnn_prune.model.signature import Port

# What the right answers are called that may lie in a feed beside its inputs.
LABELS = "labels"


def check_feed(raw: object, ports: Sequence[Port], states: frozenset[str], where: str) -> NamedFeed:
    """A feed as onnxruntime wants it: every input there, of the declared type and rank.

    What lies beside the inputs under the name `labels` becomes the feed's labels.

    Values are converted to the declared type where they survive it (integers of another width,
    whole numbers as floats, floats of another precision).

    Args:
        raw: a mapping from input names to arrays or what NumPy makes arrays of.
        ports: the model's inputs.
        states: inputs that may be missing and then start at zero.
        where: what errors call the feed.

    Raises:
        PruneError: a name is missing or unknown; a value has the wrong type, rank or size, is
            empty, is not finite; or sizes that should be the same differ.
    """
    if not isinstance(raw, Mapping):
        raise PruneError(
            f"a feed must be a dict of arrays, not {type(raw).__name__}",
            where=where,
            remedy="map the names of graph inputs to arrays",
        )
    _check_names([str(key) for key in raw], ports, states, where)
    sizes: dict[str, tuple[int, str]] = {}
    given = {p.name: _check_value(raw[p.name], p, sizes, where) for p in ports if p.name in raw}
    values = {p.name: given[p.name] if p.name in given else _zeros(p, sizes, where) for p in ports}
    labels = raw.get(LABELS) if LABELS not in values else None
    return NamedFeed(values, where, None if labels is None else _labels(labels, where))


def _check_names(
    names: Sequence[str], ports: Sequence[Port], states: frozenset[str], where: str
) -> None:
    known = [port.name for port in ports]
    for name in names:
        if name not in known and name != LABELS:
            close = [other for other in known if other.lower() == name.lower()]
            close = close or get_close_matches(name, known, n=1)
            raise PruneError(
                f"the model has no input '{name}'",
                where=where,
                remedy=f"did you mean '{close[0]}'?" if close else f"its inputs are {_list(known)}",
            )
    missing = [name for name in known if name not in names and name not in states]
    if missing:
        there = _list(names) if names else "nothing"
        raise PruneError(
            f"the input {_list(missing)} is missing",
            where=where,
            remedy=f"add it; the feed has {there}",
        )


def _check_value(value: object, port: Port, sizes: dict[str, tuple[int, str]], where: str) -> Array:
    where = f"{where}: input '{port.name}'"
    array = _convert(value, port, where)
    if port.dims is not None:
        _check_sizes(array, port, sizes, where)
    if array.size == 0:
        raise PruneError(
            f"it is empty, its shape is {list(array.shape)}",
            where=where,
            remedy="leave out feeds without entries",
        )
    if is_float(array.dtype):
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise PruneError(
                f"{bad} of {array.size} entries are NaN or infinite as {array.dtype.name}",
                where=where,
                remedy="give finite numbers",
            )
    return array


def _check_sizes(array: Array, port: Port, sizes: dict[str, tuple[int, str]], where: str) -> None:
    """Compares a shape with the declared one; `sizes` remembers each named size and its input."""
    dims = port.dims or ()
    if array.ndim != len(dims):
        raise PruneError(
            f"its shape {list(array.shape)} has {array.ndim} axes where the model takes "
            f"{len(dims)}",
            where=where,
            remedy=f"give it as {port}",
        )
    for axis, (size, dim) in enumerate(zip(array.shape, dims, strict=True)):
        if isinstance(dim, int) and size != dim:
            raise PruneError(
                f"its shape {list(array.shape)} has size {size} on axis {axis} where the model "
                f"takes {dim}",
                where=where,
                remedy=f"give it as {port}",
            )
        if isinstance(dim, str):
            first, owner = sizes.setdefault(dim, (size, port.name))
            if size != first:
                raise PruneError(
                    f"'{dim}' is {size} on axis {axis} but {first} in input '{owner}'",
                    where=where,
                    remedy="give both the same size",
                )


def _labels(value: object, where: str) -> Array:
    try:
        return np.asarray(value)
    except FAILURES as error:
        raise PruneError(
            f"its labels cannot be made an array: {error}", where=where, remedy="give an array"
        ) from error


def _convert(value: object, port: Port, where: str) -> Array:
    if port.dtype is None:
        raise PruneError(
            "the model takes something else than a tensor here, which feeds cannot hold",
            where=where,
            remedy="export the model with tensor inputs",
        )
    try:
        array = np.asarray(value)
    except FAILURES as error:  # objects of other libraries fail in their own ways
        raise PruneError(
            f"cannot be made an array: {error}", where=where, remedy=f"give it as {port}"
        ) from error
    if array.dtype == port.dtype:
        return array
    if port.dtype == object and array.dtype.kind in "US":
        return array.astype(object)
    converted = _cast(array, port.dtype)
    if converted is None:
        raise PruneError(
            f"its values are {array.dtype.name}, which do not survive as {port.dtype.name}",
            where=where,
            remedy=f"give it as {port}",
        )
    return converted


def _cast(array: Array, dtype: np.dtype[Any]) -> Array | None:
    """The array in another type, or None where values would change by more than rounding."""
    source_float, target_float = is_float(array.dtype), is_float(dtype)
    if not (source_float or array.dtype.kind in "biu"):
        return None
    if not (target_float or dtype.kind in "biu"):
        return None
    if source_float and not target_float:
        return None
    # What overflows becomes infinite, which the caller refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
        if source_float:
            return converted
        back = converted.astype(array.dtype)
        # A cast to an unsigned type and back gives a negative number again.
        wrapped = dtype.kind == "u" and bool(np.any(np.less(array, 0)))
    return converted if not wrapped and np.array_equal(back, array) else None


def _zeros(port: Port, sizes: Mapping[str, tuple[int, str]], where: str) -> Array:
    """A state at its start; sizes that no other input tells are 1."""
    if port.dtype is None or port.dims is None:
        raise PruneError(
            f"the model does not say which shape the state '{port.name}' has",
            where=where,
            remedy=f"add '{port.name}' to the feed",
        )
    shape = [dim if isinstance(dim, int) else sizes.get(dim or "", (1, ""))[0] for dim in port.dims]
    return np.zeros(shape, port.dtype)


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
