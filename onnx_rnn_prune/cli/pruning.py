"""The commands that choose units and cut them: prune, plan and apply."""

from __future__ import annotations

import click

from onnx_rnn_prune import api, report
from onnx_rnn_prune.cli import files, options
from onnx_rnn_prune.cli.examples import examples
from onnx_rnn_prune.cli.outputs import check_outputs, console, refuse_worse, say_written, write


@click.command(
    epilog=examples(
        "onnx-rnn-prune prune model.onnx -o small.onnx --keep 50% --data clips",
        "onnx-rnn-prune prune model.onnx -o small.onnx --budget params=60% --data clips",
        "onnx-rnn-prune prune model.onnx -o small.onnx --keep 50% --data clips --quantize int8",
    )
)
@click.argument("model", type=options.name)
@options.output
@options.freeze
@options.selection
@options.loss
@options.settled
@options.eval_data
@options.schedule
@options.recover
@options.mode
@options.shrink_states
@options.state_metadata
@options.zeros
@options.stages
@files.json_report
@files.save_plan
@files.html
@files.summary
def prune(
    model: str,
    out: str,
    freeze: dict[str, str],
    keep: tuple[str, ...],
    budget: str | None,
    lossless: bool,
    masks: str | None,
    data: str | None,
    size: dict[str, str],
    stream: bool | None,
    eval_data: str | None,
    criterion: str | None,
    loss: str | None,
    allocate: str,
    per: str,
    steps: int,
    schedule: str,
    recover: str | None,
    distill_minutes: float,
    mode: str,
    shrink_states: bool,
    state_metadata: tuple[str, ...],
    sparsify: str | None,
    sparsify_by: str | None,
    sparse_initializers: bool,
    rank: str | None,
    quantize: str | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    align: int,
    min_units: int,
    seed: int,
    json_path: str | None,
    save_plan: str | None,
    html: str | None,
    summary: str | None,
) -> None:
    """Prune MODEL, check the result and write it to OUT."""
    outputs = [out, json_path, save_plan, html, summary]
    check_outputs(outputs, [model, data, eval_data, masks])
    with report.ProgressBars() as progress:
        result = api.prune(
            model,
            keep=keep or None,
            budget=budget,
            lossless=lossless,
            masks=masks,
            data=data,
            size=size,
            stream=stream,
            eval_data=eval_data,
            criterion=criterion,
            loss=loss,
            allocate=allocate,
            per=per,
            steps=steps,
            schedule=schedule,
            recover=recover,
            distill_minutes=distill_minutes,
            mode=mode,
            shrink_states=shrink_states,
            state_metadata=state_metadata,
            sparsify=sparsify,
            sparsify_by=sparsify_by,
            sparse_initializers=sparse_initializers,
            rank=rank,
            quantize=quantize,
            only=only,
            skip=skip,
            align=align,
            min_units=min_units,
            freeze=freeze,
            seed=seed,
            progress=progress,
        )
    refuse_worse(result, model, ("bytes",) if budget is not None else ("bytes", "ms"))
    write(result, out, save_plan, json_path, html, summary)


@click.command(
    epilog=examples(
        "onnx-rnn-prune plan model.onnx -o plan.json --keep 50% --data clips",
    )
)
@click.argument("model", type=options.name)
@options.output
@options.freeze
@options.selection
@options.loss
@options.shrink_states
def plan(
    model: str,
    out: str,
    freeze: dict[str, str],
    keep: tuple[str, ...],
    budget: str | None,
    data: str | None,
    size: dict[str, str],
    stream: bool | None,
    criterion: str | None,
    loss: str | None,
    allocate: str,
    per: str,
    steps: int,
    shrink_states: bool,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    align: int,
    min_units: int,
    seed: int,
) -> None:
    """Choose the units of MODEL to keep and write the choice to OUT, for `apply`."""
    check_outputs([out], [model, data])
    with report.ProgressBars() as progress:
        chosen = api.plan(
            model,
            keep=keep or None,
            budget=budget,
            data=data,
            size=size,
            stream=stream,
            criterion=criterion,
            loss=loss,
            allocate=allocate,
            per=per,
            steps=steps,
            shrink_states=shrink_states,
            only=only,
            skip=skip,
            align=align,
            min_units=min_units,
            freeze=freeze,
            seed=seed,
            progress=progress,
        )
    chosen.save(out)
    console().print(report.plan_table(chosen))
    say_written(out)


@click.command(
    epilog=examples(
        "onnx-rnn-prune apply model.onnx plan.json -o small.onnx --data clips",
    )
)
@click.argument("model", type=options.name)
@click.argument("plan_path", type=options.name, metavar="PLAN")
@options.output
@options.freeze
@options.mode
@options.shrink_states
@options.state_metadata
@options.schedule
@options.steps
@options.zeros
@options.stages
@options.recover
@options.loss
@options.data_option("--data", options.DATA_HELP)
@options.size
@options.stream
@options.eval_data
@options.seed
@files.json_report
@files.html
@files.summary
def apply(
    model: str,
    plan_path: str,
    out: str,
    freeze: dict[str, str],
    mode: str,
    shrink_states: bool,
    state_metadata: tuple[str, ...],
    schedule: str,
    steps: int,
    sparsify: str | None,
    sparsify_by: str | None,
    sparse_initializers: bool,
    rank: str | None,
    quantize: str | None,
    recover: str | None,
    distill_minutes: float,
    loss: str | None,
    data: str | None,
    size: dict[str, str],
    stream: bool | None,
    eval_data: str | None,
    seed: int,
    json_path: str | None,
    html: str | None,
    summary: str | None,
) -> None:
    """Prune MODEL by a PLAN that `plan` or `prune --save-plan` wrote."""
    check_outputs([out, json_path, html, summary], [model, plan_path, data, eval_data])
    with report.ProgressBars() as progress:
        result = api.apply(
            model,
            plan_path,
            mode=mode,
            shrink_states=shrink_states,
            state_metadata=state_metadata,
            schedule=schedule,
            steps=steps,
            sparsify=sparsify,
            sparsify_by=sparsify_by,
            sparse_initializers=sparse_initializers,
            rank=rank,
            quantize=quantize,
            recover=recover,
            distill_minutes=distill_minutes,
            loss=loss,
            data=data,
            size=size,
            stream=stream,
            eval_data=eval_data,
            freeze=freeze,
            seed=seed,
            progress=progress,
        )
    write(result, out, json_path=json_path, html=html, summary=summary)
