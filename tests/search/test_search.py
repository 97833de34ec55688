"""Searching: the strategies, what they remember, and results that are what was asked for."""

import contextlib
import itertools
import json
import sqlite3
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_rnn_prune
from onnx_rnn_prune import api, pipeline
from onnx_rnn_prune.calibration import open_three
from onnx_rnn_prune.cli import run as command
from onnx_rnn_prune.cost.price import node_parts
from onnx_rnn_prune.errors import ConstraintError, PruneError
from onnx_rnn_prune.evaluator import Evaluator
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.options import Inputs, Options, Target
from onnx_rnn_prune.pipeline import Treatment
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.record import to_json
from onnx_rnn_prune.search import problem
from onnx_rnn_prune.search.goal import Goal
from onnx_rnn_prune.search.problem import Problem, SizePrediction, predicted
from onnx_rnn_prune.search.rows import frontier
from onnx_rnn_prune.search.search import SearchBounds, run
from onnx_rnn_prune.search.study import Study
from onnx_rnn_prune.selection.allocation import ALLOCATORS, Allocation
from onnx_rnn_prune.selection.criteria import CRITERIA
from onnx_rnn_prune.selection.profitability import ProfitableCuts, worse
from onnx_rnn_prune.selection.space import FULL, QUICK, Aim, Ask, Space, Trial
from onnx_rnn_prune.selection.strategies import STRATEGIES, curve_asks
from onnx_rnn_prune.trace.units import Group
from onnx_rnn_prune.traced_model import trace_model
from reports import pruned
from stacked import WIDTH, stacked, widths

SIZES = (40, 40, 20)
# What a unit costs, and how much the error falls with the units of each group.
COSTS = np.array([4.0, 1.0, 2.0])
WEIGHTS = np.array([0.2, 1.0, 0.5])


def anything(counts):
    return True


def lost(counts):
    share = np.array(counts) / SIZES
    return float(np.sqrt((WEIGHTS * (1 - share) ** 2).sum()))


def cost(counts):
    return 5.0 + float(np.dot(COSTS, counts))


def attempt(ask):
    loss = lost(ask.counts) * (0.9 if ask.recovery == FULL else 1.0)
    return Trial(ask.counts, ask.recovery, loss, loss, 0.0, loss, cost(ask.counts), 0, 0, 1.0)


def space(most=np.inf, align=1):
    groups, first = [], 0
    for number, size in enumerate(SIZES):
        groups.append(Group((f"layer {number}",), (np.arange(first, first + size)[:, None],)))
        first += size
    trace = SimpleNamespace(groups=tuple(groups))
    scores = np.random.default_rng(0).random(first)
    return Space(trace, scores, Allocation(align), cost, lambda counts: cost(counts) <= most)


def searched(strategy, aim, most=np.inf, trials=400, memory=None, align=1):
    memory = Study(None, "") if memory is None else memory
    work = STRATEGIES[strategy](space(most, align), aim, 0)
    attempts = lambda asks: map(attempt, asks)  # noqa: E731
    return run(work, attempts, memory, SearchBounds(trials, 1e9), silent)


def best_of_all(most):
    """By trying every third cut."""
    cuts = itertools.product(*(range(1, size + 1, 3) for size in SIZES))
    return min(cost(counts) for counts in cuts if 0.9 * lost(counts) <= most)


@pytest.mark.parametrize("most", [0.05, 0.2, 0.6])
def test_greedy_comes_near_the_fastest_cut_that_is_good_enough(most):
    trials = searched("greedy", Aim(most, anything))
    best = min(trials, key=Aim(most, anything).rank)
    assert best.loss <= most
    assert best.ms <= 1.05 * best_of_all(most)
    assert len(trials) < 150


@pytest.mark.parametrize("most", [0.05, 0.2, 0.6])
def test_what_greedy_begins_with_is_as_good_as_any_equal_or_global_cut(most):
    """Before it cuts groups alone, of which there may be many."""
    aim, where = Aim(most, anything), space()
    allocators = [make(where.trace, where.scores) for make in ALLOCATORS.values()]
    ways = [(urgency, price) for urgency in allocators for price in (None, cost)]
    orders = [where.bounds.order(where.groups, *way) for way in ways]
    levels = np.linspace(cost((1, 1, 1)), cost(SIZES), 100)
    simple = [where.within(level, order) for level in levels for order in orders]
    best = min(cost(counts) for counts in simple if lost(counts) <= most)
    found = min(searched("greedy", aim, trials=20), key=aim.rank)
    assert found.loss <= most and found.ms <= best + 0.02 * cost(SIZES)


