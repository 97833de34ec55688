"""Outputs whose own numbers say little: indices, what is drawn, what has a length of its own."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_rnn_prune import PruneError, compare, prune, search, sensitivity
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.trace.judged import DRAWN, INDEX, LENGTH, find_judged

WIDTH, HIDDEN, CLASSES = 4, 16, 5
ENDS = {
    "index": "out = ArgMax <axis = 1> (logits)",
    "drawn": "out = Multinomial <dtype = 7, sample_size = 1> (logits)",
    # As speech: durations are rounded, and so many frames put out.
    "length": """durations = Relu (logits) frames = Round (durations)
        all = ReduceSum <keepdims = 0> (frames) count = Cast <to = 7> (all)
        zero = Constant <value_int = 0> () one = Constant <value_int = 1> ()
        steps = Range (zero, count, one) out = Cast <to = 1> (steps)""",
}


def model(end, outputs="out", opset=18):
    """A GRU and a linear layer over its last state, with what is said behind the scores."""
    ports = ", ".join(f"float[n] {name}" for name in outputs.split())
    proto = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : {opset}, "ai.onnx.ml" : 3]>
        g (float[t, b, {WIDTH}] x) => ({ports}) <int64[1] first = {{0}}> {{
            y, last = GRU <hidden_size = {HIDDEN}> (x, W, R, B)
            h = Squeeze (last, first) logits = Gemm (h, V, c) {end}
        }}
    """)
    for port in proto.graph.output:
        port.ClearField("type")
    rng = np.random.default_rng(0)
    shapes = {
        "W": (1, 3 * HIDDEN, WIDTH), "R": (1, 3 * HIDDEN, HIDDEN), "B": (1, 6 * HIDDEN),
        "V": (HIDDEN, CLASSES), "c": (CLASSES,),
    }  # fmt: skip
    for name, shape in shapes.items():
        value = rng.normal(0, 0.6, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return proto


def feeds(count=12, batch=20):
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(6, batch, WIDTH)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("end", ENDS)
def test_recovery_is_chosen_by_signals(end):
    result = prune(model(ENDS[end]), keep=8, data=feeds())
    report, drift = result.report, result.report["drift"]
    assert report["recovery"]["used"] == "lstsq"
    signal = "durations" if end == "length" else "logits"
    assert drift[signal]["signal_of"] == ["out"] and drift[signal]["nrmse"] > 0
    assert report["oracle"]["passed"]
    if end == "drawn":
        assert "out" not in drift
        assert any(
            "'out' is drawn at random; compared instead: 'logits'" in note
            for note in report["warnings"]
        )
    else:
        assert drift["out"]["kind"] == end
    assert (drift.get("out", {}).get("unequal", 0) > 0) is (end == "length")


@pytest.mark.parametrize("end", ENDS)
def test_limits_hold_of_signals(end):
    result = search(model(ENDS[end]), data=feeds(15), max_nrmse=0.9, trials=6)
    assert result.report["search"]["met"]
    signals = [row for row in result.report["drift"].values() if "signal_of" in row]
    assert len(signals) == 1


@pytest.mark.parametrize("end", ENDS)
def test_compare_judges_by_signals(end):
    proto, data = model(ENDS[end]), feeds()
    smaller = prune(proto, keep=8, data=data).model
    signal = "durations" if end == "length" else "logits"
    found = compare(proto, smaller, data=data, max_nrmse=0.9)
    error = found["drift"][signal]["nrmse"]
    assert found["passed"] and 0 < error < 0.9
    assert not compare(proto, smaller, data=data, max_nrmse=0.99 * error)["passed"]
    assert compare(proto, proto, data=data, max_nrmse=0)["passed"]


def test_curves_are_of_signals():
    by_index, by_scores = (
        sensitivity(model(end, output), data=feeds())["layers"][0]
        for end, output in ((ENDS["index"], "out"), ("", "logits"))
    )
    found = [[point["nrmse"] for point in row["points"]] for row in (by_index, by_scores)]
    assert found[0] == pytest.approx(found[1])


KINDS = {
    "o, i = TopK <axis = 1> (logits, first) out = Cast <to = 1> (i)": (INDEX, {"logits"}),
    "p = Softmax (logits) i = ArgMin (p) out = Cast <to = 1> (i)": (INDEX, {"p"}),
    "i = ArgMax (logits) out = Gather (first, i)": (INDEX, {"logits"}),
    "i = ArgMax (logits) out = ai.onnx.ml.LabelEncoder"
    ' <keys_int64s = [0, 1], values_strings = ["a", "b"]> (i)': (INDEX, {"logits"}),
    "out = Greater (logits, c)": (INDEX, {"logits"}),
    "i, out = TopK (logits, first)": (INDEX, {"logits"}),
    "out, i = TopK (logits, first)": None,
    "i = ArgMax <axis = 1> (logits) e = Gather (V, i) out = MatMul (e, c)": None,
    "out = Bernoulli (logits)": (DRAWN, {"logits"}),
    "s = Exp (logits) e = RandomNormalLike (s) n = Mul (e, s) out = Add (n, logits)": (
        DRAWN,
        {"s", "logits"},
    ),
    "t = Constant <value = bool {1}> () r = Constant <value = float {0.5}> ()"
    " out = Dropout (logits, r, t)": (DRAWN, {"logits"}),
    "out = Dropout (logits)": None,
    "out = NonZero (logits)": (LENGTH, {"logits"}),
    "m = Greater (logits, c) out = Compress (logits, m)": (LENGTH, {"logits", "m"}),
    "s = Shape (logits) out = Reshape (logits, s)": None,
    "s = Shape (logits) z = ConstantOfShape (s) out = Add (logits, z)": None,
}


@pytest.mark.parametrize("end", KINDS)
def test_kinds(end):
    judged = find_judged(Document.read(model(end)))
    found = {name: (kind, set(judged.signals[name])) for name, kind in judged.kinds.items()}
    assert found == ({} if KINDS[end] is None else {"out": KINDS[end]})


def test_loops_that_end_by_values():
    body = """last, out = Loop (, go, h) < body = turn (int64 i, bool on, float[b, 16] s)
        => (bool more, float[b, 16] s1, float v) {
            s1 = Mul (s, s) v = ReduceMax <keepdims = 0> (s1) more = Greater (v, least)
        } >"""
    constants = "go = Constant <value = bool {1}> () least = Constant <value_float = 0.1> ()"
    judged = find_judged(Document.read(model(f"{constants} {body}")))
    assert judged.kinds == {"out": LENGTH}
    counted = body.replace("(, go,", "(five, go,").replace("Greater (v, least)", "Identity (on)")
    constants += " five = Constant <value_int = 5> ()"
    assert find_judged(Document.read(model(f"{constants} {counted}"))).kinds == {}


def test_noise_in_front_of_all_layers_is_refused():
    proto = model("out = Identity (logits)")
    noise = onnx.helper.make_node("RandomNormalLike", ["x"], ["noise"])
    noisy = onnx.helper.make_node("Add", ["x", "noise"], ["noisy"])
    for node in (noisy, noise):
        proto.graph.node.insert(0, node)
    proto.graph.node[2].input[0] = "noisy"
    with pytest.raises(PruneError, match="random.*make the noise an input"):
        prune(proto, keep=4, data=feeds())


def test_a_recovery_that_is_asked_for_is_obeyed():
    """Where one feed of one step tells nothing, least squares may well do worse."""
    data = feeds(3, batch=1)
    for recover in ("lstsq", "bias"):
        result = prune(model(ENDS["index"]), keep=2, data=data, recover=recover)
        assert result.report["recovery"]["used"] == recover


def test_equal_errors_are_not_called_worse():
    """Indices that no cut changes: all recoveries do equally well, and the fullest is taken."""
    proto = model("big = Constant <value = float[5] {1e6, 0, 0, 0, 0}> () s = Add (logits, big)"
                  " out = ArgMax (s)")  # fmt: skip
    recovery = prune(proto, keep=4, data=feeds()).report["recovery"]
    assert recovery["used"] in ("none", "lstsq")
    assert "worse" not in recovery["reason"]


def test_a_metric_that_runs_the_model_sees_what_is_drawn():
    def distinct(pairs, run):
        found = [run(feed) for feed, _ in pairs]
        assert all(set(outputs) == {"out", "h"} for outputs in found)
        return float(len({int(outputs["out"].ravel()[0]) for outputs in found}))

    found = sensitivity(model(ENDS["drawn"], "out h"), data=feeds(), metric=distinct)
    assert found["layers"][0]["points"][-1]["metric"] >= 1.0


def test_processes_judge_by_the_same_signals():
    def qualities(jobs):
        found = search(model(ENDS["index"]), data=feeds(), params="80%", trials=3, jobs=jobs)
        return [row["quality"] for row in found.report["search"]["candidates"]]

    assert qualities(1) == qualities(2)


@pytest.mark.parametrize(
    "classes", ['strings = ["a", "b", "c", "d", "e"]', "int64s = [2, 3, 5, 7, 9]"]
)
def test_maps_of_classifiers_are_judged_by_their_numbers(classes):
    """As scikit-learn's converter ends classifiers: a sequence of maps from class to chance."""
    proto = model(
        f"""chances = Softmax <axis = 1> (logits) label = ArgMax <axis = 1> (chances)
            out = ai.onnx.ml.ZipMap <classlabels_{classes}> (chances)""",
        "out label",
    )
    result = prune(proto, keep=8, data=feeds())
    assert result.report["recovery"]["used"] == "lstsq" and result.report["oracle"]["passed"]
    assert 0 < result.report["drift"]["out"]["nrmse"] < 0.9
    assert compare(proto, result.model, data=feeds())["drift"]["out"]["nrmse"] > 0
    assert search(proto, data=feeds(15), max_nrmse=0.9, trials=6).report["search"]["met"]
