"""Streaming models: states at full width as before, or with the entries of kept units only."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_rnn_prune import apply, bench, compare, inspect, plan, prune
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.validate.narrow_states import KEPT

HIDDEN = 12
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LSTM = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[t, b, 4] x, float[D, b, 12] h, float[D, b, 12] c)
        => (float[t, b, 3] y, float[D, b, 12] hn, float[D, b, 12] cn) {
        Y, hn, cn = LSTM <hidden_size = 12, direction = "DIRECTION"> (x, W, R, B, , h, c)
        turned = Transpose <perm = [0, 2, 1, 3]> (Y)
        flat = Reshape (turned, sizes)
        y = MatMul (flat, fc)
    }
"""
GRU = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[t, b, 4] x, float[b, 12] h) => (float[t, b, 3] y, float[b, 12] hn)
    <float[1, b, 12] first, float[1, b, 12] last> {
        first = Unsqueeze (h, axis0)
        Y, last = GRU <hidden_size = 12> (x, W, R, B, , first)
        hn = Squeeze (last, axis0)
        flat = Squeeze (Y, axis)
        y = MatMul (flat, fc)
    }
"""


def fill(text, op, directions=1, width=4):
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    rows = GATES[op] * HIDDEN
    shapes = {
        "W": (directions, rows, width),
        "R": (directions, rows, HIDDEN),
        "B": (directions, 2 * rows),
        "fc": (directions * HIDDEN, 3),
    }
    for name, shape in shapes.items():
        value = (0.4 * rng.normal(size=shape)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    for name, value in {"axis": [1], "axis0": [0], "sizes": [0, 0, directions * HIDDEN]}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return proto


def lstm(direction="forward"):
    directions = 2 if direction == "bidirectional" else 1
    text = LSTM.replace("DIRECTION", direction).replace("[D,", f"[{directions},")
    return fill(text, "LSTM", directions)


def feeds(names=("h", "c"), shape=(1, 2, HIDDEN)):
    rng = np.random.default_rng(1)
    made = []
    for _ in range(6):
        feed = {"x": rng.normal(size=(20, 2, 4)).astype(np.float32)}
        feed |= {name: rng.normal(0, 0.3, shape).astype(np.float32) for name in names}
        made.append(feed)
    return made


CASES = {
    "lstm": (lstm(), feeds(), {"h": "hn", "c": "cn"}),
    "reverse": (lstm("reverse"), feeds(), {"h": "hn", "c": "cn"}),
    "both": (lstm("bidirectional"), feeds(shape=(2, 2, HIDDEN)), {"h": "hn", "c": "cn"}),
    "gru": (fill(GRU, "GRU"), feeds(("h",), (2, HIDDEN)), {"h": "hn"}),
}


STACKED = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[t, b, 4] x, float[L, b, 12] h CIN) => (float[t, b, 3] y, float[L, b, 12] hn COUT) {
        h0, h1 = Split <axis = 0> (h)
        PARTS
        Y0, hn0 FINAL0 = OP <hidden_size = 12 DIRECTION> (x, W, R, B, , h0 START0)
        turned0 = Transpose <perm = [0, 2, 1, 3]> (Y0)
        flat0 = Reshape (turned0, sizes)
        Y1, hn1 FINAL1 = OP <hidden_size = 12 DIRECTION> (flat0, W1, R1, B1, , h1 START1)
        turned1 = Transpose <perm = [0, 2, 1, 3]> (Y1)
        flat1 = Reshape (turned1, sizes)
        hn = Concat <axis = 0> (hn0, hn1)
        JOINED
        y = MatMul (flat1, fc)
    }
"""
CELL_STATE = {
    "CIN": ", float[L, b, 12] c",
    "COUT": ", float[L, b, 12] cn",
    "PARTS": "c0 = Slice (c, from, to, axis0) c1 = Slice (c, to, end, axis0)",
    "JOINED": "cn = Concat <axis = 0> (cn0, cn1)",
    "FINAL0": ", cn0",
    "FINAL1": ", cn1",
    "START0": ", c0",
    "START1": ", c1",
}


