"""The top of the page: what a reader in a hurry needs."""

from __future__ import annotations

from pathlib import PurePath

from onnx_rnn_prune.report.html.facts import Facts, Part
from onnx_rnn_prune.report.html.parts import Markup, element, joined
from onnx_rnn_prune.report.verdict import verdict, worst

_TO = " \N{RIGHTWARDS ARROW} "


def top(facts: Facts) -> Markup:
    """The model's name, what came of it, the key numbers, and what to be warned of."""
    name = PurePath(str(facts.get("model") or "the model")).name
    day = facts.get("environment", "date")
    kicker = "Pruning report" + (f", {day}" if day else "")
    return joined(
        element("p", kicker, attributes={"class": "kicker"}),
        element("h1", name),
        element("p", verdict(facts.report), attributes={"class": "lead"}),
        element("div", *_tiles(facts), attributes={"class": "tiles"}),
        _warnings(facts),
    )


def _tiles(facts: Facts) -> list[Markup]:
    tiles = []
    if facts.get("latency"):
        times = _pair(facts, "duration", ("latency", "before_ms"), ("latency", "after_ms"))
        tiles.append(_tile("Speed", facts.speed("faster", "latency"), times, " per run"))
    for label, kind, form in (("File size", "bytes", "size"), ("Parameters", "params", "amount")):
        before, after = ("totals", f"{kind}_before"), ("totals", f"{kind}_after")
        if facts.get(*before) is not None:
            change = facts.change("fewer", before, after)
            tiles.append(_tile(label, change, _pair(facts, form, before, after)))
    found = worst(facts.get("drift") or {})
    if found is not None:
        shown = facts.show("percent", "drift", found[0], "nrmse")
        which = f"of {found[0]}" if len(facts.get("drift")) == 1 else f"of {found[0]}, the largest"
        tiles.append(_tile("Deviation", shown, which))
    if facts.get("search", "test", "quality") is not None:
        tiles.append(_tested(facts))
    if facts.known("oracle"):
        passed = facts.show("check", "oracle", "passed")
        style = "good" if facts.get("oracle", "passed") else "bad"
        largest = facts.show("number", "oracle", "max_abs_diff")
        shown = element("span", passed, attributes={"class": style})
        tiles.append(_tile("Self-check", shown, "largest difference ", largest))
    return tiles


def _tested(facts: Facts) -> Markup:
    """What the search's pick does on inputs that it never saw."""
    quality = str(facts.get("search", "quality"))
    form = "percent" if quality == "nrmse" else "number"
    label = "Test deviation" if quality == "nrmse" else f"Test {quality}"
    shown = facts.show(form, "search", "test", "quality")
    if facts.get("search", "test", "original") is None:
        return _tile(label, shown)
    return _tile(label, shown, "original ", facts.show(form, "search", "test", "original"))


def _tile(label: str, value: Markup, *detail: str) -> Markup:
    return element(
        "div",
        element("div", label, attributes={"class": "label"}),
        element("div", value, attributes={"class": "value"}),
        element("div", *detail, attributes={"class": "detail"}),
        attributes={"class": "tile"},
    )


def _pair(facts: Facts, form: str, before: tuple[Part, ...], after: tuple[Part, ...]) -> Markup:
    return joined(facts.show(form, *before), _TO, facts.show(form, *after))


def _warnings(facts: Facts) -> Markup:
    items = [
        element("li", element("b", "Warning: "), str(text)) for text in facts.get("warnings") or ()
    ]
    return element("ul", *items, attributes={"class": "warnings"}) if items else Markup("")
