"""What each layer can spare: measured on planted truths, shown, drawn and remembered."""

import json
import sys

import numpy as np
import onnx
import pytest

import onnx_rnn_prune
from onnx_rnn_prune import PruneError
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.report.inspection import sensitivity_table
from onnx_rnn_prune.report.pictures import sensitivity_png
from onnx_rnn_prune.report.schema import Curve, Point, SensitivityReport, Splits
from onnx_rnn_prune.search import problem

HIDDEN, NEEDED = 16, 4


def call(*arguments):
    return run([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model():
    """Two GRU layers side by side; nobody reads most units of the one named spare."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[time, batch, 4] x) => (float[time, batch, 3] logits) {{
            Y1 = GRU <hidden_size = {HIDDEN}> (x, W1, R1)
            Y2 = GRU <hidden_size = {HIDDEN}> (x, W2, R2)
            one = Squeeze(Y1, axis)
            two = Squeeze(Y2, axis)
            a = MatMul(one, fc1)
            b = MatMul(two, fc2)
            logits = Add(a, b)
        }}
    """)
    weights = {}
    for number in (1, 2):
        weights[f"W{number}"] = rng.normal(size=(1, 3 * HIDDEN, 4))
        weights[f"R{number}"] = rng.normal(size=(1, 3 * HIDDEN, HIDDEN)) / 4
        weights[f"fc{number}"] = rng.normal(size=(HIDDEN, 3))
    weights["R1"][:, :, NEEDED:] = 0
    weights["fc1"][NEEDED:] = 0
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    for node, name in zip(proto.graph.node, ("spare", "needed"), strict=False):
        node.name = name
    return proto


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(20, 4, 4)).astype(np.float32)} for _ in range(10)]


@pytest.fixture(scope="module")
def found(model, feeds):
    return onnx_rnn_prune.sensitivity(model, data=feeds, metric="agreement")


def labelled(feeds):
    return [{**feed, "labels": np.zeros(feed["x"].shape[:2], np.int64)} for feed in feeds]


def test_the_layer_with_units_to_spare_shows(found):
    errors = {
        row["layers"][0]: {point["kept"]: point["nrmse"] for point in row["points"]}
        for row in found["layers"]
    }
    assert errors["spare"][NEEDED] < 1e-4 < 0.05 < errors["spare"][NEEDED // 2]
    assert errors["needed"][NEEDED] > 0.05
    assert errors["needed"][2] > errors["needed"][12] > 0


def test_curves_rise_to_the_whole_layer(found):
    assert found["metric"] == "agreement"
    for row in found["layers"]:
        kept, error, metric, ms = (
            [point[key] for point in row["points"]] for key in ("kept", "nrmse", "metric", "ms")
        )
        assert kept == sorted(set(kept)) and kept[-1] == row["units"] == HIDDEN
        assert error[-1] == 0 and metric[-1] == 1 and max(metric[:-1]) <= 1
        assert all(value > 0 for value in ms)
    assert found["splits"] == {"calibration": 5, "validation": 3, "test": 2, "shared": ""}
    assert found["warnings"] == [] and found["seconds"] > 0


def test_the_metric_is_that_of_held_out_labels(model, feeds):
    right = onnx_rnn_prune.sensitivity(
        model, data=labelled(feeds), metric="accuracy", only="needed"
    )
    (row,) = right["layers"]
    assert row["layers"] == ["needed"]
    assert 0 < row["points"][-1]["metric"] < 1


def test_a_function_is_a_metric(model, feeds):
    def share(pairs):
        return float(np.mean([outputs["logits"].mean() for _, outputs in pairs]))

    assert onnx_rnn_prune.sensitivity(model, data=feeds, metric=share)["metric"] == "share"


def test_search_measures_the_same_and_each_uses_what_the_other_remembers(
    model, feeds, tmp_path, monkeypatch
):
    study = tmp_path / "study.db"
    alone = onnx_rnn_prune.sensitivity(model, data=feeds, study=study)
    tried = []
    judged = problem.judged
    monkeypatch.setattr(problem, "judged", lambda *asked: tried.append(asked[-1]) or judged(*asked))
    searched = onnx_rnn_prune.search(
        model, data=feeds, max_nrmse=0.3, layers="recurrent", study=study
    ).report
    rows = searched["sensitivity"]
    assert rows["metric"] is None and rows["splits"] == alone["splits"]
    for row, own in zip(rows["layers"], alone["layers"], strict=True):
        assert row["layers"] == own["layers"]
        both = {point["kept"] for point in row["points"] if point in own["points"]}
        assert both >= {HIDDEN // 4, HIDDEN // 2, HIDDEN}
        known = {point["kept"] for point in own["points"]} - {HIDDEN}
        number = rows["layers"].index(row)
        full = [HIDDEN, HIDDEN]
        for count in known:
            cut = (*full[:number], count, *full[number + 1 :])
            assert not any(ask.counts == cut and ask.recovery == "quick" for ask in tried)


def test_a_layer_whose_output_is_brought_to_full_width():
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[time, batch, 4] x) => (float[time, 1, batch, 64] Y) {
            Y = GRU <hidden_size = 64> (x, W, R)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in {"W": (1, 192, 4), "R": (1, 192, 64)}.items():
        array = rng.normal(size=shape).astype(np.float32) / 4
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    feeds = [{"x": rng.normal(size=(20, 2, 4)).astype(np.float32)} for _ in range(6)]
    (row,) = onnx_rnn_prune.sensitivity(proto, data=feeds)["layers"]
    assert row["units"] == 64 and row["points"][0]["kept"] == 8
    assert row["points"][0]["ms"] < row["points"][-1]["ms"]


def test_where_no_layer_can_be_cut_there_is_nothing_to_tell(model, feeds):
    with pytest.raises(PruneError) as caught:
        onnx_rnn_prune.sensitivity(model, data=feeds, min_units=HIDDEN)
    assert str(caught.value) == (
        f"the model: no layer can be pruned; spare, needed: align=1 and min_units={HIDDEN} allow"
        " no fewer units; lower align= and min_units="
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "data=: sensitivity needs inputs; give some"),
        ({"metric": "accuracy"}, "metric='accuracy': the feeds have no labels"),
        ({"metric": "beauty"}, "metric=: unknown metric 'beauty'"),
        ({"better": "lower"}, "better=: it needs a metric"),
        ({"only": "absent"}, "no layer matches 'absent'"),
    ],
)
def test_what_is_wrong_is_said(options, message, model, feeds):
    with pytest.raises(PruneError) as error:
        onnx_rnn_prune.sensitivity(model, **{"data": feeds, **options})
    assert message in str(error.value)