def stacked(op, directions=1, text=STACKED):
    """Two layers, with the states of all directions of both in one tensor, as PyTorch has them."""
    for name, inserted in CELL_STATE.items():
        text = text.replace(name, inserted if op == "LSTM" else "")
    text = text.replace("OP", op).replace("[L,", f"[{2 * directions},")
    text = text.replace("DIRECTION", ', direction = "bidirectional"' if directions == 2 else "")
    proto = fill(text, op, directions)
    rng = np.random.default_rng(2)
    rows = GATES[op] * HIDDEN
    shapes = {"W1": (directions, rows, directions * HIDDEN), "R1": (directions, rows, HIDDEN)}
    for name, shape in {**shapes, "B1": (directions, 2 * rows)}.items():
        value = (0.4 * rng.normal(size=shape)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    for name, value in {"from": 0, "to": directions, "end": 2**31}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    return proto


def both(states, directions=1):
    return feeds(states, (2 * directions, 2, HIDDEN)), dict(zip(states, ("hn", "cn"), strict=False))


CASES |= {
    "stacked lstm": (stacked("LSTM"), *both(("h", "c"))),
    "stacked gru": (stacked("GRU"), *both(("h",))),
    "stacked lstm, both ways": (stacked("LSTM", 2), *both(("h", "c"), 2)),
    "stacked gru, both ways": (stacked("GRU", 2), *both(("h",), 2)),
}


def dims(model, name):
    ports = {port.name: port for port in (*model.graph.input, *model.graph.output)}
    return [d.dim_param or d.dim_value for d in ports[name].type.tensor_type.shape.dim]


def stream(model, x, states, width):
    """Chunk by chunk, as a caller does it who knows the width of the states only."""
    runner, outputs = Runner(model), []
    held = {n: np.zeros([*dims(model, n)[:-2], x.shape[1], width], np.float32) for n in states}
    for chunk in np.split(x, [3, 4, 11]):
        found = runner({"x": chunk, **held})
        held = {name: found[result] for name, result in states.items()}
        outputs.append(found["y"])
    return np.concatenate(outputs), held


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_states_hold_the_kept_units(case, data):
    model, clips, states = CASES[case]
    result = prune(model, keep=5, data=clips if data else None, shrink_states=True)
    small = result.model
    onnx.checker.check_model(small, full_check=True)
    for name in (*states, *states.values()):
        assert dims(small, name) == [*dims(model, name)[:-1], 5]
    assert [row["input"] for row in result.report["states"]] == list(states)
    ends = {row["end"] for layer in result.report["layers"] for row in layer["outlets"]}
    assert "narrow" in ends and "restored" not in ends
    assert result.report["totals"]["bytes_after"] == small.ByteSize()


@pytest.mark.parametrize("case", CASES)
def test_small_states_are_the_kept_entries_of_large_ones(case):
    model, clips, states = CASES[case]
    chosen = plan(model, keep=5)
    wide, slim = dict(clips[0]), dict(clips[0])
    rows = [units for layer in chosen.layers.values() for units in layer.keep]
    for name in states:
        lanes = wide[name] if wide[name].ndim == 3 else wide[name][None]
        kept = np.stack([lane[:, units] for lane, units in zip(lanes, rows, strict=True)])
        slim[name] = kept if wide[name].ndim == 3 else kept[0]
    small = apply(model, chosen, shrink_states=True)
    found = Runner(small.model)(slim)
    expected = Runner(apply(model, chosen).model)(wide)
    np.testing.assert_array_equal(found["y"], expected["y"])
    assert not any(node.name.startswith("onnx_rnn_prune/") for node in small.model.graph.node)


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("case", ["lstm", "gru", "stacked lstm", "stacked gru"])
def test_a_stream_in_chunks_is_the_stream_as_a_whole(case, shrink):
    """By default the code around the original serves; with small states only the width differs."""
    model, clips, states = CASES[case]
    result = prune(model, keep=5, data=clips, recover="none", shrink_states=shrink)
    width = 5 if shrink else HIDDEN
    x = clips[0]["x"]
    found, held = stream(result.model, x, states, width)
    zero = {n: np.zeros([*dims(model, n)[:-2], x.shape[1], width], np.float32) for n in states}
    whole = Runner(result.model)({"x": x, **zero})
    np.testing.assert_allclose(found, whole["y"], atol=1e-6)
    for name, value in held.items():
        np.testing.assert_allclose(value, whole[states[name]], atol=1e-6)
    other = prune(model, keep=5, data=clips, recover="none", shrink_states=not shrink)
    again, _ = stream(other.model, x, states, HIDDEN if shrink else 5)
    np.testing.assert_allclose(found, again, atol=1e-6)


def replaced(*changes):
    text = LSTM.replace("DIRECTION", "forward").replace("[D,", "[1,")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return fill(text, "LSTM")


ONE_STATE = (
    ("float[1, b, 12] h, float[1, b, 12] c", "float[2, b, 12] h"),
    ("        Y, hn", "        h0, c0 = Split <axis = 0> (h)\n        Y, hn"),
    (", h, c)", ", h0, c0)"),
)
STAY = {
    "shared by slices": (
        ONE_STATE,
        "initial_h stays at full width: the input 'h' and the output 'hn' do not hold",
    ),
    "read by others": (
        (("float[1, b, 12] cn)", "float[1, b, 12] cn, float[1, b, 12] z)"), ("}", "z = Neg (h) }")),
        "initial_h stays at full width: the input 'h' leaves the model as its output z",
    ),
    "not given back": (
        (("float[1, b, 12] hn, ", ""), ("Y, hn, cn", "Y, , cn")),
        "initial_h stays at full width: the model does not return it",
    ),
    "computed with": (
        (("Y, hn, cn", "Y, last, cn"), ("y = MatMul", "hn = Neg (last)\n        y = MatMul")),
        "initial_h stays at full width: its final value does not go directly",
    ),
    "given back twice": (
        (
            ("float[1, b, 12] cn)", "float[1, b, 12] cn, float[1, b, 12] z)"),
            ("}", "z = Identity (hn) }"),
        ),
        "initial_h stays at full width: two outputs of the model return its final value",
    ),
}


@pytest.mark.parametrize("case", STAY)
def test_states_that_stay_as_they_are(case):
    changes, reason = STAY[case]
    result = prune(replaced(*changes), keep=5, shrink_states=True)
    assert any(reason in text for text in result.report["warnings"])
    assert dims(result.model, "h")[-1] == HIDDEN
    assert result.report["oracle"]["passed"]


@pytest.mark.parametrize("choice", [{"allocate": "global"}, {"budget": "params=60%"}])
@pytest.mark.parametrize("case", ["stacked lstm", "stacked gru, both ways"])
def test_layers_that_share_a_state_keep_equally_many_units(case, choice):
    model, clips, states = CASES[case]
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in model.graph.initializer:  # what the first layer holds counts for far less
        if tensor.name in ("W", "R", "B"):
            values = 0.05 * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    result = prune(model, data=clips, shrink_states=True, recover="none", **choice)
    first, second = result.plan.layers.values()
    assert len(first.keep[0]) == len(second.keep[0]) < HIDDEN
    assert [row["after"] for row in result.report["states"]] == [len(first.keep[0])] * len(states)
    assert [row["layers"] for row in result.report["states"]] == [["Y0", "Y1"]] * len(states)


def test_a_plan_without_the_tie_is_refused_by_small_states_only():
    model, _, _ = CASES["stacked gru"]
    tied = plan(model, keep=5, shrink_states=True)
    layers = {name: replace(layer, keep=((0, 1, 2, 7),)) for name, layer in tied.layers.items()}
    uneven = replace(tied, layers={**tied.layers, "Y1": layers["Y1"]})
    reason = "shrink_states=: the input 'h' is shared, but Y0 keeps 5 units, Y1 keeps 4 units"
    with pytest.raises(PruneError, match=reason):
        apply(model, uneven, shrink_states=True)
    assert dims(apply(model, uneven).model, "h")[-1] == HIDDEN
    assert dims(apply(model, replace(tied, layers=layers), shrink_states=True).model, "h")[-1] == 4


def test_a_state_of_which_one_layer_stays_whole_does_too():
    model, clips, _ = CASES["stacked lstm, both ways"]
    result = prune(model, keep=2, data=clips, recover="none", only="Y1", shrink_states=True)
    assert (
        "Y1 initial_c stays at full width: Y0, which shares the input 'c', keeps all units"
        in (result.report["warnings"])
    )
    assert [row["hidden_after"] for row in result.report["layers"]] == [HIDDEN, 2]
    assert dims(result.model, "h")[-1] == HIDDEN


SIDE_BY_SIDE = {
    "rows of one tensor": (
        "float[2, b, 12] h",
        "float[2, b, 12] hn",
        "h0, c0 = Split <axis = 0> (h)",
        "hn = Concat <axis = 0> (last, lastc)",
        {"h": (2, 2, 12)},
        [2, "b", 5],
    ),
    "entries of one row": (
        "float[b, 24] h",
        "float[b, 24] hn",
        "row = Unsqueeze (h, axis0) h0, c0 = Split <axis = 2> (row)",
        "rows = Concat <axis = 2> (last, lastc) hn = Squeeze (rows, axis0)",
        {"h": (2, 24)},
        ["b", 10],
    ),
    "given back the other way round": (
        "float[2, b, 12] h",
        "float[2, b, 12] hn",
        "h0, c0 = Split <axis = 0> (h)",
        "hn = Concat <axis = 0> (lastc, last)",
        {"h": (2, 2, 12)},
        [2, "b", 5],
    ),
    "read at full width, too": (
        "float[1, b, 12] h, float[1, b, 12] c",
        "float[1, b, 12] hn, float[1, b, 12] cn, float[1, b, 12] z",
        "h0 = Identity (h) c0 = Identity (c)",
        "hn = Identity (last) cn = Identity (lastc) z = Softmax <axis = 2> (last)",
        {"h": (1, 2, 12), "c": (1, 2, 12)},
        [1, "b", 5],
    ),
    "read where it leaves": (
        "float[1, b, 12] h, float[1, b, 12] c",
        "float[1, b, 12] last, float[1, b, 12] lastc, float[1, b, 12] z",
        "h0 = Identity (h) c0 = Identity (c)",
        "z = Softmax <axis = 2> (last)",
        {"h": (1, 2, 12), "c": (1, 2, 12)},
        [1, "b", 5],
    ),
}


@pytest.mark.parametrize("recover", ["none", "lstsq"])
@pytest.mark.parametrize("case", SIDE_BY_SIDE)
def test_states_of_one_layer_in_one_tensor(case, recover):
    inputs, outputs, before, behind, shapes, wanted = SIDE_BY_SIDE[case]
    model = replaced(
        ("float[1, b, 12] h, float[1, b, 12] c", inputs),
        ("float[1, b, 12] hn, float[1, b, 12] cn", outputs),
        ("        Y, hn, cn", f"        {before}\n        Y, last, lastc"),
        (", h, c)", ", h0, c0)"),
        ("y = MatMul (flat, fc)", f"y = MatMul (flat, fc) {behind}"),
    )
    rng = np.random.default_rng(1)
    clips = [{"x": rng.normal(size=(20, 2, 4)).astype(np.float32)} for _ in range(4)]
    for clip in clips:
        clip |= {name: rng.normal(size=n).astype(np.float32) for name, n in shapes.items()}
    result = prune(model, keep=5, data=clips, shrink_states=True, recover=recover)
    assert [row["input"] for row in result.report["states"]] == list(shapes)
    for row in result.report["states"]:
        assert dims(result.model, row["input"]) == dims(result.model, row["output"]) == wanted
    assert not [text for text in result.report["warnings"] if "full width" in text]
    onnx.checker.check_model(result.model, full_check=True)


def test_layers_that_hand_their_states_to_each_other_keep_the_same_units():
    text = STACKED.replace("(hn0, hn1)", "(hn1, hn0)")
    result = prune(stacked("GRU", text=text), keep=5, shrink_states=True)
    first, second = result.plan.layers.values()
    assert first.keep == second.keep
    assert dims(result.model, "h")[-1] == 5


def test_a_layer_that_nobody_reads_does_not_move_the_others():
    dead = "unread = LSTM <hidden_size = 12> (x, W, R, B)"
    model = replaced(("        Y, hn, cn", f"        {dead}        Y, hn, cn"))
    result = prune(model, keep=5, shrink_states=True, criterion="random")
    assert dims(result.model, "h") == dims(result.model, "hn") == [1, "b", 5]


def test_metadata_of_a_shared_state_follows():
    model = onnx.ModelProto()
    model.CopyFrom(CASES["stacked gru"][0])
    onnx.helper.set_model_props(model, {"width": "12"})
    result = prune(model, keep=5, shrink_states=True, state_metadata="width")
    assert result.model.metadata_props[0].value == "5"


@pytest.mark.parametrize("name", ["torchscript_gru_2_states", "dynamo_gru_2_states"])
def test_stacked_states_of_real_exports(name):
    path = Path(__file__).parents[1] / "fixtures" / f"{name}.onnx"
    result = prune(path, keep=5, shrink_states=True)
    assert (dims(result.model, "h")[-1], dims(result.model, "h_out")[-1]) == (5, 5)
    assert result.report["oracle"]["passed"]
    assert result.report["totals"]["bytes_after"] < result.report["totals"]["bytes_before"]


def test_a_model_without_states_says_so(model):
    warnings = prune(model, keep=3, shrink_states=True).report["warnings"]
    assert any("no state of a pruned layer" in text for text in warnings)


def test_metadata_holds_the_new_width():
    model, clips, _ = CASES["lstm"]
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    onnx.helper.set_model_props(proto, {"width": "12", "other": "12", "rate": "16000"})
    result = prune(proto, keep=5, data=clips, shrink_states=True, state_metadata="width")
    found = {entry.key: entry.value for entry in result.model.metadata_props}
    assert found.pop(KEPT).startswith('{"h":[[1,1,12],"')
    assert found == {"width": "5", "other": "12", "rate": "16000"}
    with pytest.raises(PruneError, match="rate': its value '16000' is not the width of a state"):
        prune(proto, keep=5, shrink_states=True, state_metadata=["rate"])
    with pytest.raises(PruneError, match="gone': the model has no such entry"):
        prune(proto, keep=5, shrink_states=True, state_metadata=["gone"])


def test_json_and_constant_outputs_hold_the_new_width():
    """As Unity's memory_size, and as configurations are packed into metadata."""
    model, clips, _ = CASES["lstm"]
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    config = '{"rate": 16000, "rnn": {"hidden": 12, "layers": [1, 12]}}'
    onnx.helper.set_model_props(proto, {"config": config, "width": "12"})
    size = numpy_helper.from_array(np.array([12], np.float32), "size")
    proto.graph.node.append(onnx.helper.make_node("Constant", [], ["memory_size"], value=size))
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("memory_size", onnx.TensorProto.FLOAT, [1])
    )
    plain = prune(proto, keep=5, data=clips, shrink_states=True)
    for name in ("width", "config:rnn.hidden", "config:rnn.layers.1", "memory_size"):
        assert any(f"add state_metadata='{name}'" in text for text in plain.report["warnings"])
    assert Runner(plain.model)(clips[0] | narrow_zeros())["memory_size"] == [12]
    keys = ["config:rnn.hidden", "memory_size"]
    result = prune(proto, keep=5, data=clips, shrink_states=True, state_metadata=keys)
    found = {entry.key: entry.value for entry in result.model.metadata_props}
    assert found["config"] == config.replace('"hidden": 12', '"hidden": 5')
    assert found["width"] == "12"
    assert Runner(result.model)(clips[0] | narrow_zeros())["memory_size"] == [5]
    assert not any("memory_size" in text for text in result.report["warnings"])
    with pytest.raises(PruneError, match="several places; give the right one.*config:rnn.layers.1"):
        prune(proto, keep=5, shrink_states=True, state_metadata="config")


