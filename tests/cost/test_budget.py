"""What users write for --keep and --budget."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_rnn_prune.cost.budget import Budget, Keep, parse_budget, parse_keep
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.selection.allocation import parse_keeps


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("40%", Keep(share=0.4)),
        (" 40 % ", Keep(share=0.4)),
        ("12.5%", Keep(share=0.125)),
        ("100%", Keep(share=1.0)),
        ("0.4", Keep(share=0.4)),
        (".4", Keep(share=0.4)),
        ("1.0", Keep(share=1.0)),
        ("160", Keep(units=160)),
        ("1", Keep(units=1)),
        (0.4, Keep(share=0.4)),
        (1e-5, Keep(share=1e-5)),
        (1.0, Keep(share=1.0)),
        (160, Keep(units=160)),
        (1, Keep(units=1)),
    ],
)
def test_keep(value, expected):
    assert parse_keep(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", "0", "0%", "0.0", "-1", "-5%", "-0.5", "101%", "1.5", "40 percent", "0,4", "1e-2"),
        *(
            "nan",
            "inf",
            "%",
            ".",
            "4 0",
            "٤٠%",
            "1/2",
            "9" * 5000,
            "9" * 500 + "%",
            0,
            -3,
            0.0,
            1.5,
            160.0,
            True,
            None,
            [4],
        ),
        *(float("nan"), float("inf"), -0.5),
    ],
)
def test_keep_refuses(value):
    with pytest.raises(PruneError) as caught:
        parse_keep(value)
    assert str(caught.value).startswith("keep=: ")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("params=30%", Budget("params", share=0.3)),
        ("params = 0.3", Budget("params", share=0.3)),
        ("params=120000", Budget("params", amount=120_000)),
        ("params=1.5M", Budget("params", amount=1_500_000)),
        ("flops=2M", Budget("flops", amount=2_000_000)),
        ("flops=2.3k", Budget("flops", amount=2300)),
        ("flops=2g", Budget("flops", amount=2_000_000_000)),
        ("bytes=1MB", Budget("bytes", amount=1_000_000)),
        ("bytes=1 mib", Budget("bytes", amount=1 << 20)),
        ("bytes=500b", Budget("bytes", amount=500)),
        ("bytes=500", Budget("bytes", amount=500)),
        ("bytes=100%", Budget("bytes", share=1.0)),
    ],
)
def test_budget(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "params", "30%", "=30%", "params=", "params=0", "params=0%", "params=-3", "size=30%"),
        *("params=101%", "params=1.5", "params=1MB", "bytes=0.1b", "bytes=lots", "params=30%%"),
        *("params==3", "params=nan", "params=1e6", "bytes=1Mib/s", "bytes=" + "9" * 5000),
    ],
)
def test_budget_refuses(text):
    with pytest.raises(PruneError) as caught:
        parse_budget(text)
    assert str(caught.value).startswith("budget=: ")
    assert caught.value.remedy


@given(st.text())
def test_any_text_is_an_amount_or_an_error(text):
    for parse in (parse_keep, parse_budget):
        try:
            parse(text)
        except PruneError as error:
            assert "\n" not in str(error)
        with contextlib.suppress(PruneError):
            parse(f"bytes={text}")


@given(st.floats(min_value=0, max_value=1, exclude_min=True))
def test_a_float_is_taken_as_it_is(share):
    assert parse_keep(share) == Keep(share=share)


def test_they_read_well():
    assert str(parse_keep("40%")) == "0.4"
    assert str(parse_keep("160")) == "160 units"
    assert str(parse_budget("params=30%")) == "params=0.3"
    assert str(parse_budget("bytes=1MB")) == "bytes=1000000"


@pytest.mark.parametrize(
    ("value", "layer", "expected"),
    [
        ("40%", "rnn", Keep(share=0.4)),
        (["40%", "enc*=30%"], "enc1", Keep(share=0.3)),
        (["enc*=30%", "40%"], "dec", Keep(share=0.4)),
        (["enc1=16", "enc*=30%"], "enc1", Keep(units=16)),
        ({"enc*": 0.3}, "enc2", Keep(share=0.3)),
        ("enc*=30%", "dec", Keep(share=1.0)),
        ("a=b=30%", "a=b", Keep(share=0.3)),
        (7, "any", Keep(units=7)),
    ],
)
def test_layers_keep_what_is_said_of_them(value, layer, expected):
    assert parse_keeps(value).of([layer]) == expected


def test_layers_that_are_tied_keep_one_amount():
    keeps = parse_keeps(["a=30%", "50%"])
    with pytest.raises(PruneError, match="layers that must keep the same number of units"):
        keeps.of(["a", "b"])
    assert parse_keeps(["a=30%", "b=0.3"]).of(["a", "b"]) == Keep(share=0.3)


@pytest.mark.parametrize("value", [["40%", "50%"], [], "=40%", ["a="], {"a": "x"}])
def test_what_names_no_amount_is_refused(value):
    with pytest.raises(PruneError, match="keep=: "):
        parse_keeps(value)
