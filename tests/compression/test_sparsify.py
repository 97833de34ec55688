"""Zeros in the place of single weights: which go, what makes up for them, and how they are kept."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnx_rnn_prune import apply, inspect, plan, prune
from onnx_rnn_prune.compression.sparsity import (
    Grouped,
    Small,
    Tiles,
    by_magnitude,
    by_surgeon,
    missed,
    parse_pattern,
    second_moment,
    settle_columns,
)
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.moments import Moments
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import sparse_values, with_sparse
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.operators.recurrent import find_layers
from oracle.widen import BATCH, draw_weights, widened_model

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
PATTERNS = [Tiles(1, 1, 0.5), Tiles(4, 1, 0.5), Tiles(2, 3, 0.7), Grouped(2, 4), Small(0.5)]


def draw(rows, widths, seed, samples=60):
    """A weight, and the moments of correlated inputs with a mean."""
    rng = np.random.default_rng(seed)
    size = sum(widths)
    inputs = rng.normal(size=(samples, size)) @ rng.normal(size=(size, size)) + rng.normal(
        size=size
    )
    return rng.normal(size=(rows, size)), second_moment(Moments.of(inputs))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("50%", Tiles(1, 1, 0.5)),
        ("0.25", Tiles(1, 1, 0.25)),
        ("0%", Tiles(1, 1, 0.0)),
        ("2:4", Grouped(2, 4)),
        ("block=4x1:50%", Tiles(4, 1, 0.5)),
        ("BLOCK=2x8:0.3", Tiles(2, 8, 0.3)),
        ("threshold=1e-3", Small(1e-3)),
    ],
)
def test_patterns_as_users_write_them(text, pattern):
    assert parse_pattern(text) == pattern


WRONG = (
    "100% 101% -5% 4:2 0:4 2: block=0x1:50% block=4:50% threshold=0 threshold=-1 threshold=1e999 "
    "threshold=.. threshold=1.2.3 half nan"
)


@pytest.mark.parametrize("text", [*WRONG.split(), "", None, 0.5, 2, ["2:4"]])
def test_what_is_no_pattern_is_an_error(text):
    with pytest.raises(PruneError, match="sparsify=: .* is not a sparsity pattern; give 50%"):
        parse_pattern(text)


@pytest.mark.parametrize("chosen", [by_magnitude, None], ids=["magnitude", "obs"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(
    rows=st.integers(1, 13),
    widths=st.lists(st.integers(1, 11), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_zeros_follow_the_pattern(chosen, pattern, rows, widths, seed):
    weight, second = draw(rows, widths, seed)
    if chosen is None:
        after, keep = settle_columns(weight, second + np.eye(len(second)), pattern, widths, 5)
        assert np.all(after[~keep] == 0)
    else:
        keep = chosen(weight, pattern, widths) != 0
    lefts = np.cumsum([0, *widths])
    spans = [
        (start, min(start + pattern.step, last))
        for first, last in itertools.pairwise(lefts)
        for start in range(first, last, pattern.step)
    ]
    if isinstance(pattern, Grouped):
        for first, last in spans:
            counts = keep[:, first:last].sum(axis=1)
            assert np.all(counts == min(pattern.most, last - first))
    elif isinstance(pattern, Tiles):
        tiles = [
            keep[top : top + pattern.rows, first:last]
            for top in range(0, rows, pattern.rows)
            for first, last in spans
        ]
        assert all(tile.all() or not tile.any() for tile in tiles)
        assert sum(not tile.any() for tile in tiles) == round(pattern.share * len(tiles))
    else:
        assert np.array_equal(keep, np.abs(weight) >= pattern.limit)


@pytest.mark.parametrize("pattern", [Tiles(1, 1, 0.0), Grouped(4, 4), Small(1e-30)], ids=str)
def test_at_full_density_nothing_changes(pattern):
    weight, second = draw(6, [9], 0)
    assert np.array_equal(by_magnitude(weight, pattern, [9]), weight)
    assert np.array_equal(by_surgeon(weight, second, pattern, [9]), weight)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(seed=st.integers(0, 999), samples=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_the_surgeon_is_never_worse_than_magnitude(pattern, seed, samples):
    weight, second = draw(7, [5, 8], seed, samples)
    plain = missed(by_magnitude(weight, pattern, [5, 8]) - weight, second)
    found = missed(by_surgeon(weight, second, pattern, [5, 8]) - weight, second)
    assert found <= plain * (1 + 1e-9)


def test_the_surgeon_is_much_better_where_inputs_depend_on_each_other():
    weight, second = draw(30, [20], 1, samples=400)
    pattern = Tiles(1, 1, 0.5)
    plain = missed(by_magnitude(weight, pattern, [20]) - weight, second)
    assert missed(by_surgeon(weight, second, pattern, [20]) - weight, second) < 0.7 * plain


def settled_by_force(row, hessian, count):
    """One row, `count` weights fewer, each scored and made up for by solving for the free ones.

    From left to right as in SparseGPT: the cheapest of all that are left go when it is their turn.
    """
    row, size = row.copy(), len(row)
    keep = np.ones(size, dtype=bool)
    for column in range(size):
        costs = []
        for place in range(column, size):
            free = [item for item in range(column, size) if item != place]
            change = -np.linalg.solve(hessian[np.ix_(free, free)], hessian[free, place])
            total = np.zeros(size)
            total[place], total[free] = -row[place], -row[place] * change
            costs.append(float(total @ hessian @ total))
        left = count - int((~keep).sum())
        if column in column + np.argsort(costs, kind="stable")[:left]:
            keep[column] = False
            free = list(range(column + 1, size))
            change = np.linalg.solve(hessian[np.ix_(free, free)], hessian[free, column])
            row[free] += row[column] * change
            row[column] = 0
    return row, keep


@pytest.mark.parametrize("seed", range(8))
def test_settling_columns_is_what_brute_force_finds(seed):
    weight, second = draw(1, [6], seed)
    wanted, keep = settled_by_force(weight[0], second, 3)
    found, kept = settle_columns(weight, second, Tiles(1, 1, 0.5), [6], block=1)
    assert np.array_equal(kept[0], keep)
    assert np.allclose(found[0], wanted, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_weights_that_stay_are_the_best_for_their_places(seed):
    weight, second = draw(5, [12], seed, samples=200)
    found = by_surgeon(weight, second, Tiles(1, 1, 0.5), [12], ridge=0.0)
    for row, wanted in zip(found, weight, strict=True):
        stays = np.flatnonzero(row)
        best = np.zeros(12)
        best[stays] = np.linalg.solve(second[np.ix_(stays, stays)], second[stays] @ wanted)
        least = missed(best[None] - wanted, second)
        assert missed(row[None] - wanted, second) <= least * 1.01


# -- whole models ------------------------------------------------------------------------------


@pytest.fixture
def feeds():
    rng = np.random.default_rng(5)
    return [{"x": rng.normal(0, 1, (20, BATCH, 3)).astype(np.float32)} for _ in range(4)]


LAYERS = [(op, d) for op in ("LSTM", "GRU", "RNN") for d in (1, 2)]


def model_of(op, directions, **attributes):
    model = widened_model(draw_weights(op, directions, 8, 0))
    model.graph.node[0].attribute.extend(
        onnx.helper.make_attribute(name, value) for name, value in attributes.items()
    )
    return model


def matrices(model):
    """W with R of each gate's block of rows, and the head."""
    (layer,) = find_layers(Document.read(model).graph)
    head = next(t for t in model.graph.initializer if t.name == "V")
    return layer, numpy_helper.to_array(head)


