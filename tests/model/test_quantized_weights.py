"""Weights in 8 bits behind DequantizeLinear, and activations in 8 bits with fixed scales."""

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from onnx_rnn_prune import prune
from quantized import behind_dequantize, feeds_of, real_model, weights_of

AXES = {
    "per tensor": dict.fromkeys(("W0", "R0", "B0", "head")),
    "per gate and unit": {"W0": 1, "R0": 1, "B0": 1, "head": 1},
    "per entry": {"W0": 2, "R0": 2, "head": 0},
}


def pruned(model, keep=0.5, recover="none"):
    result = prune(model, keep=keep, data=feeds_of(model), criterion="l2", recover=recover)
    assert result.report["oracle"]["max_abs_diff"] < 1e-5
    onnx.checker.check_model(result.model, full_check=True)
    return result


@pytest.mark.parametrize("keep", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_integers_stay_integers(keep, kind, axes, op):
    model = behind_dequantize(real_model(op=op), AXES[axes], kind)
    result = pruned(model, keep)
    found = weights_of(result.model)
    for name in AXES[axes]:
        assert found[f"{name}_q"].dtype == kind
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    assert found["R0_q"].shape == (1, gates * round(8 * keep), round(8 * keep))
    assert not {"W0_cut", "R0_cut", "head_cut"} & set(found)
    assert len(result.model.SerializeToString()) < len(model.SerializeToString())


@pytest.mark.parametrize("axes", AXES)
def test_two_directions(axes):
    model = behind_dequantize(real_model(hidden=16, directions=2), AXES[axes])
    found = weights_of(pruned(model).model)
    if axes == "per tensor":
        assert {found[f"{name}_q"].dtype for name in AXES[axes]} == {np.dtype(np.int8)}


@pytest.mark.parametrize("axes", AXES)
def test_recovery_writes_integers_again(axes):
    model = behind_dequantize(real_model(hidden=16), AXES[axes])
    plain, result = pruned(model), pruned(model, recover="lstsq")
    assert result.report["recovery"]["used"] == "lstsq"
    errors = [run.report["drift"]["out"]["nrmse"] for run in (result, plain)]
    assert errors[0] < errors[1]
    before, after = (weights_of(run.model) for run in (plain, result))
    for name in AXES[axes]:
        assert after[f"{name}_q"].dtype == np.int8
        assert after[f"{name}_q"].shape == before[f"{name}_q"].shape


def test_layers_that_share_weights():
    """Two readers of one DequantizeLinear that lose different entries get one each."""
    real = real_model(layers=2, hidden=6)
    model = behind_dequantize(real, dict.fromkeys(("W0", "R0", "W1", "R1", "head")))
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in ("W1", "R1"):
                node.input[place] = name[0] + "0"
    kept = [node for node in model.graph.node if node.output[0] not in ("W1", "R1")]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for tensor in [t for t in model.graph.initializer if t.name[:3] in ("W1_", "R1_")]:
        model.graph.initializer.remove(tensor)
    found = weights_of(pruned(model).model)
    assert sum(value.dtype == np.int8 and value.ndim == 3 for value in found.values()) >= 3


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("kind", ["bytes", "params"])
def test_budget_is_used_up(axes, kind):
    """One unit more would not obey it."""
    model = behind_dequantize(real_model(hidden=24), AXES[axes])
    total = prune(model, keep=1).report["totals"][f"{kind}_before"]
    report = prune(model, budget=f"{kind}=60%").report
    kept = report["layers"][0]["hidden_after"]
    assert report["totals"][f"{kind}_after"] <= 0.6 * total
    assert prune(model, keep=kept + 1).report["totals"][f"{kind}_after"] > 0.6 * total


class _Reader(CalibrationDataReader):
    def __init__(self, feeds):
        self._feeds = iter(feeds)

    def get_next(self):
        return next(self._feeds, None)


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_activations_with_fixed_scales(tmp_path, op, per_channel):
    real = real_model(op=op, hidden=12, behind=("Relu",))
    onnx.save(real, tmp_path / "real.onnx")
    quantize_static(
        tmp_path / "real.onnx",
        tmp_path / "fixed.onnx",
        _Reader(feeds_of(real)),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
    )
    model = onnx.load(tmp_path / "fixed.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    result = pruned(model, recover="lstsq")
    ends = [row for layer in result.report["layers"] for row in layer["outlets"]]
    assert [row["end"] for row in ends if row["end"] != "unused"] == ["absorbed"]
    assert len(result.model.SerializeToString()) < len(model.SerializeToString())
