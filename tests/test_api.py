"""What Python callers give and get that the command line has no say in."""

import numpy as np
import onnx
import pytest

from onnx_rnn_prune import prune
from onnx_rnn_prune.errors import PruneError


def lookup(element="float"):
    """An embedding of 5 tokens, read by a layer of 4 units."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype({"float": "f4", "double": "f8"}[element]))
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[t, b] tokens) => ({element}[t, 1, b, 4] Y) {{
            x = Gather (table, tokens)
            Y = GRU <hidden_size = 4> (x, W, R)
        }}
    """)
    for name, shape in (("table", (5, 3)), ("W", (1, 12, 3)), ("R", (1, 12, 4))):
        values = np.random.default_rng(0).normal(size=shape)
        tensor = onnx.helper.make_tensor(name, kind, shape, values.ravel())
        model.graph.initializer.append(tensor)
    return model


def test_a_feed_that_does_not_run_is_named(tmp_path):
    for number in range(6):
        tokens = np.full((3, 2), 7 if number == 4 else number % 5)
        np.savez(tmp_path / f"{number}.npz", tokens=tokens)
    message = r"onnxruntime cannot run it on .*4\.npz \(tokens \[3, 2\]\): .*out of data bounds"
    with pytest.raises(PruneError, match=message):
        prune(lookup(), data=tmp_path)


def test_made_up_inputs_do_not_hide_why_nothing_runs():
    with pytest.raises(PruneError, match="GRU operator does not support double yet"):
        prune(lookup("double"))
