"""Making the next of a series while the last one is used; pieces of sequences to learn on."""

import threading
from contextlib import closing
from itertools import islice

import numpy as np
import pytest

from onnx_rnn_prune.model.signature import Port

pytest.importorskip("torch", reason="pip install '.[distill]' brings PyTorch")

from onnx_rnn_prune.recovery.distill.batches import Augmentation, Axes, ahead, find_axes

pytestmark = pytest.mark.torch


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_items_come_in_their_order_and_end():
    assert list(ahead(range(50))) == list(range(50))
    assert list(ahead([])) == []
    assert not threads()


def test_the_next_one_is_made_while_one_is_used():
    made = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    with closing(ahead(items())) as series:
        assert next(series) == 0
        assert made[1].wait(10)
        assert not made[2].is_set()


def test_an_error_is_raised_as_it_is_in_its_place():
    error = KeyError("as it is")

    def items():
        yield 1
        raise error

    series = ahead(items())
    assert next(series) == 1
    with pytest.raises(KeyError) as caught:
        next(series)
    assert caught.value is error
    assert not threads()


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, ValueError])
def test_an_interrupt_leaves_no_thread_behind(interrupt):
    with pytest.raises(interrupt), closing(ahead(iter(int, 1))) as series:
        for _ in series:
            assert threads()
            raise interrupt
    assert not threads()


TOKENS = Port("tokens", np.dtype(np.int64), ("batch", "time"))
COUNT = Port("count", np.dtype(np.int64), ("sequences",))


def texts(lengths):
    rng = np.random.default_rng(0)
    return [
        {"tokens": rng.integers(1000, size=(1, n)), "count": np.array([n])} for n in lengths
    ]  # fmt: skip


def test_what_counts_steps_is_told_from_other_numbers():
    feeds = texts([7, 400, 31])
    assert find_axes([TOKENS, COUNT], feeds) == {"tokens": Axes(0, 1), "count": Axes(0, None)}
    feeds[1]["count"][:] = 3  # a speaker, say
    assert find_axes([TOKENS, COUNT], feeds) == {"tokens": Axes(0, None), "count": Axes(0, None)}


def test_sequences_of_other_lengths_are_learnt_side_by_side():
    feeds, shapes = texts([7, 400, 31, 300]), {7: 256, 31: 66, 256: 8}
    for made, _ in islice(Augmentation(feeds, [TOKENS, COUNT], 0), 8):
        tokens, count = made["tokens"], made["count"]
        rows, steps = tokens.shape
        assert shapes[steps] == rows
        assert count.tolist() == [steps] * rows
        assert len({row.tobytes() for row in tokens}) > rows / 2


@pytest.mark.parametrize(("size", "rows"), [(21, 256), (1 << 13, 64), (1 << 20, 1)])
def test_a_batch_holds_as_many_inputs_without_steps_as_their_size_allows(size, rows):
    port = Port("picture", np.dtype(np.float32), ("batch", size))
    feeds = [{"picture": np.zeros((2, size), np.float32)}]
    made, _ = next(iter(Augmentation(feeds, [port], 0)))
    assert made["picture"].shape == (rows, size)


def test_an_axis_that_is_called_batch_is_that():
    port = Port("x", np.dtype(np.float32), ("time", "batch", 4))
    feeds = [{"x": np.zeros((9, 2, 4), np.float32)}]
    assert find_axes([port], feeds) == {"x": Axes(1, 0)}