@pytest.fixture
def folder(model, feeds, tmp_path, monkeypatch):
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "clips").mkdir()
    for number, feed in enumerate(feeds):
        np.savez(tmp_path / "clips" / f"{number}.npz", **feed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_prints_a_table_and_draws(folder, capsys):
    options = ("--data", "clips", "--metric", "agreement", "--png", "curves.png")
    assert call("sensitivity", "model.onnx", *options) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line[:2] == ["needed", str(HIDDEN)]]
    assert len(rows) == 2 and rows[1][-1] == "1" and rows[0][-2:] == ["0", "%"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_json(folder, capsys):
    assert call("sensitivity", "model.onnx", "--data", "clips", "--json", "--skip", "spare") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["layers"] for row in found["layers"]] == [["needed"]]
    assert found["layers"][0]["points"][0]["metric"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "clips", "--metric", "snr"), "--metric snr: the feeds have no labels"),
        (("--data", "clips", "--png", "model.onnx"), "this would overwrite an input"),
        (("--data", "clips", "--png", "absent/a.png"), "the folder does not exist"),
        (("--data", "clips", "--study", "model.onnx"), "cannot be used as a study"),
    ],
)
def test_errors_of_the_command_are_one_line(options, message, folder, capsys):
    assert call("sensitivity", "model.onnx", *options) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_without_matplotlib_nothing_is_begun(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert call("sensitivity", "model.onnx", "--data", "clips", "--png", "a.png") == 1
    assert "Error: --png: matplotlib is not installed; pip install" in capsys.readouterr().err
    assert call("sensitivity", "model.onnx", "--data", "clips") == 0


def report_of(count, metric=None, value=0.1):
    points = [Point(1, value, 2.0, 1.0), Point(4, value, 2.0, 1.0), Point(8, 0.0, 2.0, 1.0)]
    curves = [Curve([f"_{n}$x_1$"], 8, points) for n in range(count)]
    return SensitivityReport(metric, curves, Splits(3, 1, 1, ""), None, [], 1.0)


@pytest.mark.parametrize(
    ("count", "value", "metric"),
    [
        (0, 0.1, None),
        (30, 0.1, "$100"),
        (1, 1e-6, "kl"),
        (1, 1e9, None),
        (2, float("inf"), "kl"),
        (2, float("nan"), None),
        (1, None, None),
    ],
)
def test_anything_can_be_drawn(count, value, metric):
    report = report_of(count, metric, value)
    assert sensitivity_png(report).startswith(b"\x89PNG")
    assert sensitivity_table(report)
