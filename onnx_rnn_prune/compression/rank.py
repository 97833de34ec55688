"""Low rank: the input weights of a layer as two thin matrices.

The gates of a layer see W x. With x = m + d for a mean m and deviations d of covariance C, the W'
of rank r that minimizes E|W d - W' d|^2 is U U^T W, where U holds the r leading left singular
vectors of W C^1/2 (Chen et al. 2021, "DRONE: Data-aware low-rank compression for large NLP models";
without data, C is the identity, and this is the singular value decomposition of Xue et al. 2013,
"Restructuring of deep neural network acoustic models with singular value decomposition"). (W - W')
m goes into the bias; moments about zero would spend a direction on it. Rows of W are weighted by
how sensitive the gates are to errors in them.

U^T W becomes a product in front of the layer, and U its new W. Both directions of a layer read the
same x and share that product. R cannot be factored: a node has no place for another product in its
loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.cost.budget import read_share
from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.evidence import Tapped
from onnx_rnn_prune.evidence.gates import GateReader
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.evidence.moments import Moments
from onnx_rnn_prune.model import edit
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.integers import dequantized
from onnx_rnn_prune.model.runner import OURS, Array, Runner
from onnx_rnn_prune.operators.labels import NOBODY
from onnx_rnn_prune.operators.layers import Layer, find_duplicates
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.validate import drift

# Directions that the data does not show may matter later: those in which inputs do not vary, and
# gates that never respond, count this much of the average.
_RIDGE, _LEAST_EMPHASIS = 1e-3, 1e-2


@dataclass(frozen=True)
class Rank:
    """The rank to keep, given in one of these ways.

    Attributes:
        share: of the full rank.
        count: the rank itself.
        energy: the minimum share of the mean square of W d.
    """

    share: float | None = None
    count: int | None = None
    energy: float | None = None

    def __str__(self) -> str:
        if self.count is not None:
            return f"{self.count}"
        return f"{self.share:.6g}" if self.energy is None else f"energy={self.energy:.6g}"

    def among(self, values: Matrix) -> int:
        """How many of some singular values, in descending order, are kept."""
        if self.count is not None:
            return min(self.count, len(values))
        if self.share is not None:
            return max(1, round(self.share * len(values)))
        held = np.cumsum(values**2) / max(float(np.sum(values**2)), 1e-300)
        return int(np.searchsorted(held, (self.energy or 1.0) - 1e-12)) + 1


@dataclass(frozen=True, eq=False)
class Reading:
    """Statistics of a layer's input.

    Attributes:
        moments: of x.
        emphasis: the weight of squared errors in each row of W x, [D gates H].
    """

    moments: Moments
    emphasis: Matrix

    @staticmethod
    def none(rows: int, width: int) -> Reading:
        """Statistics for a layer without data: mean 0, unit covariance, equal emphasis."""
        return Reading(Moments(1, np.zeros(width), np.eye(width)), np.ones(rows))


@dataclass(frozen=True, eq=False)
class FactorInputs:
    """Factors the W of layers where that takes fewer operations.

    Attributes:
        readings: statistics by the first of equal layers; may lack some.
    """

    rank: Rank
    readings: Mapping[str, Reading]

    def __call__(self, document: Document) -> bool:
        changed = False
        for name, layers in factorable(document).items():
            weight = layers[0].held("W")
            rows = weight.reshape(-1, weight.shape[2]).astype(np.float64)
            reading = self.readings.get(name) or Reading.none(*rows.shape)
            factors = _factors(rows, self.rank, reading)
            if factors is not None:
                _write(document.graph, layers, *factors)
                changed = True
        return changed


def factorable(document: Document) -> dict[str, list[Layer]]:
    """Layers with a floating-point W, grouped with their duplicates by the first one's name.

    Duplicates, in branches of an If, keep sharing their weights.
    """
    layers = find_layers(document.graph)
    twins = find_duplicates(layers)
    found: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        if not layer.cell.scales and dequantized(layer.node.inputs[1]) is None:
            found[twins[layer.name]].append(layer)
    return found


def _factors(weight: Matrix, rank: Rank, reading: Reading) -> tuple[Matrix, Matrix, Matrix] | None:
    """W' as two factors [outputs, r] and [r, n], and the bias correction, [outputs].

    None if the factors have no fewer entries.
    """
    width = weight.shape[1]
    covariance = reading.moments.covariance(np.arange(width))
    covariance += np.eye(width) * (_RIDGE * (np.trace(covariance) / width or 1.0))
    spread, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(np.maximum(spread, 0.0))
    average = reading.emphasis.mean() or 1.0
    rows = np.sqrt(reading.emphasis / average + _LEAST_EMPHASIS)[:, None]
    left, values, _ = np.linalg.svd(rows * weight @ root, full_matrices=False)
    kept = rank.among(values)
    if kept * sum(weight.shape) >= weight.size:
        return None
    outer = left[:, :kept] / rows
    inner = (left[:, :kept] * rows).T @ weight
    return outer, inner, (weight - outer @ inner) @ reading.moments.mean


def _write(
    graph: gs.Graph, layers: list[Layer], outer: Matrix, inner: Matrix, bias: Matrix
) -> None:
    first = layers[0]
    slots = {name: first.slot(name) for name in ("W", "B")}
    weight = first.held("W")
    shape, dtype = weight.shape, weight.dtype
    given = first.constant("B")
    total = np.zeros((shape[0], 2 * shape[1]), dtype) if given is None else given.copy()
    total[:, : shape[1]] += bias.reshape(shape[:2]).astype(dtype)
    before = edit.add_constant(graph, f"{first.name}_factor", inner.T.astype(dtype))
    for layer in layers:
        _project(graph, layer, before)
    value: Array = outer.reshape(*shape[:2], -1).astype(dtype)
    edit.replace_constants(graph, [(layer.node, slots["W"]) for layer in layers], value)
    if given is not None:
        edit.replace_constants(graph, [(layer.node, slots["B"]) for layer in layers], total)
    elif np.any(bias):
        added = edit.add_constant(graph, f"{first.name}_B", total)
        for layer in layers:
            edit.set_input(layer.node, slots["B"], added)


def _project(graph: gs.Graph, layer: Layer, factor: gs.Tensor) -> None:
    """Puts a product in front of a layer."""
    node = layer.node
    result = gs.Variable(edit.fresh_name(graph, f"{layer.name}_projected"))
    made = gs.Node("MatMul", result.name, inputs=[node.inputs[0], factor], outputs=[result])
    edit.insert_before(graph, made, before=node)
    edit.set_input(node, 0, result)


_FORMS = "give a fraction (25%), a rank (32), or a fraction of the input energy (energy=99%)"


@dataclass(frozen=True)
class Factor:
    """Factors the input weights of all layers where that takes fewer operations."""

    rank: Rank

    @property
    def name(self) -> str:
        """Its name in reports."""
        return f"rank {self.rank}"

    def __call__(self, document: Document, data: Calibration, progress: Progress) -> Document:
        """Factors with data, or without where that comes closer on validation feeds.

        Raises:
            PruneError: factors of this rank save operations nowhere.
        """
        ways = [FactorInputs(self.rank, {})]
        if data.given:
            readings = read_inputs(document, data.calibration, progress)
            ways.append(FactorInputs(self.rank, readings))
        results = [result for way in ways if way(result := document.copy())]
        if not results:
            raise PruneError(
                "no layer has a weight larger than its two factors of this rank",
                where=f"--rank={self.rank}",
                remedy="give a lower rank, or leave it out",
            )

        def distance(result: Document) -> float:
            one, other = Runner(document, remedy=OURS), Runner(result, remedy=OURS)
            return max((d.nrmse for d in drift(one, other, data.validation).values()), default=0.0)

        return min(results, key=distance)


def read_inputs(document: Document, feeds: Feeds, progress: Progress) -> dict[str, Reading]:
    """Input statistics by the first of equal layers; none for layers that no feed reaches."""
    layers = factorable(document)
    if not layers:
        return {}
    readers = [
        _reader(layer, direction, name)
        for name, twins in layers.items()
        for layer in twins
        for direction in range(layer.directions)
    ]
    tapped = Tapped(document, readers, feeds.states)
    moments: dict[str, Moments] = {}
    emphasis = {
        name: np.zeros((own[0].directions, len(own[0].cell.gates) * own[0].hidden))
        for name, own in layers.items()
    }
    for number, feed in enumerate(feeds):
        progress("measuring layer inputs", number, len(feeds))
        seen = tapped(feed)
        for reader in readers:
            name = reader.twin
            emphasis[name][reader.direction] += tapped.emphasis(reader, seen)
            if reader.direction == 0:
                found = Moments.of(tapped.signal(reader, seen))
                moments[name] = moments[name].merge(found) if name in moments else found
    return {
        name: Reading(found, emphasis[name].reshape(-1))
        for name, found in moments.items()
        if found.count
    }


def _reader(layer: Layer, direction: int, twin: str) -> GateReader:
    """All gates of a direction as a reader of X, which need not contain units."""
    inputs, lane = (
        np.full(size, NOBODY, dtype=np.int64) for size in (layer.input_size, layer.hidden)
    )
    return GateReader(layer.name, direction, layer.cell.gates, ("X",), inputs, lane, twin)


def read_rank(value: object) -> Factor:
    """Parses `--rank`.

    Raises:
        PruneError: it is not a valid rank.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PruneError(f"{value!r} is not a rank", where="--rank", remedy=_FORMS)
    if text.isdecimal() and int(text[:18]) > 0:
        return Factor(Rank(count=int(text[:18])))
    kind, equals, amount = (part.strip() for part in text.rpartition("="))
    known = kind in ("", "energy")
    share = read_share(amount, "--rank", "a number such as 32") if known else None
    if share is None:
        raise PruneError(f"'{text}' is not a rank", where="--rank", remedy=_FORMS)
    return Factor(Rank(energy=share) if equals else Rank(share=share))