def test_rows_that_lose_most_are_given_up_where_none_is_good_enough():
    """Trials of large models take long, and most would be in vain if hardly anything can be cut."""
    first, *others = searched("greedy", Aim(1e-4, anything), trials=11)
    assert first.counts == SIZES and {trial.recovery for trial in others} == {QUICK}
    at_once = [len(list(same)) for _, same in itertools.groupby(trial.ms for trial in others)]
    assert at_once[:2] == [4, 2] and max(at_once[2:]) <= 2


def test_greedy_comes_near_the_best_cut_that_is_fast_enough():
    most = 0.4 * cost(SIZES)
    aim = Aim(None, lambda counts: cost(counts) <= most)
    best = min(searched("greedy", aim, most), key=aim.rank)
    assert best.ms <= most
    cuts = itertools.product(*(range(1, size + 1, 3) for size in SIZES))
    assert best.loss <= 0.9 * 1.05 * min(lost(counts) for counts in cuts if cost(counts) <= most)


def test_ways_to_share_a_cut_are_compared_by_what_a_recovery_in_full_makes_of_them():
    """Before units are moved: what quick trials rank first need not be the best."""
    most = 0.4 * cost(SIZES)
    trials = searched("greedy", Aim(None, lambda counts: cost(counts) <= most), most)
    first = [trial.recovery for trial in trials].index(FULL)
    assert [trial.recovery for trial in trials[first:]][:4] == [FULL, FULL, FULL, QUICK]
    ranked = sorted((t for t in trials[:first] if cost(t.counts) <= most), key=lambda t: t.loss)
    assert {t.counts for t in trials[first : first + 3]} == {t.counts for t in ranked[:3]}


def test_what_is_known_not_to_be_good_enough_is_not_looked_for_again():
    """Once a recovery in full has made up for nothing, groups are cut alone."""
    aim, made = Aim(0.2, anything), list[Ask]()

    def alike(asks):
        for ask in asks:
            made.append(ask)
            yield replace(attempt(Ask(ask.counts)), recovery=ask.recovery)

    run(
        STRATEGIES["greedy"](space(), aim, 0),
        alike,
        Study(None, ""),
        SearchBounds(400, 1e9),
        silent,
    )
    after = made[[ask.recovery for ask in made].index(FULL) + 1 :]
    alone = list(itertools.takewhile(lambda ask: ask.recovery == QUICK, after))[:6]
    assert {
        sum(kept < size for kept, size in zip(ask.counts, SIZES, strict=True)) for ask in alone
    } == {1}


def test_of_cuts_that_are_equally_fast_the_one_that_loses_least_is_best():
    fast, better, slow = (
        Trial((n,), QUICK, loss, loss, 0.0, loss, ms, 1, 1, 0.0)
        for n, (loss, ms) in enumerate([(0.3, 1.000), (0.1, 1.005), (0.05, 1.1)])
    )
    assert sorted([slow, fast, better], key=Aim(0.4, anything).rank) == [better, fast, slow]


def test_optuna_finds_a_cut_that_is_good_enough():
    pytest.importorskip("optuna")
    trials = searched("optuna", Aim(0.2, anything))
    best = min(trials, key=Aim(0.2, anything).rank)
    assert best.loss <= 0.2 and best.ms < 0.8 * cost(SIZES)
    assert [t.counts for t in searched("optuna", Aim(0.2, anything))] == [t.counts for t in trials]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_widths_are_aligned(strategy):
    if strategy == "optuna":
        pytest.importorskip("optuna")
    for trial in searched(strategy, Aim(0.3, anything), align=8):
        assert all(n % 8 == 0 or n == size for n, size in zip(trial.counts, SIZES, strict=True))


def test_channels_of_convolutions_are_rounded_to_multiples_of_8():
    assert replace(space(), eights=frozenset({0, 2})).aligned([21.0, 21.0, 11.0]) == (24, 21, 11)


@pytest.mark.parametrize("most", (30.0, 41.0, 53.0, 77.0, 99.0))
def test_rows_of_cuts_round_channels_too(most):
    """A convolution of 37 channels takes as long as one of 40, and does less."""
    where = replace(space(), eights=frozenset({0, 1}))
    order = where.bounds.order(where.groups, ALLOCATORS["uniform"](where.trace, where.scores), None)
    for fits in (anything, lambda counts: sum(counts) <= most):
        bound = replace(where, fits=fits, price=sum)
        counts = bound.within(most, order)
        assert fits(list(counts)) and abs(sum(counts) - most) < 2 * 8
        assert all(n % 8 == 0 for n in counts[:2])


