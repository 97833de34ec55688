"""The command that shows what each layer can spare: sensitivity."""

from __future__ import annotations

import click

from onnx_rnn_prune import api, report
from onnx_rnn_prune.cli import options, trying
from onnx_rnn_prune.cli.examples import examples
from onnx_rnn_prune.cli.outputs import check_outputs, say_written, show
from onnx_rnn_prune.model.files import write_atomically


@click.command(
    epilog=examples(
        "onnx-rnn-prune sensitivity model.onnx --data clips",
        "onnx-rnn-prune sensitivity model.onnx --data clips --metric agreement --png curves.png",
    )
)
@click.argument("model", type=options.name)
@options.freeze
@options.data_option("--data", options.DATA_FORMS)
@options.stream
@trying.metric
@trying.study
@trying.crew
@options.criterion
@options.limits
@options.as_json
@click.option("--png", type=options.name, metavar="FILE", help="Also draw the curves.")
def sensitivity(
    model: str,
    freeze: dict[str, str],
    data: str | None,
    stream: bool | None,
    metric: str | None,
    better: str | None,
    study: str | None,
    jobs: int,
    cluster: str | None,
    criterion: str | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    align: int,
    min_units: int,
    seed: int,
    as_json: bool,
    png: str | None,
) -> None:
    """Cut each layer of MODEL alone to several widths, and show what that does to the outputs."""
    check_outputs([png], [model, data, study])
    if png is not None:
        report.need_matplotlib()
    with report.ProgressBars() as progress:
        found = api.sensitivity(
            model,
            data=data,
            stream=stream,
            metric=metric,
            better=better,
            study=study,
            jobs=jobs,
            cluster=cluster,
            criterion=criterion,
            only=only,
            skip=skip,
            align=align,
            min_units=min_units,
            freeze=freeze,
            seed=seed,
            progress=progress,
        )
    picture = None if png is None else report.sensitivity_png(found)
    show(found, report.sensitivity_table, as_json)
    if png is not None and picture is not None:
        write_atomically(png, picture)
    if png is not None and not as_json:
        say_written(png)
