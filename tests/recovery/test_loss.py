"""Losses of labels: what learns from them, and what is refused."""

from functools import partial

import numpy as np
import onnx
import pytest
from test_learn import feeds, scaled_unit, two_layers

from onnx_rnn_prune import apply, pipeline, plan, prune, search, sensitivity
from onnx_rnn_prune.calibration import open_data
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import NamedFeed, Runner
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.recovery.distill.configuration import (
    Answers,
    Loss,
    TrainingConfig,
    read_loss,
)
from onnx_rnn_prune.traced_model import trace_model

torch = pytest.importorskip("torch", reason="pip install '.[distill]' brings PyTorch")

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(pipeline, "TrainingConfig", partial(TrainingConfig, steps=10, trials=3))


def best(model, feed):
    return Runner(model)(feed)["logits"].argmax(-1)


def labelled(choose=lambda right: right):
    """Feeds with labels that follow from the top answers of the original."""
    model = two_layers()
    return [{**feed, "labels": choose(best(model, feed))} for feed in feeds()]


def wrong(right):
    return (right + 1) % 3


def cross_entropy(logits, labels):
    scores = logits.astype(np.float64)
    chances = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return -np.log(np.take_along_axis(chances, labels[..., None], -1)).mean()


def loss_of(name, outputs, labels):
    values = {key: torch.from_numpy(np.asarray(value)) for key, value in outputs.items()}
    return read_loss(name)(values, Answers.of(NamedFeed({}, "a.npz", np.asarray(labels))))


class TestCrossEntropy:
    logits = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, (5, 2))

    def found(self, output, labels):
        return float(loss_of("cross-entropy", {"logits": output}, labels))

    def test_it_is_that_of_the_formula(self):
        wanted = cross_entropy(self.logits, self.labels)
        assert self.found(self.logits, self.labels) == pytest.approx(wanted)
        assert self.found(self.logits, self.labels.astype(np.uint8)) == pytest.approx(wanted)

    def test_probabilities_are_what_they_are(self):
        chances = np.exp(self.logits) / np.exp(self.logits).sum(-1, keepdims=True)
        wanted = cross_entropy(self.logits, self.labels)
        assert self.found(chances, self.labels) == pytest.approx(wanted, rel=1e-5)
        assert self.found(np.log(chances), self.labels) == pytest.approx(wanted, rel=1e-5)

    def test_labels_below_zero_do_not_count(self):
        padded = np.where(np.arange(5)[:, None] < 3, self.labels, -1)
        wanted = cross_entropy(self.logits[:3], self.labels[:3])
        assert self.found(self.logits, padded) == pytest.approx(wanted)
        assert self.found(self.logits, np.full((5, 2), -100)) == 0.0

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (labels.T, r"takes integers \[5, 2\] as labels of 'logits', .* are int64 \[2, 5\]"),
            (labels + 0.5, r"those are float32 \[5, 2\]"),
            (labels + 1, "there is a label 3, and 'logits' has 3 classes"),
            (labels.astype(str), "its labels are str"),
        ],
    )
    def test_labels_that_do_not_fit_are_refused(self, labels, message):
        with pytest.raises(PruneError, match=message) as caught:
            self.found(self.logits, labels)
        assert str(caught.value).startswith("a.npz: ")

    def test_several_outputs_are_refused(self):
        with pytest.raises(PruneError, match="needs a single output, but the model has a, b"):
            loss_of("cross-entropy", {"a": self.logits, "b": self.logits}, self.labels)


