"""The stage that gives the inputs of layers a lower rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_rnn_prune.compression.factor import FactorInputs, Rank, Reading, factorable
from onnx_rnn_prune.cost.budget import read_share
from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.evidence import Tapped
from onnx_rnn_prune.evidence.gates import GateReader
from onnx_rnn_prune.evidence.moments import Moments
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import OURS, Runner
from onnx_rnn_prune.operators.labels import NOBODY
from onnx_rnn_prune.operators.recurrent import RecurrentLayer
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.study.feeding import Data
from onnx_rnn_prune.validate import drift

_FORMS = "give a share (25%), a number (32), or a share of what is read (energy=99%)"


@dataclass(frozen=True)
class Factor:
    """Factors the input weights of all layers where that takes fewer operations.

    Attributes:
        rank: of the factors.
    """

    rank: Rank

    @property
    def name(self) -> str:
        """What the report calls it."""
        return f"rank {self.rank}"

    def __call__(self, document: Document, data: Data, progress: Progress) -> Document:
        """Factors with what data shows, or without where that comes closer on held-out feeds.

        Raises:
            PruneError: nowhere do factors of this rank take fewer operations.
        """
        ways = [FactorInputs(self.rank, {})]
        if data.given:
            readings = read_inputs(document, data.fitting, progress)
            ways.append(FactorInputs(self.rank, readings))
        results = [result for way in ways if way(result := document.copy())]
        if not results:
            raise PruneError(
                "two factors of this rank are smaller than the weight in no layer",
                where=f"--rank {self.rank}",
                remedy="give a smaller one, or leave it out",
            )
        return min(results, key=lambda result: _distance(document, result, data.held_out))


def read_inputs(document: Document, feeds: Feeds, progress: Progress) -> dict[str, Reading]:
    """What layers read, by the first of those that are the same; none of what no feed reaches."""
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
        progress("looking at inputs of layers", number, len(feeds))
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


def _reader(layer: RecurrentLayer, direction: int, twin: str) -> GateReader:
    """All gates of a direction as what reads X, in which no units need be."""
    inputs, lane = (
        np.full(size, NOBODY, dtype=np.int64) for size in (layer.input_size, layer.hidden)
    )
    return GateReader(layer.name, direction, layer.cell.gates, ("X",), inputs, lane, twin)


def _distance(before: Document, after: Document, feeds: Feeds) -> float:
    """How far a result is from what it was made of, in the output that differs most."""
    one, other = Runner(before, remedy=OURS), Runner(after, remedy=OURS)
    return max((values.nrmse for values in drift(one, other, feeds).values()), default=0.0)


def read_rank(value: object) -> Factor:
    """What `--rank` says.

    Raises:
        PruneError: it is no rank.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PruneError(f"{value!r} is no rank", where="--rank", remedy=_FORMS)
    if text.isdecimal() and int(text[:18]) > 0:
        return Factor(Rank(count=int(text[:18])))
    kind, equals, amount = (part.strip() for part in text.rpartition("="))
    known = kind in ("", "energy")
    share = read_share(amount, "--rank", "a number such as 32") if known else None
    if share is None:
        raise PruneError(f"'{text}' is no rank", where="--rank", remedy=_FORMS)
    return Factor(Rank(energy=share) if equals else Rank(share=share))
