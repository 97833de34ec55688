"""What Python callers give and get that the command line has no say in."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_rnn_prune import apply, bench, compare, inspect, plan, prune, roll, search
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.trace.plan import LayerPlan, Plan


def lookup(output="float[t, 1, b, 2] y", last="y = MatMul (Y, head)"):
    """An embedding of 5 tokens, read by a layer of 4 units, and these by a head."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[t, b] tokens) => ({output}) {{
            x = Gather (table, tokens)
            Y = GRU <hidden_size = 4> (x, W, R)
            {last}
        }}
    """)
    sizes = {"table": (5, 3), "W": (1, 12, 3), "R": (1, 12, 4), "head": (4, 2)}
    for name, shape in sizes.items():
        values = np.random.default_rng(0).normal(size=shape)
        tensor = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, values.ravel())
        model.graph.initializer.append(tensor)
    return model


def test_a_feed_that_does_not_run_is_named(tmp_path):
    for number in range(6):
        tokens = np.full((3, 2), 7 if number == 4 else number % 5)
        np.savez(tmp_path / f"{number}.npz", tokens=tokens)
    message = r"onnxruntime cannot run it on .*4\.npz \(tokens \[3, 2\]\): .*out of data bounds"
    with pytest.raises(PruneError, match=message):
        prune(lookup(), data=tmp_path)


def test_made_up_inputs_do_not_hide_why_nothing_runs():
    last = "shape = Constant <value = int64[2] {-1, 999983}> () rows = Reshape (Y, shape)"
    with pytest.raises(PruneError, match="cannot be reshaped"):
        prune(lookup("float[n, 5] rows", last))


@pytest.fixture
def reader():
    """A calibration reader as those who quantize have one: it runs only once."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Tokens(quantization.CalibrationDataReader):
        def __init__(self):
            rng = np.random.default_rng(0)
            self.feeds = iter([{"tokens": rng.integers(0, 5, (6, 3))} for _ in range(10)])

        def get_next(self):
            return next(self.feeds, None)

    return Tokens()


def test_a_calibration_reader_is_data(reader):
    report = prune(lookup(), data=reader).report
    assert report["data"]["feeds"] == 10 and not report["data"]["random"]
    assert report["recovery"]["used"] != "none"
    assert report["layers"][0]["hidden_after"] == 2 and report["oracle"]["passed"]


def test_a_search_takes_a_calibration_reader(reader):
    report = search(lookup(), data=reader, params="90%", align=2).report
    assert report["search"]["splits"] == {
        "calibration": 5, "validation": 3, "test": 2, "shared": ""
    }  # fmt: skip
    assert report["oracle"]["passed"]


WRONG = {
    "seed": ([-1, 0.5, "0", None, True], "seed=: "),
    "align": ([0, 1.5, "8", None, True], "align=: "),
    "min_units": ([0, 2.0, "1", None], "min_units=: "),
    "criterion": (["best", ["l2"], 3, b"l2"], "criterion=: unknown criterion "),
    "allocate": (["best", None, ["uniform"]], "allocate=: unknown value "),
    "keep": ([[[0.5]], [], ["=3"], ["x*=40%"], b"50%", 0], "keep=: "),
    "budget": ([0.5, ["params=50%"], b""], "budget=: "),
    "only": ([3, [3], None], "only=: "),
    "skip": ([3, [None]], "skip=: "),
    "progress": ([None, "bar"], "progress: "),
    "data": ([5, b"clips", 1.5, np.ones(3), "", [5], [b"x"]], ""),
}


@pytest.mark.parametrize("function", [plan, prune])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [(name, value, message) for name, (values, message) in WRONG.items() for value in values],
    ids=repr,
)
def test_arguments_of_a_wrong_type_are_named(function, name, value, message):
    with pytest.raises(PruneError) as caught:
        function(lookup(), **{name: value})
    assert str(caught.value).startswith(message)
    assert caught.value.remedy


