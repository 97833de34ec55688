"""What a cut model will cost: time, from timings of operators and of files, and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.cost.budget import Budget, Kind
from onnx_rnn_prune.cost.cost import Cost, Counts, limit_of
from onnx_rnn_prune.cost.price import Price, layer_times
from onnx_rnn_prune.cost.timetable import Timetable
from onnx_rnn_prune.evidence.moments import Matrix
from onnx_rnn_prune.model.runner import OURS, Feed, Runner
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.selection.profitability import restores_width, sample_cut
from onnx_rnn_prune.selection.sharing import cost_of_cuts
from onnx_rnn_prune.trace.plan import Plan, fingerprint
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.traced_model import TracedModel, trace_model
from onnx_rnn_prune.validate import timings
from onnx_rnn_prune.validate.timing import node_times

# For timing one cut.
_SECONDS = 0.6


def time_layers(traced: TracedModel, data: Calibration) -> dict[str, Any]:
    """What a run of the original takes, which share of it each layer that may be cut, and more.

    Measured once on this machine for inputs of the shapes of the first feed, one thread. Layers of
    which states or outputs are brought to full width are cut to half, too: how much longer such a
    file takes than the layers alone tell is what that costs.
    """
    feed = next(iter(data.validation))
    trace, opened = traced.trace, traced.opened
    keys = {layer.name: layer.key for layer in opened.layers if layer.name in trace.units.lanes}
    doubtful = [n for n, group in enumerate(trace.groups) if restores_width(traced, group)]
    shapes = " ".join(f"{name} {list(value.shape)}" for name, value in sorted(feed.items()))
    name = f"model {fingerprint(opened.model)} {shapes} {sorted(keys)} {doubtful}"

    def measured(names: Sequence[str]) -> list[dict[str, Any]]:
        whole = timings([opened.run()], feed)[0].ms
        nodes = node_times(opened.document, list(keys.values()), [feed], opened.name).nodes
        shares = {name: nodes[key].share for name, key in keys.items() if key in nodes}
        found: dict[str, Any] = {"ms": whole, "shares": shares, "more": {}}
        price = predicted(traced, found)
        for number in doubtful:
            half = halved(trace, number)
            took = whole / _speedup(traced, half, feed)
            found["more"][str(number)] = max(took - price(half), 0.0)
        return [found]

    (found,) = Timetable()([name], measured)
    return dict(found)


def halved(trace: Trace, number: int) -> list[int]:
    """Half of the units of one group, and all of the others."""
    return [
        (group.size + 1) // 2 if n == number else group.size for n, group in enumerate(trace.groups)
    ]


def _speedup(traced: TracedModel, counts: Counts, feed: Feed) -> float:
    """Of a file with so many units, as prune would write it."""
    trace, opened = traced.trace, traced.opened
    keep = choose(trace, np.zeros(trace.units.count), list(counts))
    plan = Plan.from_mask(fingerprint(opened.model), trace, keep)
    model = sample_cut(traced, plan).write()
    pair = [opened.run(), Runner(model, name="a cut model", remedy=OURS)]
    return timings(pair, feed, seconds=_SECONDS)[1].ratio


def predicted(traced: TracedModel, times: Mapping[str, Any]) -> Price:
    """Milliseconds of a run when the groups keep so many units.

    A layer's share of the time shrinks as its operator does alone; all else stays as it is, also
    what reads the units, so that the real file mostly is a little faster. To bring states and
    outputs to full width takes what it took in a file.
    """
    trace = traced.trace
    alone = layer_times(traced.document, trace)
    full = [group.size for group in trace.groups]
    whole = {name: max(price(full), 1e-9) for name, price in alone.items()}
    more = {int(number): ms for number, ms in times.get("more", {}).items()}

    def price(counts: Counts) -> float:
        saved = sum(
            share * (1.0 - alone[name](counts) / whole[name])
            for name, share in times["shares"].items()
        )
        spent = sum(ms for number, ms in more.items() if counts[number] < full[number])
        return float(times["ms"] * (1.0 - saved) + spent)

    return price


class SizePrediction:
    """Parameters and bytes of what is written when the groups keep so many units.

    A group that keeps all is not prepared for a cut, and has nothing to bring to full width.

    Args:
        traced: the model, with the layers that may be cut.
        scores: of their units.
        doubtful: the numbers of groups of which states or outputs are brought to full width.
    """

    def __init__(self, traced: TracedModel, scores: Matrix, doubtful: Sequence[int]) -> None:
        self._traced = traced
        self._groups, self._doubtful = traced.trace.groups, doubtful
        every = tuple(range(len(self._groups)))
        self._known = {every: (cost_of_cuts(traced, scores, refits=True), every)}

    def __call__(self, kind: Kind, counts: Sequence[int]) -> int:
        left = [n for n, group in enumerate(self._groups) if counts[n] < group.size]
        if not left:
            return limit_of(Budget(kind, share=1.0), self._traced.opened.document)
        whole = {n for n in self._doubtful if n not in left}
        cut = tuple(n for n in range(len(self._groups)) if n not in whole)
        cost, order = self._cost(cut)
        return cost(kind, [counts[n] for n in order])

    def _cost(self, cut: tuple[int, ...]) -> tuple[Cost, tuple[int, ...]]:
        """What cuts of some groups cost, and the order in which it takes counts."""
        if cut not in self._known:
            numbers = {self._groups[n].layers: n for n in cut}
            names = [name for n in cut for name in self._groups[n].layers]
            whole = self._traced
            traced = trace_model(whole.opened, names, whole.feeds, whole.interface)
            trace = traced.trace
            cost = cost_of_cuts(traced, np.zeros(trace.units.count), refits=True)
            self._known[cut] = cost, tuple(numbers[group.layers] for group in trace.groups)
        return self._known[cut]
