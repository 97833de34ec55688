"""Published models that are present are pruned; `python tools/fetch_models.py` gets them."""

import sys
from pathlib import Path

import pytest

from onnx_rnn_prune import prune

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))

from fetch_models import default_folder
from model_feeds import PUBLISHED, feeds_for
from time_limit import time_limit

SECONDS = 60.0

pytestmark = pytest.mark.published


@pytest.fixture(params=PUBLISHED)
def path(request):
    found = default_folder() / f"{request.param}.onnx"
    if not found.exists():
        pytest.skip(f"python tools/fetch_models.py {request.param} brings it")
    return found


def test_is_pruned(path):
    feeds = feeds_for(path)[:2]
    with time_limit(SECONDS):
        report = prune(path, keep=0.5, data=feeds, criterion="l2", recover="none").report
    assert report["oracle"]["passed"]
    assert report["totals"]["bytes_after"] < report["totals"]["bytes_before"]
