"""Shrinking a model drawn at random computes what zeroing it computes."""

import pytest

from oracle.check import check_case, check_prepared, draw_case
from oracle.draw import draw_model


@pytest.mark.parametrize("seed", range(300))
def test_zero_is_shrink(seed):
    case = draw_case(draw_model(seed), seed)
    check_prepared(case)
    check_case(case)
