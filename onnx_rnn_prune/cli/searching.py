"""The command that looks for a cut: search."""

from __future__ import annotations

import click

from onnx_rnn_prune import api, report
from onnx_rnn_prune.cli import files, options, trying
from onnx_rnn_prune.cli.examples import examples
from onnx_rnn_prune.cli.outputs import check_outputs, write
from onnx_rnn_prune.search.strategies import STRATEGIES

_goal = options.together(
    click.option(
        "--max-nrmse",
        type=click.FloatRange(min=0),
        metavar="X",
        help="Outputs deviate by at most this: RMS difference / spread.",
    ),
    trying.metric,
    click.option(
        "--max-drop", metavar="X", help="Loss of the metric that is accepted: 0.5, or 1%."
    ),
    click.option("--speedup", metavar="FACTOR", help="A run is so many times faster: 2x."),
    click.option("--latency", metavar="TIME", help="A run takes at most this: 5ms."),
    click.option("--params", metavar="AMOUNT", help="Parameters at most: 30%, 120k."),
    click.option("--bytes", metavar="AMOUNT", help="Bytes of the file at most: 1MB."),
)
_bounds = options.together(
    click.option(
        "--trials",
        type=click.IntRange(min=1),
        default=200,
        show_default=True,
        help="The most cuts that are tried.",
    ),
    click.option(
        "--minutes",
        type=click.FloatRange(min=0, min_open=True),
        default=15.0,
        show_default=True,
        help="The longest that the whole search may take.",
    ),
    trying.study,
    trying.crew,
    click.option(
        "--strategy",
        type=click.Choice(tuple(STRATEGIES)),
        default="greedy",
        show_default=True,
        help="Who says what is tried next.",
    ),
    click.option(
        "--pick",
        type=click.IntRange(min=1),
        metavar="NUMBER",
        help="Write this one of the cuts instead of the best.",
    ),
)


@click.command(
    epilog=examples(
        "onnx-rnn-prune search model.onnx -o small.onnx --data clips --max-nrmse 0.5",
        "onnx-rnn-prune search model.onnx -o small.onnx --data clips --params 60% --study study.db",
    )
)
@click.argument("model", type=options.name)
@options.output
@options.freeze
@options.data_option("--data", options.DATA_FORMS, required=True)
@options.stream
@options.data_option("--eval-data", "Inputs to report on; part of --data without it.")
@_goal
@_bounds
@options.criterion
@options.recover
@options.limits
@files.json_report
@files.save_plan
@files.html
@files.summary
def search(
    model: str,
    out: str,
    freeze: dict[str, str],
    data: str,
    stream: bool | None,
    eval_data: str | None,
    max_nrmse: float | None,
    metric: str | None,
    better: str | None,
    max_drop: str | None,
    speedup: str | None,
    latency: str | None,
    params: str | None,
    bytes: str | None,
    trials: int,
    minutes: float,
    study: str | None,
    jobs: int,
    cluster: str | None,
    strategy: str,
    pick: int | None,
    criterion: str | None,
    recover: str | None,
    distill_minutes: float,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    align: int,
    min_units: int,
    seed: int,
    json_path: str | None,
    save_plan: str | None,
    html: str | None,
    summary: str | None,
) -> int:
    """Find how many units each layer of MODEL keeps, and write the result to OUT.

    With a limit on what may be lost, the fastest cut within it; else the best one that is as fast
    or small as asked for.
    """
    outputs = [out, json_path, save_plan, html, summary]
    check_outputs(outputs, [model, data, eval_data, study])
    with report.ProgressBars() as progress:
        result = api.search(
            model,
            data=data,
            stream=stream,
            eval_data=eval_data,
            max_nrmse=max_nrmse,
            metric=metric,
            better=better,
            max_drop=max_drop,
            speedup=speedup,
            latency=latency,
            params=params,
            bytes=bytes,
            trials=trials,
            minutes=minutes,
            study=study,
            jobs=jobs,
            cluster=cluster,
            strategy=strategy,
            pick=pick,
            criterion=criterion,
            recover=recover,
            distill_minutes=distill_minutes,
            only=only,
            skip=skip,
            align=align,
            min_units=min_units,
            freeze=freeze,
            seed=seed,
            progress=progress,
        )
    write(result, out, save_plan, json_path, html, summary, report.search_table)
    if result.report.search is not None and result.report.search.met:
        return 0
    click.echo("Error: a limit is missed on the feeds that chose nothing, see above", err=True)
    return 3
