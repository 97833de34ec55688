"""Masks from training as a plan: an .npz file with an array of booleans for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnx_rnn_prune.data.files import read_archive
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.trace.plan import LayerPlan, Plan


def plan_of_masks(masks: object, model: str, layers: Sequence[Layer]) -> Plan:
    """The plan that keeps what masks keep; layers that they do not name keep all.

    Args:
        masks: a path of an .npz file, or a mapping: by layer name, booleans of shape [D, H], or [H]
            for the same units in both directions. True means keep.
        model: SHA-256 of the model that they are for.
        layers: its layers.

    Raises:
        PruneError: they cannot be read, or do not fit the layers.
    """
    known = {layer.name: layer for layer in layers}
    found = {}
    for name, mask in _read(masks).items():
        if name not in known:
            raise _wrong(
                f"the model has no recurrent layer '{name}'", f"its layers are {', '.join(known)}"
            )
        found[name] = _layer_plan(known[name], np.asarray(mask))
    if not found:
        raise _wrong("they name no layer", f"the layers are {', '.join(known)}")
    return Plan(model, found)


def _layer_plan(layer: Layer, mask: Array) -> LayerPlan:
    wanted = (layer.directions, layer.hidden)
    if mask.dtype != bool or mask.shape not in (wanted, wanted[1:]):
        raise _wrong(
            f"the mask of {layer.name} holds {mask.dtype} of shape {list(mask.shape)}",
            f"give booleans of shape {list(wanted)} or [{layer.hidden}]",
        )
    lanes = np.broadcast_to(mask, wanted)
    counts = {int(lane.sum()) for lane in lanes}
    if len(counts) > 1 or not min(counts):
        raise _wrong(
            f"the mask of {layer.name} keeps {', '.join(str(int(lane.sum())) for lane in lanes)}"
            " units",
            "keep equally many in each direction, at least one",
        )
    keep = tuple(tuple(np.flatnonzero(lane).tolist()) for lane in lanes)
    return LayerPlan(layer.hidden, keep, layer.scope)


def _read(masks: object) -> Mapping[str, Array]:
    if isinstance(masks, Mapping):
        return masks
    if not isinstance(masks, str | Path):
        raise _wrong(f"{type(masks).__name__} is no set of masks", "give an .npz file or a mapping")
    try:
        return read_archive(Path(masks))
    except PruneError as error:
        raise _wrong(f"{masks}: {error.what}", "give an .npz file") from error


def _wrong(what: str, remedy: str) -> PruneError:
    return PruneError(what, where="--masks", remedy=remedy)
