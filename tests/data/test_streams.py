"""Streams: calls that follow one another are judged with each file's own states carried along."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_rnn_prune import cli, compare, prune, recovery_choice, search, sensitivity
from onnx_rnn_prune.calibration import open_data, open_three
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evaluator import CandidateCut, Evaluator
from onnx_rnn_prune.evidence import runs
from onnx_rnn_prune.evidence.evidence import Tapped
from onnx_rnn_prune.evidence.moments import MomentStore
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig
from onnx_rnn_prune.recovery.least_squares import RIDGE, RIDGES
from onnx_rnn_prune.recovery.schedules import Schedule
from onnx_rnn_prune.recovery_choice import recover_units
from onnx_rnn_prune.report.wording import sentences, streams
from onnx_rnn_prune.selection.criteria.ablation import MaskedModel
from onnx_rnn_prune.traced_model import trace_model
from onnx_rnn_prune.validate import drift_in_detail
from streaming import (
    EPISODES,
    HIDDEN,
    STATES,
    STEPS,
    bare,
    calls,
    decoder,
    episodes,
    greedy,
    policy,
    whole,
    words,
    zeros,
)


def closed_loop(original, pruned, observed):
    """NRMSE of y with both files' own states carried along, written by hand."""
    runs, found = [Runner(original), Runner(pruned)], [[], []]
    for episode in observed:
        for run, outputs in zip(runs, found, strict=True):
            states = zeros()
            for step in episode:
                given = run({"x": step[None], **states})
                states = {name: given[output] for name, output in STATES.items()}
                outputs.append(given["y"])
    one, other = (np.array(outputs, np.float64) for outputs in found)
    return np.sqrt(np.mean((one - other) ** 2)) / one.std()


@pytest.fixture(scope="module")
def model():
    return policy()


def test_a_stream_of_single_steps_is_pruned_as_the_sequence_is(model):
    results = [
        prune(model, data=data, stream=stream)
        for data, stream in (
            (whole(episodes()), None),
            (calls(model, episodes()), None),
            (bare(episodes()), True),
        )
    ]
    wanted, *others = [
        (
            result.plan.layers,
            {k: result.report["recovery"][k] for k in ("used", "lambda", "rounds")},
        )
        for result in results
    ]
    assert others == [wanted, wanted]
    errors = [result.report["drift"]["y"]["nrmse"] for result in results]
    assert errors == pytest.approx([errors[0]] * 3, rel=1e-3)


def candidate_of(model, data, stream, keep):
    data, original = opened(model, data, stream), open_model(model)
    traced = trace_model(original, ["Y"], data.calibration)
    return Evaluator.of(traced, data).candidate(keep)


def test_a_stream_of_single_steps_is_judged_as_the_sequence_is(model):
    keep = np.arange(HIDDEN) % 2 == 0
    by_sequence, *by_streams = (
        candidate_of(model, data, stream, keep)
        for data, stream in (
            (whole(episodes()), None),
            (calls(model, episodes()), None),
            (bare(episodes()), True),
        )
    )
    for ridge in (np.inf, 1e-1, 1e-3):
        wanted = by_sequence.fitted(by_sequence.pairs, ridge)
        for cut in by_streams:
            assert cut.fitted(cut.pairs, ridge).error == pytest.approx(wanted.error)
            seen = [MomentStore(), MomentStore()]
            for each, store in zip((by_sequence, cut), seen, strict=True):
                feeds, sampling = each.evaluator.data.calibration, each.sampling(1)
                each.free_pairs(each.shrunk(wanted.write), feeds, sampling, store, {})
            for pool in ("Y#0iofcX+H", "y_product#0"):
                one, other = (store[pool] for store in seen)
                np.testing.assert_allclose(one.variance, other.variance, rtol=1e-5)


