"""The page as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from onnx_rnn_prune.report.document import write_text
from onnx_rnn_prune.report.html.drift import drift
from onnx_rnn_prune.report.html.facts import Facts
from onnx_rnn_prune.report.html.layers import layers
from onnx_rnn_prune.report.html.parts import Markup, definitions, element, joined, section
from onnx_rnn_prune.report.html.search import search
from onnx_rnn_prune.report.html.sensitivity import sensitivity
from onnx_rnn_prune.report.html.speed import speed, stages
from onnx_rnn_prune.report.html.style import STYLE
from onnx_rnn_prune.report.html.top import top
from onnx_rnn_prune.report.table import sentences
from onnx_rnn_prune.text import presentable

# The page runs no script and fetches nothing, whatever stands in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LABELS = {"cpu_count": "Processors", "platform": "System", "date": "Date (UTC)"}


def to_html(report: Mapping[str, Any]) -> str:
    """A report as one HTML document that needs nothing else, for people to read.

    Args:
        report: the dict of `PruneResult.report`, or what was read from its JSON; parts that it
            lacks are left out.
    """
    report = presentable(report)
    facts = Facts(report)
    parts = (top, layers, drift, speed, search, sensitivity, stages, _how, _again)
    title = f"{PurePath(str(report.get('model') or 'the model')).name}: pruning report"
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<link rel="icon" href="data:,">'),
        element("title", title),
        Markup(f"<style>{STYLE}</style>"),
    )
    body = element("body", element("main", *(part(facts) for part in parts)))
    return f"<!doctype html>\n{element('html', head, body, attributes={'lang': 'en'})}\n"


def write_html(report: Mapping[str, Any], path: str | Path) -> None:
    """Writes a report as HTML, whole or not at all.

    Raises:
        PruneError: the place cannot be written.
    """
    write_text(to_html(report), path)


def _how(facts: Facts) -> Markup:
    """What was done, and on what."""
    rows = [(label, text) for label, text in sentences(facts.report) if label[:7] != "Output "]
    for label, key in (("Asked to keep", "keep"), ("Budget", "budget"), ("Ranked by", "criterion")):
        if facts.get(key) is not None:
            rows.append((label, facts.show("text", key)))
    if facts.get("seconds") is not None:
        rows.append(("Took", joined(facts.show("number", "seconds"), " s")))
    return section("How it was done", definitions(rows)) if rows else Markup("")


def _again(facts: Facts) -> Markup:
    """What another run needs to come to the same."""
    command = facts.get("command")
    shown = element("pre", facts.show("text", "command")) if command else Markup("")
    rows = [
        (_LABELS.get(key, key), facts.show("text", "environment", key))
        for key in facts.get("environment") or ()
    ]
    if facts.get("model"):
        rows.insert(0, ("Model", facts.show("text", "model")))
    if not rows and not command:
        return Markup("")
    title = element("h3", "Made with") if command and rows else Markup("")
    return section("To do it again", shown, title, definitions(rows, "short"))