def narrow_zeros():
    return {name: np.zeros((1, 2, 5), np.float32) for name in ("h", "c")}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"shrink_states": "yes"}, "shrink_states=: 'yes' is neither True nor False"),
        ({"state_metadata": "width"}, "state_metadata=: states keep their width"),
        ({"shrink_states": True, "mode": "zero"}, "shrink_states=: zeroing leaves states"),
        ({"shrink_states": True, "state_metadata": 3}, "state_metadata=: 3 is not a name"),
    ],
)
def test_arguments_that_mean_nothing(arguments, reason):
    with pytest.raises(PruneError, match=reason):
        prune(lstm(), **arguments)
    with pytest.raises(PruneError, match=reason):
        apply(lstm(), plan(lstm()), **arguments)


def test_the_command_line_has_them_too(tmp_path, capsys):
    model = lstm()
    onnx.helper.set_model_props(model, {"width": "12"})
    onnx.save(model, tmp_path / "m.onnx")
    options = ["--shrink-states", "--state-metadata", "width"]
    names = [str(tmp_path / name) for name in ("m.onnx", "a.onnx", "b.onnx", "plan.json")]
    chosen = ["--keep", "50%", "--budget", "bytes=100%"]  # whatever it takes
    assert run(["prune", names[0], "-o", names[1], "--save-plan", names[3], *chosen, *options]) == 0
    assert "State: h and hn: 12 -> 6 entries" in capsys.readouterr().out
    assert run(["apply", names[0], names[3], "-o", names[2], *options]) == 0
    assert onnx.load(names[1]) == onnx.load(names[2])
    assert onnx.load(names[1]).metadata_props[0].value == "6"