def test_a_group_that_is_to_stay_whole_does():
    """Also where it has not a multiple of 8 channels, when others are cut."""
    where = replace(space(align=8), eights=frozenset(range(3)))
    assert where.aligned(SIZES) == SIZES == (40, 40, 20)
    assert where.aligned((17.0, 40.0, 20.0)) == (16, 40, 20)
    assert where.aligned((40.0, 37.0, 17.5)) == (40, 40, 16)
    assert all(ask.counts[2] == 20 for ask in curve_asks(where)[0])


def test_what_stands_behind_channels_takes_less_time_with_fewer_of_them():
    """Depthwise convolutions and activations are no layers, but most of the time in some models."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 4, 16, 16] x) => (float[n, 3, 16, 16] y) {
            a = Conv (x, wide)
            b = Conv <group = 64, pads = [1, 1, 1, 1]> (a, each)
            c = HardSwish (b)
            y = Conv (c, last)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in {
        "wide": (64, 4, 1, 1),
        "each": (64, 1, 3, 3),
        "last": (3, 64, 1, 1),
    }.items():
        value = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    opened = open_model(model, layers=("all",))
    data = open_three(opened, Inputs(data=[{"x": np.ones((1, 4, 16, 16), np.float32)}] * 3))
    names = [layer.name for layer in opened.layers]
    traced = trace_model(opened, names, data.calibration, Options.of({}).interface)
    behind = {"b": 1 / 64, "c": 1 / 64, "y": 1 / 64}
    found = node_parts(traced.document, traced.trace)
    assert {key: part.tolist() for key, part in found.items() if key in behind} == {
        key: [part] for key, part in behind.items()
    }
    times = {"ms": 10.0, "shares": {"a": 0.2}, "others": {"b": 0.5, "c": 0.3}}
    ms = predicted(traced, times)
    assert ms([64]) == pytest.approx(10.0) and 2.4 < ms([16]) < 4.0
    # What files took counts for more, but not that fewer units took longer.
    ms = predicted(traced, {**times, "files": [([8], 9.0), ([16], 4.5), ([32], 6.0)]})
    assert [ms([n]) for n in (16, 32, 64)] == pytest.approx([4.5, 6.0, 10.0]) and ms([8]) <= 4.5


@pytest.mark.parametrize("trials", [1, 5, 17])
def test_no_more_is_tried_than_asked_for(trials):
    assert len(searched("greedy", Aim(0.2, anything), trials=trials)) == trials


class Clock:
    """Time passes while trials are made only; one in full takes longer."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def attempts(self, asks):
        for ask in asks:
            taken = 7.0 if ask.recovery == QUICK else 31.0
            self.seconds += taken
            yield replace(attempt(ask), seconds=taken)


@pytest.mark.parametrize("minutes", [0.5, 2.0, 5.0, 9.0, 20.0])
def test_time_is_left_to_finish_and_no_more(minutes):
    clock = Clock()
    bounds = SearchBounds(400, minutes, now=clock, start=0.0)
    work = STRATEGIES["greedy"](space(), Aim(0.2, anything), 0)
    trials = run(work, clock.attempts, Study(None, ""), bounds, silent)
    assert clock.seconds == sum(trial.seconds for trial in trials)
    left, alone = 60.0 * minutes - clock.seconds, searched("greedy", Aim(0.2, anything))
    assert (
        bounds.finishing(trials) <= left or len(trials) == 1
    )  # how long they take is not known before
    assert left < bounds.finishing(trials) + 8 * 7.0 or len(trials) == len(alone)


def test_a_search_that_time_ended_makes_no_more_trials_when_it_is_looked_at_again(tmp_path):
    found = []
    for _ in range(2):
        clock, memory = Clock(), Study(tmp_path / "study", "")
        bounds = SearchBounds(400, 5.0, now=clock, start=0.0)
        work = STRATEGIES["greedy"](space(), Aim(0.2, anything), 0)
        found.append(run(work, clock.attempts, memory, bounds, silent))
    assert clock.seconds == 0.0 and found[0] == found[1]


def test_the_best_is_finished_in_the_time_that_is_left():
    clock = Clock()
    bounds = SearchBounds(400, 5.0, now=clock, start=0.0)
    treatment = Treatment.of(Options.of({"recover": "lstsq"}))
    trials = list(clock.attempts([Ask(SIZES)]))
    hastened = bounds.hasten(treatment, trials).training
    assert 0.0 < 60.0 * hastened.minutes < 300.0 - clock.seconds
    assert clock.seconds < hastened.until < 300.0


