"""Qualities, against numbers computed by hand and with scikit-learn's formulas."""

import math

import numpy as np
import pytest

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.validate.quality import QUALITIES, read_quality
from onnx_rnn_prune.validate.results import Result

RNG = np.random.default_rng(0)
SCORES = [RNG.normal(size=(4, 6, 5)) for _ in range(3)]
OTHERS = [value + 0.3 * RNG.normal(size=value.shape) for value in SCORES]
LABELS = [RNG.integers(0, 5, (4, 6)) for _ in range(3)]


def results(labels=LABELS, outputs=OTHERS):
    labels = [None] * len(SCORES) if labels is None else labels
    return [
        Result({"x": np.zeros(1)}, own, {"logits": wanted}, {"logits": found})
        for own, wanted, found in zip(labels, SCORES, outputs, strict=True)
    ]


def measured(name, found=None):
    return read_quality(name, None).measure(results() if found is None else found)


def softmax(values):
    shares = np.exp(values)
    return shares / shares.sum(-1, keepdims=True)


def test_accuracy():
    right = np.concatenate(OTHERS).argmax(-1) == np.concatenate(LABELS)
    assert measured("accuracy") == pytest.approx(right.mean())
    chosen = [value.argmax(-1) for value in OTHERS]
    assert measured("accuracy", results(outputs=chosen)) == pytest.approx(right.mean())


def test_perplexity():
    shares = softmax(np.concatenate(OTHERS))
    picked = np.take_along_axis(shares, np.concatenate(LABELS)[..., None], -1)
    wanted = math.exp(-np.log(picked).mean())
    assert measured("perplexity") == pytest.approx(wanted)
    assert measured("perplexity", results(outputs=[softmax(v) for v in OTHERS])) == pytest.approx(
        wanted
    )


def test_kl():
    theirs, ours = softmax(np.concatenate(SCORES)), softmax(np.concatenate(OTHERS))
    wanted = (theirs * np.log(theirs / ours)).sum(-1).mean()
    assert measured("kl", results(None)) == pytest.approx(wanted)
    assert measured("kl", results(None, SCORES)) == pytest.approx(0.0)


def test_agreement():
    same = np.concatenate(SCORES).argmax(-1) == np.concatenate(OTHERS).argmax(-1)
    assert measured("agreement", results(None)) == pytest.approx(same.mean())


def test_snr():
    signals = [RNG.normal(size=(4, 6, 5)) for _ in range(3)]
    ratios = [
        10 * math.log10((s**2).sum() / ((o - s) ** 2).sum())
        for s, o in zip(signals, OTHERS, strict=True)
    ]
    assert measured("snr", results(signals)) == pytest.approx(np.mean(ratios))


def test_nrmse():
    whole, other = np.concatenate(SCORES), np.concatenate(OTHERS)
    wanted = np.sqrt(((whole - other) ** 2).mean()) / whole.std()
    assert measured("nrmse", results(None)) == pytest.approx(wanted)


@pytest.mark.parametrize("name", [quality.name for quality in QUALITIES])
def test_more_is_better_where_it_says_so(name):
    """Outputs that are nearer to what is right score better."""
    labels = [s if name == "snr" else s.argmax(-1) for s in SCORES]
    near = [s + 0.01 * (o - s) for s, o in zip(SCORES, OTHERS, strict=True)]
    quality = read_quality(name, None)
    good, bad = (quality.measure(results(labels, outputs)) for outputs in (near, OTHERS))
    assert quality.loss(good, bad) > 0


@pytest.mark.parametrize("name", ["accuracy", "perplexity", "snr"])
def test_labels_are_asked_for(name):
    with pytest.raises(PruneError, match=rf"^metric='{name}': the feeds have no labels"):
        measured(name, results(None))


@pytest.mark.parametrize("name", ["accuracy", "perplexity", "snr"])
def test_labels_that_do_not_fit_are_named(name):
    with pytest.raises(PruneError, match=rf"^metric='{name}': no output has "):
        measured(name, results([np.zeros(7, int)] * 3))
    if name == "perplexity":
        with pytest.raises(PruneError, match=r"labels are not class indices from 0 to 4"):
            measured(name, results([np.full((4, 6), 9)] * 3))


def test_functions_of_the_users_are_called_with_feeds_and_outputs():
    def mean(pairs):
        return np.mean(
            [outputs["logits"].mean() + feed["labels"].mean() for feed, outputs in pairs]
        )

    wanted = np.mean([o.mean() + own.mean() for o, own in zip(OTHERS, LABELS, strict=True)])
    assert read_quality(mean, "lower").measure(results()) == pytest.approx(wanted)
    assert not read_quality(mean, "lower").higher and read_quality(mean, None).higher


@pytest.mark.parametrize("value", [None, "good", True, [1.0]])
def test_functions_return_numbers(value):
    with pytest.raises(PruneError, match=r"it returned .*; return a number"):
        read_quality(lambda pairs: value, None).measure(results())


def test_functions_that_fail_are_named():
    def broken(pairs):
        raise ZeroDivisionError("nothing there")

    with pytest.raises(PruneError, match=r"^broken: it failed with ZeroDivisionError: nothing"):
        read_quality(broken, None).measure(results())


@pytest.mark.parametrize("name", ["nrmse", "agreement", "accuracy", "perplexity", "kl", "snr"])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_an_infinite_loss(name, broken):
    labels = OTHERS if name == "snr" else LABELS
    outputs = [value.copy() for value in SCORES]
    outputs[1][0, 0, int(LABELS[1][0, 0])] = broken
    if name == "accuracy" and broken == math.inf:
        return  # the largest of scores is what it is
    with np.errstate(all="ignore"):
        quality = read_quality(name, None)
        value = quality.measure(results(labels, outputs))
    assert quality.loss(quality.measure(results(labels, SCORES)), value) == math.inf


def test_classes_that_are_ruled_out_do_not_count():
    """Scores of -inf, in the original and in the other, as those of a mask."""
    masked = [value.copy() for value in SCORES]
    for value in masked:
        value[..., 4] = -math.inf
    both = [
        Result({}, None, {"logits": value}, {"logits": value + 0.1 * (value > 0)})
        for value in masked
    ]
    plain = [
        Result(
            {},
            None,
            {"logits": r.wanted["logits"][..., :4]},
            {"logits": r.found["logits"][..., :4]},
        )
        for r in both
    ]
    for name in ("kl", "agreement"):
        measure = read_quality(name, None).measure
        with np.errstate(invalid="ignore"):
            assert measure(both) == pytest.approx(measure(plain)), name


def test_what_is_no_number_is_an_infinite_loss():
    quality = read_quality("nrmse", None)
    assert quality.loss(0.0, math.nan) == math.inf
