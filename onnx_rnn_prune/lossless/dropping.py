"""Which superfluous units go: as many as all lanes that keep equally many units can do without."""

from __future__ import annotations

import numpy as np

from onnx_rnn_prune.lossless.superfluous import KINDS, Superfluous
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.trace.units import Ids


def keep_needed(trace: Trace, found: Superfluous) -> Mask:
    """Per unit, True where it stays: what is needed, what ties demand, and at least one a lane."""
    keep = np.ones(trace.units.count, dtype=bool)
    for group in trace.groups:
        free = [_free(atoms, found) for atoms in group.atoms]
        count = min(group.size - 1, *map(len, free))
        for atoms in free:
            keep[atoms[:count]] = False
    return keep


def _free(atoms: Ids, found: Superfluous) -> Ids:
    """The atoms that may go, simplest kinds first."""
    kinds = [np.all(getattr(found, kind)[atoms], axis=1) for kind in KINDS]
    return np.concatenate([atoms[kind] for kind in kinds])