def test_what_was_tried_is_not_tried_again_and_the_end_is_the_same(tmp_path):
    """Stopped after each number of trials, and gone on with, it ends as one left alone."""
    alone = searched("greedy", Aim(0.2, anything))
    path = tmp_path / "study"
    for stop in (3, 11, 30, 31, 60):
        made = []

        def until(asks, stop=stop, made=made):
            for ask in asks:
                if len(made) == stop:
                    raise KeyboardInterrupt
                made.append(ask)
                yield attempt(ask)

        work = STRATEGIES["greedy"](space(), Aim(0.2, anything), 0)
        with contextlib.suppress(KeyboardInterrupt):
            run(work, until, Study(path, ""), SearchBounds(400, 1e9), silent)
    assert searched("greedy", Aim(0.2, anything), memory=Study(path, "")) == alone


def test_memory_tells_apart_what_was_measured_in_other_ways(tmp_path):
    Study(tmp_path / "study", "one ").keep("key", [1, 2.5])
    assert "key" not in Study(tmp_path / "study", "two ")
    assert Study(tmp_path / "study", "one ")["key"] == [1, 2.5]


def test_memory_refuses_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("something else, and long enough to be no database" * 9)
    with pytest.raises(PruneError, match=r"notes.txt: cannot be used as a study"):
        Study(tmp_path / "notes.txt", "")
    with pytest.raises(PruneError, match=r"choose another file with study="):
        Study(tmp_path / "nowhere" / "study", "")


def test_another_database_is_no_study_and_stays_as_it_is(tmp_path):
    path = tmp_path / "photos.db"
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE photos (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(PruneError, match="it is not a study: it has a table 'photos'.*study="):
        Study(path, "a")
    assert path.read_bytes() == before


def test_the_frontier_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    trials = [
        Trial((n,), "quick", 0.0, float(loss), 0.0, 0.0, float(ms), 0, 0, 0.0)
        for n, (loss, ms) in enumerate(rng.integers(0, 12, (60, 2)))
    ]
    best = frontier(trials)
    for trial in trials:
        beaten = any(
            (o.ms, o.loss) != (trial.ms, trial.loss) and o.ms <= trial.ms and o.loss <= trial.loss
            for o in trials
        )
        same = any((o.ms, o.loss) == (trial.ms, trial.loss) for o in best)
        assert same != beaten


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(15, 2, WIDTH)).astype(np.float32)} for _ in range(12)]


def search(feeds, idle="first", **choices):
    return onnx_rnn_prune.search(stacked(idle), data=feeds, **choices)


@pytest.mark.parametrize("idle", ["first", "second"])
def test_the_layer_that_does_nothing_is_cut(idle, feeds):
    """All but two of its units are read by nobody; the other layer's are all needed."""
    result = search(feeds, idle, max_nrmse=1e-3)
    other = {"first": "second", "second": "first"}[idle]
    found, report = widths(result), result.report["search"]
    assert found[idle] <= 3 and found[other] == 8
    assert report["met"] and report["test"]["quality"] <= 1e-3
    assert result.report["oracle"]["passed"]


def test_the_three_sets_are_disjoint(feeds, monkeypatch):
    seen = []
    kept = Evaluator.before
    monkeypatch.setattr(
        Evaluator, "before", lambda self, own: (seen.append(own), kept(self, own))[1]
    )
    result = search(feeds, max_nrmse=0.5, trials=3)
    splits = result.report["search"]["splits"]
    assert splits == {"calibration": 6, "validation": 3, "test": 3, "shared": ""}
    names = [{feed.name for feed in own} for own in seen]
    assert min(len(one & other) for one in names for other in names) == 0


