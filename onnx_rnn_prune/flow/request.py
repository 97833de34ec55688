"""What a user asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_rnn_prune.flow.arguments import globs, one_of, recovery, whole
from onnx_rnn_prune.flow.feeding import Data
from onnx_rnn_prune.flow.recovery import FROM_WEIGHTS
from onnx_rnn_prune.plan.allocation import ALLOCATORS, Allocation
from onnx_rnn_prune.plan.budget import Budget, Keep, parse_budget, parse_keep
from onnx_rnn_prune.score.criteria import CRITERIA

_DEFAULT_KEEP = Keep(share=0.5)


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
        recover: how kept weights make up for cut ones; auto for the best that the data allows.
        bounds: alignment and least number of units.
        seed: for criteria that draw.
    """

    keep: Keep | None
    budget: Budget | None
    criterion: str | None
    allocate: str
    recover: str
    only: Sequence[str]
    skip: Sequence[str]
    bounds: Allocation
    seed: int

    def criterion_for(self, data: Data) -> str:
        """The criterion that is used on this data."""
        return self.criterion or ("reconstruction" if data.given else "l2")

    def refits(self, data: Data) -> bool:
        """Whether weights may be refitted, and then all of them are needed."""
        return self.recover in FROM_WEIGHTS or (data.given and self.recover != "none")


def read_request(
    keep: str | float | None,
    budget: str | None,
    criterion: str | None,
    allocate: str,
    recover: str | None,
    only: str | Sequence[str],
    skip: str | Sequence[str],
    align: int,
    min_units: int,
    seed: int,
) -> Request:
    """Arguments as values that mean something.

    Raises:
        PruneError: one of them means nothing.
    """
    default = _DEFAULT_KEEP if budget is None else None
    return Request(
        keep=default if keep is None else parse_keep(keep),
        budget=None if budget is None else parse_budget(budget),
        criterion=None if criterion is None else one_of(criterion, CRITERIA, "--criterion"),
        allocate=one_of(allocate, ALLOCATORS, "--allocate"),
        recover=recovery(recover),
        only=globs(only, "--only"),
        skip=globs(skip, "--skip"),
        bounds=Allocation(whole(align, "--align", 1), whole(min_units, "--min-units", 1)),
        seed=whole(seed, "--seed", 0),
    )
