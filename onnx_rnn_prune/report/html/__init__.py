"""The report as a page: one HTML file with everything in it, which fetches nothing."""

from onnx_rnn_prune.report.html.page import to_html, write_html

__all__ = ["to_html", "write_html"]