class TestSlopes:
    def test_they_are_differences_of_onnxruntime(self):
        from onnx_rnn_prune.recovery.distill.batches import Teacher
        from onnx_rnn_prune.recovery.distill.network import build, find_region
        from onnx_rnn_prune.selection.gradients import Slope, comparison, reading

        opened = open_model(two_layers())
        data = open_data(opened, Inputs(labelled(wrong)))
        prepared = trace_model(opened, ["first", "second"], data.calibration)
        document, trace, feed = prepared.document, prepared.trace, next(iter(data.calibration))
        region, readers = find_region(document, trace.units.lanes), reading(prepared)
        lesson = Teacher(document, trace, np.ones(trace.units.count, dtype=bool), region, {})(feed)
        slope = Slope(build(document, region), ("logits",), readers, trace.units.count)
        found = list(slope(lesson, comparison(read_loss("cross-entropy"), Answers.of(feed))))

        def loss(unit, step):
            changed = scaled_unit(document, readers, unit, 1.0 + step)
            return cross_entropy(changed(feed)["logits"], feed.labels)

        assert len(found) == 1
        assert np.abs(found[0]).max() > 0.01
        for unit in range(trace.units.count):
            wanted = (loss(unit, 0.02) - loss(unit, -0.02)) / 0.04
            assert found[0][unit] == pytest.approx(wanted, rel=0.02, abs=1e-4)

    @pytest.mark.parametrize("criterion", ["taylor", "fisher"])
    def test_units_that_the_loss_does_not_look_at_matter_least(self, criterion):
        model, blind = two_layers(), [1, 4, 6]
        for tensor in model.graph.initializer:
            value = onnx.numpy_helper.to_array(tensor).copy()
            if tensor.name == "R2":
                value[:, :, blind] = 0.0
            if tensor.name == "fc":
                value[blind, 1:] = 9.0
                value[blind, 0] = 0.0
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        given = [{**feed, "labels": np.ones((len(feed["x"]), 2), np.float32)} for feed in feeds()]

        def first_only(outputs, labels):
            return (outputs["logits"][..., 0] - labels).square().mean()

        how = {"keep": 5, "only": "second", "data": given, "criterion": criterion}
        assert plan(model, loss=first_only, **how).layers["second"].keep == ((0, 2, 3, 5, 7),)
        assert plan(model, **how).layers["second"].keep != ((0, 2, 3, 5, 7),)

    def test_what_stands_before_an_operator_without_gradients_is_not_ranked_by_it(self):
        model = two_layers(middle="parts = SplitToSequence <axis = 2> (wide, six)\n"
                           "read = ConcatFromSequence <axis = 2> (parts)")  # fmt: skip
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([6, 6]), "six"))
        with pytest.raises(PruneError, match="SplitToSequence is not supported"):
            plan(model, data=labelled(), criterion="taylor", loss="cross-entropy")


def heavy(outputs, labels):
    """So heavy that what the original says counts for little."""
    return 20 * read_loss("cross-entropy").function(outputs, labels)


