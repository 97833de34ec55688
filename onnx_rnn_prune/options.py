"""The options, each declared once: name, default, kind of values, help and checks.

A group is a frozen dataclass, a field an option. The flags of the command line are made from these
declarations, and configuration files use the flags' names as keys. The keyword arguments of the
functions in `api` repeat the names and defaults; a test compares them, and the manual.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx_rnn_prune.arguments import (
    Address,
    Choice,
    File,
    Group,
    Named,
    Names,
    Number,
    Option,
    Sizes,
    Source,
    Switch,
    Text,
    Values,
    Whole,
    check_progress,
    flag_of,
    option,
    options_of,
)
from onnx_rnn_prune.errors import PruneError

ALLOCATIONS = ("uniform", "global", "joint")
PRICES = ("units", "params", "flops", "ms")
RECOVERIES = ("none", "bias", "lstsq", "distill", "merge")
SCHEDULES = ("hard", "soft", "mixed")
SPARSIFIERS = ("magnitude", "obs")
STRATEGIES = ("greedy", "uniform", "optuna")
_PROCESSORS = os.cpu_count() or 1


@dataclass(frozen=True)
class Inputs(Group):
    """The inputs of the model."""

    data: Any = option(
        "Inputs: a .npz file, a folder of them, a folder of test_data_set_* folders, or "
        "module:function.",
        Source(),
        metavar="PATH",
        without="Default: random inputs.",
    )
    size: Mapping[str, tuple[int, ...]] | None = option(
        "Shape of a random input (input=1x512) or size of a named dimension (batch=4).",
        Sizes(),
        metavar="NAME=SIZES",
        many=True,
    )
    eval_data: Any = option(
        "Inputs to evaluate on.", Source(), metavar="PATH", without="Default: part of --data."
    )
    stream: bool | None = option(
        "Treat each folder of inputs as one stream of consecutive calls, with or without states; "
        "or evaluate each call on its own. Default: streams are detected by their states.",
        Switch(),
    )
    freeze: Mapping[str, str] | None = option(
        "Fix an input to a value, and remove it along with the branches not taken.",
        Values(),
        metavar="NAME=VALUE",
        many=True,
    )
    roll: bool = option(
        "First convert decomposed or unrolled recurrences into layers.", Switch(), True
    )
    seed: int = option("Seed for random choices and random inputs.", Whole(0), 0)

    def check(self) -> None:
        if self.stream and self.data is None:
            raise PruneError(
                "random inputs do not form a stream", where="--stream", remedy="pass --data"
            )
        if self.size and self.data is not None:
            raise _clash("it applies to random inputs only, not to --data", "--size")


@dataclass(frozen=True)
class Selection(Group):
    """Which units to keep."""

    keep: Any = option(
        "Units to keep: 40%, 0.4, or 160 (a count); 'encoder*=30%' for some layers.",
        Text(),
        metavar="[LAYER=]AMOUNT",
        many=True,
    )
    budget: Any = option(
        "Upper limit on the result: params=30%, flops=2M, bytes=1MB.", Text(), metavar="KIND=LIMIT"
    )
    lossless: bool = option("Remove only units that provably have no effect.", Switch(), False)
    masks: Any = option(
        "Units to keep: one boolean array per layer, True to keep.",
        Source(),
        metavar="FILE.npz",
    )
    criterion: Any = option(
        "How to rank units: {known}; a weighted sum, such as l2+0.5*activation; or "
        "module:function.",
        Named(),
        metavar="NAME",
    )
    allocate: str = option(
        "How to distribute the cut across layers.", Choice(ALLOCATIONS), ALLOCATIONS[0]
    )
    per: str = option(
        "Cost by which to distribute the cut across layers.", Choice(PRICES), PRICES[0]
    )
    layers: tuple[str, ...] = option(
        "Layers to prune: recurrent; all, including dense and convolutional layers; or names, with "
        "*. Default: all in a search or with a budget, otherwise recurrent.",
        Names(),
        (),
        metavar="recurrent|all|GLOB",
        many=True,
    )
    only: tuple[str, ...] = option(
        "Prune only these layers.", Names(), (), metavar="GLOB", many=True
    )
    skip: tuple[str, ...] = option(
        "Do not prune these layers.", Names(), (), metavar="GLOB", many=True
    )
    align: int = option("Keep a multiple of this many units.", Whole(), 1)
    min_units: int = option("Keep at least this many units per layer.", Whole(), 1)

    def check(self) -> None:
        if self.per != "units" and self.allocate == "uniform":
            raise PruneError(
                "it has no effect if every layer keeps the same share",
                where="--per",
                remedy="add --allocate=global or joint",
            )
        chosen = [
            flag_of(name)
            for name in ("keep", "budget", "criterion", "align", "min_units")
            if not _is(getattr(self, name), options_of(Selection)[name].default)
        ]
        if self.masks is not None and self.lossless:
            chosen.append("--masks")
        if chosen and (self.lossless or self.masks is not None):
            raise _says_all("--lossless" if self.lossless else "--masks", chosen)


@dataclass(frozen=True)
class Cut(Group):
    """How units are removed."""

    mode: str = option(
        "Remove units, or only set them to zero.", Choice(("shrink", "zero")), "shrink"
    )
    schedule: str = option(
        "How to remove units: all at once, gradually, or a mix of both.",
        Choice(SCHEDULES),
        SCHEDULES[0],
    )
    steps: int = option(
        "Number of steps in which to choose units or fade them out.", Whole(1, 1000), 1
    )


@dataclass(frozen=True)
class Recovery(Group):
    """How the kept weights make up for the removed units."""

    recover: str | None = option(
        "How the kept weights compensate for the removed units.", Choice((*RECOVERIES, "auto"))
    )
    distill_minutes: float = option(
        "Training time limit of --recover distill, in minutes.", Number(above=True), 10.0
    )
    loss: Any = option(
        "Loss on the labels in the data, for taylor, fisher and distill: cross-entropy, or "
        "module:function.",
        Named(),
        metavar="NAME",
    )


@dataclass(frozen=True)
class Compression(Group):
    """Further compression of the remaining weights."""

    rank: Any = option(
        "Factorize input weights to a lower rank: 25%, 32 or energy=99%.", Text(), metavar="AMOUNT"
    )
    sparsify: Any = option(
        "Set weights to zero: 50%, 2:4, block=4x1:50% or threshold=1e-3.", Text(), metavar="AMOUNT"
    )
    sparsify_by: str | None = option(
        "How to choose weights to zero; obs adjusts the others to compensate.", Choice(SPARSIFIERS)
    )
    sparse_initializers: bool = option(
        "Store only nonzero entries where that saves space.", Switch(), False
    )
    quantize: Any = option(
        "Store weights in fewer bits: int8, fp16 or bits=4.", Text(), metavar="FORM"
    )

    def check(self) -> None:
        if self.sparsify_by is not None and self.sparsify is None:
            raise PruneError(
                "no weights are removed", where="--sparsify-by", remedy="add --sparsify"
            )


@dataclass(frozen=True)
class Interface(Group):
    """Whether states of the result have full width, or hold kept units only."""

    shrink_states: bool = option(
        "Shrink state inputs and outputs to the kept units.", Switch(), False
    )
    state_metadata: tuple[str, ...] = option(
        "Update the state width in metadata KEY, in its JSON (KEY:PATH), or in a constant output.",
        Names(),
        (),
        metavar="KEY",
        many=True,
    )

    def check(self) -> None:
        if self.state_metadata and not self.shrink_states:
            raise PruneError(
                "states keep their width", where="--state-metadata", remedy="add --shrink-states"
            )


AS_BEFORE = Interface()


@dataclass(frozen=True)
class Target(Group):
    """What the result must achieve."""

    max_nrmse: float | None = option(
        "Maximum deviation of an output: RMSE / standard deviation.", Number(), metavar="X"
    )
    metric: Any = option("Quality metric: {known}; or module:function.", Named(), metavar="NAME")
    better: str | None = option(
        "Whether higher or lower values of your own metric are better.", Choice(("higher", "lower"))
    )
    max_drop: Any = option("Maximum loss in the metric: 0.5 or 1%.", Text(), metavar="X")
    speedup: Any = option("Minimum speedup: 2x.", Text(), metavar="FACTOR")
    latency: Any = option("Maximum time per run: 5ms.", Text(), metavar="TIME")
    params: Any = option("Maximum number of parameters: 30% or 120k.", Text(), metavar="AMOUNT")
    bytes: Any = option("Maximum file size: 1MB.", Text(), metavar="AMOUNT")

    def check(self) -> None:
        for needy in ("max_drop", "better"):
            if self.metric is None and getattr(self, needy) is not None:
                raise PruneError("it needs a metric", where=flag_of(needy), remedy="add --metric")
        for one, other, what in (("max_nrmse", "metric", "good"), ("speedup", "latency", "fast")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                where = f"{flag_of(one)} and {flag_of(other)}"
                raise PruneError(
                    f"both set how {what} the result must be",
                    where=where,
                    remedy="leave one of them out",
                )


@dataclass(frozen=True)
class Effort(Group):
    """What work may cost, and where it is done."""

    trials: int = option("Maximum number of candidates to try.", Whole(), 200)
    minutes: float = option("Time limit for the search, in minutes.", Number(above=True), 15.0)
    study: Any = option(
        "Record trials in this file; an interrupted search resumes from it.", File(), metavar="FILE"
    )
    jobs: int = option(
        "Number of worker processes for trials.", Whole(1, 4 * _PROCESSORS, " for this machine"), 1
    )
    cluster: str | None = option(
        "Run trials on the workers of this Dask scheduler instead.", Address(), metavar="ADDRESS"
    )
    strategy: str = option("How to choose candidates.", Choice(STRATEGIES), STRATEGIES[0])
    pick: int | None = option(
        "Use the candidate with this number instead of the best one.", Whole(), metavar="NUMBER"
    )
    threads: int = option("Threads per run.", Whole(1, 4 * _PROCESSORS, " for this machine"), 1)

    def check(self) -> None:
        if self.cluster is not None and self.jobs != 1:
            raise PruneError(
                "both set where trials run",
                where="--jobs and --cluster",
                remedy="leave one of them out; a cluster uses all of its workers",
            )


@dataclass(frozen=True)
class Outputs(Group):
    """What a command writes and prints; from Python, results have methods for this."""

    output: str | None = option("File to write.", File(), metavar="OUT")
    save_plan: str | None = option("Also write the plan of kept units.", File(), metavar="PLAN")
    json: str | None = option("Also write the report as JSON.", File(), metavar="REPORT")
    html: str | None = option(
        "Also write the report as a self-contained HTML page.",
        File(),
        metavar="FILE",
    )
    summary: str | None = option(
        "Also write a summary in Markdown, for a CI job or a pull request.", File(), metavar="FILE"
    )
    png: str | None = option("Also plot the curves as a PNG.", File(), metavar="FILE")
    as_json: bool = option("Print JSON instead of a table.", Switch(), False)


@dataclass(frozen=True)
class Options:
    """All options of a call."""

    inputs: Inputs
    selection: Selection
    cut: Cut
    recovery: Recovery
    compression: Compression
    interface: Interface
    target: Target
    effort: Effort

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that may lose units: any, if the whole model must become faster or smaller."""
        target = self.target
        goals = (target.max_nrmse, target.max_drop, target.speedup, target.latency)
        limits = (target.params, target.bytes, self.selection.budget)
        whole = any(asked is not None for asked in (*goals, *limits))
        return self.selection.layers or ("all" if whole else "recurrent",)

    @staticmethod
    def of(given: Mapping[str, Any]) -> Options:
        """The options among the arguments of a function.

        Args:
            given: arguments by name; others than options are ignored, but `progress` is checked.

        Raises:
            PruneError: a value is wrong, or two contradict each other.
        """
        if "progress" in given:
            check_progress(given["progress"])
        options = Options(
            Inputs.of(given),
            Selection.of(given),
            Cut.of(given),
            Recovery.of(given),
            Compression.of(given),
            Interface.of(given),
            Target.of(given),
            Effort.of(given),
        )
        for check in (_check_recovery, _check_mode, _check_compression):
            check(options)
        return options