@pytest.mark.parametrize("recover", ["none", "lstsq"])
def test_narrow_states_are_compared_from_what_they_keep_of_the_originals(recover):
    """The file says which entries that is, so it deviates as the one with states of full width."""
    model, clips, _ = CASES["lstm"]
    result, other = (
        prune(model, keep=5, data=clips, eval_data=clips, shrink_states=shrink, recover=recover)
        for shrink in (True, False)
    )
    narrow, wide = result.model, other.model
    found, wanted = (compare(model, other, data=clips) for other in (narrow, wide))
    assert set(found["drift"]) == {"y"} and set(wanted["drift"]) == {"y", "hn", "cn"}
    assert found["drift"]["y"]["nrmse"] == pytest.approx(wanted["drift"]["y"]["nrmse"], rel=1e-4)
    assert result.report["drift"] == found["drift"]
    assert found["warnings"] == ["hn, cn: not compared, since the states differ in width"]
    assert [row["model"] for row in bench([model, narrow], data=clips)["rows"]]
    assert compare(model, narrow)["drift"]["y"]["nrmse"] > 0


def test_narrow_states_of_which_nothing_is_known_start_from_zero():
    model, clips, _ = CASES["lstm"]
    narrow = prune(model, keep=5, data=clips, shrink_states=True).model
    del narrow.metadata_props[:]
    assert (
        "which of its entries the second model keeps"
        in compare(model, narrow, data=clips)["warnings"][1]
    )
    alone = [{"x": clip["x"]} for clip in clips]
    assert len(compare(model, narrow, data=alone)["warnings"]) == 1
    calls = [[{"x": part} for part in np.split(clip["x"], 4)] for clip in clips]
    parts, whole = (
        compare(model, narrow, data=data, stream=stream)["drift"]["y"]["nrmse"]
        for data, stream in ((calls, True), (alone, None))
    )
    assert parts == pytest.approx(whole, rel=1e-4)


