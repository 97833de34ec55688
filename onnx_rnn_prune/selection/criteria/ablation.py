"""How much the outputs change when a unit alone is cut, measured in onnxruntime.

score = mean over outputs and feeds of the squared error / variance of the output. No gradients are
needed (Mozer and Smolensky 1989, "Skeletonization"; the oracle criterion of Molchanov et al. 2017).
One session does it all: the masks are an input of the graph. Where there are more units than time,
several are cut at once, in blocks drawn anew a few times, and a unit's score is the mean of its
blocks'.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.model.runner import Array, Feed
from onnx_rnn_prune.selection.context import Criterion, ScoringContext
from onnx_rnn_prune.selection.masked import MaskedModel
from onnx_rnn_prune.trace.units import Ids

# Feeds that are looked at; and calls, where they follow one another and one tells little.
_FEEDS, _CALLS = 4, 64
_SECONDS = 60.0
_DRAWS = 3


def _score(context: ScoringContext) -> Matrix:
    model = MaskedModel(context.traced.document, context.traced.trace)
    feeds = list(
        islice(context.data.calibration, _CALLS if context.data.calibration.states else _FEEDS)
    )
    everything = np.ones(context.traced.trace.units.count, dtype=bool)
    start = time.perf_counter()
    wanted = list(model.outputs(feeds, everything))
    runs = int(_SECONDS / max(time.perf_counter() - start, 1e-6))
    scores, counts = np.zeros(len(everything)), np.zeros(len(everything))
    blocks = list(_blocks(context, runs))
    for number, block in enumerate(blocks):
        context.progress("cutting units one by one", number, len(blocks))
        keep = everything.copy()
        keep[block] = False
        scores[block] += _loss(model, feeds, wanted, keep) / block.size
        counts[block] += 1
    return scores / counts


def _blocks(context: ScoringContext, runs: int) -> Iterator[Ids]:
    """Units to cut together, within a number of runs: single atoms where that is enough."""
    rng = np.random.default_rng(context.seed)
    sets = [atoms for group in context.traced.trace.groups for atoms in group.atoms]
    total = sum(map(len, sets))
    draws = 1 if total <= runs else _DRAWS
    size = -(-total * draws // max(runs, 1))
    for _ in range(draws):
        for atoms in sets:
            order = rng.permutation(len(atoms))
            for first in range(0, len(order), size):
                yield atoms[order[first : first + size]].reshape(-1)


def _loss(
    model: MaskedModel, feeds: Sequence[Feed], wanted: Sequence[Mapping[str, Array]], keep: Array
) -> float:
    errors = []
    for before, after in zip(wanted, model.outputs(feeds, keep), strict=True):
        for name, value in before.items():
            if value.dtype.kind == "f" and value.size:
                exact = value.astype(np.float64)
                spread = float(exact.var()) or 1.0
                errors.append(float(np.mean((after[name] - exact) ** 2)) / spread)
    return float(np.mean(errors)) if errors else 0.0


CRITERION = Criterion(_score, needs="feeds")
