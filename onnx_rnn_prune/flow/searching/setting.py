"""What a search starts from: a model whose units are ranked, and a memory of what was tried."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.flow.bench import Bench
from onnx_rnn_prune.flow.choosing.request import Request
from onnx_rnn_prune.flow.choosing.scoring import score_units
from onnx_rnn_prune.flow.choosing.sharing import cost_of_cuts
from onnx_rnn_prune.flow.feeding import Data
from onnx_rnn_prune.flow.interface import Interface
from onnx_rnn_prune.flow.opening import Opened
from onnx_rnn_prune.flow.searching.goal import Goal
from onnx_rnn_prune.flow.searching.laboratory import Laboratory
from onnx_rnn_prune.flow.searching.memory import Memory
from onnx_rnn_prune.flow.searching.space import Space
from onnx_rnn_prune.flow.searching.speed import predicted, time_layers
from onnx_rnn_prune.flow.studying import Studied, look, study
from onnx_rnn_prune.flow.worth import never_worth
from onnx_rnn_prune.model.runner import Feed
from onnx_rnn_prune.passes.prepared import choose_layers
from onnx_rnn_prune.plan.cost import limit_of
from onnx_rnn_prune.plan.plan import fingerprint
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.validate.quality import Quality
from onnx_rnn_prune.validate.results import Recorded


class Digest(Protocol):
    """Of hashlib's."""

    def update(self, data: bytes, /) -> None:
        """Takes in more."""


# What trials mean; to be changed when that does.
_FORMAT = "1"


def open_memory(
    opened: Opened, data: Data, quality: Quality, request: Request, path: Path | None
) -> Memory:
    """What was measured of this model, with these feeds and in this way."""
    found = hashlib.sha256()
    for part in (_FORMAT, version("onnx_rnn_prune"), fingerprint(opened.model)):
        found.update(part.encode())
    found.update(repr((quality.name, quality.higher, quality.source)).encode())
    chosen = (request.criterion_for(data).name, request.only, request.skip, request.bounds)
    found.update(repr((*chosen, request.seed)).encode())
    for feeds in (data.fitting, data.held_out):
        _digest(found, feeds)
    return Memory(path, f"{found.hexdigest()[:16]} ")


def open_laboratory(
    opened: Opened,
    data: Data,
    quality: Quality,
    request: Request,
    interface: Interface,
    memory: Memory,
    progress: Progress,
) -> tuple[Laboratory, Studied]:
    """Where trials are made, and what is known of the model.

    Layers that no cut makes smaller are left whole.

    Raises:
        PruneError: a glob matches nothing.
    """
    names = choose_layers(opened.layers, request.only, request.skip)
    studied = study(opened, names, data, interface, progress)
    never = never_worth(opened, data, studied)
    if never:
        names = tuple(name for name in names if name not in never)
        studied = study(opened, names, data, interface, progress)
    scores, studied = score_units(look(studied, data, progress), data, request, progress)
    left = {**studied.prepared.left, **never}
    studied = replace(studied, prepared=replace(studied.prepared, left=left))
    if not studied.prepared.trace.groups:
        raise PruneError(
            "; ".join(f"{name}: {reason}" for name, reason in left.items())
            or "no layer can be cut",
            where=opened.name,
            remedy="look at it with inspect",
        )
    times = memory.recall("times", lambda: time_layers(opened, studied, data))
    everything = np.ones(studied.prepared.trace.units.count, dtype=bool)
    lab = Laboratory(
        bench=Bench.of(opened, data, studied, everything),
        scores=scores,
        ms=predicted(studied, times),
        cost=cost_of_cuts(studied, scores, refits=True),
        quality=quality,
        original=Recorded(opened.run()),
    )
    return lab, studied


def space_of(opened: Opened, lab: Laboratory, request: Request, goal: Goal, slack: float) -> Space:
    """The cuts that are within all that limits their cost.

    Args:
        opened: the model.
        lab: where they are made.
        request: with the bounds of all cuts.
        goal: with the limits.
        slack: times the longest time that is predicted.
    """
    limits = {budget.kind: limit_of(budget, opened.document) for budget in goal.budgets}
    full = [group.size for group in lab.trace.groups]
    most = None if goal.speed is None else goal.speed.of(lab.ms(full)) * slack

    def fits(counts: list[int]) -> bool:
        if most is not None and lab.ms(counts) > most:
            return False
        return all(lab.cost(kind, counts) <= limit for kind, limit in limits.items())

    return Space(lab.trace, lab.scores, request.bounds, lab.ms, fits)


def _digest(found: Digest, feeds: Iterable[Feed]) -> None:
    for feed in feeds:
        labels = getattr(feed, "labels", None)
        for name, value in [*sorted(feed.items()), ("labels", labels)]:
            if value is not None:
                found.update(f"{name} {value.dtype} {value.shape} ".encode())
                found.update(
                    repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
                )