def test_other_sizes_than_those_of_states_are_refused():
    model = lstm()
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 5
    with pytest.raises(PruneError, match="'x' has different sizes in the two"):
        compare(model, other)


def test_a_state_behind_an_operator_that_nobody_knows():
    """That it comes back cannot be seen, so it is restored as any other output is."""
    path = Path(__file__).parents[1] / "fixtures" / "torchscript_gru_2_states.onnx"
    model = onnx.load(path)
    next(n for n in model.graph.node if n.name == "/recurrent/Constant_5").op_type = "Mystery"
    feeds = [{"x": np.ones((4, 1, 5), np.float32), "h": np.zeros((2, 1, 8), np.float32)}] * 2
    assert [layer["op"] for layer in inspect(model, data=feeds)["layers"]] == ["GRU", "GRU"]


def own(model):
    return [node.op_type for node in model.graph.node if node.name.startswith("onnx_rnn_prune/")]


@pytest.mark.parametrize("recover", ["none", "bias", "lstsq", "merge"])
@pytest.mark.parametrize("case", ["lstm", "gru", "stacked lstm", "stacked gru"])
def test_a_state_that_only_comes_back_is_placed(case, recover):
    """Nothing is computed for entries that no one reads, and a stream is as with small states."""
    model, clips, states = CASES[case]
    result = prune(model, keep=5, data=clips, recover=recover)
    layers = len(result.plan.layers)
    if recover == "merge":  # what is like no other unit is zero
        assert set(own(result.model)) <= {"Gather", "Pad", "Add"}
    else:
        placed = [op for op in own(result.model) if op != "Add"]
        assert placed == ["Gather"] * (2 * len(states) * layers)
    small = apply(model, result.plan, data=clips, recover=recover, shrink_states=True)
    x = clips[0]["x"]
    found, expected = stream(result.model, x, states, HIDDEN), stream(small.model, x, states, 5)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)


