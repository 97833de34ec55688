"""What it would save to cut a layer to half of its units: it is done, and the file is looked at."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice

import numpy as np

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.cost.cost import count_params, recurrent_weights
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import stored_bytes
from onnx_rnn_prune.model.runner import OURS, Runner
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.report.schema import Half
from onnx_rnn_prune.selection.allocation import choose
from onnx_rnn_prune.trace.plan import Plan, fingerprint
from onnx_rnn_prune.trace.units import Group
from onnx_rnn_prune.traced_model import TracedModel
from onnx_rnn_prune.validate import timings
from onnx_rnn_prune.validate.profile import NodeTime

# For timing one cut; and for all of it, after which no other layer is begun with.
_SECONDS = 0.6
_MOST_SECONDS = 5.0


def halves(
    traced: TracedModel,
    data: Calibration,
    times: Mapping[str, NodeTime],
    progress: Progress,
) -> dict[str, Half]:
    """Cuts one group of layers after another to half of its units.

    Those that take most time come first; what a few seconds do not do is left out.

    Args:
        traced: the model, with all of its layers.
        data: feeds, on one of which each cut is timed.
        times: by layer, for those that are to be cut.
        progress: is told how far the work is.

    Returns:
        By layer.
    """
    opened, trace = traced.opened, traced.trace
    shares = {number: _share(group, times) for number, group in enumerate(trace.groups)}
    order = sorted((number for number in shares if shares[number]), key=lambda n: -shares[n])
    groups = [trace.groups[number] for number in order]
    whole = opened.document
    params, weights = count_params(whole), recurrent_weights(whole)
    size, model_hash = stored_bytes(opened.model, like=opened.model), fingerprint(opened.model)
    runner, start = opened.run(), time.perf_counter()
    found: dict[str, Half] = {}
    for number, group in enumerate(groups):
        gone = time.perf_counter() - start
        if gone + gone / max(number, 1) > _MOST_SECONDS:
            break  # another would take too long
        progress("cutting layers to half", number, len(groups))
        counts = [(each.size + 1) // 2 if each is group else each.size for each in trace.groups]
        keep = choose(trace, np.zeros(trace.units.count), counts)
        plan = Plan.from_mask(model_hash, trace, keep)
        model = traced.for_plan(plan).cut(plan, "shrink").write()
        smaller = Document.read(model)
        spent = next(times[name] for name in group.layers if name in times)
        feed = next(islice(data.calibration, spent.feed, None))
        pair = [runner, Runner(model, name="the half-cut model", remedy=OURS)]
        before, after = timings(pair, feed, seconds=_SECONDS)
        for name in group.layers:
            found[name] = Half(
                units=(group.size + 1) // 2,
                together=tuple(other for other in group.layers if other != name),
                params=params - count_params(smaller),
                bytes=size - stored_bytes(model, like=opened.model),
                flops=2 * (weights - recurrent_weights(smaller)),
                ms=before.ms * (1.0 - 1.0 / after.ratio),
                speedup=after.ratio,
                speedup_quartiles=after.ratio_quartiles,
            )
    return found


def _share(group: Group, times: Mapping[str, NodeTime]) -> float:
    return sum(times[name].share for name in group.layers if name in times)
