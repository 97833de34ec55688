"""Looking at a model: inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnx_rnn_prune.flow.arguments import check_progress, frozen
from onnx_rnn_prune.flow.looking.inspecting import inspect_model
from onnx_rnn_prune.flow.opening import ModelSource, read_model
from onnx_rnn_prune.progress import Progress, silent

_NOTHING: Mapping[str, object] = MappingProxyType({})


def inspect(
    model: ModelSource,
    *,
    data: object = None,
    freeze: Mapping[str, object] = _NOTHING,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The recurrent layers of a model, what they cost, and where their units end.

    Also recurrences that an exporter wrote out, which cannot be pruned, and what to do about them.

    Args:
        model: a path or a model; it is not changed.
        data: inputs to measure time on, see `data.open_feeds`; made up where there are none.
        freeze: inputs to fix to one value, by name.
        progress: is told how far the work is.

    Raises:
        PruneError: it has no recurrence of any kind, does not load, or the data do not suit it.
    """
    check_progress(progress)
    progress("reading", 0, None)
    found = inspect_model(read_model(model, frozen(freeze)), data, progress)
    found["model"]["path"] = str(model) if isinstance(model, str | Path) else None
    return found