def test_compare_carries_the_states_of_each_file_along(model):
    pruned = prune(model, keep=0.5, data=calls(model, episodes())).model
    observed = episodes(4, seed=1)
    wanted = closed_loop(model, pruned, observed)
    for data, stream in ((calls(model, observed), None), (bare(observed), True)):
        found = compare(model, pruned, data=data, stream=stream)
        assert found["drift"]["y"]["nrmse"] == pytest.approx(wanted, rel=1e-4)
    apart = compare(model, pruned, data=calls(model, observed), stream=False)
    assert apart["drift"]["y"]["nrmse"] < 0.95 * wanted


def opened(model, data, stream=None):
    return open_data(open_model(model), Inputs(data, stream=stream))


def test_streams_are_found_from_the_states_in_feeds(model):
    data = opened(model, calls(model, episodes(8)))
    assert data.calibration.states == data.validation.states == STATES
    assert (data.calibration.streams, data.validation.streams) == (6, 2)
    assert (len(data.calibration), len(data.validation)) == (6 * STEPS, 2 * STEPS)
    for feeds in (data.calibration, data.validation):
        follows = [bool(feed.follows) for feed in feeds]
        assert follows == ([False] + [True] * (STEPS - 1)) * feeds.streams


def test_streams_are_not_invented(model):
    feeds = calls(model, episodes(4))
    mixed = [feeds[at] for at in np.random.default_rng(0).permutation(len(feeds))]
    constant = [{**feed, **zeros()} for feed in feeds]
    repeated = [{**feed, **{n: feeds[5][n] for n in STATES}} for feed in feeds]
    for data in (mixed[::2], constant, repeated, whole(episodes()), feeds[::3]):
        assert opened(model, data).calibration.states == {}
    assert opened(model, feeds, stream=False).calibration.states == {}


def test_a_single_stream_is_cut_in_two(model):
    data = opened(model, calls(model, episodes(1)))
    assert (len(data.calibration), len(data.validation)) == (STEPS - 3, 3)
    assert [bool(feed.follows) for feed in data.validation] == [False, True, True]


def test_streams_that_hold_most_calls_are_not_held_out(model):
    for long in range(4):
        lengths = [3 * STEPS if at == long else 4 + at for at in range(4)]
        observed = [np.resize(e, (n, 1, 4)) for e, n in zip(episodes(4), lengths, strict=True)]
        data = opened(model, calls(model, observed))
        assert 4 <= len(data.validation) <= len(data.calibration) / 2


def test_folders_are_streams(model, tmp_path):
    for number, episode in enumerate(bare(episodes(4))):
        (tmp_path / f"episode{number}").mkdir()
        for step, feed in enumerate(episode):
            np.savez(tmp_path / f"episode{number}" / f"{step}.npz", **feed)
    data = opened(model, tmp_path, stream=True)
    assert (data.calibration.streams, data.validation.streams) == (3, 1)
    names = [feed.name for feed in opened(model, tmp_path / "episode2", stream=True).calibration]
    assert names == [str(tmp_path / "episode2" / f"{step}.npz") for step in range(9)]


def test_streams_of_a_model_without_states_are_refused(model):
    stateless = onnx.ModelProto()
    stateless.CopyFrom(model)
    for name in ("h", "c"):  # they become constants
        stateless.graph.initializer.append(numpy_helper.from_array(zeros()[name], name))
    del stateless.graph.input[1:], stateless.graph.output[1:]
    with pytest.raises(PruneError, match="has no state that is passed"):
        opened(stateless, bare(episodes(2)), stream=True)


