"""How much errors in readers' sums affect the outputs: observability on calibration data.

Let J be the derivative of all future outputs by an error in a reader's sum. The expected damage of
errors e is e' E[J'J] e: the observability Gramian of balanced truncation (Moore 1981), along the
trajectories of the data. It is estimated in the way of Hutchinson's trace (1990): a sum of all
outputs with random weights of unit variance has derivatives g with E[gg'] = E[J'J]. These are
propagated back through a layer's own recurrence step by step, and from the last layer to the first.
Between layers only their distribution counts: derivatives arriving at a layer are drawn anew for
each of its steps. If no further unit follows a reader, errors count relative to the variance of its
sum.

Half of the units of a streaming denoiser (DTLN), chosen in this way and refitted three times,
deviate by 27 % on other speech; by 30 % if errors count by their effect on the next layer only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.evidence.evidence import Evidence, Tapped
from onnx_rnn_prune.evidence.gates import GateReader
from onnx_rnn_prune.evidence.matrices import Matrix, blocks
from onnx_rnn_prune.evidence.readers import Lookup, Reader, Taps
from onnx_rnn_prune.evidence.steps import Steps, slopes
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.labels import Labels
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.trace.units import Ids
from onnx_rnn_prune.traced_model import TracedModel

Real = npt.NDArray[Any]

# Steps to look at, or fewer if layers are large or many.
_STEPS = 4096
_ENTRIES, _ALL_ENTRIES = 1 << 19, 1 << 22
# Derivatives by outputs that are drawn at a time.
_DRAWN = 1 << 21


@dataclass(frozen=True, eq=False)
class Influence:
    """The effect of errors in readers' sums.

    Attributes:
        rows: weights of squared errors in each output, by reader, [outputs].
        drawn: derivatives by the outputs, by gate reader, [N, outputs]; more detailed.
    """

    rows: dict[str, Matrix]
    drawn: dict[str, Array]

    def gram(
        self, reader: Reader, lookup: Lookup, places: Ids, dtype: npt.DTypeLike = np.float64
    ) -> Real:
        """E[J'J] of some entries of a reader's signal, [places, places]."""
        if reader.name in self.drawn:
            drawn = _before(self.drawn[reader.name], reader, lookup, places)
            felt = drawn.astype(dtype, copy=False)
            return np.asarray(felt.T @ felt / len(felt), dtype)
        total = np.zeros((len(places), len(places)), dtype)
        roots = np.sqrt(self.rows[reader.name])[:, None]
        for lines, weight in _in_parts(reader, lookup, len(roots)):
            part = (weight[:, places] * roots[lines]).astype(dtype, copy=False)
            for rows in blocks(len(places)):  # it is symmetric
                total[rows, : rows.stop] += part[:, rows].T @ part[:, : rows.stop]
        for rows in blocks(len(places)):
            total[rows, rows.stop :] = total[rows.stop :, rows].T
        return total

    def draw(
        self, reader: Reader, lookup: Lookup, places: Ids, count: int, rng: np.random.Generator
    ) -> Matrix:
        """Derivatives by some entries of a reader's signal, [count, places]."""
        known, roots = self.drawn.get(reader.name), np.sqrt(self.rows[reader.name])
        result = np.empty((count, len(places)))
        few = max(1, _DRAWN // len(roots))  # a reader may have the outputs of a whole vocabulary
        for start in range(0, count, few):
            size = min(few, count - start)
            if known is None:
                drawn = rng.normal(size=(size, len(roots))) * roots
            else:
                signs = rng.choice((-1.0, 1.0), (size, 1))
                drawn = known[rng.integers(len(known), size=size)] * signs
            result[start : start + size] = _before(drawn, reader, lookup, places)
        return result

    def squares(self, reader: Reader, lookup: Lookup, places: Ids) -> Matrix:
        """The mean squares of what `draw` draws, [places]."""
        known = self.drawn.get(reader.name)
        if known is not None:
            felt = _before(known, reader, lookup, places).astype(np.float64)
            return np.asarray(np.square(felt).mean(axis=0))
        rows, total = self.rows[reader.name], np.zeros(len(places))
        for lines, weight in _in_parts(reader, lookup, len(rows)):
            total += rows[lines] @ np.square(weight[:, places], dtype=np.float64)
        return total


def _in_parts(reader: Reader, lookup: Lookup, outputs: int) -> Iterator[tuple[slice, Array]]:
    """A reader's weight in blocks of rows: the whole may be most of a model."""
    lines, every = reader.lines(lookup), np.arange(outputs)
    return ((rows, lines(every[rows])) for rows in blocks(outputs))


def _before(derivatives: Array, reader: Reader, lookup: Lookup, places: Ids) -> Array:
    """Turns derivatives by outputs, [N, outputs], into those by signal entries, [N, places]."""
    total = np.zeros((len(derivatives), len(places)), derivatives.dtype)
    for rows, weight in _in_parts(reader, lookup, derivatives.shape[1]):
        total += derivatives[:, rows] @ weight[:, places]
    return total


def influence_of(
    traced: TracedModel, readers: Sequence[Reader], evidence: Evidence, feeds: Feeds
) -> Influence:
    """The influence of errors in readers of units.

    Args:
        traced: the model.
        readers: the readers that count.
        evidence: from calibration.
        feeds: the calibration set, of which some feeds are run.
    """
    lookup = Lookup.of(traced.document)
    found = Influence({r.name: _relative(r, lookup, evidence) for r in readers}, {})
    trajectories = _trajectories(
        traced, [r for r in readers if isinstance(r, GateReader)], evidence, feeds
    )
    same = traced.trace.read_as
    back = _Back(lookup, same, trajectories, found)
    lanes = [lane for lanes in traced.trace.units.lanes.values() for lane in lanes]
    making = meeting([reader.outputs(lookup) for reader in readers], lanes)
    read = [np.where(reader.labels < 0, -1, same[reader.labels]) for reader in readers]
    reading = meeting(read, [same[lane] for lane in lanes])
    for lane, own, others in reversed([*zip(lanes, making, reading, strict=True)]):
        ahead = [(readers[number], read[number]) for number in others if number not in own]
        back(lane, [readers[number] for number in own], ahead)
    return found


Trajectories = dict[tuple[str, int], list[Steps]]


@dataclass(frozen=True, eq=False)
class _Back:
    """Propagates influence from a lane's readers back to the readers that make its units.

    Attributes:
        lookup: index of the document.
        same: for each unit, the one as which it is read: see `Trace`.
        trajectories: inputs and states, by layer and direction.
        found: the influence of later lanes; that of each lane is added.
    """

    lookup: Lookup
    same: Ids
    trajectories: Trajectories
    found: Influence

    def __call__(
        self, lane: Ids, own: Sequence[Reader], ahead: Sequence[tuple[Reader, Labels]]
    ) -> None:
        """Adds the influence of one lane, given the readers that make it and those that read it."""
        reading = [*self._reading(lane, ahead)]
        gates = [reader for reader in own if isinstance(reader, GateReader)]
        products = [reader for reader in own if not isinstance(reader, GateReader)]
        if products:
            self._onto(products, lane, reading)
        trajectories = self.trajectories[gates[0].layer, gates[0].direction] if gates else []
        arriving = self._arriving(reading, [steps.states.shape for steps in trajectories])
        # A lane read before it is made gets nothing, as that is not known yet.
        if any(weights.any() for weights in arriving):
            self._through(gates, trajectories, arriving)

    def _onto(
        self, products: Sequence[Reader], lane: Ids, reading: Sequence[tuple[Reader, Ids]]
    ) -> None:
        """Weights the outputs of products by the effect of the units that they make."""
        felt = np.zeros(len(lane))
        for reader, places in reading:
            felt += self.found.squares(reader, self.lookup, places)
        if not felt.any():
            return
        for reader in products:
            outputs = reader.outputs(self.lookup)
            made = np.isin(outputs, lane)  # others may be of other lanes
            rows = self.found.rows[reader.name] = self.found.rows[reader.name].copy()
            rows[made] *= felt[np.searchsorted(lane, outputs[made])]

    def _through(
        self, gates: Sequence[GateReader], trajectories: Sequence[Steps], arriving: Sequence[Matrix]
    ) -> None:
        """Propagates derivatives by a lane's states back to its gates' pre-activations."""
        layer = gates[0].layer_of(self.lookup)
        drawn: dict[str, list[Matrix]] = {reader.name: [] for reader in gates}
        for steps, weights in zip(trajectories, arriving, strict=True):
            found = adjoints(layer, steps, weights)
            steps.forget()
            if found is None:  # as if each gate were the state itself
                found = dict.fromkeys((*layer.cell.gates, "H"), weights)
            for reader in gates:
                drawn[reader.name].append(reader.side_by_side(found, steps))
        for name, parts in drawn.items():
            self.found.drawn[name] = np.concatenate(parts).astype(np.float32)

    def _arriving(
        self, reading: Sequence[tuple[Reader, Ids]], shapes: Sequence[tuple[int, ...]]
    ) -> list[Matrix]:
        """Derivatives by a lane's states from its other readers, one array per shape."""
        rng, found = np.random.default_rng(0), [np.zeros(shape) for shape in shapes]
        for reader, places in reading:
            for each in found:
                count = each.shape[0] * each.shape[1]
                drawn = self.found.draw(reader, self.lookup, places, count, rng)
                each += drawn.reshape(each.shape)
        return found

    def _reading(
        self, lane: Ids, ahead: Sequence[tuple[Reader, Labels]]
    ) -> Iterator[tuple[Reader, Ids]]:
        """What reads a lane, and where in its signal the lane's units are, in their order."""
        read_as = self.same[lane]
        for reader, read in ahead:
            for places in columns_of(read, np.sort(read_as)) or ():
                yield reader, places[np.argsort(np.argsort(read_as))]


def _relative(reader: Reader, lookup: Lookup, evidence: Evidence) -> Matrix:
    """Weights of squared errors in each output, relative to the variance if none makes a unit."""
    emphasis = evidence.emphasis[reader.pool]
    if (reader.outputs(lookup) >= 0).any():
        return emphasis
    lines, variance = reader.lines(lookup), evidence.moments.variance(reader.pool)
    spread = 0.0
    for rows in blocks(len(emphasis)):
        squares = np.square(lines(np.arange(len(emphasis))[rows]), dtype=np.float64)
        spread += float(emphasis[rows] @ (squares @ variance))
    return emphasis / (spread or 1.0)


def _trajectories(
    traced: TracedModel, gates: Sequence[GateReader], evidence: Evidence, feeds: Feeds
) -> Trajectories:
    """Trajectories of layers over some feeds; consecutive calls are joined."""
    lanes = {(reader.layer, reader.direction): reader for reader in gates}
    widths = [len(reader.lane) for reader in lanes.values()] or [1]
    most = max(1, min(_STEPS, _ENTRIES // max(widths), _ALL_ENTRIES // sum(widths)))
    tapped = Tapped(traced.document, traced.readers, feeds.states, evidence.runs)
    calls: dict[tuple[str, int], list[list[Taps]]] = {lane: [] for lane in lanes}
    left = dict.fromkeys(lanes, most)
    for feed in feeds:
        if all(steps <= 0 for steps in left.values()):
            break
        seen, follows = tapped(feed), getattr(feed, "follows", False)
        for lane, reader in lanes.items():
            found = list(tapped.calls(reader, seen)) if left[lane] > 0 else []
            if follows and len(found) == 1 and calls[lane]:
                calls[lane][-1] += found
            else:
                calls[lane] += [[each] for each in found]
            read = reader.source(tapped.lookup)
            left[lane] -= sum(each[read][..., 0].size for each in found)
    return {
        lane: [_trajectory(reader, tapped.lookup, each, most) for each in calls[lane]]
        for lane, reader in lanes.items()
    }


def _trajectory(reader: GateReader, lookup: Lookup, calls: Sequence[Taps], most: int) -> Steps:
    """Joins consecutive calls into one, with at most `most` steps over all sequences."""
    layer, read, made = reader.layer_of(lookup), reader.source(lookup), reader.taps(lookup)[-1]
    limit = max(1, most // max(1, calls[0][read].shape[1]))
    trajectory = dict(calls[0])
    trajectory |= {n: np.concatenate([call[n] for call in calls])[:limit] for n in (read, made)}
    lengths = layer.input("sequence_lens")
    if lengths is not None and lengths.name in trajectory:
        before = sum(len(call[read]) for call in calls[:-1])
        trajectory[lengths.name] = np.minimum(
            before + calls[-1][lengths.name], len(trajectory[read])
        )
    return Steps(layer, reader.direction, trajectory)


def adjoints(layer: Layer, steps: Steps, weights: Matrix) -> dict[str, Matrix] | None:
    """Derivatives of a weighted sum of all states by gate pre-activations, [T, B, H] by letter.

    Uses back-propagation through time, from the last step to the first.

    Args:
        layer: the layer.
        steps: its trajectory.
        weights: weights of the states in the sum, [T, B, H].
    """
    found = slopes(layer, steps)
    if found is None:
        return None
    plain = [name for name, (_, scale) in found.loops.items() if scale is None]
    own = {**found.memory, **found.direct}
    letters = [*plain, *(name for name in own if name not in plain)]
    result = np.stack([own[name] for name in letters], axis=2)  # slopes become derivatives
    direct = np.isin(letters, [*found.direct])[:, None]
    rows = steps.rows("R", "".join(found.loops[name][0] for name in plain))
    scaled = {
        name: (letters.index(name), steps.rows("R", gate), scale)
        for name, (gate, scale) in found.loops.items()
        if scale is not None
    }
    carried = felt = np.zeros_like(weights[0])
    order = range(len(weights)) if steps.backward else reversed(range(len(weights)))
    for step in order:
        valid, each = steps.valid[step][:, None], result[step]
        state = (weights[step] + felt) * valid
        memory = state * found.shown[step] + carried * valid
        each *= np.where(direct, state[:, None], memory[:, None])
        carried = memory * found.kept[step]
        back = {
            name: each[:, place].astype(matrix.dtype) @ matrix
            for name, (place, matrix, _) in scaled.items()
        }
        for name, (other, slope) in found.scaling.items():
            each[:, letters.index(name)] = back[other] * slope[step]
        felt = each[:, : len(plain)].reshape(len(each), -1).astype(rows.dtype) @ rows
        for name, (_, _, scale) in scaled.items():
            felt = felt + back[name] * scale[step]
    return {name: result[:, :, place] for place, name in enumerate(letters)}


def meeting(labels: Sequence[Labels], lanes: Sequence[Ids]) -> list[list[int]]:
    """For each lane, the indices of the labels that contain its units."""
    units = np.concatenate(lanes) if lanes else np.zeros(0, np.int64)
    owners = np.repeat(np.arange(len(lanes)), [len(lane) for lane in lanes])
    found: list[list[int]] = [[] for _ in lanes]
    for number, each in enumerate(labels):
        for lane in np.unique(owners[np.isin(units, each)]):
            found[lane].append(number)
    return found


def columns_of(labels: Ids, lane: Ids) -> list[Ids] | None:
    """The columns of a lane in a signal: one array of H indices per occurrence."""
    inside = np.isin(labels, lane)
    if not inside.any():
        return None
    places = np.flatnonzero(inside)
    order = places[np.argsort(labels[places], kind="stable")]
    repeats = len(order) // len(lane)
    if repeats * len(lane) != len(order):
        return None
    return list(order.reshape(len(lane), repeats).T)
