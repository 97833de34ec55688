"""Models as exporters write them are pruned, or refused with the reason."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from onnx_rnn_prune import apply, inspect, plan, prune
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.trace.plan import LayerPlan, Plan

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
sys.path.append(str(ROOT / "tools"))  # behind all others: a tool is called what a package is

from model_feeds import feeds_for  # noqa: E402

WRITTEN_OUT = r"an? \w+ of 8 units is decomposed"
REFUSED = {
    **dict.fromkeys(
        (
            "keras_torch_gru",
            "keras_torch_lstm",
        ),
        WRITTEN_OUT,
    ),
    "dynamo_lstm_proj": "initial_c has 8 entries but R implies 6, as with projected states",
}
# The weights of some are states of a Loop that stay what they are.
CUT_IN_PLACE = (
    "cell_decoder_loop",
    "dynamo_lstm_cell",
    "dynamo_rnn_tanh",
    "jax_gru",
    "jax_lstm",
    "keras_gru",
    "tf2onnx_gru_reset_before",
    "tf2onnx_rnn",
    "tf2onnx_lstm_masked",
    "torchscript_gru_cell",
    "torchscript_lstm_cell",
)
CANNOT_RUN = ("dynamo_lstm_proj",)
STACKED = sorted(path.stem for path in FIXTURES.glob("*_2*.onnx"))
NAMES = sorted(path.stem for path in FIXTURES.glob("*.onnx"))


@pytest.fixture(scope="module", params=[name for name in NAMES if name not in CANNOT_RUN])
def pruned(request):
    """A model's name, and what becomes of it at half of its units."""
    path = FIXTURES / f"{request.param}.onnx"
    return request.param, prune(path, keep=0.5, data=feeds_for(path))


def test_self_check_passes(pruned):
    report = pruned[1].report
    assert report["oracle"]["passed"]
    assert report["oracle"]["feeds"] > 0
    for layer in report["layers"]:
        assert (layer["hidden_after"] < layer["hidden_before"]) == (layer["pinned"] is None)


def test_file_is_smaller(pruned):
    _, result = pruned
    totals, layers = result.report["totals"], result.report["layers"]
    assert not all(layer["pinned"] for layer in layers)
    assert totals["bytes_after"] < totals["bytes_before"]


def test_what_was_pruned_is_pruned_again(pruned):
    """Also where a Gather of the first time picks entries of a state."""
    name, result = pruned
    if not any(part in name for part in ("states", "cell_", "17_lstm", "_bi_2")):
        return
    feeds = feeds_for(FIXTURES / f"{name}.onnx")[:1]
    again = apply(result.model, plan(result.model, keep=0.5), data=feeds, recover="none")
    assert again.report["oracle"]["passed"]


def test_heads_absorb_units(pruned):
    """All networks end in weights; what else reads a layer is a state that leaves the model."""
    _, result = pruned
    layers = result.report["layers"]
    if any(layer["pinned"] for layer in layers):
        pytest.skip("a state cannot be laid beside that of a layer that is left alone")
    ends = [outlet for layer in layers for outlet in layer["outlets"]]
    restored = [outlet["reason"] for outlet in ends if outlet["end"] == "restored"]
    known = ("leaves the model as its output", "is read by LayerNormalization")
    assert all(any(text in reason for text in known) for reason in restored)


@pytest.mark.parametrize("name", [name for name in STACKED if "written" not in name])
def test_layers_keep_different_counts(name):
    path = FIXTURES / f"{name}.onnx"
    layers = {}
    for number, layer in enumerate(inspect(path)["layers"]):
        kept = tuple(range(layer["hidden"] // 2 + number))
        directions = 2 if layer["direction"] == "bidirectional" else 1
        layers[layer["name"]] = LayerPlan(layer["hidden"], (kept,) * directions)
    result = apply(path, Plan(plan(path).model, layers), data=feeds_for(path)[:1])
    assert result.report["oracle"]["passed"]


def test_layers_whose_states_lie_side_by_side_keep_equally_many():
    path = FIXTURES / "torchscript_gru_last.onnx"
    result = prune(path, keep=0.4, allocate="global", criterion="l2")
    counts = {len(layer.keep[0]) for layer in result.plan.layers.values()}
    assert result.report["oracle"]["passed"] and len(counts) == 1
    ends = [outlet["end"] for layer in result.report["layers"] for outlet in layer["outlets"]]
    assert "restored" not in ends
    first = next(iter(result.plan.layers))
    fewer = replace(result.plan.layers[first], keep=((0,),))
    with pytest.raises(PruneError, match="must keep equally many units"):
        apply(path, Plan(result.plan.model, {**result.plan.layers, first: fewer}))


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_says_why(name):
    with pytest.raises(PruneError, match=REFUSED[name]) as caught:
        prune(FIXTURES / f"{name}.onnx", keep=0.5, roll=False)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", CUT_IN_PLACE)
def test_what_stays_written_out_is_cut_in_place(name):
    path = FIXTURES / f"{name}.onnx"
    result = prune(path, keep=0.5, roll=False, data=feeds_for(path))
    assert result.report["oracle"]["passed"]
    assert all(row["hidden_after"] < row["hidden_before"] for row in result.report["layers"])
    again = apply(path, result.plan, roll=False, recover="none")  # the plan fits the file
    assert again.plan == result.plan


def test_page_lists_the_models():
    page = (FIXTURES / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| `(\w+)\.onnx`", page, re.MULTILINE)) == NAMES
