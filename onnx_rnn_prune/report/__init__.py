"""Reports: tables and pages for people, JSON for programs."""

from onnx_rnn_prune.report.document import to_json, write_json, write_text
from onnx_rnn_prune.report.html import to_html, write_html
from onnx_rnn_prune.report.inspection import inspect_table
from onnx_rnn_prune.report.overview import bench_table, compare_table, plan_table
from onnx_rnn_prune.report.progress import ProgressBars
from onnx_rnn_prune.report.searching import search_table
from onnx_rnn_prune.report.sensitivity import (
    need_matplotlib,
    sensitivity_png,
    sensitivity_table,
)
from onnx_rnn_prune.report.summary import compare_summary, prune_summary
from onnx_rnn_prune.report.table import prune_table

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
    "search_table",
    "sensitivity_png",
    "sensitivity_table",
    "to_html",
    "to_json",
    "write_html",
    "write_json",
    "write_text",
]
