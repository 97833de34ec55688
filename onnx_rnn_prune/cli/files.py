"""The options that name files to write beside the model."""

from __future__ import annotations

import click

from onnx_rnn_prune.cli.options import name

json_report = click.option(
    "--json",
    "json_path",
    type=name,
    metavar="REPORT",
    help="Also write the report as JSON.",
)
save_plan = click.option(
    "--save-plan", type=name, metavar="PLAN", help="Also write which units are kept."
)


html = click.option(
    "--html",
    type=name,
    metavar="FILE",
    help="Also write the report as a page: one HTML file that fetches nothing.",
)
summary = click.option(
    "--summary",
    type=name,
    metavar="FILE",
    help="Also write a summary in Markdown, for a CI job or a pull request.",
)