class TestDistill:
    def learn(self, monkeypatch, steps, **more):
        course = partial(TrainingConfig, steps=steps, trials=3, rate=0.1)
        monkeypatch.setattr(pipeline, "TrainingConfig", course)
        return prune(two_layers(), keep=0.75, recover="distill", **more)

    def agreement(self, result, data):
        return np.mean([np.mean(best(result.model, {"x": f["x"]}) == f["labels"]) for f in data])

    def test_a_model_learns_what_labels_say_and_not_what_is_right(self, monkeypatch):
        data = labelled(wrong)
        before = self.agreement(prune(two_layers(), keep=0.75, data=data), data)
        result = self.learn(monkeypatch, 150, data=data, loss=heavy)
        assert before < 0.2
        assert self.agreement(result, data) > 0.5  # half of the lessons imitate the original
        found = result.report["recovery"]
        assert result.report["oracle"]["passed"] and found["used"] == "distill"
        assert found["reason"].startswith(
            "lowest mean of error and heavy on the validation feeds (none "
        )
        assert found["learning"]["after"] < found["learning"]["before"]

    def test_its_error_is_the_mean_of_deviation_and_loss_on_held_out_feeds(self, monkeypatch):
        data = labelled()
        result = self.learn(monkeypatch, 30, data=data, loss="cross-entropy")
        held_out = open_data(open_model(two_layers()), Inputs(data)).validation
        losses = [cross_entropy(Runner(result.model)(f)["logits"], f.labels) for f in held_out]
        wanted = (result.report["drift"]["logits"]["nrmse"] + np.mean(losses)) / 2
        assert result.report["recovery"]["learning"]["after"] == pytest.approx(wanted, rel=1e-4)

    def test_a_lesson_with_labels_counts_both_losses_the_same(self):
        from onnx_rnn_prune.recovery.distill.batches import Batch
        from onnx_rnn_prune.recovery.distill.training import Task

        def network(given, weights, wanted):
            return {"logits": given["x"] * weights["w"]}

        given, weight = torch.tensor([[1.0, 2.0]]), torch.tensor(3.0)
        answers = Answers(torch.tensor([0]), "a.npz")
        lesson = Batch({"x": given}, {"logits": given}, [((), answers)])
        variances = {"logits": 2.0}
        task = Task(network, ("w",), variances, (), ("logits",), read_loss("cross-entropy"))
        imitation, labels = (
            (2.0**2 + 4.0**2) / 2 / 2.0,
            cross_entropy(np.array([[3.0, 6.0]]), np.array([0])),
        )
        found = float(task.loss(lesson, {"w": weight}, {})[0])
        assert found == pytest.approx((imitation + labels) / 2)
        without = Batch({"x": given}, {"logits": given})
        assert float(task.loss(without, {"w": weight}, {})[0]) == pytest.approx(imitation)

    def test_some_feeds_may_have_no_labels(self, monkeypatch):
        data = [*labelled(wrong)[:6], *feeds()[6:]]
        report = self.learn(monkeypatch, 10, data=data, loss="cross-entropy").report
        assert report["oracle"]["passed"] and report["recovery"]["learning"]["steps"] == 10

    def test_without_a_loss_labels_change_nothing(self, monkeypatch):
        monkeypatch.setattr(
            pipeline, "TrainingConfig", partial(TrainingConfig, steps=60, trials=3, rate=0.01)
        )
        found = [
            prune(two_layers(), keep=0.5, recover="distill", data=data)
            for data in (labelled(wrong), feeds())
        ]
        assert found[0].report["recovery"]["used"] == "distill"
        assert found[0].model == found[1].model

    def test_apply_learns_from_them_too(self):
        data = labelled(wrong)
        chosen = plan(two_layers(), keep=0.75, data=data)
        result = apply(two_layers(), chosen, data=data, recover="distill", loss=heavy)
        assert "mean of error and heavy" in result.report["recovery"]["reason"]


def test_searches_rank_by_them(tmp_path):
    """A study is of one loss; what is tried without one is tried again with it."""
    data = labelled(wrong)
    asked = {"data": data, "criterion": "taylor", "study": tmp_path / "study", "align": 2}
    for loss in (None, "cross-entropy", heavy):
        found = search(two_layers(), max_nrmse=0.9, trials=2, loss=loss, **asked)
        assert found.report.oracle.passed and found.report.criterion == "taylor"
    rows = sensitivity(two_layers(), loss="cross-entropy", **asked).layers
    assert len(rows) == 2
    with pytest.raises(PruneError, match="loss=: no step uses it"):
        search(two_layers(), data=data, params="90%", loss="cross-entropy")


def returns(value):
    def loss(outputs, labels):
        return value

    return loss


def fails(outputs, labels):
    return outputs["scores"].sum()


