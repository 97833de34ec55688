"""The request: what to cut, as users ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.cost.budget import Budget, Keep, parse_budget
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.options import Options
from onnx_rnn_prune.recovery.schedules import FROM_WEIGHTS, Schedule
from onnx_rnn_prune.selection.allocation import Allocation, Keeps, parse_keeps
from onnx_rnn_prune.selection.context import Criterion
from onnx_rnn_prune.selection.criterion import parse_criterion

_DEFAULT_KEEP = Keeps(Keep(share=0.5))


@dataclass(frozen=True)
class Request:
    """What to cut, and how.

    Attributes:
        keep: how much each layer keeps, or None if only a budget counts.
        budget: limit on the cost of the result, or None.
        criterion: how units are ranked; None for the best that the data allows.
        allocate: how the cut is allocated among layers.
        per: the price of units in the allocation.
        steps: number of steps in which units are chosen.
        layers: which layers may be cut: recurrent, all, or globs of names.
        only: globs of layers to prune; empty for all.
        skip: globs of layers to leave alone.
        recover: how kept weights compensate; auto for the best that the data allows.
        bounds: alignment and least number of units.
        seed: random seed for criteria.
    """

    keep: Keeps | None
    budget: Budget | None
    criterion: Criterion | None
    allocate: str
    per: str
    steps: int
    recover: str
    layers: Sequence[str]
    only: Sequence[str]
    skip: Sequence[str]
    bounds: Allocation
    seed: int

    @staticmethod
    def of(options: Options) -> Request:
        """The request for the given options.

        Raises:
            PruneError: an option is invalid.
        """
        asked, cut = options.selection, options.cut
        default = _DEFAULT_KEEP if asked.budget is None else None
        return Request(
            keep=default if asked.keep is None else parse_keeps(asked.keep),
            budget=None if asked.budget is None else parse_budget(asked.budget),
            criterion=None if asked.criterion is None else parse_criterion(asked.criterion),
            allocate=asked.allocate,
            per=asked.per,
            steps=Schedule(cut.schedule, cut.steps).choices,
            recover=options.recovery.recover or "auto",
            layers=options.layers,
            only=asked.only,
            skip=asked.skip,
            bounds=Allocation(asked.align, asked.min_units),
            seed=options.inputs.seed,
        )

    def criterion_for(self, data: Calibration) -> Criterion:
        """The criterion to use on this data."""
        return self.criterion or parse_criterion("reconstruction" if data.given else "l2")

    @property
    def learns(self) -> bool:
        """Whether units are ranked by gradients."""
        return self.criterion is not None and self.criterion.learns

    def refits(self, data: Calibration) -> bool:
        """Whether weights may be refitted, so that all of them are needed."""
        return self.recover in FROM_WEIGHTS or (data.given and self.recover != "none")

    def layers_of(self, opened: OpenedModel) -> tuple[str, ...]:
        """The names of the layers that may be cut.

        Raises:
            PruneError: a glob matches no layer, or no layer is left.
        """
        names = [layer.name for layer in opened.layers]
        remedy = f"the layers are {', '.join(names)}"
        for glob in (*self.only, *self.skip):
            if not any(fnmatchcase(name, glob) for name in names):
                raise PruneError(
                    f"no layer matches '{glob}'", where="--only and --skip", remedy=remedy
                )
        chosen = [n for n in names if not self.only or any(fnmatchcase(n, g) for g in self.only)]
        chosen = [n for n in chosen if not any(fnmatchcase(n, glob) for glob in self.skip)]
        if not chosen:
            raise PruneError(
                "they leave no layer to prune", where="--only and --skip", remedy=remedy
            )
        return tuple(chosen)
