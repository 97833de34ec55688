"""What became of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx_rnn_prune.report.html.facts import Facts
from onnx_rnn_prune.report.html.parts import (
    Column,
    Markup,
    element,
    joined,
    numbers,
    section,
    table,
)
from onnx_rnn_prune.report.names import place
from onnx_rnn_prune.report.table import kind, outcome

_COLUMNS = (
    Column("Layer", "name"),
    Column("Type"),
    *numbers("Units", "Kept"),
    Column("Share"),
    *numbers("Parameters", "Kept"),
    Column("Its outputs", "long"),
)


def layers(facts: Facts) -> Markup:
    """The layers' widths before and after, and where their outputs end."""
    rows = facts.brief.get("layers") or []
    if not rows:
        return Markup("")
    note = (
        "An output is read by smaller weights where they could be cut along with it. Where they "
        "could not, a small matrix brings it back to full size, so that what follows is untouched."
    )
    content = [_row(facts, number, row) for number, row in enumerate(rows)]
    return section("Layers", table(_COLUMNS, content), note=note)


def _row(facts: Facts, number: int, layer: Mapping[str, Any]) -> list[str]:
    def show(form: str, key: str) -> Markup:
        return facts.show(form, "layers", number, key)

    before, after = ("layers", number, "hidden_before"), ("layers", number, "hidden_after")
    share = layer["hidden_after"] / max(1, layer["hidden_before"])
    filled = element("span", attributes={"style": f"width:{100 * share:.1f}%"})
    bar = element("span", filled, attributes={"class": "share", "aria-hidden": "true"})
    lines = [element("div", line) for line in outcome(layer).split("\n")]
    return [
        element("span", layer["name"], attributes={"title": place(facts.get("layers", number))}),
        kind(layer),
        show("count", "hidden_before"),
        show("count", "hidden_after"),
        element(
            "span",
            joined(bar, facts.change("share", before, after)),
            attributes={"class": "whole"},
        ),
        show("amount", "params_before"),
        show("amount", "params_after"),
        joined(*lines),
    ]
