"""Shrinking a model drawn at random computes what zeroing it computes, and other identities."""

import random
from collections import Counter

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.traced_model import as_proven, tolerance_of
from onnx_rnn_prune.validate import oracle
from oracle.check import (
    TRACED,
    check_case,
    check_outside,
    check_prepared,
    draw_case,
    runner,
    traced_feeds,
)
from oracle.draw import draw_model
from oracle.permute import draw_order, permuted
from oracle.recovered import recovered


def seeds(start, count, by_default):
    """Seeds of so many draws; those after the first few run with `-m draws`."""
    few = range(start, start + by_default)
    more = range(start + by_default, start + count)
    return [*few, *(pytest.param(seed, marks=pytest.mark.draws) for seed in more)]


@pytest.mark.parametrize("seed", seeds(0, 400, 60))
def test_zero_is_shrink(seed):
    b = draw_model(seed)
    case = draw_case(b, seed)
    check_prepared(case)
    check_case(case)
    check_outside(case, Document.read(case.model), traced_feeds(b, seed), seed)


@pytest.mark.parametrize("seed", seeds(1000, 150, 20))
def test_zero_is_shrink_after_recovery(seed):
    b = draw_model(seed)
    case = draw_case(b, seed)
    feeds = [b.feeds(*TRACED, seed=number) for number in range(4)]
    keep = case.plan.mask(case.traced.trace)
    check_case(case, recovered(case.traced, keep, feeds, ridge=1e-2))


@pytest.mark.parametrize("seed", seeds(2000, 100, 15))
def test_the_order_of_units_does_not_matter(seed):
    case = draw_case(draw_model(seed), seed)
    trace = case.traced.trace
    document = permuted(case.traced.document, trace, draw_order(trace, random.Random(seed)))
    if document is None:
        pytest.skip("a constant reads just some of the units")
    original = Document.read(case.model)
    left, right = (as_proven(each, "it", False) for each in (original, document))
    found = oracle(left, right, case.feeds, tolerance_of(document))
    assert found, found.reason


@pytest.mark.draws
def test_the_draw_reaches_what_it_is_meant_to_reach():
    absorbed, restored, used = Counter(), Counter(), Counter()
    for seed in range(120):
        b = draw_model(seed)
        case = draw_case(b, seed)
        used.update(set(b.used))
        absorbed[bool(case.traced.ends)] += 1
        restored[bool(case.traced.restored)] += 1
    assert absorbed[True] > 50 and restored[True] > 30, (absorbed, restored)
    assert restored[False] > 30
    assert len(used) > 65, sorted(used)
    assert min(used[op] for op in ("LSTM", "GRU", "RNN")) > 30
    bodies = ("body_if", "body_loop", "body_scan")
    others = ("states side by side", "DynamicQuantizeLSTM", "weight by dequantize", "ReduceMax")
    assert all(used[name] for name in (*bodies, *others)), used


@pytest.mark.parametrize("seed", seeds(3000, 100, 15))
def test_onnxruntime_agrees_with_the_reference(seed):
    case = draw_case(draw_model(seed), seed)
    if not reference_is_right(case.model):
        pytest.skip("the reference evaluator ignores an option of this model")
    shrunk = case.traced.cut(case.plan, "shrink").write()
    feed = case.feeds[1]
    for model in (case.model, shrunk):
        found = runner(model, False)(feed)
        names = list(found)
        for name, value in zip(names, ReferenceEvaluator(model).run(names, feed), strict=True):
            assert np.allclose(found[name], value, rtol=1e-4, atol=1e-5), name


def reference_is_right(model):
    """Whether it knows every option of a model: it passes over some without a word."""
    return all(map(_is_right, model.graph.node)) and model.opset_import[0].version >= 9


def _is_right(node):
    if node.op_type in ("LSTM", "GRU", "RNN"):
        ignored = {"activations", "clip", "input_forget"} & {item.name for item in node.attribute}
        return not ignored and "lengths" not in node.input and "" not in node.output
    unknown = ("Softmax", "BatchNormalization", "DequantizeLinear", "If", "Loop", "Scan")
    return not node.domain and node.op_type not in unknown
