"""A report in which every part is there, with made-up numbers."""

from test_report import pruned

LONG = "/encoder/" + "layers.3/" * 20 + "GRU"
NASTY = "a.b\\c <script>alert('1')</script> & \"q\" | `x` é 層 " + "n" * 200


def whole():
    """A report of all parts that a page knows."""
    report = pruned()
    rows, outputs = report["layers"], report["drift"]
    report["model"] = f"folder/{LONG[-8:]}.onnx"
    rows[0]["name"] = LONG
    rows[1]["name"] = NASTY
    report["latency"] |= {
        "before_quartiles_ms": [4.0, 4.4],
        "after_quartiles_ms": [1.3, 1.36],
        "speedup_quartiles": [2.4, 3.5],
        "rounds": 200,
    }
    outputs[NASTY] = dict(outputs["logits"], nrmse=0.4)
    report["drift_details"] = {
        name: {"histogram": histogram(), "over_time": over_time()} for name in ("logits", NASTY)
    }
    report["drift_details"]["hn"] = {"histogram": None, "over_time": None}
    report["stages"] = [
        {"name": name, "params": 10, "bytes": 2_000_000, "compressed_bytes": 1_900_000}
        | {"drift": outputs, "speedup": 2.5, "speedup_quartiles": [1.9, 2.6]}
        for name in ("units", "int8")
    ]
    report["states"] = [{"layers": ["a"], "input": "h", "output": NASTY, "before": 9, "after": 3}]
    report["command"] = "onnx-rnn-prune prune 'my model.onnx' -o out.onnx"
    report["environment"] = {"date": "2030-01-02", "python": "3.12.1", "onnx": None, "cpu_count": 8}
    report["sensitivity"] = sensitivity()
    report["search"] = search()
    return report


def histogram():
    counts = [int(1e4 / (1 + (n - 20) ** 2)) for n in range(41)]
    edges = [(n - 20.5) * 2e-5 for n in range(42)]
    return {"edges": edges, "counts": counts, "outside": 12}


def over_time():
    return {"steps": list(range(0, 400, 10)), "rmse": [0.02 + 0.0002 * n for n in range(40)]}


def sensitivity():
    points = [{"kept": kept, "nrmse": (64 - kept) / 64, "metric": None} for kept in (8, 32, 64)]
    names = [[LONG], [NASTY, "b", "c", "d"]]
    return {"metric": None, "layers": [{"layers": n, "units": 64, "points": points} for n in names]}


def search():
    rows = [(3.0, 0.02, True), (2.0, 0.1, True), (2.5, 0.12, False), (1.0, 0.4, True)]
    candidates = [
        {
            "number": number,
            "kept": {LONG: 10 * number, NASTY: 5},
            "params": 1000 * number,
            "bytes": 4000 * number,
            "ms": ms,
            "quality": quality,
            "meets": quality < 0.2,
            "frontier": frontier,
            "picked": number == 2,
        }
        for number, (ms, quality, frontier) in enumerate(rows, start=1)
    ]
    return {
        "goal": f"the fastest of {NASTY}",
        "quality": "nrmse",
        "quality_limit": 0.2,
        "higher_is_better": False,
        "candidates": candidates,
        "picked": 2,
        "splits": {"calibration": 9, "validation": 3, "test": 4, "shared": ""},
        "test": {"quality": 0.11, "original": None},
        "seconds": 12.3,
    }


def without(value, unwanted):
    """A report with None in place of values of a type."""
    if isinstance(value, dict):
        return {key: without(item, unwanted) for key, item in value.items()}
    if isinstance(value, list):
        return [without(item, unwanted) for item in value]
    return None if isinstance(value, unwanted) else value