def _check_recovery(options: Options) -> None:
    recover = options.recovery.recover
    if options.selection.lossless and recover is not None:
        raise _says_all("--lossless", ["--recover"])
    if options.cut.schedule != "hard" and recover in ("none", "bias", "merge"):
        raise PruneError(
            f"--recover={recover} cannot refit while units fade out",
            where="--schedule",
            remedy="choose hard, or another recovery method",
        )


def _check_mode(options: Options) -> None:
    if options.cut.mode != "zero":
        return
    remedy = "use --mode=shrink"
    if options.interface.shrink_states:
        raise PruneError(
            "zeroing leaves states at full width", where="--shrink-states", remedy=remedy
        )
    if options.selection.budget is not None:
        raise PruneError(
            "zeros take as much space as other weights", where="--budget", remedy=remedy
        )


def _check_compression(options: Options) -> None:
    asked = options.compression
    values = {name: getattr(asked, name) for name in options_of(Compression)}
    given = [name for name, value in values.items() if not (_is(value, None) or _is(value, False))]
    narrow, zeros = options.interface.shrink_states, options.cut.mode == "zero"
    if given and (narrow or zeros):
        raise _clash(
            f"it cannot be combined with {flag_of(given[0])}",
            "--shrink-states" if narrow else "--mode",
        )
    if asked.sparsify_by == "obs" and options.inputs.data is None:
        raise PruneError(
            "obs needs data", where="--sparsify-by", remedy="pass --data, or choose magnitude"
        )


def _is(value: object, other: object) -> bool:
    """Equality that an array, which compares entry by entry, always fails."""
    return type(value) is type(other) and value == other


def _clash(what: str, where: str) -> PruneError:
    return PruneError(what, where=where, remedy="leave one of the two out")


def _says_all(where: str, others: list[str]) -> PruneError:
    return PruneError(
        f"it already determines which units to keep, as would {', '.join(others)}",
        where=where,
        remedy="leave one of them out",
    )


GROUPS: tuple[type[Group], ...] = (
    Inputs,
    Selection,
    Cut,
    Recovery,
    Compression,
    Interface,
    Target,
    Effort,
    Outputs,
)
# All of them by name.
OPTIONS: Mapping[str, Option] = {
    name: declared for group in GROUPS for name, declared in options_of(group).items()
}
