"""The page shows what the report says, of any report, and takes no name for markup."""

import copy
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from onnx_rnn_prune import prune
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.record import to_json
from onnx_rnn_prune.report import plots
from onnx_rnn_prune.report.html import CHANGES, FORMATS, UNKNOWN, to_html
from onnx_rnn_prune.report.markdown import compare_summary, prune_summary
from onnx_rnn_prune.report.pictures import curves
from onnx_rnn_prune.report.plots import Dot
from reports import NASTY, compared, pruned, put, unknown, whole

VOID = {"meta", "link"}


class Page(HTMLParser):
    """The elements of a document, and the values that they stand for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.shown, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), "an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
            if "data-key" in dict(attrs):
                self.shown.append([dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] != "style":
            self.texts.append(data)
        if self.open and "data-format" in self.open[-1][1]:
            self.shown[-1][1] += data


def look_up(report, key):
    """What stands at a key as an element names it."""
    value = report
    for part in re.findall(r"(?:[^.\\]|\\.)+", key, re.DOTALL):
        name = re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL)
        value = value[int(name)] if isinstance(value, list | tuple) else value[name]
    return value


def check_shown(report, shown):
    """Compares elements (their attributes and text) with the report they were made of."""
    report = json.loads(to_json(report))
    assert len(shown) > 10
    for given, text in shown:
        value = look_up(report, given["data-key"])
        assert json.loads(given["data-value"]) == value, given
        form = given.get("data-format")
        if form is None:
            continue
        first = [look_up(report, given["data-from"])] if "data-from" in given else []
        make = {**FORMATS, **CHANGES}[form]
        assert text == (UNKNOWN if None in [*first, value] else make(*first, value)), given


@pytest.mark.parametrize("report", [pruned(), whole(), unknown()])
def test_all_that_is_shown_stands_in_the_report(report):
    before = copy.deepcopy(report)
    page = Page(to_html(report))
    check_shown(report, page.shown)
    assert report == before


def test_the_page_shows_the_pictures_that_a_png_does():
    keys = {given["data-key"] for _, given in Page(to_html(whole())).tags if "data-key" in given}
    drawn = curves(whole().sensitivity, metric=False, way=("sensitivity",))
    dots = [shape for picture in drawn for shape in picture.shapes if isinstance(shape, Dot)]
    assert len(dots) == 6
    assert {".".join(map(str, dot.way)) for dot in dots} <= keys


def test_key_numbers_are_shown():
    forms = {given["data-key"] for given, _ in Page(to_html(pruned())).shown}
    expected = {f"totals.{kind}_{when}" for kind in ("params", "bytes") for when in ("after",)}
    assert expected <= forms
    assert {"latency.speedup", "drift.logits.nrmse", "oracle.passed"} <= forms


def test_numbers_stand_below_their_headings():
    keys = [given["data-key"] for given, _ in Page(to_html(pruned())).shown]
    first = [key.removeprefix("layers.0.") for key in keys if key.startswith("layers.0.")]
    hidden, params = (
        [f"{what}_{when}" for when in ("before", "after")] for what in ("hidden", "params")
    )
    assert first == [*hidden, "hidden_after", *params]
    titles = re.findall(r"<th[^>]*>(.*?)</th>", to_html(pruned()))
    assert titles[2:7] == ["Units", "Kept", "Share", "Parameters", "Kept"]


def test_names_are_no_markup():
    text = to_html(whole())
    assert "<script" not in text and "alert('1')" not in text
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert any(NASTY in text for text in page.texts)


def test_what_no_document_may_hold_is_shown():
    report = put(pruned(), "a\x00b\ud800c\x1b[0m", "layers", 0, "name")
    text = to_html(report)
    assert r"a\x00b\ud800c\x1b[0m" in text
    text.encode()


def test_numbers_that_are_not_known():
    text = " ".join(Page(to_html(unknown())).texts)
    assert UNKNOWN in text
    assert not re.search(r"\b(None|nan|inf)\b", text)


@pytest.mark.parametrize("report", [pruned(), whole()])
def test_parts_that_are_missing_are_left_out(report):
    titles = re.findall(r"<h2>(.*?)</h2>", to_html(report))
    parts = ["Search", "Sensitivity", "Steps"]
    assert [title for title in titles if title in parts] == (parts if report.search else [])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_known(value):
    report = put(pruned(), value, "drift", "logits", "nrmse")
    text = " ".join(Page(to_html(report)).texts)
    assert "cannot be measured" in text and "inf" not in text.split()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, "0.0 0.2 0.4 0.6 0.8 1.0"),
        (0, 400, "0 100 200 300 400"),
        (-0.07, 0.07, "\N{MINUS SIGN}0.05 0.00 0.05"),
        (0, 0.0003, "0 1 2 3"),
        (0, 1.1e6, "0.0 0.2 0.4 0.6 0.8 1.0"),
        (0, 9, "0 2 4 6 8"),
        (5, 5, "3 4 5 6 7"),
        (0, 0, "0.0 0.2 0.4 0.6 0.8 1.0"),
    ],
)  # fmt: skip
def test_axes_have_round_numbers(low, high, expected):
    axis = plots.axis(low, high, "x")
    assert [axis.written(tick) for tick in axis.ticks] == expected.split()
    assert axis.power in (0, -4, 6)
    assert ("\N{MULTIPLICATION SIGN}10" in axis.title) == (axis.power != 0)


def test_an_axis_of_steps_has_no_halves():
    axis = plots.axis(0, 2, "step", whole=True)
    assert [axis.written(tick) for tick in axis.ticks] == ["0", "1", "2"]


def test_a_rounded_axis_holds_all():
    for low, high in ((0, 0.37), (0.91, 0.99), (-3, 1e-9), (7, 7), (0, 0)):
        axis = plots.rounded(low, high, "y")
        assert axis.low <= low <= high <= axis.high
        assert axis.ticks[0] == pytest.approx(axis.low) and axis.ticks[-1] == axis.high


def test_commands_write_pages_and_summaries(model, clips, tmp_path, capsys):
    page, text, values = (tmp_path / name for name in ("a b.html", "s.md", "r.json"))
    arguments = ["--html", page, "--summary", text]
    options = ["prune", model, "-o", tmp_path / "o.onnx", "--data", clips, "--json", values]
    options += ["--save-plan", tmp_path / "p.json"]
    assert run([str(option) for option in [*options, *arguments]]) == 0
    report = json.loads(values.read_text("utf-8"))
    check_shown(report, Page(page.read_text("utf-8")).shown)
    assert report["command"].endswith(f"--html '{page}' --summary {text}")
    assert report["command"].startswith(f"onnx-rnn-prune prune {model} -o ")
    assert report["environment"]["cpu_count"] >= 1
    details = report["drift_details"]["logits"]
    assert len(details["over_time"]["steps"]) >= 12 and details["histogram"]["counts"]
    assert "| rnn | GRU | 6 -> 3 |".replace("->", r"-\>") in text.read_text("utf-8")
    options = ["apply", model, tmp_path / "p.json", "-o", tmp_path / "q.onnx", "--data", clips]
    page.unlink()
    assert run([str(option) for option in [*options, *arguments]]) == 0
    assert "onnx-rnn-prune apply" in page.read_text("utf-8")


@pytest.mark.parametrize(("limit", "code", "said"), [(9, 0, "passed"), (1e-9, 3, "limit missed")])
def test_compare_says_whether_the_limit_is_kept(model, clips, tmp_path, limit, code, said):
    small, text = tmp_path / "small.onnx", tmp_path / "s.md"
    prune(model, keep=0.5, data=clips).save(small)
    options = ["--data", clips, "--max-nrmse", limit, "--summary", text]
    assert run([str(option) for option in ["compare", model, small, *options]]) == code
    assert text.read_text("utf-8").startswith(f"### Compared: {said}\n")


def test_a_page_is_never_written_over_an_input(model, clips, tmp_path, capsys):
    result = prune(model, keep=0.5, data=clips)
    with pytest.raises(PruneError, match="model.onnx"):
        result.save_html(model)
    result.save_html(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!doctype html>")
    options = ["prune", model, "-o", tmp_path / "o.onnx", "--html", model]
    assert run([str(option) for option in options]) == 1
    options = ["compare", model, model, "--summary", model]
    assert run([str(option) for option in options]) == 1


def test_names_are_no_markdown():
    text = prune_summary(whole())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for line in rows:
        cells = re.split(r"(?<!\\)\|", re.sub(r"\\\\", "", line))
        assert len(cells) in (6, 7), line
    assert r"\<script\>" in text and "<script>" not in text and r"\`x\`" in text
    assert text.startswith("### Pruned: ") and r"**Warning**: the model has \[odd\] names" in text


def test_a_summary_says_what_counts():
    text = prune_summary(pruned())
    assert "The pruned model is 3.1x faster and its file 75 % smaller." in text
    assert (
        "deviate from the original's by 2.1 % (RMSE relative to their standard deviation)" in text
    )
    assert "The self-check passed" in text
    assert "| File size | 5.20 MB | 1.30 MB | 75 % less |" in text
    assert "| logits | 2.1 % | 0.02 | 0.3 | 98.7 % |" in text
    latency = replace(pruned().latency, speedup=1.1, speedup_quartiles=(0.9, 1.3))
    unsure = replace(pruned(), latency=latency)
    assert "is not measurably faster (1.10x) and its file 75 % smaller." in prune_summary(unsure)
    assert "no limit was given" in compare_summary(compared())
    assert "cannot be measured" in compare_summary(replace(compared(), drift={}))


def test_a_summary_of_a_failure_or_of_made_up_inputs():
    report = put(put(pruned(), False, "oracle", "passed"), True, "data", "random")
    text = prune_summary(report)
    assert "The self-check FAILED" in text and "random inputs" in text
