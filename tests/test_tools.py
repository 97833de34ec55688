"""The tools that measure: what they say of text and of methods is counted right."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))

import trials
from methods import GRIDS
from methods_table import table
from segmentation import Tables, best_tags, f1, read_corpus, spans
from trials import Cache, Method, Outcome, Trial


class Marked:
    """Stands in for lac: gives every character the tag 0, or 1 where `inside` says so."""

    def __init__(self, inside):
        self.inside = inside

    def __call__(self, feed):
        scores = np.zeros((1, feed["token_ids"].shape[1], 2), np.float32)
        for place, inside in enumerate(self.inside):
            scores[0, place, int(inside)] = 9.0
        return {"scores": scores}


TABLES = Tables({"OOV": 0}, {}, frozenset({1}), np.zeros((2, 2), np.float32))


def test_names_of_people_are_joined(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("江/nr  泽民/nr  说/v  。/w\n\n李/nr  。/w  王/nr\n/w\n", "utf-8")
    assert read_corpus(path)[:2] == [("江泽民", "说", "。"), ("李", "。", "王")]


def test_best_tags_are_those_of_trying_all():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 3)).astype(np.float32)
    transitions = rng.normal(size=(3, 3)).astype(np.float32)

    def total(tags):
        steps = sum(transitions[a, b] for a, b in itertools.pairwise(tags))
        return sum(scores[place, tag] for place, tag in enumerate(tags)) + steps

    wanted = max(itertools.product(range(3), repeat=5), key=total)
    assert tuple(best_tags(scores, transitions)) == wanted


@pytest.mark.parametrize(
    ("inside", "wanted"),
    [
        ([False, True, False], 1.0),
        # One word of two is found, and of the three that are found one is right.
        ([False, False, False], 2 * 1 / (3 + 2)),
        # The first character begins a word, whatever the model says.
        ([True, True, True], 0.0),
    ],
)
def test_f1_counts_whole_words(inside, wanted):
    assert f1(Marked(inside), TABLES, [("ab", "c")]) == pytest.approx(wanted)


def test_spans_cover_all():
    assert spans([3, 1], 5) == {(0, 1), (1, 3), (3, 5)}


def test_outcomes_stay_for_the_same_code_only(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    trial = Trial("lac", "50%", 1, Method("l2", "none"))
    Cache(path, "a").add(Outcome(trial, "a", 0.5))
    Cache(path, "a").add(Outcome(Trial("lac"), "a", None, reason="no file"))
    assert Cache(path, "a").outcomes == {trial: Outcome(trial, "a", 0.5)}
    assert Cache(path, "b").outcomes == {}
    assert Cache(path, "").outcomes.keys() == {trial}


def test_what_is_there_is_not_tried_again(tmp_path):
    trial = Trial("digits_gru", "50%", 0, Method("l2", "none"))
    cache = Cache(tmp_path / "outcomes.jsonl", "a")
    cache.add(Outcome(trial, "a", 0.5))
    assert list(trials.run_all(tmp_path, [trial, trial], cache, "a", 1.0, 1)) == []


def test_a_trial_that_cannot_be_says_why(tmp_path):
    outcome = trials.run(tmp_path, Trial("lac", "50%", 0, Method()), "a", 1.0)
    assert outcome.value is None
    assert "fetch_models.py lac lac_tables newspaper" in outcome.reason


def test_sample_is_cut_and_measured(tmp_path):
    trial = Trial("digits_gru", "50%", 0, Method("l2", "none"))
    outcome = trials.run(tmp_path, trial, "a", 60.0)
    assert 0.1 < outcome.value < 0.99
    assert outcome.used == "none"


def test_grids_start_with_the_default_and_repeat_nothing():
    for methods in GRIDS.values():
        assert methods[0] == Method()
        assert len({str(method) for method in methods}) == len(methods)


def test_outcomes_from_before_a_way_to_prune_came_stay(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    path.write_text(
        '{"trial": {"task": "lac", "keep": "50%", "seed": 0, "method": {"criterion": "l2",'
        ' "recover": "none", "allocate": "uniform", "steps": 1}}, "code": "a", "value": 0.5,'
        ' "reason": "", "used": "none", "seconds": 3.0}\n'
    )
    assert Trial("lac", "50%", 0, Method("l2", "none")) in Cache(path, "").outcomes


def tried(method, *values):
    return [
        Outcome(Trial("text_lstm", "50%", seed, method), "a", value)
        for seed, value in enumerate(values)
    ]


def test_table_has_means_and_what_is_best_beyond_noise():
    outcomes = [
        Outcome(Trial("text_lstm", "100%"), "a", 4.0),
        *tried(Method(), 5.0, 5.2, 5.1),
        *tried(Method("l2"), 6.0, 6.4, 6.2),
        *tried(Method("random"), None, None, None),
        Outcome(Trial("text_lstm", "25%", 0, Method("l2")), "a", 1.0),
    ]
    lines = table(outcomes).splitlines()
    assert "| original |  |  | 4.00 |" in lines
    assert "| reconstruction | lstsq | uniform | **5.10 ± 0.10** |" in lines
    assert "| l2 | lstsq | uniform | 6.20 ± 0.20 |" in lines
    assert "- text_lstm, random, recovery lstsq: " in lines


def test_table_has_nothing_bold_within_noise():
    outcomes = [*tried(Method(), 5.0, 6.2, 5.1), *tried(Method("l2"), 5.9, 5.4, 6.2)]
    assert "**" not in table(outcomes)
