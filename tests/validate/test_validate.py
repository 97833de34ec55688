"""The oracle sees every kind of difference, drift measures it, latency compares in one run."""

import math
from typing import ClassVar

import numpy as np
import onnx
import pytest

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.validate import drift, either_order, latency, oracle, timings


def run(body, signature="(float[n, c] x) => (float[n, c] y)", name="the model"):
    text = f'<ir_version: 8, opset_import: ["" : 17]> agraph {signature} {{ {body} }}'
    return Runner(onnx.parser.parse_model(text), name=name)


def scaled(factor, *, plus=0.0):
    return run(
        f"f = Constant <value_float = {float(factor)!r}> ()"
        f" p = Constant <value_float = {float(plus)!r}> ()"
        " s = Mul(x, f) y = Add(s, p)"
    )


SAME = "y = Identity(x)"


def logistic(turn, whole=False):
    """A chaotic map: errors about double with each turn, of which there are as many as columns.

    Args:
        turn: computes w from v.
        whole: whether it reads whole numbers of tenths, of which the last bit says nothing.
    """
    start = "t = Constant <value_float = 0.1> () r = Floor(x) p = Mul(r, t)"
    body = f"""{start if whole else "p = Identity(x)"} n = Shape(x)
        f = Constant <value_float = 4.0> () o = Constant <value_float = 1.0> ()
        k = Constant <value_int = 1> () m = Gather(n, k)
        s = ReduceMean <axes = [1], keepdims = 0> (p)
        y = Loop (m, , s) <body = turn (int64 i, bool go, float[n] v) =>
        (bool on, float[n] w) {{ on = Identity(go) {turn} }}>"""
    return run(body, "(float[n, c] x) => (float[n] y)")


def test_rounding_that_the_model_amplifies_is_no_difference():
    """If there is none on a shorter feed; what is no rounding is one."""
    one, other, wrong = (
        logistic("a = Sub(o, v) b = Mul(v, a) w = Mul(b, f)"),
        logistic("a = Mul(v, v) b = Sub(v, a) w = Mul(b, f)"),
        logistic("a = Sub(o, v) b = Mul(v, a) c = Mul(b, f) w = Mul(c, c)"),
    )
    rng = np.random.default_rng(0)
    long, short = ({"x": rng.random((3, n)).astype(np.float32)} for n in (12, 1))
    assert np.abs(one(long)["y"] - other(long)["y"]).max() > 1e-5
    both = oracle(one, other, [long, short])
    assert both and both.reason == "the model amplifies rounding errors"
    assert "rounding errors are amplified" in oracle(one, other, [long]).reason
    assert not oracle(one, wrong, [long, short])


def test_rounding_is_known_by_another_order_where_inputs_are_whole_numbers():
    one, other, wrong = (
        logistic("a = Sub(o, v) b = Mul(v, a) w = Mul(b, f)", whole=True),
        logistic("a = Mul(v, v) b = Sub(v, a) w = Mul(b, f)", whole=True),
        logistic("a = Sub(o, v) b = Mul(v, a) c = Mul(b, f) w = Mul(c, c)", whole=True),
    )
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.integers(1, 9, (3, n)).astype(np.float32)} for n in (14, 1)]
    assert not oracle(one, other, feeds)
    both = either_order(lambda optimized: (other, one) if optimized else (one, other), feeds)
    assert both and both.reason == "the model amplifies rounding errors"
    assert not either_order(lambda optimized: (other, wrong) if optimized else (one, wrong), feeds)


@pytest.fixture
def feeds():
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(3, 2, (n, 5)).astype(np.float32)} for n in (4, 9, 1)]


def test_drift_is_that_of_all_feeds_at_once(feeds):
    found = drift(run(SAME), scaled(0.9, plus=0.1), feeds)["y"]
    a = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    b = a * 0.9 + 0.1
    rmse = math.sqrt(np.mean((a - b) ** 2))
    assert found.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-5)
    assert found.rmse == pytest.approx(rmse, rel=1e-5)
    assert found.nrmse == pytest.approx(rmse / a.std(), rel=1e-5)
    cosine = (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())
    assert found.cosine == pytest.approx(cosine, rel=1e-6)
    assert found.top1_agreement == 1.0


def test_no_drift(feeds):
    found = drift(run(SAME), run(SAME), feeds)["y"]
    assert (found.max_abs, found.rmse, found.nrmse) == (0, 0, 0)
    assert found.cosine == pytest.approx(1)


def test_spread_keeps_its_precision_far_from_zero(feeds):
    far = [{"x": feed["x"] * 0 + 4096 + 0.25 * np.sign(feed["x"] - 3)} for feed in feeds]
    values = np.concatenate([feed["x"] for feed in far])
    found = drift(run(SAME), scaled(1, plus=1), far)["y"]
    assert found.nrmse == pytest.approx(1 / values.astype(np.float64).std(), rel=1e-9)


