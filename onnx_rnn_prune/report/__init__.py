"""Reports: tables for people, JSON for programs."""

from onnx_rnn_prune.report.document import to_json, write_json
from onnx_rnn_prune.report.inspection import inspect_table
from onnx_rnn_prune.report.overview import bench_table, compare_table, plan_table
from onnx_rnn_prune.report.progress import ProgressBars
from onnx_rnn_prune.report.searching import search_table
from onnx_rnn_prune.report.table import prune_table

__all__ = [
    "ProgressBars",
    "bench_table",
    "compare_table",
    "inspect_table",
    "plan_table",
    "prune_table",
    "search_table",
    "to_json",
    "write_json",
]