class TestErrors:
    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            ("mse", "loss=: unknown loss 'mse'; choose cross-entropy, or a module:function"),
            (3, "loss=: unknown loss 3"),
            ("no_such_module:loss", "no_such_module:loss: importing no_such_module failed"),
            ("math:nothing", "math:nothing: the module math has no nothing; choose cross-entropy"),
            (returns(1.0), "the loss loss returned float; return a scalar tensor"),
            (returns(torch.ones(3)), r"the loss loss returned Tensor \[3\]; return a scalar"),
            (returns(torch.ones((), dtype=torch.int64)), r"the loss loss returned Tensor \[\]"),
            (returns(torch.ones(())), "the loss loss does not depend on the outputs"),
            (fails, "the loss fails failed with KeyError: 'scores'; .* the outputs are logits"),
        ],
    )
    @pytest.mark.parametrize("asked", [{"criterion": "taylor"}, {"recover": "distill"}])
    def test_what_is_no_loss_is_refused(self, loss, message, asked):
        with pytest.raises(PruneError, match=message) as caught:
            prune(two_layers(), data=labelled(), loss=loss, **asked)
        assert "\n" not in str(caught.value)

    def test_slopes_of_what_is_no_number_are_refused(self):
        def nothing(outputs, labels):
            return outputs["logits"].sum() * float("nan")

        with pytest.raises(PruneError, match="Python data: feed .: the loss nothing is nan"):
            plan(two_layers(), data=labelled(), criterion="taylor", loss=nothing)

    @pytest.mark.parametrize(
        ("data", "more", "message"),
        [
            (feeds(), {"recover": "distill"}, "Python data: no calibration feed has labels"),
            (None, {"criterion": "fisher"}, "there is no data"),
            (labelled(), {}, "loss=: no step uses it; add criterion='taylor' or"),
            (labelled(lambda right: right[0]), {"recover": "distill"}, r"are int64 \[2\]"),
            (
                labelled(lambda right: [[1], [2, 3]]),
                {"recover": "distill"},
                "its labels cannot be converted",
            ),
        ],
    )
    def test_labels_that_are_missing_or_wrong_are_named(self, data, more, message):
        with pytest.raises(PruneError, match=message):
            prune(two_layers(), data=data, loss="cross-entropy", **more)

    def test_outputs_without_gradients_are_named(self):
        model = two_layers(
            after="logits = Add(product, bias)\n best = ArgMax <axis = -1> (logits)\n"
            "share = Cast <to = 1> (best)",
            outputs="float[time, batch, one] share",
        )

        def loss(outputs, labels):
            return outputs["share"].mean()

        with pytest.raises(PruneError, match=r"loss=: gradients of .* \(ArgMax"):
            prune(model, data=labelled(), recover="distill", loss=loss)

    def test_the_command_line_says_what_losses_there_are(self, capsys):
        assert run(["prune", "a.onnx", "-o", "b.onnx", "--loss", "mse"]) == 2
        assert "choose cross-entropy, or a module:function" in capsys.readouterr().err


def test_the_command_line_takes_a_function_and_labels_in_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(two_layers(), "model.onnx")
    for number, feed in enumerate(labelled(wrong)):
        np.savez(tmp_path / f"{number}.npz", **feed)
    (tmp_path / "my_losses.py").write_text(
        "import torch\n\n\ndef mine(outputs, labels):\n"
        "    scores = outputs['logits'].reshape(-1, 3)\n"
        "    return torch.nn.functional.cross_entropy(scores, labels.reshape(-1))\n"
    )
    asked = ["model.onnx", "-o", "out.onnx", "--data", str(tmp_path), "--loss", "my_losses:mine"]
    assert run(["prune", *asked, "--recover", "distill"]) == 0, capsys.readouterr().err
    assert "my_losses:mine" in " ".join(capsys.readouterr().out.split())
    asked[2] = "plan.json"
    assert run(["plan", *asked, "--criterion", "fisher"]) == 0
    assert run(["apply", "model.onnx", "plan.json", *asked[1:2], "applied.onnx", *asked[3:],
                "--recover", "distill"]) == 0  # fmt: skip


def test_a_loss_may_have_its_own_class():
    class Mine:
        def __call__(self, outputs, labels):
            return outputs["logits"].sum()

    assert read_loss(Mine()).name == "Mine"
    assert isinstance(read_loss(Mine()), Loss)
    assert read_loss(None) is None