@pytest.mark.parametrize("by", ["magnitude", "obs"])
@pytest.mark.parametrize(("op", "directions"), LAYERS)
def test_all_products_of_a_layer_and_what_reads_it_get_zeros(op, directions, by, feeds):
    model = model_of(op, directions)
    result = prune(model, keep="100%", data=feeds, sparsify="50%", sparsify_by=by)
    layer, head = matrices(result.model)
    assert np.mean(head == 0) == 0.5
    both = np.concatenate([layer.constant("W"), layer.constant("R")], axis=2)
    for gates, _ in layer.sums:
        places = [layer.cell.gates.index(gate) for gate in gates]
        rows = np.concatenate([np.arange(8) + 8 * place for place in places])
        for direction in range(directions):
            zeros = both[direction, rows] == 0
            assert zeros.sum() == round(0.5 * zeros.size)
    stages = [row["name"] for row in result.report["stages"]]
    assert stages == ["units", f"zeros 50% by {by}"]
    before, after = (row["compressed_bytes"] for row in result.report["stages"])
    assert after < before
    assert any("runs no faster" in text for text in result.report["warnings"])


def test_the_input_of_a_layer_of_which_no_unit_is_read_gets_zeros_too(feeds):
    """With linear_before_reset the candidate's W x is a product of its own."""
    result = prune(
        model_of("GRU", 1, linear_before_reset=1), keep="100%", data=feeds, sparsify="2:4"
    )
    layer, _ = matrices(result.model)
    for name in ("W", "R"):
        value = layer.constant(name)
        for first in range(0, value.shape[2], 4):
            group = value[..., first : first + 4]
            assert np.all((group != 0).sum(axis=2) <= 2)
    assert np.all((layer.constant("W")[:, 16:] == 0).sum(axis=2) == 1)


def test_the_surgeon_is_better_on_a_model_that_was_trained():
    model, data = SAMPLES / "digits_gru.onnx", SAMPLES / "digits_gru" / "calibration"
    errors = {
        by: prune(model, keep="100%", data=data, sparsify="2:4", sparsify_by=by).report["drift"][
            "logits"
        ]["nrmse"]
        for by in ("magnitude", "obs")
    }
    assert errors["obs"] < 0.7 * errors["magnitude"], errors