def test_what_is_reported_is_of_the_feeds_given_for_that(feeds):
    """Also where they go by the same names as those that select."""
    rng = np.random.default_rng(7)
    others = [{"x": 3 * rng.normal(size=(15, 2, WIDTH)).astype(np.float32)} for _ in range(3)]
    result = search(feeds, None, eval_data=others, max_nrmse=0.9)
    found = onnx_rnn_prune.compare(stacked(None), result.model, data=others)
    reported = result.report["search"]["test"]["quality"]
    assert reported == pytest.approx(found["drift"]["logits"]["nrmse"], rel=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_the_report_says_what_too_few_feeds_share(count, feeds):
    result = search(feeds[:count], max_nrmse=0.5, trials=3)
    assert result.report["search"]["splits"]["shared"].startswith("there ")


def test_a_study_makes_another_search_need_no_trials(feeds, tmp_path, monkeypatch):
    study = tmp_path / "study"
    first = search(feeds, max_nrmse=0.1, study=study)

    judged = problem.judged

    def nothing_new(evaluator, scores, longest, ask):
        assert ask.counts == tuple(g.size for g in evaluator.traced.trace.groups), ask
        return judged(evaluator, scores, longest, ask)

    monkeypatch.setattr(problem, "judged", nothing_new)
    again = search(feeds, max_nrmse=0.1, study=study)
    assert again.plan == first.plan
    assert again.report["search"]["candidates"] == first.report["search"]["candidates"]
    rows = first.report["search"]["candidates"]
    other = next(
        row for row in rows if not row["picked"] and row["kept"] != {"first": 8, "second": 8}
    )
    picked = search(feeds, max_nrmse=0.1, study=study, pick=other["number"])
    assert widths(picked).items() >= other["kept"].items()
    with pytest.raises(PruneError, match=r"^pick=: there is no candidate 999"):
        search(feeds, max_nrmse=0.1, study=study, pick=999)


def test_what_was_recovered_in_full_is_not_recovered_again(feeds, tmp_path, monkeypatch):
    """It is written as it was judged; a search that only reads of it makes the same anew."""
    study, calls = tmp_path / "study", list[str]()
    recover = pipeline.recover_units
    monkeypatch.setattr(
        pipeline, "recover_units", lambda *args: (calls.append("again"), recover(*args))[1]
    )
    first = search(feeds, None, max_nrmse=0.6, study=study)
    picked = next(row for row in first.report["search"]["candidates"] if row["picked"])
    assert picked["recovery"] == "full" and not calls
    again = search(feeds, None, max_nrmse=0.6, study=study)
    assert calls and again.plan == first.plan
    assert again.model.SerializeToString() == first.model.SerializeToString()
    assert again.report["recovery"] == first.report["recovery"]


def test_a_study_with_other_feeds_starts_anew(feeds, tmp_path):
    study = tmp_path / "study"
    search(feeds, max_nrmse=0.5, study=study, trials=2)
    search(feeds[1:], max_nrmse=0.5, study=study, trials=2)
    base = sqlite3.connect(study)
    keys = [key.split()[0] for (key,) in base.execute("SELECT key FROM record")]
    base.close()
    assert len(set(keys)) == 2


@pytest.mark.parametrize("limit", [{"params": "60%"}, {"bytes": "90%"}])
def test_what_limits_the_cost_is_met(limit, feeds):
    result = search(feeds, **limit, trials=30)
    (row,) = result.report["search"]["limits"]
    assert row["met"] and row["reached"] <= row["asked"]
    assert result.report["search"]["quality"] == "nrmse"


@pytest.mark.parametrize(
    "off", [0.4, 1.0, 3.0, *(pytest.param(off, marks=pytest.mark.draws) for off in (0.8, 1.7))]
)
@pytest.mark.parametrize("bend", [-0.3, 0.0, 0.3])
def test_what_is_found_is_as_fast_as_asked_however_far_off_predictions_are(
    off, bend, feeds, monkeypatch, tmp_path
):
    """And no faster than one more unit would allow; found again, nothing is timed anew."""
    took, timed = np.array([3.0, 2.0]), []

    def real(counts):
        return 1.0 + float(took @ counts)

    def speedup(traced, counts, feed):
        timed.append(counts)
        return 100.0 / real(counts)

    def price(counts):
        return off * real(counts) * (counts[0] / sum(counts)) ** bend

    monkeypatch.setattr(problem, "time_layers", lambda *_: {"original": 100.0})
    monkeypatch.setattr(problem, "predicted", lambda *_: price)
    monkeypatch.setattr(problem, "_speedup", speedup)
    plans = []
    for _ in range(2):
        timed.clear()
        result = search(feeds, latency="25ms", trials=60, study=tmp_path / "study")
        kept = widths(result)
        plans.append(result.plan)
        spent = real([kept["first"], kept["second"]])
        assert spent <= 25.0 < spent + 2 * took.max()
        assert len(result.report["search"]["candidates"]) <= 60
    assert plans[0] == plans[1] and not timed


@pytest.mark.parametrize("align", [1, 4])
@pytest.mark.parametrize("most", [50.0, 100.0, 200.0, 400.0])
def test_a_cut_is_made_no_narrower_than_it_takes(most, align):
    some, wide = space(most, align), (40, 32, 20)
    found = some.narrowed(wide)
    assert some.fits(list(found)) and np.all(np.array(found) <= wide)
    assert found == wide or cost(found) > most - align * COSTS.sum()
    kept = np.array(found) / wide
    assert kept.max() - kept.min() <= 2 * align / min(wide)


@pytest.mark.parametrize("minutes", [0.4, 0.42, 0.8])
@pytest.mark.parametrize("off", [1.0, 1.5])
def test_the_best_is_taken_also_where_time_ends_a_search_for_speed(
    minutes, off, feeds, monkeypatch
):
    clock = Clock()
    attempts = Problem.attempts

    def real(counts):
        return 1.0 + float(np.array([3.0, 2.0]) @ counts)

    def speedup(traced, counts, feed):
        clock.seconds += 2.0
        return 100.0 / real(counts)

    def timed_attempts(self, asks):
        for trial in attempts(self, asks):
            clock.seconds += 1.0
            yield replace(trial, seconds=1.0)

    monkeypatch.setattr(Problem, "attempts", timed_attempts)
    monkeypatch.setattr(problem, "time_layers", lambda *_: {"original": 100.0})
    monkeypatch.setattr(problem, "predicted", lambda *_: lambda counts: off * real(counts))
    monkeypatch.setattr(problem, "_speedup", speedup)
    monkeypatch.setattr(api, "SearchBounds", partial(SearchBounds, now=clock, start=0.0))
    report = search(feeds, latency="18ms", minutes=minutes).report["search"]
    fitting = [
        trial["quality"]
        for trial in report["candidates"]
        if real(list(trial["kept"].values())) <= 0.97 * 18.0
    ]
    assert len(report["candidates"]) < 60  # time ended it
    assert report["candidates"][report["picked"] - 1]["quality"] == min(fitting)


def test_all_of_several_limits_are_met(feeds):
    result = search(feeds, max_nrmse=0.9, params="60%", bytes="90%", trials=60)
    assert [row["name"] for row in result.report["search"]["limits"]] == [
        "quality",
        "params",
        "bytes",
    ]
    assert all(row["met"] for row in result.report["search"]["limits"][1:])


def test_what_cannot_be_met_is_said(feeds):
    with pytest.raises(ConstraintError, match=r"^search: even with the fewest units allowed"):
        search(feeds, params="1%")
    with pytest.raises(
        ConstraintError,
        match=r"^search: no candidate is within deviation \(nrmse\) at most 0,",
    ):
        search(feeds, None, max_nrmse=0.0, params="70%")


@pytest.mark.parametrize("bounds", [{"align": 8}, {"min_units": 8}, {"min_units": 100}])
@pytest.mark.parametrize("choices", [{"strategy": s} for s in STRATEGIES] + [{"pick": 1}])
def test_where_no_layer_can_be_cut_there_is_nothing_to_search(bounds, choices, feeds):
    with pytest.raises(
        PruneError, match=r"the model: no layer can be pruned; .*, .*: align="
    ) as got:
        search(feeds, max_nrmse=0.1, **bounds, **choices)
    assert "\n" not in str(got.value) and not isinstance(got.value, ConstraintError)


def test_a_layer_of_one_unit_cannot_be_cut():
    """No command takes it for one that can, and none fails."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[t, b, 2] x) => (float[t, 1, b, 1] y)
        <float[1, 4, 2] W = {1, 2, 3, 4, 5, 6, 7, 8}, float[1, 4, 1] R = {1, 2, 3, 4}>
        { [one] y = LSTM <hidden_size = 1> (x, W, R) }
    """)
    feeds = [{"x": np.ones((3, 2, 2), np.float32)}] * 5
    for call in (onnx_rnn_prune.search, onnx_rnn_prune.sensitivity):
        options = {"max_nrmse": 0.1} if call is onnx_rnn_prune.search else {}
        with pytest.raises(PruneError, match="no layer can be pruned; one: it has one unit; run"):
            call(model, data=feeds, **options)
    found = onnx_rnn_prune.inspect(model)
    assert found["layers"][0]["pinned"] == "it has one unit" and found["warnings"] == []
    for options in ({}, {"lossless": True}, {"budget": "params=100%"}, {"sparsify": "50%"}):
        result = onnx_rnn_prune.prune(model, **options)
        assert result.report["layers"][0]["hidden_after"] == 1
        assert result.report["layers"][0]["pinned"] == "it has one unit"
    without = () if find_spec("torch") else ("fisher", "taylor")
    for name in [name for name in CRITERIA if name not in without]:
        assert onnx_rnn_prune.plan(model, data=feeds, criterion=name).cut() == ()
    with pytest.raises(ConstraintError, match="the fewest units that may stay"):
        onnx_rnn_prune.prune(model, budget="params=50%")


