"""What a search was asked for, what it tried and what it picked."""

from __future__ import annotations

from onnx_rnn_prune.report.html.facts import Facts
from onnx_rnn_prune.report.html.pareto import pareto
from onnx_rnn_prune.report.html.parts import (
    Column,
    Markup,
    definitions,
    element,
    joined,
    numbers,
    section,
    table,
)

_COLUMNS = (("duration", "ms"), ("amount", "params"), ("size", "bytes"), ("yes", "meets"))


def search(facts: Facts) -> Markup:
    """The candidates as a plot, those that no other beats as a table, and the test."""
    if not facts.get("search"):
        return Markup("")
    deviates = facts.get("search", "quality") == "nrmse"
    name = "deviation" if deviates else str(facts.get("search", "quality"))
    form, scale, unit = ("percent", 100.0, "%") if deviates else ("number", 1.0, "")
    return section(
        "Search",
        definitions(_sentences(facts, name, form)),
        pareto(facts, name, scale, unit),
        _frontier(facts, name, form),
    )


def _frontier(facts: Facts, name: str, form: str) -> Markup:
    """The pick, and the candidates that no other beats in both time and quality; fastest first."""
    candidates = facts.get("search", "candidates") or ()
    shown = [n for n, row in enumerate(candidates) if row.get("frontier") or row.get("picked")]
    shown.sort(key=lambda n: facts.get("search", "candidates", n, "ms") or 0.0)
    titles = ("No.", name[:1].upper() + name[1:], "Time", "Parameters", "File size", "Meets goal")
    columns = (*numbers(*titles), Column("Units kept", "long"))
    return table(columns, [_row(facts, number, form) for number in shown])


def _row(facts: Facts, index: int, form: str) -> list[str]:
    way = ("search", "candidates", index)
    layers = facts.get(*way, "kept") or {}
    names = facts.brief["search"]["candidates"][index].get("kept") or {}
    kept = [
        joined(", " if place else "", f"{name}: ", facts.show("count", *way, "kept", layer))
        for place, (layer, name) in enumerate(zip(layers, names, strict=True))
    ]
    picked = element("b", "picked ") if facts.get(*way, "picked") else Markup("")
    return [
        joined(picked, facts.show("count", *way, "number")),
        facts.show(form, *way, "quality"),
        *(facts.show(own, *way, key) for own, key in _COLUMNS),
        joined(*kept),
    ]


def _sentences(facts: Facts, name: str, form: str) -> list[tuple[str, str]]:
    goal = facts.get("search", "goal")
    rows: list[tuple[str, str]] = [("Goal", str(goal))] if goal else []
    if facts.known("search", "test", "quality"):
        words = [f"The pick's {name} is ", facts.show(form, "search", "test", "quality")]
        if facts.known("search", "test", "original"):
            words += [", the original's ", facts.show(form, "search", "test", "original")]
        rows.append(("Test", joined(*words, ", on inputs by which nothing was chosen.")))
    if facts.known("search", "quality_limit"):
        side = "at least " if facts.get("search", "higher_is_better") else "at most "
        rows.append(("Limit", joined(name, " ", side, facts.show(form, "search", "quality_limit"))))
    splits = facts.get("search", "splits") or {}
    counts = [
        joined(facts.show("count", "search", "splits", part), f" for {part}")
        for part in ("calibration", "validation", "test")
        if part in splits
    ]
    if counts:
        shared = [f"; {splits['shared']}"] if splits.get("shared") else []
        commas = [joined(", ", count) for count in counts[1:]]
        rows.append(("Feeds", joined(counts[0], *commas, *shared)))
    if facts.known("search", "seconds"):
        count = str(len(facts.get("search", "candidates") or ()))
        seconds = facts.show("number", "search", "seconds")
        rows.append(("Effort", joined(count, " candidates in ", seconds, " s")))
    return rows