def test_top_answers():
    x = np.array([[1, 2, 0], [1, 0, 0], [0, 0, 3], [5, 1, 4]], np.float32)
    other = run("w = Constant <value = float[3] {1, 0.4, 1}> () y = Mul(x, w)")
    assert drift(run(SAME), other, [{"x": x}])["y"].top1_agreement == 0.75


def test_an_axis_that_varies_or_is_single_has_no_top_answer():
    wide = [{"x": np.ones((2, n), np.float32)} for n in (3, 4)]
    assert drift(run(SAME), run(SAME), wide)["y"].top1_agreement is None
    single = [{"x": np.ones((2, 1), np.float32)}]
    assert drift(run(SAME), run(SAME), single)["y"].top1_agreement is None


def test_a_constant_output_is_measured_by_its_size():
    constant = [{"x": np.full((2, 3), 10, np.float32)}]
    assert drift(run(SAME), scaled(1.1), constant)["y"].nrmse == pytest.approx(0.1, rel=1e-5)
    zero = [{"x": np.zeros((2, 3), np.float32)}]
    found = drift(run(SAME), scaled(1, plus=1), zero)["y"]
    assert found.nrmse == math.inf
    assert found.cosine is None


OVER_ZERO = "z = Constant <value_float = 0.0> () y = Div(x, z)"


def test_infinities_may_only_be_where_the_original_has_them():
    feeds = [{"x": np.array([[2, 1, -1]], np.float32)}]
    over = run(OVER_ZERO)
    assert drift(over, over, feeds)["y"].max_abs == 0
    assert oracle(over, over, feeds, original=over)
    for original in (None, run(SAME), run("n = Neg(x) z = Sub(x, x) y = Div(n, z)")):
        failed = oracle(over, over, feeds, original=original)
        assert not failed and failed.max_abs_diff == math.inf
        assert failed.reason.startswith("output y is infinite ")
    for other in (drift(over, run(SAME), feeds), drift(run(SAME), over, feeds)):
        assert other["y"].rmse == math.inf and other["y"].nrmse == math.inf


def test_what_is_not_a_number_never_passes():
    """Not even where the original's is not: it hides whatever went wrong before."""
    feeds = [{"x": np.array([[1, 1, -1]], np.float32)}, {"x": np.array([[0, 1, -1]], np.float32)}]
    over = run(OVER_ZERO)
    assert drift(over, over, feeds)["y"].nrmse == math.inf
    failed = oracle(over, over, feeds, original=over)
    assert failed.reason == "output y is not a number (nor is the original's) in feed 1"
    assert not failed and failed.max_abs_diff == math.inf
    assert not oracle(over, run(SAME), feeds, original=over)


def test_other_types_are_compared_entry_by_entry():
    signature = "(int64[n] x) => (int64[n] y, bool[n] b, string[n] s)"
    body = "y = Identity(x) b = Cast <to = 9> (x) s = Cast <to = 8> (x)"
    other = "o = Constant <value_int = 1> () y = Mul(x, o) q = Sub(x, o) b = Cast <to = 9> (q)"
    other += " d = Add(x, x) s = Cast <to = 8> (d)"
    feeds = [{"x": np.array([0, 1, 2, 3])}]
    found = drift(run(body, signature), run(other, signature), feeds)
    assert (found["y"].top1_agreement, found["y"].rmse) == (1.0, 0)
    assert found["b"].top1_agreement == 0.5
    assert found["b"].max_abs == 1
    assert found["s"].top1_agreement == 0.25
    assert (
        "output b differs by 1 in feed 0"
        in oracle(run(body, signature), run(other, signature), feeds).reason
    )


def test_integers_must_be_equal_however_large():
    signature = "(int64[n] x) => (int64[n] y)"
    feeds = [{"x": np.array([2**60])}]
    other = "o = Constant <value_int = 1> () y = Add(x, o)"
    assert not oracle(run(SAME, signature), run(other, signature), feeds)


def test_sequences():
    signature = "(float[n, c] x) => (seq(float[n, c]) y)"
    body = "y = SequenceConstruct(x, x)"
    other = "d = Add(x, x) y = SequenceConstruct(x, d)"
    feeds = [{"x": np.ones((2, 3), np.float32)}]
    assert drift(run(body, signature), run(other, signature), feeds)["y"].max_abs == 1
    assert oracle(run(body, signature), run(body, signature), feeds)
    with pytest.raises(PruneError, match="output y is float32.* in one and float32.* in the other"):
        drift(run(body, signature), run("y = SequenceConstruct(x)", signature), feeds)


def test_different_outputs_cannot_be_compared(feeds):
    other = run("z = Identity(x)", "(float[n, c] x) => (float[n, c] z)", "b.onnx")
    with pytest.raises(PruneError, match="the model and b.onnx: their outputs differ: y and z"):
        drift(run(SAME), other, feeds)
    turned = run("y = Transpose(x)", "(float[n, c] x) => (float[c, n] y)")
    with pytest.raises(PruneError, match=r"output y is float32\[4, 5\] in one and float32\[5, 4\]"):
        oracle(run(SAME), turned, feeds)