def test_a_metric_that_is_no_number_of_the_original_judges_nothing(feeds):
    with pytest.raises(
        PruneError, match=r"^metric='<lambda>': it is nan for the original, so nothing"
    ):
        search(feeds, metric=lambda pairs: np.nan, max_drop=0.1)


def test_a_metric_of_the_users_own_decides(feeds):
    def smallness(results):
        return float(np.mean([np.abs(outputs["logits"]).max() for _, outputs in results]))

    result = search(feeds, None, metric=smallness, better="lower", max_drop="5%", trials=30)
    report = result.report["search"]
    assert report["quality"] == "smallness" and not report["higher_is_better"]
    assert all(
        row["quality"] + row["spread"] <= report["quality_limit"] + 1e-9
        for row in report["candidates"]
        if row["meets"]
    )


def test_labels_in_feeds_are_what_accuracy_counts(feeds):
    model = stacked(None)
    given = [{**feed, "labels": np.zeros((15, 2), int)} for feed in feeds]
    found = onnx_rnn_prune.search(model, data=given, metric="accuracy", max_drop=0.2, trials=20)
    assert 0 <= found.report["search"]["test"]["original"] <= 1
    with pytest.raises(PruneError, match=r"^metric='accuracy': the feeds have no labels"):
        onnx_rnn_prune.search(model, data=feeds, metric="accuracy", max_drop=0.05)


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({}, r"^search: no goal was given; give max_nrmse="),
        ({"max_drop": 1}, r"^max_drop=: it needs a metric"),
        ({"max_nrmse": 0.1, "metric": "kl"}, r"^max_nrmse= and metric=: both set"),
        ({"speedup": 2, "latency": "5ms"}, r"^speedup= and latency=: both set"),
        ({"speedup": "fast"}, r"^speedup=: 'fast' is not a number"),
        ({"speedup": "0x"}, r"^speedup=: "),
        ({"latency": "5 miles"}, r"^latency=: '5 miles' is not a duration"),
        ({"latency": True}, r"^latency=: "),
        ({"max_nrmse": -1}, r"^max_nrmse=: "),
        ({"metric": "kl", "max_drop": "little"}, r"^max_drop=: 'little' is not an amount"),
        ({"metric": "kl", "max_drop": float("nan")}, r"^max_drop=: "),
        ({"metric": "kl", "better": "lower", "max_drop": 1}, r"^better=: the better direction"),
        ({"metric": "wisdom", "max_drop": 1}, r"^metric=: unknown metric 'wisdom'"),
        ({"params": "150%"}, r"^params=: "),
        ({"bytes": "much"}, r"^bytes=: "),
        ({"max_nrmse": 0.1, "trials": 0}, r"^trials=: "),
        ({"max_nrmse": 0.1, "minutes": 0}, r"^minutes=: "),
        ({"max_nrmse": 0.1, "strategy": "luck"}, r"^strategy=: "),
        ({"max_nrmse": 0.1, "pick": 0}, r"^pick=: "),
    ],
)
def test_what_means_nothing_is_refused(choices, text, feeds):
    with pytest.raises(PruneError, match=text):
        search(feeds, **choices)


