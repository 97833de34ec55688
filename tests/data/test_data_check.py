"""A feed that a model cannot take is refused in one line that says what to do."""

import re

import numpy as np
import pytest

from onnx_rnn_prune.data.feeds import check_feed
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.signature import Port

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
X = Port("input", F32, ("time", "batch", 3))
H = Port("hidden", F32, (1, "batch", 4))


def good():
    return {"input": np.ones((5, 2, 3), np.float32), "hidden": np.ones((1, 2, 4), np.float32)}


def check(raw, ports=(X, H), states=frozenset({"hidden"})):
    return check_feed(raw, ports, states, "clip.npz")


def test_a_good_feed_comes_through_unchanged_and_in_order():
    raw = good()
    feed = check(dict(reversed(raw.items())))
    assert list(feed) == ["input", "hidden"]
    assert all(feed[name] is raw[name] for name in raw)


def test_a_missing_state_is_zero_with_the_batch_of_the_other_input():
    feed = check({"input": good()["input"]})
    assert feed["hidden"].shape == (1, 2, 4)
    assert feed["hidden"].dtype == np.float32
    assert not feed["hidden"].any()


def test_a_state_size_that_nothing_tells_is_one():
    state = Port("hidden", F32, (None, "streams", 4))
    assert check({"input": good()["input"]}, (X, state))["hidden"].shape == (1, 1, 4)


def test_labels_may_lie_beside_the_inputs_and_are_not_fed():
    assert np.array_equal(check({**good(), "labels": [1, 2]}).labels, [1, 2])
    assert check(good()).labels is None
    assert sorted(check({**good(), "labels": np.ones(3)})) == ["hidden", "input"]


def test_a_state_without_a_shape_must_be_given():
    with pytest.raises(PruneError, match="the shape of state 'hidden'; add 'hidden'"):
        check({"input": good()["input"]}, (X, Port("hidden", F32, None)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inptu": np.ones(3)}, "the model has no input 'inptu'; did you mean 'input'?"),
        (
            {"answers": np.ones(3)},
            "no input 'answers'; its inputs are .*, including those fixed by freeze=",
        ),
        ({"input": np.ones((5, 3))}, r"'input': its shape \[5, 3\] has 2 axes, but .* expects 3"),
        ({"input": np.ones((5, 2, 9))}, "has size 9 on axis 2, but the model expects 3"),
        ({"hidden": np.ones((1, 7, 4))}, "'batch' is 7 on axis 1 but 2 in input 'input'"),
        ({"input": np.ones((0, 2, 3))}, r"it is empty: its shape is \[0, 2, 3\]"),
        ({"input": np.full((5, 2, 3), np.nan)}, "30 of 30 entries are NaN or infinite"),
        ({"input": np.full((5, 2, 3), 1e300)}, "30 of 30 entries are NaN or infinite as float32"),
        (
            {"input": np.full((5, 2, 3), "a")},
            "its values are str.*, which cannot be represented as float32",
        ),
        ({"input": np.full((5, 2, 3), 1j)}, "complex128, which cannot be represented as float32"),
        ({"input": [[1.0], [1.0, 2.0]]}, "cannot be converted to an array"),
        ({"input": np.full((5, 2, 3), 2**24 + 1)}, "int64, which cannot be represented as float32"),
    ],
)
def test_faults(changes, message):
    with pytest.raises(PruneError) as caught:
        check({**good(), **changes})
    text = str(caught.value)
    assert re.search(message, text), text
    assert text.startswith("clip.npz: ")
    assert caught.value.remedy
    assert "\n" not in text


def test_a_missing_input_is_named():
    with pytest.raises(PruneError, match="the input 'input' is missing; add it; .* 'hidden'"):
        check({"hidden": good()["hidden"]})
    with pytest.raises(PruneError, match="the feed has nothing"):
        check({})


def test_a_feed_must_be_a_dict():
    with pytest.raises(PruneError, match="must be a dict of arrays, not ndarray"):
        check(np.ones(3))


def test_an_input_that_is_no_tensor_is_refused():
    with pytest.raises(PruneError, match="is not a tensor"):
        check({"s": []}, (Port("s", None, None),))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.float64(0.1), "float32"),
        (np.float32(0.1), "float16"),
        (np.int32(-3), "int64"),
        (np.int64(200), "uint8"),
        (np.int64(7), "float32"),
        (np.True_, "float32"),
        (np.int64(1), "bool"),
    ],
)
def test_types_that_keep_the_value_are_converted(value, dtype):
    feed = check({"a": [value]}, (Port("a", np.dtype(dtype), (1,)),))
    assert feed["a"].dtype == dtype
    assert feed["a"][0] == pytest.approx(float(value), rel=1e-3)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.float32(1.0), "int64"),
        (np.float32(1.0), "bool"),
        (np.int64(300), "uint8"),
        (np.int64(-1), "uint64"),
        (np.int64(2), "bool"),
    ],
)
def test_types_that_may_lose_the_value_are_refused(value, dtype):
    with pytest.raises(PruneError, match=f"cannot be represented as {dtype}"):
        check({"a": [value]}, (Port("a", np.dtype(dtype), (1,)),))


def test_strings_and_open_ranks_pass():
    ports = (Port("s", np.dtype(object), (1,)), Port("a", F32, None))
    feed = check({"s": np.array(["hello"]), "a": np.ones((2, 2))}, ports)
    assert feed["s"].dtype == object
    assert feed["a"].dtype == np.float32
