"""Looking at a model: inspect and sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from onnx_rnn_prune.arguments import check_progress, frozen, streaming
from onnx_rnn_prune.calibration import asked_sizes, open_three
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.inspection.inspecting import inspect_model
from onnx_rnn_prune.opened_model import ModelSource, open_model, read_model
from onnx_rnn_prune.progress import Progress, silent
from onnx_rnn_prune.report.schema import InspectReport, SensitivityReport
from onnx_rnn_prune.search.executor import read_executor
from onnx_rnn_prune.search.search import Sensitivity
from onnx_rnn_prune.selection.request import read_request
from onnx_rnn_prune.validate.quality import read_quality

_NOTHING: Mapping[str, object] = MappingProxyType({})


def inspect(
    model: ModelSource,
    *,
    data: object = None,
    size: object = None,
    stream: bool | None = None,
    freeze: Mapping[str, object] = _NOTHING,
    progress: Progress = silent,
) -> InspectReport:
    """The recurrent layers of a model, what they cost, and where their units end.

    Also recurrences that an exporter wrote out, which cannot be pruned, and what to do about them.

    Args:
        model: a path or a model; it is not changed.
        data: inputs to measure time on, see `data.open_feeds`; made up where there are none.
        size: sizes of made-up inputs: {"input": (1, 512)}, or of a named dimension {"batch": 4}.
        stream: as in `prune`.
        freeze: inputs to fix to one value, by name.
        progress: is told how far the work is.

    Raises:
        PruneError: it has no recurrence of any kind, does not load, or the data do not suit it.
    """
    check_progress(progress)
    asked = asked_sizes(data, size)
    progress("reading", 0, None)
    return inspect_model(
        read_model(model, frozen(freeze)),
        str(model) if isinstance(model, str | Path) else None,
        data,
        asked,
        streaming(stream, data is not None),
        progress,
    )


def sensitivity(
    model: ModelSource,
    *,
    data: object,
    stream: bool | None = None,
    metric: object = None,
    better: str | None = None,
    study: str | Path | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    criterion: str | None = None,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    align: int = 1,
    min_units: int = 1,
    freeze: Mapping[str, object] = _NOTHING,
    seed: int = 0,
    progress: Progress = silent,
) -> SensitivityReport:
    """What each layer can spare: it alone is cut to several widths, recovered and run.

    Feeds are split as in `search`, which measures the same first. Other arguments are as there.

    Args:
        model: a path or a model; it is not changed.
        data: inputs, see `data.open_feeds`; with labels beside them where the metric needs those.
        metric: how good a model is, see `validate.quality`: a name, or a function.
        better: of a function, whether higher or lower is better.
        study: a file that remembers what was measured, also for a `search`.
        jobs: processes of this machine that make cuts; their number changes no result.
        cluster: the address of a Dask scheduler whose workers make them instead, "tcp://host:port".

    Returns:
        `metric`, its name or None; `layers`, a row for each group of layers that are cut together:
        `layers`, their names, `units`, how many each direction has, and `points`, which rise in
        `kept` to all units, with `nrmse` (of the output that deviates most, relative to its
        spread), `metric` and `ms`, what a run of the model is predicted to take; `splits`,
        `warnings` and `seconds`.

    Raises:
        PruneError: something that the user can mend.
    """
    quality = read_quality(metric, better)
    request = read_request(
        None, None, criterion, "uniform", "units", 1, None, only, skip, align, min_units, seed
    )
    executor = read_executor(jobs, cluster)
    check_progress(progress)
    if data is None:
        raise PruneError(
            "what a layer can spare shows on inputs only", where="--data", remedy="give some"
        )
    opened = open_model(model, frozen(freeze))
    memory = None if study is None else Path(study)
    given = open_three(opened, executor.reachable(data), None, streaming(stream, True))
    return Sensitivity(opened, given, quality, request, executor, memory)(progress)