@pytest.mark.parametrize(
    ("text", "ms"), [("5ms", 5.0), ("0.5 s", 500.0), ("250us", 0.25), (7, 7.0)]
)
def test_times(text, ms):
    goal = Goal.of(Target(latency=text))
    assert goal.speed is not None and goal.speed.of(1.0) == pytest.approx(ms)


def test_reports_are_json(feeds):
    report = search(feeds, max_nrmse=0.5, trials=3).report
    assert json.loads(to_json(report))["search"].keys() == report["search"].keys()


POLICY = """
    <ir_version: 9, opset_import: ["" : 18]>
    g (float[1, 12] obs, float[1, 1, 16] h, float[1, 1, 16] c)
        => (float[1, 3] actions, float[1, 1, 16] hn, float[1, 1, 16] cn) {
        x = Unsqueeze (obs, axis)
        Y, hn, cn = LSTM <hidden_size = 16> (x, W, R, B, , h, c)
        y = Squeeze (Y, axes)
        actions = MatMul (y, fc)
    }
"""


def policy():
    """A step of a small policy: to bring its states to full width takes more than units save."""
    model = onnx.parser.parse_model(POLICY)
    rng = np.random.default_rng(0)
    shapes = {"W": (1, 64, 12), "R": (1, 64, 16), "B": (1, 128), "fc": (16, 3)}
    for name, shape in shapes.items():
        value = (0.5 * rng.normal(size=shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    for name, value in {"axis": [0], "axes": [0, 1]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    feeds = []
    for _ in range(20):
        feed = {name: rng.normal(0, 0.3, (1, 1, 16)).astype(np.float32) for name in ("h", "c")}
        feeds.append({"obs": rng.normal(size=(1, 12)).astype(np.float32), **feed})
    return model, feeds


def test_where_nothing_is_better_than_the_original_search_says_so(tmp_path, capsys, monkeypatch):
    def price(counts):
        return float(sum(counts) + 20 * (counts[0] < 16))

    monkeypatch.setattr(problem, "predicted", lambda *_: price)
    model, given = policy()
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "d").mkdir()
    for number, feed in enumerate(given):
        np.savez(tmp_path / "d" / f"{number:02}.npz", **feed)
    names = [str(tmp_path / name) for name in ("m.onnx", "out.onnx", "d")]
    code = command(["search", names[0], "-o", names[1], "--data", names[2], "--max-nrmse", "0.3"])
    told = capsys.readouterr().err
    assert code == 3 and not (tmp_path / "out.onnx").exists()
    assert "the original" in told and "Y to full width costs more" in told


def test_a_group_counts_as_whole_where_its_cut_does_not_pay():
    def price(counts):
        return sum(counts) + (5 if counts[0] < 10 else 0)

    profitable = ProfitableCuts(full=(10, 20), doubtful=(0,), prices=[price])
    assert profitable((6, 4)) == (10, 4)  # four units fewer, and five to bring them back
    assert profitable((4, 4)) == (4, 4)
    assert profitable((5, 20)) == (10, 20)


def test_what_is_priced_is_what_is_written():
    """Also where a layer keeps all, which then has nothing to bring to full width."""
    model, given = policy()
    opened = open_model(model)
    data = open_three(opened, Inputs(given))
    traced = trace_model(opened, ["Y"], data.calibration)
    size = SizePrediction(traced, np.zeros(16), (0,))
    assert size("bytes", [16]) == model.ByteSize()
    for count in (1, 8, 12):
        result = onnx_rnn_prune.prune(model, keep=count, data=given)
        assert 0 <= size("bytes", [count]) - result.report["totals"]["bytes_after"] < 700
        assert size("params", [count]) >= result.report["totals"]["params_after"]


@pytest.mark.usefixtures("speed_counts")
def test_what_is_worse_than_the_original_is_known():
    report = pruned()
    slower = replace(report.latency, before_ms=0.1, speedup=0.8, speedup_quartiles=(0.7, 0.9))
    report = replace(report, latency=slower)
    tiny = replace(slower, before_ms=0.001, speedup=0.97, speedup_quartiles=(0.96, 0.98))
    assert worse(replace(report, latency=tiny)) == "the result is 1.03x slower than the original"
    assert worse(report) == "the result is 1.2x slower (1.1x to 1.4x) than the original"
    assert worse(report, ("bytes",)) is None
    unsure = replace(slower, speedup=0.9, speedup_quartiles=(0.7, 1.1))
    alike = replace(slower, speedup=0.985, speedup_quartiles=(0.98, 0.99))  # as copies are
    for latency in (unsure, alike):
        assert worse(replace(report, latency=latency)) is None
    larger = replace(report.totals, bytes_after=report.totals.bytes_before + 1)
    assert worse(replace(report, totals=larger)).startswith("the file is larger")


def test_limits_of_speed_are_of_what_was_written_out_and_cuts_of_what_was_rolled(monkeypatch):
    """Rolling alone makes this one several times faster: nothing has to be cut."""

    def given_times(models, feed, **limits):
        rolled = ("the rolled model", "a cut model")
        took = [1.0 if model.name in rolled else 5.0 for model in models]
        return [SimpleNamespace(ms=ms, busy_ms=ms) for ms in took]

    monkeypatch.setattr(problem, "timings", given_times)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(4, 12, 5)).astype(np.float32)} for _ in range(6)]
    path = Path(__file__).parents[1] / "fixtures" / "keras_gru.onnx"
    result = onnx_rnn_prune.search(path, data=feeds, speedup=1.5, trials=8)
    assert result.report["search"]["test"]["loss"] < 1e-4
    assert all(row["hidden_after"] == row["hidden_before"] for row in result.report["layers"])


def test_a_cut_that_does_not_pay_is_no_result():
    """The projection of this cell takes more than its units save: all would stay as it was."""
    path = Path(__file__).parent.parent / "fixtures" / "cell_lstmp_loop.onnx"
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(20, 2, 5)).astype(np.float32)} for _ in range(12)]
    with pytest.raises(PruneError, match="better than the original"):
        onnx_rnn_prune.search(path, data=data, max_nrmse=0.3, trials=12)
