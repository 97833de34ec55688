"""Parses criteria as users write them.

| text | meaning |
| --- | --- |
| `l2` | the criterion of that name |
| `reconstruction+0.5*l2` | a sum of criteria, each as ranks within its lane, with weights |
| `my_module:score` | a function of the user's: takes a `Lane`, returns one score per unit, [H] |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from onnx_rnn_prune.data.sources import is_function_name, named_function
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.evidence import Evidence
from onnx_rnn_prune.evidence.matrices import Matrix
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.selection.context import Criterion, ScoringContext
from onnx_rnn_prune.selection.criteria import CRITERIA
from onnx_rnn_prune.trace.units import Ids

_STRENGTH: Sequence[Literal["weights", "either", "feeds", "evidence"]] = (
    "weights",
    "either",
    "feeds",
    "evidence",
)
_FORMS = "give a criterion, a weighted sum such as l2+0.5*activation, or module:function"


@dataclass(frozen=True, eq=False)
class Lane:
    """The units of one direction of a layer, as a user's criterion sees them.

    Attributes:
        layer: the layer's name.
        op: the operator.
        direction: 0 or 1.
        W: input weights, gates stacked as in the ONNX specification, [gates * H, I].
        R: recurrent weights, [gates * H, H], or None if the layer has no state.
        B: biases, [2 * gates * H], or None.
        activity: mean |h| of each unit on calibration data, [H], or None without data.
    """

    layer: str
    op: str
    direction: int
    W: Array
    R: Array | None
    B: Array | None
    activity: Matrix | None


def parse_criterion(text: str) -> Criterion:
    """Reads `--criterion`.

    Raises:
        PruneError: it names no criterion.
    """
    if not isinstance(text, str):
        raise PruneError(f"unknown criterion {text!r}", where="--criterion", remedy=_FORMS)
    if is_function_name(text):
        return _own(text)
    terms = [_term(part) for part in text.split("+")]
    if len(terms) == 1 and terms[0][0] == 1.0:
        return replace(terms[0][1], name=text)
    needs = max((criterion.needs for _, criterion in terms), key=_STRENGTH.index)

    def score(context: ScoringContext) -> Matrix:
        return sum(
            (weight * _ranks(context, criterion.score(context)) for weight, criterion in terms),
            start=np.zeros(context.traced.trace.units.count),
        )

    return Criterion(score, needs, any(criterion.learns for _, criterion in terms), text)


def _term(text: str) -> tuple[float, Criterion]:
    factor, _, name = text.rpartition("*")
    name = name.strip()
    try:
        weight = float(factor) if factor else 1.0
    except ValueError:
        weight = math.nan
    if name not in CRITERIA:
        shown = ", ".join(CRITERIA)
        raise PruneError(
            f"unknown criterion '{name}'", where="--criterion", remedy=f"choose one of {shown}"
        )
    if not math.isfinite(weight):
        raise PruneError(f"'{factor}' is not a weight", where="--criterion", remedy=_FORMS)
    return weight, CRITERIA[name]


def _ranks(context: ScoringContext, scores: Matrix) -> Matrix:
    """The rank of each unit in its lane, from 0 (lowest score) to 1."""
    ranks = np.zeros_like(scores)
    for lanes in context.traced.trace.units.lanes.values():
        for lane in lanes:
            order = np.argsort(np.argsort(scores[lane], kind="stable"), kind="stable")
            ranks[lane] = order / max(len(lane) - 1, 1)
    return ranks


def _own(text: str) -> Criterion:
    function = named_function(text, "give a function that takes a Lane and returns scores")

    def score(context: ScoringContext) -> Matrix:
        scores = np.zeros(context.traced.trace.units.count)
        for layer in context.traced.layers:
            for direction, units in enumerate(context.traced.trace.units.lanes[layer.name]):
                lane = _lane(layer, direction, units, context.data.evidence(context.traced))
                scores[units] = _checked(text, function, lane, len(units))
        return scores

    return Criterion(score, needs="either", name=text)


def _lane(layer: Layer, direction: int, units: Ids, evidence: Evidence | None) -> Lane:
    weight, recurrence, bias = (layer.constant(name) for name in ("W", "R", "B"))
    assert weight is not None
    return Lane(
        layer=layer.name,
        op=layer.cell.op,
        direction=direction,
        W=weight[direction],
        R=None if recurrence is None else recurrence[direction],
        B=None if bias is None else bias[direction],
        activity=None if evidence is None else evidence.activity[units],
    )


def _checked(text: str, function: Callable[[Lane], Any], lane: Lane, hidden: int) -> Matrix:
    """Calls a user's function for the scores of a lane's units.

    Raises:
        PruneError: it fails, or returns anything but scores.
    """
    try:
        scores = np.asarray(function(lane), dtype=np.float64)
    except Exception as error:  # user code
        raise PruneError(
            f"it failed on {lane.layer} with {type(error).__name__}: {error}",
            where=text,
            remedy="fix the function, or choose a built-in criterion",
        ) from error
    if scores.shape != (hidden,) or not np.isfinite(scores).all():
        raise PruneError(
            f"it returned shape {list(scores.shape)} for {lane.layer}, not {hidden} finite scores",
            where=text,
            remedy="return one number per unit; units with higher scores are kept",
        )
    return scores
