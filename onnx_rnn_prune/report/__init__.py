"""Reports: tables and pages for people, JSON for programs."""

from onnx_rnn_prune.report.html import to_html, write_html
from onnx_rnn_prune.report.inspection import inspect_table, sensitivity_table
from onnx_rnn_prune.report.pictures import sensitivity_png
from onnx_rnn_prune.report.plots import need_matplotlib
from onnx_rnn_prune.report.terminal import (
    ProgressBars,
    bench_table,
    compare_table,
    plan_table,
    prune_table,
    roll_table,
    search_table,
)
from onnx_rnn_prune.report.texts import (
    compare_summary,
    prune_summary,
    to_json,
    write_json,
    write_text,
)

__all__ = [
    "ProgressBars",
    "bench_table",
    "compare_summary",
    "compare_table",
    "inspect_table",
    "need_matplotlib",
    "plan_table",
    "prune_summary",
    "prune_table",
    "roll_table",
    "search_table",
    "sensitivity_png",
    "sensitivity_table",
    "to_html",
    "to_json",
    "write_html",
    "write_json",
    "write_text",
]
