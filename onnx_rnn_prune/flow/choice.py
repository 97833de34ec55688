"""From what a user asks for to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.flow.feeding import Data
from onnx_rnn_prune.flow.opening import Opened
from onnx_rnn_prune.flow.studying import Studied, study
from onnx_rnn_prune.passes.prepared import choose_layers
from onnx_rnn_prune.plan.allocation import (
    ALLOCATORS,
    Allocation,
    Fits,
    choose,
    within_budget,
    within_keep,
)
from onnx_rnn_prune.plan.budget import Budget, Keep
from onnx_rnn_prune.plan.cost import Cost, limit_of
from onnx_rnn_prune.plan.plan import Plan, fingerprint
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.score.criteria import CRITERIA, Subject
from onnx_rnn_prune.trace.trace import Trace

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Request:
    """What is to be cut.

    Attributes:
        keep: how much each layer keeps, or None where only a budget counts.
        budget: what the result may cost, or None.
        criterion: how units are ranked; None for the best that the data allows.
        allocate: how the cut is shared between layers.
        only: globs of the layers to prune; empty for all.
        skip: globs of layers to leave alone.
        bounds: alignment and least number of units.
        seed: for criteria that draw.
    """

    keep: Keep | None
    budget: Budget | None
    criterion: str | None
    allocate: str
    only: Sequence[str]
    skip: Sequence[str]
    bounds: Allocation
    seed: int

    def criterion_for(self, data: Data) -> str:
        """The criterion that is used on this data."""
        return self.criterion or ("reconstruction" if data.given else "l2")


def choose_plan(
    opened: Opened, data: Data, request: Request, progress: Progress
) -> tuple[Plan, Studied]:
    """Scores the units, shares the cut between layers, and picks what stays.

    Raises:
        PruneError: an option is unknown or matches nothing, or a criterion needs data.
        Unmet: the budget cannot be met.
    """
    criterion = named(CRITERIA, request.criterion_for(data), "--criterion")
    allocator = named(ALLOCATORS, request.allocate, "--allocate")
    names = choose_layers(opened.layers, request.only, request.skip)
    studied = study(opened, names, data, progress)
    prepared = studied.prepared
    subject = Subject(
        prepared.document, prepared.trace, studied.readers, studied.evidence, request.seed
    )
    progress("scoring units", 0, None)
    scores = criterion(subject)
    urgency = allocator(prepared.trace, scores)
    fits = _limits(opened, studied, request)
    counts = request.bounds.share(prepared.trace.groups, fits, urgency)
    keep = choose(prepared.trace, scores, counts)
    return Plan.from_mask(fingerprint(opened.model), prepared.trace, keep), studied


def named(table: Mapping[str, Choice], name: str, option: str) -> Choice:
    """An entry of a table of choices.

    Raises:
        PruneError: there is none of that name.
    """
    if name not in table:
        raise PruneError(
            f"there is no '{name}'", where=option, remedy=f"choose one of {', '.join(table)}"
        )
    return table[name]


def _limits(opened: Opened, studied: Studied, request: Request) -> Fits:
    trace = studied.prepared.trace
    limits: list[Callable[[list[int]], bool]] = []
    if request.keep is not None:
        limits.append(within_keep(request.keep, trace, request.allocate))
    if request.budget is not None:
        limits.append(_budget(opened, studied, request.budget, request.bounds, trace))
    return lambda counts: all(fits(counts) for fits in limits)


def _budget(
    opened: Opened, studied: Studied, budget: Budget, bounds: Allocation, trace: Trace
) -> Fits:
    cost = Cost.of(studied.prepared.document, trace)
    limit = limit_of(budget, opened.document)
    least = [bounds.floor(group) for group in trace.groups]
    return within_budget(budget, limit, cost, least)
