"""The options of commands that try cuts: search and sensitivity."""

from __future__ import annotations

import click

from onnx_rnn_prune.cli import options
from onnx_rnn_prune.cli.names import Address
from onnx_rnn_prune.validate.quality import BETTER, QUALITIES

metric = options.together(
    click.option(
        "--metric",
        metavar="NAME",
        callback=options.find_modules_here,
        help=f"How good a model is: {', '.join(q.name for q in QUALITIES)}; or module:function.",
    ),
    click.option("--better", type=click.Choice(BETTER), help="Which values of a function are."),
)
study = click.option(
    "--study",
    type=options.name,
    metavar="FILE",
    help="Remember trials there; a search that was stopped goes on from it.",
)
crew = options.together(
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that make trials.",
    ),
    click.option(
        "--cluster",
        type=Address(),
        metavar="ADDRESS",
        help="Make them on the workers of this Dask scheduler instead.",
    ),
)
