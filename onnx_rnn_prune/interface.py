"""The interface of a result: states at full width, or with the entries of kept units only."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_rnn_prune.arguments import globs
from onnx_rnn_prune.errors import PruneError


@dataclass(frozen=True)
class Interface:
    """What callers of the result see.

    Attributes:
        shrink_states: whether states hold the entries of kept units only, where that can be.
        metadata: places that hold the width of a state, to be brought up to date.
    """

    shrink_states: bool = False
    metadata: tuple[str, ...] = ()


AS_BEFORE = Interface()


def read_interface(shrink_states: object, metadata: object, mode: str) -> Interface:
    """Arguments as a value that means something.

    Raises:
        PruneError: one of them means nothing.
    """
    if not isinstance(shrink_states, bool):
        raise PruneError(
            f"{shrink_states!r} is neither True nor False",
            where="--shrink-states",
            remedy="give one",
        )
    keys = globs(metadata, "--state-metadata")
    if keys and not shrink_states:
        raise PruneError(
            "states stay as they are", where="--state-metadata", remedy="add --shrink-states"
        )
    if shrink_states and mode == "zero":
        raise PruneError(
            "zeros leave states as they are", where="--shrink-states", remedy="use --mode=shrink"
        )
    return Interface(shrink_states, keys)
