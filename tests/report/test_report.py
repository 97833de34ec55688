"""Reports are understood by people who do not know the words of this package."""

import io
import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest
from rich.console import Console

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.files import write_text
from onnx_rnn_prune.record import to_json
from onnx_rnn_prune.report import wording
from onnx_rnn_prune.report.html import to_html
from onnx_rnn_prune.report.inspection import inspect_table
from onnx_rnn_prune.report.markdown import prune_summary
from onnx_rnn_prune.report.names import Cell, short_names
from onnx_rnn_prune.report.schema import BenchReport, BenchRow, DataRow, Limit, OutletRow
from onnx_rnn_prune.report.terminal import (
    ProgressBars,
    bench_table,
    compare_table,
    plan_table,
    prune_table,
    search_table,
)
from onnx_rnn_prune.report.wording import amount, duration, faster, fewer, percent, size, times
from onnx_rnn_prune.trace.plan import LayerPlan, Plan
from onnx_rnn_prune.validate import Oracle
from reports import compared, inspected, pruned, put, whole


def shown(renderable, width=120):
    """The text of a report, with runs of spaces and line breaks as one space."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    return " ".join(console.file.getvalue().split())


@pytest.mark.parametrize(
    "expected",
    [
        "/enc/LSTM[0]",
        "LSTM, bidirectional",
        "400 -> 160",
        "1.28 M -> 308 k",
        "Y: read by smaller weights in /fc/MatMul, /fc/MatMul_1",
        "Y_h: restored to full width for hn (graph output)",
        "Y_c: not used",
        "unchanged: restoring costs more than shrinking saves",
        "File size 5.20 MB 1.30 MB 75 % less",
        "Time per run (1 thread) 4.12 ms 1.33 ms 3.1x faster",
        "Self-check: the smaller file equals the full-size file with the removed units zeroed "
        "(largest difference 3e-07): passed",
        "Output logits: deviates 2.1 % from the original (RMSE relative to its standard "
        "deviation); same top answer in 98.7 %",
        "Output hn: the same as the original's",
        "Recovery: the kept weights are refitted to make up for the removed units "
        "(least squares, lambda 0.01); least deviation",
        "Data: clips, 12 feeds: 9 for calibration, 3 for validation",
        "Warning: the model has [odd] names",
    ],
)
def test_prune(expected):
    assert expected in shown(prune_table(pruned()), width=200)


def test_a_narrow_table_loses_no_letter():
    report = put(pruned(), "x" * 300, "layers", 0, "name")
    assert shown(prune_table(report), width=80).count("x") >= 300


def test_prune_without_data():
    data = DataRow("random, seed 0", 2, True, 0, 0, False, None)
    report = replace(pruned(), data=data)
    text = shown(prune_table(report))
    assert (
        "Data: none given; random inputs were used (random, seed 0) and nothing was calib" in text
    )


def test_prune_with_one_feed():
    report = put(put(pruned(), True, "data", "shared"), 1, "data", "feeds")
    assert "clips, 1 feed, used for both calibration and validation" in shown(prune_table(report))


def test_sentences_name_options_as_their_reader_does():
    report = put(pruned(), True, "data", "shared")
    assert "give others with eval_data=" in to_html(replace(report, command=None))
    assert "give others with --eval-data" in to_html(replace(report, command="prune a.onnx"))


def test_a_reason_that_stands_in_a_row_is_no_warning_as_well():
    report = pruned()
    reason = report.layers[1].pinned
    for text in (to_html(report), prune_summary(report), shown(prune_table(report), width=200)):
        assert text.count(reason) == 1


def test_prune_zero_says_so():
    report = replace(pruned(), mode="zero", oracle=Oracle(math.inf, False, 1))
    text = shown(prune_table(report))
    assert "Self-check: the file with the removed units zeroed equals the smaller file" in text
    assert "(largest difference inf): FAILED" in text


def test_a_deviation_without_measure():
    report = put(pruned(), math.inf, "drift", "logits", "nrmse")
    assert "logits: its deviation cannot be measured" in shown(prune_table(report))


def test_many_places_are_summed_up():
    outlets = [OutletRow("Y", "absorbed", f"n{i}", "") for i in range(9)]
    report = put(pruned(), outlets, "layers", 0, "outlets")
    assert "n0, n1, n2 and 6 more" in shown(prune_table(report))


def test_inspect():
    report = inspected()
    text = shown(inspect_table(report))
    assert "Model: a.onnx, 98.5 k parameters, 400 kB" in text
    assert "Inputs: x: float32[?]" in text
    assert "rnn GRU 128 40 65.0 k (66 %) 130 k 0.500 ms (25 %)" in text
    assert "idle GRU 128 40 65.0 k (66 %) 130 k not run" in text
    assert "Y: read by smaller weights in head 40.0 k parameters, 160 kB, 90.0 k FLOPs" in text
    assert "model 1.2x faster together with twin" in text
    assert "not pruned: its weights are inputs nothing" in text
    assert "unknown not measured" in text
    assert "random inputs" in text and "x [2, 7]" in text
    assert (
        "recurrent layers together take 75 % of a run; without them, it would be 4.0x fas" in text
    )
    faster = put(report, 5.0, "layers", 0, "half", "speedup")  # the share is too small, then
    assert "together take 75 % of a run Time:" in shown(inspect_table(faster))
    for line in (
        "Cannot be pruned: an RNN is decomposed",
        "Cannot run: node n",
        "Remedy: export again",
    ):
        assert line in text
    assert "The model has no LSTM, GRU or RNN layers." in shown(
        inspect_table(replace(report, layers=[]))
    )


def test_plan():
    layers = {"a": LayerPlan(4, ((0, 2), (1, 3))), "b": LayerPlan(3, ((0, 1, 2),), "If_1.else")}
    text = shown(plan_table(Plan("", layers)))
    assert "a 4 -> 2 50 %" in text
    assert "b 3 100 %" in text and "If_1" not in text


def test_compare_and_bench():
    both = compared()
    text = shown(compare_table(both))
    assert "same top answer in 98.7 %" in text
    assert "File size: 100 B -> 50 B (50 % less)" in text
    assert "Time per run: 4.12 ms -> 1.33 ms, 3.1x faster" in text
    both = put(both, (2.5, 4.0), "latency", "speedup_quartiles")
    assert "3.1x faster (2.5x to 4.0x)" in shown(compare_table(both))
    rows = [("a", 2.0, 1.0), ("b", 1.0, 2.0), ("c", 2.0, 1.0)]
    table = BenchReport([BenchRow(*row, (row[-1],) * 2) for row in rows], 2, [])
    text = shown(bench_table(table))
    assert "a 2.00 ms b 1.00 ms 2.0x faster than the first c 2.00 ms equally fast as the" in text
    assert "2 threads" in text
    for quartiles, wanted in (
        ((1.8, 2.1), "2.0x faster than the first"),
        ((1.2, 2.9), "2.0x faster than the first (1.2x to 2.9x)"),
        ((0.9, 2.9), "not measurably faster than the first"),
    ):
        assert wanted in shown(bench_table(put(table, quartiles, "rows", 1, "ratio_quartiles")))


def test_a_report_is_read_as_attributes_or_as_a_mapping():
    report = pruned()
    assert report["drift"]["logits"]["nrmse"] == report.drift["logits"].nrmse
    assert report["recovery"]["lambda"] == report.recovery.ridge == 0.01
    assert "search" not in report and "kind" not in report["drift"]["logits"]
    assert report["budget"] is None and report["totals"] == {**report["totals"]}
    assert json.loads(to_json(report)).keys() == report.keys()
    with pytest.raises(TypeError):
        report["seconds"] = 0.0
    with pytest.raises(FrozenInstanceError):
        report.seconds = 0.0


def test_json_is_plain(tmp_path):
    report = {"a": [1, (2.5, math.inf)], "b": {"c": math.nan, "d": None}, "e": "\u00e9"}
    assert json.loads(to_json(report)) == {
        "a": [1, [2.5, None]],
        "b": {"c": None, "d": None},
        "e": "\u00e9",
    }
    with pytest.raises(PruneError, match="the folder does not exist"):
        write_text(tmp_path / "absent" / "r.json", to_json(report))
    write_text(tmp_path / "r.json", to_json({"model": "\udcff.onnx"}))
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"model": "\udcff.onnx"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (amount(0), "0"),
        (amount(999), "999"),
        (amount(999.6), "1.00 k"),
        (amount(12345), "12.3 k"),
        (amount(999_999), "1.00 M"),
        (amount(1_234_567), "1.23 M"),
        (size(512), "512 B"),
        (size(3_400_000), "3.40 MB"),
        (duration(0.0123), "0.0123 ms"),
        (duration(12.34), "12.3 ms"),
        (duration(1234), "1.23 s"),
        (percent(0), "0 %"),
        (percent(0.00001), "under 0.01 %"),
        (percent(0.0213), "2.1 %"),
        (percent(0.5), "50 %"),
        (percent(0.9999), "over 99.9 %"),
        (percent(1), "100 %"),
        (percent(12), "1200 %"),
        (percent(None), "unknown"),
        (faster(1.0), "equally fast (1.00x)"),
        (faster(3.14), "3.1x faster"),
        (faster(1.03), "1.03x faster"),
        (faster(0.5), "2.0x slower"),
        (faster(12.34), "12x faster"),
        (faster(3.14, (3.0, 3.3)), "3.1x faster"),
        (faster(3.14, (2.5, 3.9)), "3.1x faster (2.5x to 3.9x)"),
        (faster(0.5, (0.4, 0.6)), "2.0x slower (1.7x to 2.5x)"),
        (faster(1.4, (0.9, 2.0)), "not measurably faster (1.40x)"),
        (faster(0.8, (0.7, 1.1)), "not measurably faster (0.80x)"),
        (faster(1.01, (0.7, 1.3)), "equally fast (1.01x)"),
        (times(2.5, (2.4, 2.6)), "2.50x"),
        (times(2.5, (2.0, 3.0)), "2.50x (2.00x to 3.00x)"),
        (times(1.05, (0.99, 1.1)), "1.05x (0.99x to 1.10x)"),
        (fewer(100, 33), "67 % less"),
        (fewer(100, 103), "3.0 % more"),
        (fewer(0, 0), "the same"),
    ],
)
def test_numbers(text, expected):
    assert text == expected


def test_progress_is_silent_where_there_is_no_terminal():
    console = Console(file=io.StringIO())
    with ProgressBars(console) as progress:
        progress("runs [of] feeds", 1, 3)
        progress("runs [of] feeds", 3, 3)
        progress("other", 1, None)
    assert console.file.getvalue() == ""


def test_progress_shows_tasks_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ProgressBars(console) as progress:
        progress("runs [of] feeds", 1, 3)
        progress("runs [of] feeds", 2, 3)
    assert "runs [of] feeds" in console.file.getvalue()
    assert "2/3" in console.file.getvalue()


IF = "If_0_{0}_branch__Inline_0__/decoder"
SILERO = [f"{IF.format(a)}/rnn{n}/LSTM" for a in ("else", "then") for n in ("", "_1")]
KERAS = [
    f"StatefulPartitionedCall/functional_1/block_{n}/{d}_lstm/PartitionedCall/LSTM__{n}"
    for n in range(2)
    for d in ("forward", "backward")
]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/gru/GRU", "x" * 80], ["/gru/GRU", "x" * 80]),
        (
            SILERO,
            [
                "If_0_else…/rnn/LSTM",
                "If_0_else…/rnn_1/LSTM",
                "If_0_then…/rnn/LSTM",
                "If_0_then…/rnn_1/LSTM",
            ],
        ),
        (
            KERAS,
            [
                "…/forward…/LSTM__0",
                "…/backward…/LSTM__0",
                "…/forward…/LSTM__1",
                "…/backward…/LSTM__1",
            ],
        ),
        (
            [f"/attn_layers.{n}/ccm/gru{m}/gru/GRU" for n in (0, 1) for m in (1, 2)],
            [f"/attn_layers.{n}…/gru{m}/gru/GRU" for n in (0, 1) for m in (1, 2)],
        ),
        (
            [f"model_bidirectional_lstm_encoder_block_{n}_forward_lstm_cell" for n in (1, 2)],
            [f"…_block_{n}_forward_lstm_cell" for n in (1, 2)],
        ),
        (["/a/b/" + "long_" * 9 + "/LSTM", "LSTM"], ["…/LSTM", "LSTM"]),
    ],
)
def test_long_names_are_cut_to_what_tells_them_apart(names, expected):
    assert list(short_names(names).values()) == expected


def silero():
    """What inspect finds in a model whose layers have long names."""
    report, layers = inspected(), []
    for name in SILERO:
        at = f"{name.removesuffix('LSTM')}Squeeze_1_output_0"
        reason = f"is read in a branch ({name.removesuffix('LSTM')}Shape_2)"
        outlets = [OutletRow("Y_h", "restored", at, reason)]
        layers.append(replace(report.layers[0], name=name, outlets=outlets))
    return replace(report, layers=layers, warnings=[f"{layers[0].name} is left alone"])


def lines(renderable, width=80):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    return console.file.getvalue().splitlines()


def test_tables_of_long_names_stay_readable_at_80_columns():
    found = lines(inspect_table(silero()))
    rows = [line.split()[0] for line in found if " LSTM " in line or " GRU " in line]
    assert rows == [
        "If_0_else…/rnn/LSTM",
        "If_0_else…/rnn_1/LSTM",
        "If_0_then…/rnn/LSTM",
        "If_0_then…/rnn_1/LSTM",
    ]
    assert len(found) < 60 and max(map(len, found)) <= 80
    text = " ".join(" ".join(found).split())
    assert "…/Squeeze_1_output_0" in text and "…/rnn/Shape_2" in text
    assert "Warning: If_0_else…/rnn/LSTM is left alone" in text
    assert "Layer names: shortened here;" in text


def test_short_words_stay_whole_at_80_columns():
    """Columns move together before a word breaks."""
    report = inspected()
    same = {"op": "LSTM", "params": 198_000, "time_ms": 0.0123, "share_of_time": 0.077}
    layers = [replace(row, name=f"lstm_{n}", **same) for n, row in enumerate(report.layers)]
    found = lines(inspect_table(replace(report, layers=layers)))
    assert sum(f"lstm_{n}" in line and "LSTM" in line for n in range(3) for line in found) == 3
    assert max(map(len, found)) <= 80


def test_states_that_come_back_are_not_what_counts():
    state = replace(pruned().drift["logits"], nrmse=0.8, kind="state")
    report = put(pruned(), state, "drift", "hn")
    text = prune_summary(report)
    assert "deviate from the original's by 2.1 %" in text and "| hn | 80 % |" in text
    assert "Output hn, a state: deviates 80 %" in shown(prune_table(report))
    assert "by 80 %" in prune_summary(replace(report, drift={"hn": state}))


def test_all_renderers_shorten_names_and_json_does_not():
    report = pruned()
    for number, name in enumerate(SILERO[:2]):
        layer = replace(report.layers[number], name=name, scope="")
        report = put(report, layer, "layers", number)
    short = "…/decoder/rnn_1/LSTM"
    assert short in shown(prune_table(report), width=200)
    assert short.replace("_", "\\_") in prune_summary(report)
    page = to_html(report)
    assert f'<span title="{SILERO[1]}">{short}</span>' in page
    assert SILERO[1] in to_json(report) and short not in to_json(report)


def test_names_break_where_their_parts_do():
    cell = Cell("Y: read in …/forward_lstm…/LSTM__12, /fc/MatMul\nY_h: not used")
    expected = ["Y: read in", "…/forward_lstm…", "/LSTM__12,", "/fc/MatMul", "Y_h: not used"]
    assert lines(cell, width=16) == expected
    expected = ["Y: read in", "…/forward", "_lstm…", "/LSTM__12,", "/fc/MatMul", "Y_h: not", "used"]
    assert lines(cell, width=10) == expected


def test_a_missed_limit_is_said_in_every_report():
    report = put(whole(), False, "search", "met")
    report = put(report, [Limit("bytes", 1e6, 1.3e6, False)], "search", "limits")
    text = "file size 1.30 MB, at most 1.00 MB: MISSED"
    assert f"Limit: {text}" in shown(search_table(report), width=200)
    for page in (to_html(report), prune_summary(report)):
        assert f"It does NOT meet the limits: {text}." in page
    assert "NOT meet" not in to_html(whole())


def test_what_a_self_check_did_not_check_is_named():
    (text,) = [text for label, text in wording.sentences(whole()) if label == "Self-check"]
    assert text.endswith("passed; checked before int8")


def test_other_layers_are_named_where_they_take_much_of_the_result():
    for share, named in ((0.05, False), (0.46, True)):
        lines = dict(wording.sentences(replace(pruned(), share_of_others=share)))
        assert ("Not pruned" in lines) == named
    assert "take 46 % of the result's run time; layers='all' prunes" in lines["Not pruned"]