@pytest.mark.parametrize("source", [None, 3, b"model.onnx", ["model.onnx"]])
def test_what_is_no_model_is_an_error(source):
    calls = (inspect, prune, plan, lambda m: apply(m, "plan.json"), lambda m: compare(m, m))
    for call in (*calls, lambda m: bench([m])):
        with pytest.raises(PruneError, match="; (give|check)"):
            call(source)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: prune(m, mode=None), "mode=: unknown value None; choose one of shrink, zero"),
        (lambda m: prune(m, recover=["lstsq"]), r"recover=: unknown value \['lstsq'\]"),
        (lambda m: prune(m, recover=""), "recover=: unknown value ''; choose one of none, bias"),
        (lambda m: prune(m, eval_data=5), "data: unsupported data type int"),
        (lambda m: apply(m, 5), "plan: int is not a plan; give a Plan or a path"),
        (lambda m: apply(m, plan(m), mode=3), "mode=: unknown value 3"),
        (lambda m: apply(m, plan(m), recover=3), "recover=: unknown value 3"),
        (lambda m: apply(m, plan(m), seed=-3), "seed=: -3 is not a whole number of 0 or more"),
        (lambda m: compare(m, m, max_nrmse="x"), "max_nrmse=: 'x' is not a number of 0 or more"),
        (lambda m: compare(m, m, max_nrmse=float("nan")), "max_nrmse=: nan is not a number"),
        (lambda m: compare(m, m, seed="x"), "seed=: 'x' is not a whole number"),
        (
            lambda m: bench("model.onnx"),
            "bench: there are no models to time; give a list of models",
        ),
        (lambda m: bench(m), "bench: there are no models to time; give a list of models"),
        (lambda m: bench([m], threads=0), "threads=: 0 is not a whole number of 1 or more"),
        (lambda m: bench([m], threads=100_000), "100000 threads are too many for this machine"),
        (lambda m: search(m, data=[], params=0.5, jobs=100_000), "100000 jobs are too many"),
        (
            lambda m: search(m, data=[], params=0.5, study=3),
            "study=: 3 is not a path; give a file name",
        ),
        (lambda m: search(m, data=[], params=0.5, study=""), "study=: '' is not a path"),
        (lambda m: prune(m, data="n" * 300), "n: there is no such file or folder"),
        (lambda m: prune(m, eval_data="\0"), r"\\x00: there is no such file or folder"),
        (lambda m: apply(m, "n" * 300), "n: cannot be read"),
        (lambda m: prune("n" * 300), "n: there is no such file"),
        (lambda m: compare(m, "\0"), r"\\x00: there is no such file"),
        (lambda m: prune(m, rank=np.ones(2)), "rank=: "),
        (lambda m: prune(m, sparsify=np.ones(2)), "sparsify=: "),
        (lambda m: prune(m, quantize=np.ones(2)), "quantize=: "),
        (lambda m: prune(m, keep=np.ones(2)), "keep=: "),
        (lambda m: prune(m, steps=2**31), "steps=: 2147483648 steps are too many"),
        (lambda m: prune(m).save(3), "int is not a path; give a file name"),
    ],
)
def test_other_arguments_of_a_wrong_type(call, message):
    with pytest.raises(PruneError, match=message):
        call(lookup())


def test_numbers_of_numpy_are_taken():
    result = prune(lookup(), keep=np.int64(2), align=np.int32(1), seed=np.uint8(3))
    assert repr(result).startswith("<PruneResult: The pruned model is ")
    assert result.report["layers"][0]["hidden_after"] == 2


@pytest.mark.parametrize("mode", ["shrink", "zero"])
def test_defaults_that_do_not_fit_any_more_are_named(mode):
    model = lookup()
    for name, shape in (("W", (1, 12, 3)), ("R", (1, 12, 4)), ("table", (5, 3))):
        listed = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        model.graph.input.append(listed)
    result = prune(model, keep=2, mode=mode)
    about = [text for text in result.report["warnings"] if "default value" in text]
    assert [text.split("'")[1] for text in about] == ["W", "R"]
    rows = 6 if mode == "shrink" else 12
    dims = [dim.dim_value for dim in result.model.graph.input[1].type.tensor_type.shape.dim]
    assert dims == [1, rows, 3]
    assert not any("default value" in text for text in prune(model, keep=4).report["warnings"])
    model.ir_version = 3
    assert not any("default value" in text for text in prune(model, keep=2).report["warnings"])


def test_a_default_that_is_read_no_more_is_named():
    model = lookup()
    listed = onnx.helper.make_tensor_value_info("table", onnx.TensorProto.FLOAT, (1, 12, 4))
    listed.name = "V"
    model.graph.input.append(listed)
    model.graph.initializer[2].name = "V"
    model.graph.node.insert(0, onnx.helper.make_node("Identity", ["V"], ["R"]))
    warnings = prune(model, keep=2).report["warnings"]
    assert any("'V' was pruned" in text for text in warnings)


