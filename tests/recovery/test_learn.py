"""Distillation and criteria by gradients, on small models."""

import re
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import onnx
import pytest

from onnx_rnn_prune import pipeline, prune
from onnx_rnn_prune.calibration import open_data
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.recovery.distill import configuration
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig
from onnx_rnn_prune.traced_model import trace_model
from quantized import UNSIGNED, calm, quantized, real_model


def weights(seed, **shapes):
    rng = np.random.default_rng(seed)
    return [
        onnx.numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def two_layers(
    middle="", after="logits = Add(product, bias)", outputs="float[time, batch, 3] logits"
):
    """A bidirectional LSTM under a GRU under a linear layer."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[time, batch, 4] x) => ({outputs}) {{
            Y1 = LSTM <hidden_size = 6, direction = "bidirectional"> (x, W1, R1, B1)
            turned = Transpose <perm = [0, 2, 1, 3]> (Y1)
            wide = Reshape(turned, flat)
            {middle or "read = Identity(wide)"}
            Y2 = GRU <hidden_size = 8> (read, W2, R2, B2)
            states = Squeeze(Y2, one)
            product = MatMul(states, fc)
            {after}
        }}
    """)
    model.graph.initializer.extend(
        weights(
            0, W1=(2, 24, 4), R1=(2, 24, 6), B1=(2, 48), W2=(1, 24, 12), R2=(1, 24, 8), B2=(1, 48),
            fc=(8, 3), bias=(3,),
        )
    )  # fmt: skip
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 0, 12]), "flat"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    for node, name in zip(model.graph.node, ("first", "", "", "", "second"), strict=False):
        node.name = name
    return model


def feeds(count=8, steps=20):
    rng = np.random.default_rng(1)
    return [
        {"x": rng.normal(size=(steps + n, 2, 4)).astype(np.float32).cumsum(0) / 3}
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        ({"recover": "distill"}, "recover='distill'"),
        ({"criterion": "taylor"}, "criterion='taylor'"),
    ],
)
def test_without_torch_one_line_says_what_to_install(monkeypatch, asked, option):
    monkeypatch.setattr(configuration, "find_spec", lambda name: None)
    with pytest.raises(PruneError) as caught:
        prune(two_layers(), keep=0.5, data=feeds(), **asked)
    assert str(caught.value) == (
        f"{option}: needs PyTorch, which is not installed; "
        "run pip install 'onnx_rnn_prune[distill]'"
    )


def test_nothing_imports_torch_where_it_is_not_asked_for():
    code = "import sys, onnx_rnn_prune.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.torch