def test_the_report_tells_how_states_were_treated(model):
    feeds = calls(model, episodes())
    together, apart = prune(model, data=feeds), prune(model, data=feeds, stream=False)
    count = EPISODES * STEPS
    row = {"states": STATES, "count": EPISODES, "calls": count, "asked": None}
    assert together.report["data"]["streams"] == row
    assert apart.report["data"]["streams"] == {**row, "count": 0, "asked": False}
    found = compare(model, together.model, data=feeds[::2])
    assert found["streams"] == {**row, "count": 0, "calls": count // 2}
    texts = [dict(sentences(result.report))["States"] for result in (together, apart)]
    assert f"{EPISODES} streams, {count} calls" in texts[0] and "--stream" not in texts[1]
    assert "with --stream" in streams(found["streams"])


def test_errors_are_shown_over_the_calls_of_a_stream(model):
    data = whole(episodes()), calls(model, episodes())
    pruned = prune(model, data=data[1]).model
    original, result = Runner(model), Runner(pruned)
    (by_step, by_call) = (
        drift_in_detail(original, result, opened(model, feeds).validation, {"y": 0})[1]
        for feeds in data
    )
    assert by_call["y"].over_time.steps == list(range(STEPS))
    assert by_call["y"].over_time.rmse == pytest.approx(by_step["y"].over_time.rmse, rel=1e-4)
    assert (by_call["hn"].over_time.unit, by_call["y"].over_time.unit) == ("call", "step")
    assert len(by_call["hn"].over_time.rmse) == STEPS and by_step["hn"].over_time is None


def spelled(pairs, run):
    """The share of tokens that are right where each is the answer to the one before."""
    right = []
    for feed, _ in pairs:
        if "labels" in feed:
            found = greedy(run, int(feed["token"].item()), len(feed["labels"]))
            right.extend(np.array(found) == feed["labels"])
    return float(np.mean(right))


@pytest.fixture(scope="module")
def found_alone():
    model = decoder()
    return sensitivity(model, data=words(model), stream=True, metric=spelled, seed=1)


def test_a_metric_may_run_the_candidate_itself(found_alone):
    points = found_alone["layers"][0]["points"]
    assert points[-1]["metric"] == 1.0 > points[0]["metric"]
    model = decoder()
    with pytest.raises(PruneError, match="metric <lambda>: the input 'token' is missing"):
        sensitivity(model, data=words(model), stream=True, metric=lambda pairs, run: run({}))
    result = search(
        model, data=words(model), stream=True, metric=spelled, params="80%", trials=3, minutes=1
    )
    tested = open_three(open_model(model), Inputs(words(model), stream=True)).test
    pairs = [
        ({**feed, **({} if feed.labels is None else {"labels": feed.labels})}, {})
        for feed in tested
    ]
    outcome = result.report["search"]["test"]
    assert outcome["original"] == 1.0
    assert outcome["quality"] == spelled(pairs, Runner(result.model))


def test_other_processes_judge_streams_as_this_one_does(found_alone):
    model = decoder()
    again = sensitivity(model, data=words(model), stream=True, metric=spelled, seed=1, jobs=2)
    for one, other in zip(found_alone["layers"], again["layers"], strict=True):
        for point, same in zip(one["points"], other["points"], strict=True):
            assert {**point, "ms": 0} == {**same, "ms": 0}


def test_masked_models_carry_their_states_along(model):
    traced = candidate_of(model, whole(episodes()), None, np.ones(HIDDEN, bool)).traced
    masked, keep = MaskedModel(traced), np.arange(HIDDEN) % 3 > 0
    feeds = opened(model, bare(episodes(2)), stream=True)
    by_call = [
        outputs["y"]
        for part in (feeds.calibration, feeds.validation)
        for outputs in masked.outputs(part, keep)
    ]
    by_episode = [masked(feed, keep)["y"] for feed in whole(episodes(2))]
    order = [0, 1] if np.allclose(by_call[0], by_episode[0][:1], atol=1e-6) else [1, 0]
    wanted = np.concatenate([by_episode[at] for at in order])
    np.testing.assert_allclose(np.concatenate(by_call), wanted, atol=1e-6)


def test_what_runs_best_in_the_closed_loop_is_chosen():
    model, keep = policy(spread=2.6), np.arange(HIDDEN) % 2 == 0
    feeds = calls(model, episodes())
    closed, apart = (candidate_of(model, feeds, stream, keep) for stream in (None, False))
    ridges = (np.inf, 1e-1, 1e-2, 1e-3, 1e-4)
    errors = [[cut.fitted(cut.pairs, r).error for r in ridges] for cut in (closed, apart)]
    print(errors)
    assert np.argmin(errors[0]) != np.argmin(errors[1])
    found, _ = recover_units(closed, "auto", Schedule(), TrainingConfig(), silent)
    observed = np.array([feed["x"] for feed in closed.evaluator.data.validation]).reshape(
        -1, STEPS, 1, 4
    )
    by_hand = closed_loop(model, closed.shrunk(found.write).write(), observed)
    assert found.error == pytest.approx(by_hand, rel=1e-4)
    assert found.error <= min(errors[0])


@pytest.mark.parametrize("until", [5.0, 15.0, 25.0, 35.0])
def test_no_round_of_refits_begins_that_is_not_done_in_time(monkeypatch, until):
    model, keep = policy(spread=2.6), np.arange(HIDDEN) % 2 == 0
    cut, now, each = candidate_of(model, calls(model, episodes()), None, keep), [0.0], 10.0
    run = CandidateCut.free_pairs

    def slow(*given):
        now[0] += each
        run(*given)

    monkeypatch.setattr(recovery_choice, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(CandidateCut, "free_pairs", slow)
    recover_units(cut, "lstsq", Schedule(), TrainingConfig(until=until), silent)
    assert now[0] <= max(until, each)  # how long the first one takes is not known before


@pytest.mark.parametrize("count", [3, 4])
def test_a_fit_to_few_samples_does_not_run_away(count):
    """Kept units that say little of the others are not believed, lest the recurrence diverges."""
    model, keep = policy(), np.arange(HIDDEN) % 4 < 3
    cut = candidate_of(model, calls(model, episodes(count)), None, keep)
    errors = {ridge: cut.fitted(cut.pairs, ridge).error for ridge in RIDGES}
    assert cut.error(cut.quick()) == min(errors.values()) < 0.75 * errors[RIDGE]
    found, _ = recover_units(cut, "auto", Schedule(), TrainingConfig(), silent)
    # Refits are taken unless they are clearly worse.
    assert found.error <= 1.1 * min(errors.values())


CACHED = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    denoiser (float[1, 4, 1] x, float[1, 4, 2] past, float[1, 1, {HIDDEN}] h)
        => (float[1, 4, 1] y, float[1, 4, 2] seen, float[1, 1, {HIDDEN}] hn) {{
        all = Concat <axis = 2> (past, x)
        seen = Slice (all, one, three, two)
        mixed = Conv (all, kernel)
        steps = Transpose <perm = [2, 0, 1]> (mixed)
        Y, hn = GRU <hidden_size = {HIDDEN}> (steps, W, R, B, , h)
        flat = Squeeze (Y, axis)
        out = MatMul (flat, fc)
        y = Transpose <perm = [1, 2, 0]> (out)
    }}
"""


def denoiser():
    """A model with a cache of what it read before, beside the states of a layer."""
    rng, model = np.random.default_rng(8), onnx.parser.parse_model(CACHED)
    shapes = {"kernel": (4, 4, 3), "W": (1, 3 * HIDDEN, 4), "R": (1, 3 * HIDDEN, HIDDEN)}
    shapes |= {"B": (1, 6 * HIDDEN), "fc": (HIDDEN, 4)}
    values = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    values |= {n: np.array([v]) for n, v in (("one", 1), ("two", 2), ("three", 3), ("axis", 1))}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    return model


def test_caches_are_states_too():
    model, states = denoiser(), {"past": "seen", "h": "hn"}
    original, rng, given, without = Runner(model), np.random.default_rng(9), [], []
    for _ in range(4):
        held = {"past": np.zeros((1, 4, 2)), "h": np.zeros((1, 1, HIDDEN))}
        held = {name: value.astype(np.float32) for name, value in held.items()}
        without.append([])
        for _ in range(6):
            x = rng.normal(size=(1, 4, 1)).astype(np.float32)
            given.append({"x": x, **held})
            without[-1].append({"x": x})
            outputs = original(given[-1])
            held = {name: outputs[output] for name, output in states.items()}
    pruned = prune(model, data=given).model
    found = [compare(model, pruned, data=given), compare(model, pruned, data=without, stream=True)]
    for each in found:
        assert each["streams"]["states"] == states and each["streams"]["count"] == 4
    assert found[0]["drift"]["y"]["nrmse"] == pytest.approx(found[1]["drift"]["y"]["nrmse"])
    kinds = {name: row.get("kind") for name, row in found[0]["drift"].items()}
    assert kinds == {"y": None, **dict.fromkeys(states.values(), "state")}
    with pytest.raises(PruneError, match="'past' is missing; add it, or pass stream= if it is a"):
        compare(model, pruned, data=without[0])


def test_every_command_takes_streams(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(model, "m.onnx")
    observed = episodes(10)
    for number, episode in enumerate(bare(observed)):
        Path("d", str(number)).mkdir(parents=True)
        for step, feed in enumerate(episode):
            np.savez(f"d/{number}/{step:02}.npz", **feed)
    data = ["--data", "d", "--stream"]
    # So small a model is hardly faster once it is smaller, which is refused.
    cut = ["-o", "p.onnx", *data, "--eval-data", "d", "--json", "p.json", "--mode", "zero"]
    assert cli.run(["prune", "m.onnx", *cut]) == 0
    wanted = closed_loop(model, onnx.load("p.onnx"), observed)
    assert json.loads(Path("p.json").read_text())["drift"]["y"]["nrmse"] == pytest.approx(wanted)
    assert cli.run(["plan", "m.onnx", "-o", "plan.json", *data]) == 0
    assert cli.run(["apply", "m.onnx", "plan.json", "-o", "a.onnx", *data, "--mode", "zero"]) == 0
    capsys.readouterr()
    assert cli.run(["compare", "m.onnx", "p.onnx", *data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["drift"]["y"]["nrmse"] == pytest.approx(wanted)
    assert (
        cli.run(["bench", "m.onnx", "p.onnx", *data]) == cli.run(["inspect", "m.onnx", *data]) == 0
    )
    assert cli.run(["sensitivity", "m.onnx", *data]) == 0
    assert "10 streams, 120" in " ".join(capsys.readouterr().out.split())
    goal = ["--bytes", "90%", "--trials", "4", "--eval-data", "d", "--json", "s.json"]
    assert cli.run(["search", "m.onnx", "-o", "s.onnx", *data, *goal]) == 0
    reached = json.loads(Path("s.json").read_text())["search"]["test"]["quality"]
    assert reached == pytest.approx(closed_loop(model, onnx.load("s.onnx"), observed), rel=1e-4)


def test_states_that_are_only_handed_back_do_not_say_which_units_stay(model):
    alone = policy()
    del alone.graph.output[1:]
    with_states, without = (
        prune(each, keep=6, data=whole(episodes())).plan.layers for each in (model, alone)
    )
    assert with_states == without


@pytest.mark.parametrize("form", [calls, lambda _, observed: whole(observed)])
def test_the_original_runs_each_feed_once(form, monkeypatch):
    """It is not run again in rounds of refits, also where its states go from call to call."""
    model, ran = policy(), Counter()
    opened = open_model(model)
    data = open_data(opened, Inputs(form(model, episodes(4))))
    ask = Tapped._ask

    def counted(own, feed):
        ran[feed.name] += own._runs is not None
        return ask(own, feed)

    def found():
        ran.clear()
        traced = trace_model(opened, ["Y"], data.calibration)
        trace = traced.trace
        keep = np.arange(trace.units.count) % 2 == 0
        cut = Evaluator.of(traced, data).candidate(keep)
        chosen, _ = recover_units(cut, "lstsq", Schedule(), TrainingConfig(), silent)
        return cut.shrunk(chosen.write).write().SerializeToString(), chosen.rounds

    def times(room):
        monkeypatch.setattr(runs, "_MOST_BYTES", room)
        return found(), {ran[feed.name] for feed in data.calibration}

    monkeypatch.setattr(Tapped, "_ask", counted)
    result, ran_so_often = times(room=1 << 28)
    assert ran_so_often == {1}
    for room in (0, 4_000):  # nothing is kept, or what comes first
        same, ran_so_often = times(room)
        assert same == result and max(ran_so_often) > 2 and (min(ran_so_often) == 1) == (room > 0)