@pytest.mark.parametrize("bounds", [{"align": 16}, {"min_units": 4}, {"align": 3, "min_units": 4}])
def test_layers_that_bounds_leave_whole_are_named(bounds, tmp_path, capsys):
    """In reports, in plans, and on the command line."""
    onnx.save(lookup(), tmp_path / "m.onnx")
    (text,) = plan(lookup(), keep=2, **bounds).notes
    assert text.startswith("Y keeps all units: align=") and str(max(bounds.values())) in text
    assert text in prune(lookup(), keep=2, **bounds).report["warnings"]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in bounds.items()]
    assert run(["plan", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "p.json"), *options]) == 0
    assert f"Warning: {text.for_shell}" in " ".join(capsys.readouterr().out.split())
    assert plan(lookup(), keep=2, align=2, min_units=2).notes == ()


def test_more_units_than_a_layer_has_are_noted():
    assert plan(lookup(), keep=4).notes == ()
    assert plan(lookup(), keep=5).notes == ("Y keeps all units: it has fewer than 5",)


def test_a_small_layer_whose_states_cost_more_than_it_saves_is_left_alone():
    """Unless a plan says that it is to be cut, or so few units stay that it pays."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[t, b, 3] x, float[1, b, {0}] h) => (float[t, 1, b, {0}] Y, float[1, b, {0}] n) {{
            [rnn] Y, n = GRU <hidden_size = {0}> (x, W, R, , , h)
        }}
    """

    def streaming(hidden):
        model = onnx.parser.parse_model(text.format(hidden))
        for name, width in (("W", 3), ("R", hidden)):
            values = np.random.default_rng(0).normal(size=(1, 3 * hidden, width))
            tensor = onnx.numpy_helper.from_array(values.astype(np.float32), name)
            model.graph.initializer.append(tensor)
        return model

    small = streaming(4)
    found = prune(small, keep=2)
    (layer,) = found.report["layers"]
    assert "full width" in layer["pinned"] and layer["hidden_after"] == 4
    assert found.report["totals"]["bytes_after"] == small.ByteSize()
    assert not any(layer["pinned"] in text for text in found.report["warnings"])
    assert inspect(small)["layers"][0]["pinned"] == layer["pinned"]
    wanted = Plan(found.plan.model, {"rnn": LayerPlan(4, ((0, 3),))})
    (layer,) = apply(small, wanted).report["layers"]
    assert (layer["hidden_after"], layer["pinned"]) == (2, None)
    large = streaming(48)
    (layer,) = prune(large, keep=0.5).report["layers"]
    assert (layer["hidden_after"], layer["pinned"]) == (24, None)
    assert inspect(large)["layers"][0]["pinned"] is None


def test_what_is_not_used_is_not_collected():
    feeds = [{"tokens": np.array([[0, 1], [2, 3]])}] * 4
    heard = []

    def listen(stage, done, total):
        heard.append(stage)

    chosen = prune(lookup(), keep=2, data=feeds, criterion="l2", recover="none", progress=listen)
    apply(lookup(), chosen.plan, data=feeds, recover="none", progress=listen)
    assert not any(stage == "calibrating" for stage in heard), heard
    assert chosen.report["recovery"]["reason"] == "requested"
    prune(lookup(), keep=2, data=feeds, progress=listen)
    assert any(stage == "calibrating" for stage in heard), heard


def test_models_that_take_other_inputs_are_named_before_they_run():
    other = lookup()
    other.graph.input[0].name = other.graph.node[0].input[1] = "words"
    wide = lookup()
    wide.graph.input[0].type.tensor_type.shape.dim.add()
    for model, taken in ((other, "no such input"), (wide, r"tokens: int64\[t, b\]")):
        for call in (compare, lambda a, b: bench([a, b])):
            message = rf"model (B|2): it takes .*, but model (A|1) takes {taken}; give .* freeze="
            with pytest.raises(PruneError, match=message):
                call(lookup(), model)


def test_roll_refuses_a_node_that_cannot_run_as_other_commands_do():
    path = Path(__file__).with_name("fixtures") / "dynamo_lstm_proj.onnx"
    for call in (roll, prune):
        with pytest.raises(
            PruneError, match="no runtime can compute the LSTM .*; no ONNX node has"
        ):
            call(path)
