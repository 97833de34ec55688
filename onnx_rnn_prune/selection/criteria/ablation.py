"""How much the outputs change when a single unit is removed, measured in onnxruntime.

score = mean over outputs and feeds of the squared error / variance of the output. No gradients are
needed (Mozer and Smolensky 1989, "Skeletonization"; the oracle criterion of Molchanov et al. 2017).
One session suffices: the mask is an input of the graph. If there are too many units, random blocks
are removed at once, in several draws, and a unit's score is the mean over its blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.model.constants import is_float, require_constant
from onnx_rnn_prune.model.edit import add_constant, fresh_name
from onnx_rnn_prune.model.runner import Array, Feed, Runner, Streaming
from onnx_rnn_prune.model.walk import nodes_by_key, place_of
from onnx_rnn_prune.operators.labels import Labels, Mask
from onnx_rnn_prune.selection.context import Criterion, ScoringContext
from onnx_rnn_prune.trace.bindings import all_bounds
from onnx_rnn_prune.trace.units import Ids
from onnx_rnn_prune.traced_model import TracedModel


class MaskedModel:
    """Runs a document with units zeroed by a mask given with each feed.

    The mask is an extra input of the graph; every constant with labels is multiplied by the mask
    entries of its labels.

    Args:
        traced: the model.
    """

    def __init__(self, traced: TracedModel) -> None:
        copy, trace = traced.document.copy(), traced.trace
        graph = copy.graph
        self._mask = fresh_name(graph, "unit_mask")
        # An extra last entry for labels of -1: entries without a unit.
        mask = gs.Variable(self._mask, np.float32, (trace.units.count + 1,))
        nodes = nodes_by_key(graph)
        for (key, slot), bounds in all_bounds(copy, trace).items():
            dtype = require_constant(nodes[key].inputs[slot], graph.opset).dtype
            if not is_float(dtype) and dtype.kind != "b":
                raise PruneError(
                    "units of 8-bit layers cannot be removed one by one",
                    where=key,
                    remedy="choose another criterion, or exclude the layer with --skip",
                )
            for bound in bounds:
                if bound.dead == 0:
                    _mask_input(graph, nodes[key], slot, mask, bound.labels, dtype)
        graph.inputs.append(mask)
        self._runner = Runner(copy, optimize=False, name="the masked model")

    def __call__(self, feed: Feed, keep: Mask) -> dict[str, Array]:
        """The outputs for a feed with some units cut."""
        mask = np.append(keep, True).astype(np.float32)
        return self._runner({**feed, self._mask: mask})

    def outputs(self, feeds: Iterable[Feed], keep: Mask) -> Iterator[Mapping[str, Array]]:
        """The outputs for feeds in order, with states carried along in streams."""
        return map(Streaming(lambda feed: self(feed, keep)), feeds)


def _mask_input(
    graph: gs.Graph,
    node: gs.Node,
    slot: int,
    mask: gs.Variable,
    labels: Labels,
    dtype: np.dtype[Any],
) -> None:
    """Multiplies an input of a node by the mask entries of its labels."""
    tensor = node.inputs[slot]
    nobody = mask.shape[0] - 1
    places = add_constant(graph, "unit_labels", np.where(labels < 0, nobody, labels))
    factors, typed, product = (
        gs.Variable(fresh_name(graph, f"unit_{name}")) for name in ("factors", "typed", "masked")
    )
    to = {"to": onnx.helper.np_dtype_to_tensor_dtype(dtype)}
    steps = [
        gs.Node("Gather", inputs=[mask, places], outputs=[factors]),
        gs.Node("Cast", attrs=to, inputs=[factors], outputs=[typed]),
        gs.Node("And" if dtype.kind == "b" else "Mul", inputs=[tensor, typed], outputs=[product]),
    ]
    holder = place_of(graph, node).graph.nodes
    first = next(number for number, item in enumerate(holder) if item is node)
    holder[first:first] = steps
    node.inputs[slot] = product


# The most feeds to run; and calls, if they are consecutive and a single one tells little.
_FEEDS, _CALLS = 4, 64
_SECONDS = 60.0
_DRAWS = 3


def _score(context: ScoringContext) -> Matrix:
    model = MaskedModel(context.traced)
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
        context.progress("removing units one by one", number, len(blocks))
        keep = everything.copy()
        keep[block] = False
        scores[block] += _loss(model, feeds, wanted, keep) / block.size
        counts[block] += 1
    return scores / counts


def _blocks(context: ScoringContext, runs: int) -> Iterator[Ids]:
    """Blocks of units to remove together, for about `runs` runs: single atoms if possible."""
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