def test_units_and_weights_are_cut_in_one_go(feeds):
    model = model_of("GRU", 2)
    chosen = plan(model, keep=4, data=feeds)
    result = apply(model, chosen, data=feeds, sparsify="block=2x1:50%")
    (layer,) = result.report["layers"]
    assert layer["hidden_after"] == 4 and result.report["oracle"]["passed"]
    assert [row["name"] for row in result.report["stages"]][1] == "zeros block=2x1:50% by obs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsify": "half"}, "sparsify=: 'half' is not a sparsity pattern"),
        ({"sparsify_by": "obs"}, "sparsify_by=: no weights are removed; add sparsify="),
        ({"sparsify": "2:4", "sparsify_by": "best"}, "sparsify_by=: unknown value 'best'"),
        ({"sparsify": "2:4", "sparsify_by": "obs"}, "sparsify_by=: obs needs data; pass data="),
        ({"sparse_initializers": 1}, "sparse_initializers=: 1 is neither True nor False"),
    ],
)
def test_what_does_not_fit_is_an_error(options, message):
    model = model_of("RNN", 1)
    for call in (prune, lambda m, **given: apply(m, plan(m), **given)):
        with pytest.raises(PruneError, match=message):
            call(model, **options)


# -- sparse initializers -----------------------------------------------------------------------


def sparse_model(feeds, hidden=24):
    model = widened_model(draw_weights("GRU", 1, hidden, 0))
    options = {"data": feeds, "sparsify": "70%"}
    dense = prune(model, keep="100%", **options)
    return model, dense, prune(model, keep="100%", sparse_initializers=True, **options)


def test_sparse_initializers_are_smaller_and_compute_the_same(feeds, tmp_path):
    _, dense, sparse = sparse_model(feeds)
    stored = {item.values.name for item in sparse.model.graph.sparse_initializer}
    assert "R" in stored and not stored & {t.name for t in sparse.model.graph.initializer}
    assert sparse.model.ByteSize() < 0.7 * dense.model.ByteSize()
    (path,) = sparse.save(tmp_path / "sparse.onnx")
    onnx.checker.check_model(str(path))  # its full check knows no sparse weights of a layer
    left, right = Runner(dense.model), Runner(onnx.load(path))
    for feed in feeds:
        assert np.array_equal(left(feed)["y"], right(feed)["y"])


def test_a_file_with_sparse_initializers_is_read_again(feeds, tmp_path):
    """Inspected and pruned as the same file without them, to the bit."""
    _, dense, sparse = sparse_model(feeds)
    (path,) = sparse.save(tmp_path / "sparse.onnx")
    (layer,) = inspect(path)["layers"]
    assert layer["hidden"] == 24
    again, wanted = (prune(m, keep=12, data=feeds) for m in (path, dense.model))
    assert again.report["oracle"]["passed"]
    for feed in feeds:
        assert np.array_equal(Runner(again.model)(feed)["y"], Runner(wanted.model)(feed)["y"])


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("raw", [True, False])
def test_sparse_values_in_every_form(flat, raw):
    """onnx-graphsurgeon reads no values that are held as raw bytes."""
    dense = np.array([[0, 1.5, 0], [2.5, 0, 0]], np.float32)
    places = np.flatnonzero(dense) if flat else np.argwhere(dense)
    tensor = onnx.SparseTensorProto(dims=dense.shape)
    values, kinds = dense[dense != 0], (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
    for name, part, kind in zip(("values", "indices"), (values, places), kinds, strict=True):
        made = onnx.helper.make_tensor(name, kind, part.shape, part.reshape(-1).tolist())
        made = numpy_helper.from_array(part, name) if raw else made
        getattr(tensor, name).CopyFrom(made)
    assert np.array_equal(sparse_values(tensor), dense)
    assert sparse_values(tensor).dtype == np.float32


def test_what_gets_no_smaller_stays_as_it_is():
    model = widened_model(draw_weights("GRU", 1, 24, 0))
    assert not with_sparse(model).graph.sparse_initializer
    old = sparse_free(model)
    assert with_sparse(old) is old


def sparse_free(model):
    old = onnx.ModelProto()
    old.CopyFrom(model)
    old.ir_version = 5
    return old


def test_a_sparse_initializer_that_is_read_no_more_goes(feeds):
    _, _, sparse = sparse_model(feeds)
    again = prune(sparse.model, keep=12, data=feeds).model
    names = [item.values.name for item in again.graph.sparse_initializer]
    names += [tensor.name for tensor in again.graph.initializer]
    read = {name for node in again.graph.node for name in node.input}
    assert sorted(names) == sorted(set(names)) and set(names) <= read
