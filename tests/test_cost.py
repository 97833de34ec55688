"""A budget counts what is written: the file obeys it, and no unit more would fit."""

import numpy as np
import onnx
import pytest

from onnx_rnn_prune import apply, plan, prune
from onnx_rnn_prune.cost.budget import KINDS
from onnx_rnn_prune.cost.cost import count_params, recurrent_weights
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.selection.profitability import place
from onnx_rnn_prune.selection.sharing import cost_of_cuts
from onnx_rnn_prune.trace.plan import Plan
from oracle.check import draw_case
from oracle.draw import draw_model


def measured(model, kind):
    if kind == "bytes":
        return model.ByteSize()
    document = Document.read(model)
    return count_params(document) if kind == "params" else 2 * recurrent_weights(document)


def stack(direction="forward"):
    """Two layers without biases; both of them, and the second one's last state, leave the model."""
    rng = np.random.default_rng(0)
    lanes = 2 if direction == "bidirectional" else 1
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[t, b, 4] x) => (float[t, {lanes}, b, 24] Y, float[t, b, 5] z, float[1, b, 20] Q_h)
        <int64[3] flat = {{0, 0, -1}}, int64[1] one = {{1}}> {{
            [first] Y = LSTM <hidden_size = 24, direction = "{direction}"> (x, W, R)
            turned = Transpose <perm = [0, 2, 1, 3]> (Y)
            h = Reshape (turned, flat)
            [second] Q, Q_h = GRU <hidden_size = 20> (h, W2, R2)
            q = Squeeze (Q, one)
            z = MatMul (q, V)
        }}
    """)
    shapes = {"W": (lanes, 96, 4), "R": (lanes, 96, 24), "V": (20, 5)}
    shapes |= {"W2": (1, 60, 24 * lanes), "R2": (1, 60, 20)}
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32) / 3
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


FEEDS = [
    {"x": np.random.default_rng(n).normal(size=(30, 4, 4)).astype(np.float32)} for n in range(8)
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("direction", "data", "recover"),
    [
        ("forward", None, None),
        ("bidirectional", None, None),
        ("forward", FEEDS, "none"),
        ("bidirectional", FEEDS, "lstsq"),
        ("forward", FEEDS, "lstsq"),
    ],
)
def test_the_file_obeys_and_no_unit_more_would_fit(kind, direction, data, recover):
    model = stack(direction)
    limit = int(0.4 * measured(model, kind))
    budget = f"{kind}={limit}"
    result = prune(model, budget=budget, data=data, recover=recover, criterion="l2")
    assert measured(result.model, kind) <= limit
    assert result.report["recovery"]["used"] == (recover or "none")
    for name, layer in result.plan.layers.items():
        more = [
            (*lane, next(unit for unit in range(layer.hidden_size) if unit not in lane))
            for lane in layer.keep
        ]
        layers = {**result.plan.layers, name: type(layer)(layer.hidden_size, tuple(more))}
        larger = apply(model, Plan(result.plan.model, layers), data=data, recover=recover)
        assert measured(larger.model, kind) > limit


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_for_all_keeps_all(kind):
    assert plan(stack(), budget=f"{kind}=100%").cut() == ()
    assert plan(stack(), budget=f"{kind}=99%").cut() != ()


def test_what_is_counted_is_what_is_written():
    """To the entry, but where two readers of one weight happen to keep equal parts of it."""
    exact = []
    for seed in range(120):
        case = draw_case(draw_model(seed), seed)
        traced, trace = case.traced, case.traced.trace
        keep = case.plan.mask(trace)
        counts = [int(keep[group.atoms[0][:, 0]].sum()) for group in trace.groups]
        if any(count == group.size for count, group in zip(counts, trace.groups, strict=True)):
            continue  # a layer that keeps all is not prepared for a cut
        scores = np.random.default_rng(seed).random(len(keep))
        cost = cost_of_cuts(traced, scores, refits=False)
        document = traced.document.copy()
        place(document, traced, case.plan)
        written = traced.cut(case.plan, "shrink", document).write()
        slack = [cost(kind, counts) - measured(written, kind) for kind in ("params", "flops")]
        assert min(slack) >= 0, seed
        exact.append(slack == [0, 0])
        if exact[-1]:
            assert 0 <= cost("bytes", counts) - measured(written, "bytes") < 20, seed
    assert len(exact) > 50 and sum(exact) > 0.95 * len(exact)
