"""Layers that are the same: exporters write one into both branches of an If."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from onnx_rnn_prune.operators.recurrent import RecurrentLayer


def find_twins(layers: Iterable[RecurrentLayer]) -> dict[str, str]:
    """For each layer, the first one with the same operator and the same parameters.

    Exporters write one layer into both branches of an If, with weights that they share.
    """
    first: dict[tuple[object, ...], str] = {}
    return {layer.name: first.setdefault(_essence(layer), layer.name) for layer in layers}


def _essence(layer: RecurrentLayer) -> tuple[object, ...]:
    digest = hashlib.sha256()
    for name in layer.cell.parameters:
        value = layer.constant(name)
        if value is not None:  # its bytes are hashed where they are
            digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        digest.update(b"-")
    attributes = sorted((name, str(value)) for name, value in layer.node.attrs.items())
    shape = (layer.cell.op, layer.directions, layer.hidden, layer.input_size)
    return (*shape, *attributes, digest.digest())