@pytest.mark.parametrize(("factor", "passed"), [(1, True), (1 + 5e-6, True), (1 + 5e-5, False)])
def test_the_oracle_allows_rounding_relative_to_the_output(feeds, factor, passed):
    found = oracle(run(SAME), scaled(factor), feeds)
    assert bool(found) is found.passed is passed
    assert found.feeds == 3
    assert bool(found.reason) is not passed
    largest = max(np.abs(feed["x"]).max() for feed in feeds)
    assert found.max_abs_diff == pytest.approx(largest * (factor - 1), rel=0.1, abs=1e-12)


def test_small_outputs_get_an_absolute_tolerance():
    feeds = [{"x": np.full((1, 3), 1e-6, np.float32)}]
    assert oracle(run(SAME), scaled(3), feeds)
    assert not oracle(run(SAME), scaled(1, plus=1e-3), feeds)


def test_half_precision_has_a_tolerance_it_can_meet():
    signature = "(float16[n] x) => (float16[n] y)"
    feeds = [{"x": np.array([1, 2], np.float16)}]

    def plus(value):
        body = f"p = Constant <value_float = {value}> () h = Cast <to = 10> (p) y = Add(x, h)"
        return run(body, signature)

    assert oracle(run(SAME, signature), plus(0.002), feeds)
    assert not oracle(run(SAME, signature), plus(0.2), feeds)


def test_empty_outputs_agree():
    body = (
        "s = Constant <value_ints = [0]> () e = Constant <value_ints = [0]> () y = Slice(x, s, e)"
    )
    feeds = [{"x": np.ones((2, 3), np.float32)}]
    assert oracle(run(body), run(body), feeds)
    assert drift(run(body), run(body), feeds)["y"].rmse == 0


def test_scalar_outputs():
    body = "y = ReduceMean <keepdims = 0> (x)"
    signature = "(float[n, c] x) => (float y)"
    feeds = [{"x": np.full((2, 3), i, np.float32)} for i in range(4)]
    assert oracle(run(body, signature), run(body, signature), feeds)
    assert drift(run(body, signature), run(body, signature), feeds)["y"].top1_agreement is None


def test_a_slower_model_is_slower():
    feed = {"x": np.ones((300, 300), np.float32)}
    slow = run("a = MatMul(x, x) b = MatMul(a, a) y = MatMul(b, b)")
    found = timings([run(SAME), slow], feed, seconds=0.3)
    assert found[0].ratio == 1
    assert found[1].ratio < 1
    assert found[0].ms < found[1].ms
    assert found[0].rounds == found[1].rounds > 3
    both = latency(slow, run(SAME), feed, threads=1, seconds=0.1)
    assert both.speedup > 1
    assert both.speedup_quartiles[0] <= both.speedup <= both.speedup_quartiles[1]
    assert both.before_ms > both.after_ms
    assert both.threads == 1
    for when in ("before", "after"):
        low, high = getattr(both, f"{when}_quartiles_ms")
        assert low <= getattr(both, f"{when}_ms") <= high
    assert both.before_quartiles_ms[0] > both.after_quartiles_ms[0]


def test_only_runs_are_timed():
    """A feed is made ready before that, and outputs are seen to after it."""

    class Front:
        name, outputs, seen = "later", ["y"], []

        def ready(self, feed):
            return {"x": feed["x"] + 1}

        def runner(self, feed):
            self.seen.append(float(feed["x"][0, 0]))
            return {"y": feed["x"]}

        def __call__(self, feed):
            self.seen.append("called")
            return self.runner(self.ready(feed))

    timings([run(SAME), Front()], {"x": np.ones((2, 2), np.float32)}, rounds=3)
    assert Front.seen == ["called", 2] * 3 + [2] * 3


def test_timing_ends_in_time():
    feed = {"x": np.ones((2, 2), np.float32)}
    assert timings([run(SAME)], feed, rounds=5)[0].rounds == 5
    assert timings([run(SAME)], feed, seconds=0)[0].rounds == 1


class Rounding:
    """A model that puts out one number in each order of summation."""

    outputs: ClassVar = ["y"]

    def __init__(self, value):
        self.name = "model"
        self._value = np.array([value], np.float32)

    def __call__(self, feed, outputs=None):
        return {"y": self._value}


@pytest.mark.parametrize(
    ("written", "rewritten", "passed"), [(0.0, 0.1, True), (0.1, 0.0, True), (0.1, 0.1, False)]
)
def test_one_order_of_summation_is_enough(written, rewritten, passed):
    found = either_order(
        lambda other: (Rounding(1.0), Rounding(1.0 + (rewritten if other else written))), [{}]
    )
    assert found.passed == passed