READ = {
    "where it comes": (
        (("float[1, b, 12] cn)", "float[1, b, 12] cn, float[1, b, 12] z)"), ("}", "z = Neg (h) }")),
        ["Y_h"],
    ),
    "where it leaves, moved": (
        (
            ("float[1, b, 12] cn)", "float[1, b, 12] cn, float[1, b, 12] z)"),
            ("Y, hn, cn", "Y, last, cn"),
            ("}", "moved = Identity (last) hn = Identity (moved) z = Neg (moved) }"),
        ),
        ["Y_h"],
    ),
    "in another place": (
        (
            ("Y, hn, cn", "Y, last, cn"),
            ("}", "other = Constant <value_ints = [11,10,9,8,7,6,5,4,3,2,1,0]> ()"
             " hn = Gather <axis = 2> (last, other) }"),
        ),
        ["Y_h"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_a_state_that_someone_reads_is_fitted(case):
    changes, fitted = READ[case]
    result = prune(replaced(*changes), keep=5, data=feeds(), recover="lstsq")
    matrices = [
        n.name for n in result.model.graph.node if n.op_type == "MatMul" and "_restore" in n.name
    ]
    assert sorted(name.split("_restore")[0][-3:] for name in matrices) == sorted(fitted)


def test_a_state_and_what_else_reads_it_have_a_matrix_each():
    changes = (
        ("float[1, b, 12] cn)", "float[1, b, 12] cn, float[1, b, 12] z)"),
        ("}", "z = Softmax <axis = 2> (hn) }"),
    )
    model = replaced(*changes)
    result = prune(model, keep=5, data=feeds(), recover="lstsq")
    names = [node.name for node in result.model.graph.node if "Y_h_restore" in node.name]
    assert sorted(name.count("handed_back/") for name in names) == [0, 1]
    small = apply(model, result.plan, data=feeds(), recover="lstsq", shrink_states=True)
    assert dims(small.model, "h")[-1] == dims(small.model, "hn")[-1] == 5
    one, other = feeds()[0], dict(feeds()[0])
    for name in ("h", "c"):
        other[name] = one[name][..., list(result.plan.layers["Y"].keep[0])]
    found, expected = (Runner(m.model)(f)["z"] for m, f in ((result, one), (small, other)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def agent():
    """A policy of 12 units as Unity's ML-Agents writes it: h and c side by side in `recurrent_in`,
    masked actions of which one is drawn, and constants that say how wide the memory is."""
    rng, width = np.random.default_rng(0), 12
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 15]>
        torch_jit (float[batch, 5] obs_0, float[batch, 3] action_masks,
                   float[1, batch, 24] recurrent_in)
            => (float[1] version_number, float[1] memory_size, int64[batch, 1] discrete_actions,
                int64[batch, 1] deterministic_discrete_actions, float[1, batch, 24] recurrent_out) {
            encoded = Gemm (obs_0, E)
            swish = Sigmoid (encoded)
            seen = Mul (encoded, swish)
            x = Unsqueeze (seen, first)
            h = Slice (recurrent_in, zero, middle, last)
            c = Slice (recurrent_in, middle, end, last)
            [memory] Y, Y_h, Y_c = LSTM <hidden_size = 12> (x, W, R, B, , h, c)
            recurrent_out = Concat <axis = 2> (Y_h, Y_c)
            y = Squeeze (Y, both)
            logits = Gemm (y, A, a)
            inverse = Sub (one, action_masks)
            penalty = Mul (inverse, large)
            masked = Add (logits, penalty)
            chances = Softmax <axis = 1> (masked)
            log = Log (chances)
            discrete_actions = Multinomial <dtype = 7, sample_size = 1> (log)
            deterministic_discrete_actions = ArgMax <axis = 1> (chances)
            version_number = Identity (version)
            memory_size = Identity (size)
        }""")
    shapes = {"E": (5, 8), "W": (1, 48, 8), "R": (1, 48, 12), "B": (1, 96), "A": (12, 3), "a": (3,)}
    values = {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}
    values |= {"one": 1.0, "large": -1e8, "version": [3.0], "size": [2.0 * width]}
    values = {name: np.array(value, np.float32) for name, value in values.items()}
    places = {"zero": [0], "middle": [12], "end": [24], "first": [0], "last": [2], "both": [0, 1]}
    values |= {name: np.array(value, np.int64) for name, value in places.items()}
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def test_an_agent_of_unity_keeps_its_interface_or_says_how_it_changed():
    model, rng = agent(), np.random.default_rng(1)
    streams = [
        [
            {
                "obs_0": rng.normal(size=(1, 5)).astype(np.float32),
                "action_masks": np.float32([[1, 1, call % 2]]),
            }
            for call in range(12)
        ]
        for _ in range(4)
    ]
    result = prune(model, keep=6, data=streams, stream=True)
    assert result.report["oracle"]["passed"] and result.report["data"]["streams"]
    assert [port.name for port in result.model.graph.output] == [o.name for o in model.graph.output]
    assert any("'discrete_actions' is drawn at random" in t for t in result.report["warnings"])
    small = prune(
        model, keep=6, data=streams, stream=True, shrink_states=True, state_metadata="memory_size"
    )
    zeros = {"recurrent_in": np.zeros((1, 1, 12), np.float32)}
    found = Runner(small.model)({**streams[0][0], **zeros})
    assert (found["memory_size"], found["version_number"]) == ([12], [3])
    assert found["recurrent_out"].shape == (1, 1, 12)