class TestWithTorch:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch):
        course = partial(pipeline.TrainingConfig, steps=150, trials=3)
        monkeypatch.setattr(pipeline, "TrainingConfig", course)

    def learn(self, model, **more):
        how = {"keep": 0.5, "data": feeds(24), "recover": "distill", **more}
        return prune(model, **how).report

    def test_distill_is_better_than_least_squares(self):
        before = self.learn(two_layers(), recover="lstsq")["recovery"]["reason"]
        report = self.learn(two_layers())
        recovery = report["recovery"]
        assert report["oracle"]["passed"]
        assert recovery["used"] == "distill"
        assert recovery["learning"]["whole"] and not recovery["learning"]["missing"]
        assert recovery["learning"]["weights"] == 8
        assert recovery["learning"]["after"] < recovery["learning"]["before"]
        lstsq = float(re.search(r"lstsq ([\d.e-]+)", before)[1])
        assert recovery["learning"]["before"] == pytest.approx(lstsq, rel=0.01)

    @pytest.mark.parametrize("how", [{}, {"kind": UNSIGNED, "per_channel": True}])
    def test_weights_in_integers_learn(self, how):
        model = quantized(calm(real_model(hidden=16, layers=2, directions=2)), **how)
        rng = np.random.default_rng(5)
        data = [rng.normal(size=(30, 2, 6)).cumsum(0).astype(np.float32) for _ in range(24)]
        report = self.learn(model, data=[{"x": each} for each in data])
        learning = report["recovery"]["learning"]
        assert report["oracle"]["passed"]
        assert learning["whole"] and not learning["missing"] and learning["weights"] == 8
        assert learning["after"] < 0.95 * learning["before"]

    def test_convolutions_and_normalizations_learn(self):
        model = onnx.parser.parse_model("""
            <ir_version: 10, opset_import: ["" : 21]>
            g (float[batch, 4, time] x) => (float[batch, 3, length] y) {
                a = Conv <pads = [1, 1]> (x, K)
                n = GroupNormalization <num_groups = 8> (a, scale, shift)
                b = Tanh (n)
                c = ConvTranspose <strides = [2]> (b, U, u)
                d = Tanh (c)
                y = Conv (d, V)
            }
        """)
        model.graph.initializer.extend(
            weights(0, K=(16, 4, 3), U=(16, 12, 3), u=(12,), V=(3, 12, 1), scale=(16,), shift=(16,))
        )
        given = [{"x": feed["x"].transpose(1, 2, 0)} for feed in feeds(24)]
        report = self.learn(model, data=given, layers="all")
        assert report["oracle"]["passed"]
        learning = report["recovery"]["learning"]
        assert learning["whole"] and learning["weights"] == 7
        assert learning["after"] < learning["before"]

    def test_states_that_are_inputs_and_outputs_are_selected_before(self):
        model = onnx.parser.parse_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[time, batch, 4] x, float[1, batch, 40] h)
                => (float[time, batch, 3] logits, float[1, batch, 40] last) {
                Y, last = GRU <hidden_size = 40> (x, W, R, B, , h)
                states = Squeeze(Y, one)
                logits = MatMul(states, fc)
            }
        """)
        model.graph.initializer.extend(
            weights(0, W=(1, 120, 4), R=(1, 120, 40), B=(1, 240), fc=(40, 3))
        )
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
        report = self.learn(model, data=[{"x": feed["x"]} for feed in feeds()])
        assert report["oracle"]["passed"]
        learning = report["recovery"]["learning"]
        assert learning["steps"] > 0 and learning["after"] <= learning["before"]

    def test_an_operator_without_gradients_in_between_splits_what_learns(self):
        model = two_layers(middle="parts = SplitToSequence <axis = 2> (wide, six)\n"
                           "read = ConcatFromSequence <axis = 2> (parts)")  # fmt: skip
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([6, 6]), "six"))
        report = self.learn(model)
        learning = report["recovery"]["learning"]
        assert report["oracle"]["passed"]
        assert not learning["whole"]
        assert "SplitToSequence is not supported" in learning["missing"].values()
        assert learning["after"] <= learning["before"]

    def test_what_is_not_differentiable_behind_ends_what_learns(self):
        model = two_layers(
            after="logits = Add(product, bias)\n best = ArgMax <axis = -1> (logits)",
            outputs="int64[time, batch, one] best",
        )
        report = self.learn(model)
        assert report["oracle"]["passed"]

    def test_zero_mode_holds_what_was_learnt(self):
        report = self.learn(two_layers(), mode="zero")
        assert report["recovery"]["used"] == "distill"
        assert report["oracle"]["passed"]

    def test_it_is_the_same_each_time(self):
        found = [prune(two_layers(), keep=0.5, data=feeds(24), recover="distill")
                 for _ in range(2)]  # fmt: skip
        assert found[0].report["recovery"]["used"] == "distill"
        assert found[0].model == found[1].model
        assert not [each for each in threading.enumerate() if each.name.startswith("ahead")]

    def test_weights_that_were_shaken_are_learnt_back(self):
        """The student has all units, so that there is an answer without error."""
        learning = self.learnt_back(0.1, pipeline.TrainingConfig(rate=0.02))
        assert learning.after < 0.25 * learning.before

    @pytest.mark.parametrize(("rate", "steps"), [(0.3, 200), (3.0, 400)])
    def test_steps_that_lead_away_are_made_shorter(self, rate, steps):
        learning = self.learnt_back(0.01, TrainingConfig(rate=rate, steps=steps))
        assert learning.taken and learning.after < 0.5 * learning.before

    def learnt_back(self, noise, config):
        from onnx_rnn_prune.passes import Pipeline
        from onnx_rnn_prune.recovery.distill.distill import Student, distill
        from onnx_rnn_prune.validate import drift

        opened = open_model(two_layers())
        fed = open_data(opened, Inputs(feeds(24)))
        prepared = trace_model(opened, ["first", "second"], fed.calibration)
        keep = np.ones(prepared.trace.units.count, dtype=bool)
        rng = np.random.default_rng(5)
        shaken = prepared.document.copy()
        for node in shaken.graph.nodes:
            for tensor in node.inputs:
                if tensor.name in ("W1", "R1", "W2", "R2", "fc"):
                    shaking = rng.normal(0, noise, tensor.values.shape)
                    tensor.values = (tensor.values + shaking).astype(np.float32)
        student = Student(prepared.document, prepared.trace, keep, shaken)

        def judge(write):
            found = shaken.copy()
            Pipeline((write,))(found)
            return drift(opened.run(), Runner(found), fed.validation)["logits"].nrmse

        return distill(student, fed.calibration, judge, config, silent)[1]


def scaled_unit(document, readers, unit, factor):
    """A model in which all that reads a unit reads so many times as much of it."""
    changed = document.copy()
    nodes = nodes_by_key(changed.graph)
    for binding in readers:
        tensor = nodes[binding.node].inputs[binding.bound.slot]
        scale = np.where(binding.bound.labels == unit, factor, 1.0)
        tensor.values = (tensor.values * scale).astype(np.float32)
    return Runner(changed, optimize=False)


@pytest.mark.torch
class TestGradients:
    def prepared(self):
        opened = open_model(two_layers())
        data = open_data(opened, Inputs(feeds(2, 6)))
        return trace_model(opened, ["first", "second"], data.calibration), feeds(2, 6)[0]

    def test_slopes_are_differences_of_onnxruntime(self):
        from onnx_rnn_prune.recovery.distill.batches import Teacher
        from onnx_rnn_prune.recovery.distill.network import build, find_region
        from onnx_rnn_prune.selection.gradients import Slope, probes, reading

        prepared, feed = self.prepared()
        document, trace = prepared.document, prepared.trace
        region = find_region(document, trace.units.lanes)
        readers = reading(prepared)
        keep = np.ones(trace.units.count, dtype=bool)
        lesson = Teacher(document, trace, keep, region, {})(feed)
        slope = Slope(build(document, region), region.targets, readers, trace.units.count)
        found = next(slope(lesson, probes(np.random.default_rng(3))))
        wanted = lesson.wanted["logits"].numpy().astype(np.float64)
        signs = np.random.default_rng(3).choice([-1.0, 1.0], wanted.shape)

        def loss(unit, step):
            value = scaled_unit(document, readers, unit, 1.0 + step)(feed)["logits"]
            return np.sum(signs * value.astype(np.float64)) / wanted.std(ddof=1)

        for unit in range(trace.units.count):
            slope = (loss(unit, 0.01) - loss(unit, -0.01)) / 0.02
            assert found[unit] == pytest.approx(slope, rel=0.02, abs=0.02)

    @pytest.mark.parametrize("criterion", ["taylor", "fisher"])
    def test_units_that_nobody_reads_matter_least(self, criterion):
        model = two_layers()
        dead = [1, 4, 6]
        for tensor in model.graph.initializer:
            if tensor.name in ("R2", "fc"):
                value = onnx.numpy_helper.to_array(tensor).copy()
                axis = 2 if tensor.name == "R2" else 0
                np.moveaxis(value, axis, 0)[dead] = 0.0
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        result = prune(model, keep=5, only="second", data=feeds(), criterion=criterion,
                       recover="none")  # fmt: skip
        assert result.plan.layers["second"].keep == ((0, 2, 3, 5, 7),)

    def test_they_need_data(self):
        with pytest.raises(PruneError, match="taylor needs data"):
            prune(two_layers(), criterion="taylor")
