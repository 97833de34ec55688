"""Commands on broken and hostile files, and what must hold of each.

`python tests/fuzzing.py --seed 7 --count 1000` makes 1000 cases, seeds 7, 8, ..., each in a process
of its own, which onnxruntime may abort; `--only 42` makes one and keeps its folder. A case is a
model (a fixture, a random one of `oracle`, or a recurrence that `rolling` wrote out), data, a plan,
a study, a cache of timings, configuration and options, of which one or more were changed:
structures where they have one, bytes where not; and a command or a call from Python with options of
all kinds. At the end it prints how often each command ended in which way, and each flag was given.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import hashlib
import inspect
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import numpy_helper

import onnx_rnn_prune
import rolling
from onnx_rnn_prune import cli
from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.checks import checked
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.model.walk import messages
from onnx_rnn_prune.text import visible
from onnx_rnn_prune.trace.plan import fingerprint
from onnx_rnn_prune.validate import timing
from oracle.around import draw_around
from oracle.draw import draw_model

# Seconds of the processor and bytes that no case may take beyond what an empty process takes. On a
# busy machine, a case waits for longer than it works.
SECONDS, BYTES = 60.0, 1 << 30
WAIT = 5 * SECONDS
CODES = {0, 1, 2, 3}

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**62, -(2**31), -(2**63), 2**63 - 1)
REALS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "", "x", "a/b", "../up", "/etc/passwd", "\x1b[2J", "\u202e", "a\nb", "[red]", "%s", "{}", "-o",
    "\0", "n" * 300, "evil:feeds", "tcp://127.0.0.1:1", "nan", "1e999", "50%", "*", "é",
)  # fmt: skip

PAGES = ("--html", "--json", "--summary", "--png", "--save-plan")


# -- changing things ------------------------------------------------------------------------------


def change_message(message: Any, rng: random.Random) -> None:
    """Changes one field somewhere in a message of protocol buffers."""
    holders = [message]
    for holder in holders:
        for kind, value in holder.ListFields():
            if kind.message_type is not None:
                holders.extend(value if hasattr(value, "extend") else [value])
    # What is deep inside is not drowned by what there is most of.
    wanted = rng.choice(sorted({holder.DESCRIPTOR.name for holder in holders}))
    holder = rng.choice([holder for holder in holders if holder.DESCRIPTOR.name == wanted])
    present = [kind for kind, _ in holder.ListFields()]
    kind = rng.choice(
        present if present and rng.random() < 0.85 else list(holder.DESCRIPTOR.fields)
    )
    names = sorted({name for each in holders for name in texts_of(each)} | set(TEXTS))
    with contextlib.suppress(ValueError, TypeError):  # what a field cannot hold
        change_field(holder, kind, names, rng)


def texts_of(message: Any) -> list[str]:
    found = []
    for kind, value in message.ListFields():
        if kind.type == kind.TYPE_STRING:
            found += list(value) if hasattr(value, "extend") else [value]
    return [text for text in found if isinstance(text, str)]


def change_field(holder: Any, kind: Any, names: list[str], rng: random.Random) -> None:
    value = getattr(holder, kind.name)
    if hasattr(value, "extend"):
        change_list(value, kind, names, rng)
    elif kind.message_type is not None:
        if rng.random() < 0.5:
            holder.ClearField(kind.name)
        else:
            value.SetInParent()
    else:
        setattr(holder, kind.name, other(kind, value, names, rng))


def change_list(items: Any, kind: Any, names: list[str], rng: random.Random) -> None:
    place = rng.randrange(len(items)) if len(items) else 0
    way = rng.choice(("drop", "repeat", "turn", "clear", "change", "change"))
    if way == "clear":
        del items[:]
    elif way == "drop" and items:
        del items[place]
    elif way == "turn" and len(items) > 1:
        kept = [copied(item) for item in items]
        rng.shuffle(kept)
        del items[:]
        items.extend(kept)
    elif way == "repeat" and items:
        items.extend([copied(items[place])] * rng.choice((1, 1, 2, 40)))
    elif kind.message_type is None:
        if items:
            items[place] = other(kind, items[place], names, rng)
        else:
            items.append(other(kind, None, names, rng))


def copied(item: Any) -> Any:
    if not hasattr(item, "CopyFrom"):
        return item
    result = type(item)()
    result.CopyFrom(item)
    return result


def other(kind: Any, value: Any, names: list[str], rng: random.Random) -> Any:
    """Another value of a field that holds no message."""
    if kind.type == kind.TYPE_STRING:
        return rng.choice(names)
    if kind.type == kind.TYPE_BYTES:
        return change_bytes(value or b"", rng)
    if kind.type in (kind.TYPE_FLOAT, kind.TYPE_DOUBLE):
        return rng.choice(REALS)
    if kind.type == kind.TYPE_ENUM:
        return rng.choice([*range(28), 99])
    near = [value + 1, value - 1, value * 2] if value else []
    number = rng.choice([*NUMBERS, *near])
    return number if kind.type == kind.TYPE_INT64 else max(-(2**31), min(number, 2**31 - 1))


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    way = rng.choice(("cut", "add", "flip", "fill", "gap"))
    place = rng.randrange(len(content) + 1)
    if way == "cut":
        return content[:place]
    if way == "add":
        return content + rng.randbytes(rng.choice((1, 4, 1000)))
    if way == "gap":
        return content[:place] + content[place + rng.choice((1, 4, 100)) :]
    if way == "fill":
        return (rng.choice((b"\xff", b"\x7f\xc0\x00\x00", b"\0")) * len(content))[: len(content)]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 20))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def change_value(value: Any, rng: random.Random) -> Any:
    """Changes one thing somewhere in what JSON or TOML holds."""
    plain = [None, True, "", [], {}, *NUMBERS, *REALS, *TEXTS]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        changed = dict(value)
        way = rng.random()
        if way < 0.1:
            del changed[key]
        elif way < 0.2:
            changed[rng.choice(TEXTS)] = value[key]
        else:
            changed[key] = change_value(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        place, way = rng.randrange(len(value)), rng.random()
        if way < 0.2:
            return value[:place] + value[place + 1 :]
        if way < 0.4:
            return [*value, *value[: place + 1]]
        return [*value[:place], change_value(value[place], rng), *value[place + 1 :]]
    if isinstance(value, int) and rng.random() < 0.4:
        return value + rng.choice((-1, 1))
    return rng.choice(plain)


def change_array(array: Any, rng: random.Random) -> Any:
    way = rng.choice(("type", "shape", "fill", "object", "empty", "scalar", "order"))
    if way == "type":
        with np.errstate(all="ignore"):
            return array.astype(
                rng.choice(("f2", "f4", "f8", "i1", "i8", "u4", "?", "U3", "c8", "S2"))
            )
    if way == "shape":
        return rng.choice((array.reshape(-1), array[None], array[..., :-1], np.repeat(array, 2, 0)))
    if way == "fill":
        filled = array.copy()
        filled.flat[: rng.choice((1, filled.size))] = rng.choice((0, 1, np.nan, np.inf, 1e30, -5))
        return filled
    if way == "object":
        return np.array([print, None], dtype=object)
    if way == "empty":
        return array[:0]
    return np.asfortranarray(array) if way == "order" else np.float64(rng.choice(REALS))


# -- making cases ---------------------------------------------------------------------------------


@dataclass
class Case:
    """Files in a folder and the command to run there."""

    seed: int
    rng: random.Random
    folder: Path
    model: onnx.ModelProto
    feeds: list[dict[str, Any]]
    command: list[str] = field(default_factory=list)


def make_case(seed: int, folder: Path) -> Case:
    rng = random.Random(seed)
    model, every = draw_base(rng)
    feeds = every[: rng.choice((1, 3, 5))]
    case = Case(seed, rng, folder, model, feeds)
    parts = ["model", "data", "plan", "study", "cache", "config", "options"]
    broken = rng.sample(parts, rng.choice((1, 1, 1, 2, 3)))
    if rng.random() < 0.3:  # nothing stops what is done then
        broken = ["cache"]
    elif rng.random() < 0.4 and "model" not in broken:
        broken.append("model")
    case.command = draw_command(rng, broken, model)
    if rng.random() < 0.1:
        case.command = draw_call(rng)
    write_model(case, "model" in broken)
    write_data(case, "data" in broken)
    write_plan(case, "plan" in broken)
    write_study(case, "study" in broken)
    write_cache(case, "cache" in broken)
    if "config" in broken:
        write_config(case)
    return case


def draw_base(rng: random.Random) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    """A sound model and feeds for it."""
    names = sorted(path.name for path in FIXTURES.glob("*.onnx"))
    kind = rng.random()
    if kind < 0.25:
        return fixture(rng.choice(names))
    if kind < 0.4:
        return written_out(rng.randrange(200))
    return drawn(rng.choice((draw_model, draw_model, draw_around)), rng.randrange(400))


@cache
def drawn(draw: Callable[[int], Any], number: int) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    builder = draw(number)
    return builder.model(), [dict(builder.feeds(4 + n % 2, 2, n)) for n in range(5)]


@cache
def written_out(number: int) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    """A recurrence as people write it, which becomes a layer."""
    model, steps = rolling.random_model(np.random.default_rng(number))
    return model, rolling.feeds(model, steps, (4, 1, 2, 3, 2))


@cache
def fixture(name: str) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    model = onnx.load(FIXTURES / name)
    return model, [fitting(model, number) for number in range(5)]


def fitting(model: onnx.ModelProto, seed: int) -> dict[str, Any]:
    """Numbers of the shapes that a model declares; sizes that it leaves open are 3."""
    rng, feed = np.random.default_rng(seed), {}
    for port in signature.inputs(model):
        shape = [dim if isinstance(dim, int) else 3 for dim in port.dims or ()]
        kind = port.dtype or np.dtype(np.float32)
        drawn = rng.normal(size=shape) if kind.kind in "fV" else np.ones(shape)
        feed[port.name] = drawn.astype(kind)
    return feed


# Those that do the most; a cache that means nothing keeps none of them from doing all of it.
DEEP = ["prune", "prune", "apply", "apply", "search", "sensitivity", "bench", "inspect", "roll"]


def draw_command(rng: random.Random, broken: list[str], model: onnx.ModelProto) -> list[str]:
    wanted = {"plan": ["apply"], "study": ["search", "sensitivity"], "cache": DEEP}
    every = [
        "inspect",
        "prune",
        "prune",
        "plan",
        "apply",
        "compare",
        "bench",
        "search",
        "sensitivity",
        "roll",
    ]
    name = rng.choice(wanted.get(broken[0], every))
    data = ["--data", "data"] if rng.random() < 0.6 or name in ("search", "sensitivity") else []
    command = {
        "inspect": ["inspect", "model.onnx"],
        "prune": ["prune", "model.onnx", "-o", "out.onnx"],
        "plan": ["plan", "model.onnx", "-o", "out.json"],
        "apply": ["apply", "model.onnx", "plan.json", "-o", "out.onnx"],
        "compare": ["compare", "model.onnx", "other.onnx", "--max-nrmse", "0.1"],
        "bench": ["bench", "model.onnx", "other.onnx"],
        "search": ["search", "model.onnx", "-o", "out.onnx", "--params", "80%", "--trials", "2"],
        "sensitivity": ["sensitivity", "model.onnx"],
        "roll": ["roll", "model.onnx", "-o", "out.onnx"],
    }[name] + data
    known = {option.name for option in cli.cli.commands[name].params}
    if "layers" in known and rng.random() < 0.25:
        command += ["--layers", "all"]
    states = min(len(model.graph.input), len(model.graph.output)) > 1
    if "stream" in known and data and rng.random() < (0.4 if states else 0.02):
        command += ["--stream"]
    if name in ("search", "sensitivity") and (broken[0] == "study" or rng.random() < 0.3):
        command += ["--study", "study.db"]
    if rng.random() < 0.5:
        command += draw_options(name, [port.name for port in model.graph.input], rng)
    if name in ("prune", "apply") and rng.random() < 0.2:
        command += ["--html", "page.html", "--json", "report.json"]
    if "options" in broken:
        place = rng.randrange(1, len(command) + 1)
        command[place:place] = rng.choice(
            (
                [rng.choice(TEXTS)],
                [rng.choice(WORDS), rng.choice(TEXTS)],
                [f"{rng.choice(WORDS)}=9"],
            )
        )
    return [text.replace("\0", "") for text in command]


WORDS = (
    "--keep", "--budget", "--rank", "--quantize", "--sparsify", "--only", "--align", "--min-units",
    "--masks", "--freeze", "--seed", "--steps", "--criterion", "--data", "--eval-data", "--json",
    "--html", "--summary", "--save-plan", "--config", "-o", "--metric", "--study", "--pick",
)  # fmt: skip


# What options are given beside one of a choice, a number or nothing; others are left out.
GIVEN = {
    "keep": ("1", "30%", "100%", "*=60%", "1%", "y*=2"),
    "budget": ("params=60%", "flops=50%", "bytes=90%", "params=1", "bytes=1kB"),
    "size": ("batch=2", "x=4x2x3", "x=1", "time=5"),
    "criterion": ("l1", "l2+0.5*activation", "density", "taylor", "reconstruction", "ablation"),
    "layers": ("all", "recurrent", "*", "absent"),
    "only": ("*", "LSTM*", "absent", "[!a]*"),
    "skip": ("*", "GRU*", "absent", "y?"),
    "loss": ("cross-entropy",),
    "masks": ("masks.npz",),
    "eval_data": ("data", "data/0.npz"),
    "state_metadata": ("width", "width:a.b"),
    "sparsify": ("50%", "2:4", "block=2x1:50%", "threshold=1e-3", "99%"),
    "rank": ("50%", "2", "energy=90%"),
    "quantize": ("int8", "bits=4", "fp16"),
    "metric": ("nrmse", "agreement", "accuracy", "perplexity", "kl", "snr"),
    "max_drop": ("1%", "0.5"),
    "speedup": ("1.1x", "100x"),
    "latency": ("5ms", "1us"),
    "params": ("50%", "10", "99%"),
    "bytes": ("1kB", "90%"),
    "json_path": ("report.json",),
    "save_plan": ("kept.json",),
    "html": ("page.html",),
    "summary": ("page.md",),
    "study": ("study.db",),
}


# What an option is refused without.
NEEDS = {
    "state_metadata": ["--shrink-states"],
    "sparsify_by": ["--sparsify", "50%"],
    "sparse_initializers": ["--sparsify", "50%"],
    "better": ["--metric", "nrmse"],
    "loss": ["--criterion", "taylor"],
}


def draw_options(name: str, inputs: list[str], rng: random.Random) -> list[str]:
    """Some options of a command, each with a value that it may have."""
    drawn = []
    options = [each for each in cli.cli.commands[name].params if isinstance(each, click.Option)]
    for option in rng.sample(options, min(len(options), rng.choice((1, 1, 2, 3, 5)))):
        values = GIVEN.get(option.name, ())
        if option.name == "freeze":
            values = [f"{each}={value}" for each in inputs for value in (0, 1, "true", "1,2", "x")]
        elif isinstance(option.type, click.Choice):
            values = [each for each in option.type.choices if each != "distill"]
        elif isinstance(option.type, click.IntRange) and option.name != "jobs":
            values = (1, 2, 3, 8)
        elif isinstance(option.type, click.FloatRange):
            values = (0.01, 0.1)
        flags = [*option.opts, *option.secondary_opts]
        if option.is_flag:
            drawn.append(rng.choice(flags))
        elif values:
            drawn += [flags[-1], str(rng.choice(values))]
        if rng.random() < 0.8:
            drawn += NEEDS.get(option.name, [])
    return drawn


FUNCTIONS = (
    "inspect", "prune", "plan", "apply", "compare", "bench", "search", "sensitivity", "roll",
)  # fmt: skip


def draw_call(rng: random.Random) -> list[str]:
    """A call from Python as words: the function, and the seed of what it is given."""
    return ["python", rng.choice(FUNCTIONS), str(rng.randrange(10**6))]


def call(case: Case) -> int:
    """Calls a function with arguments that may mean nothing; all it may raise is a PruneError."""
    rng, function = random.Random(case.command[2]), getattr(onnx_rnn_prune, case.command[1])
    arrays = [{name: np.asarray(value) for name, value in feed.items()} for feed in case.feeds]
    source = rng.choice(("model.onnx", Path("model.onnx"), onnx.load("other.onnx")))
    given: dict[str, Any] = {"data": rng.choice((arrays, "data", arrays[0], lambda: iter(arrays)))}
    positional = {"apply": (source, "plan.json"), "compare": (source, "other.onnx")}
    values = [None, True, "", "x", b"x", [], {}, (), object(), print, 2**70, *NUMBERS, *REALS]
    values += [np.float64("nan"), np.array([1, 2]), Path("data"), "50%", {"x": 1}, [arrays, None]]
    values += [*TEXTS, {1: 2}, ["a", 3], iter([]), {"*": 0.5}, np.zeros((1, 4), bool), {"x": "y"}]
    names = [name for name in inspect.signature(function).parameters if name not in NEVER]
    for name in rng.sample(names, rng.choice((0, 1, 1, 2, 3))):
        given[name] = rng.choice(values if rng.random() < 0.5 else GIVEN.get(name, (True, 1, 2)))
    if case.command[1] == "search":
        given = {"params": 0.8, "trials": 2, **given}
    arguments = (
        [[source]] if case.command[1] == "bench" else [*positional.get(case.command[1], [source])]
    )
    if rng.random() < 0.1:
        arguments[0] = rng.choice(values)
    if case.command[1] == "inspect" and rng.random() < 0.5:
        del given["data"]
    try:
        result = function(*arguments, **given)
        if hasattr(result, "save"):
            result.save("out.json" if case.command[1] == "plan" else "out.onnx")
    except onnx_rnn_prune.PruneError as error:
        print(f"Error: {visible(str(error))}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


# Processes and hosts take long, and what is left out of a call's names is positional.
NEVER = {"model", "models", "a", "b", "plan", "progress", "jobs", "cluster", "distill_minutes"}


def write_model(case: Case, broken: bool) -> None:
    rng, model = case.rng, copied(case.model)
    (case.folder / "other.onnx").write_bytes(model.SerializeToString())
    way = rng.random() if broken else 0.0
    if broken and way < 0.8:
        model = case.model = changed(model, rng)
    if rng.random() < 0.15:
        put_apart(case, model, broken)
    content = model.SerializeToString()
    if 0.8 <= way < 0.88:
        content = change_bytes(content, rng)
    if 0.88 <= way < 0.94:  # names in another encoding
        name = rng.choice([name for each in model.graph.node for name in texts_of(each) if name])
        content = content.replace(name.encode(), name[:-1].encode() + b"\xa4")
    (case.folder / "model.onnx").write_bytes(content)
    if way >= 0.94:
        (case.folder / "model.onnx").unlink()
        target = rng.choice((".", "model.onnx", "absent", "/dev/null", "/etc/passwd"))
        (case.folder / "model.onnx").symlink_to(target)


def changed(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """Some fields are others; most of the time, onnxruntime still takes the model if it can be."""
    for _ in range(rng.choice((1, 8))):
        result = copied(model)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            change_message(result, rng)
        with contextlib.suppress(onnx_rnn_prune.PruneError):
            Runner(checked(result))
            break
    return result


def put_apart(case: Case, model: onnx.ModelProto, broken: bool) -> None:
    """Weights in a file, or said to be in one that is not theirs to read."""
    content = b""
    for tensor in list(messages(model, onnx.TensorProto)):
        if not tensor.raw_data or case.rng.random() < 0.3:
            continue
        place = {"location": "weights.bin", "offset": str(len(content)), "length": None}
        place["length"] = str(len(tensor.raw_data))
        content += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        if broken and case.rng.random() < 0.3:
            key = case.rng.choice(list(place))
            place[key] = case.rng.choice((*TEXTS, "model.onnx", "-4", "99999999999999"))
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
    (case.folder / "weights.bin").write_bytes(content)


def write_data(case: Case, broken: bool) -> None:
    rng, folder = case.rng, case.folder / "data"
    if broken and rng.random() < 0.1:
        rng.choice((lambda: folder.symlink_to("data"), folder.touch, lambda: None))()
        return
    folder.mkdir()
    sets = rng.random() < 0.25
    for number, feed in enumerate(case.feeds):
        chosen = dict(feed)
        if broken and rng.random() < 0.6:
            name = rng.choice(list(chosen))
            with contextlib.suppress(IndexError, OverflowError, ValueError):  # no such change
                chosen[name] = change_array(chosen[name], rng)
            if rng.random() < 0.2:
                chosen[rng.choice(("y", "labels", "a/b"))] = chosen.pop(name)
        if sets:
            write_set(folder / f"test_data_set_{number}", chosen, broken, rng)
            continue
        path = folder / f"{number}.npz"
        np.savez(path, **chosen)
        if broken and rng.random() < 0.2:
            path.write_bytes(change_bytes(path.read_bytes(), rng))
    if broken and rng.random() < 0.3:
        write_odd(folder, rng)
    if rng.random() < 0.15:  # parts, each of which may be a stream
        for number, path in enumerate(sorted(folder.iterdir())):
            part = folder / f"part{number % 2}"
            part.mkdir(exist_ok=True)
            path.rename(part / path.name)
    masks = {"layer": np.ones(4, bool), rng.choice(TEXTS[1:3]): np.ones((1, 3), bool)}
    np.savez(case.folder / "masks.npz", **masks)


def write_odd(folder: Path, rng: random.Random) -> None:
    """Something that no one expects among feeds."""
    name = rng.choice(
        ("odd.npz", "0.npz", "input_0.pb", ".odd.npz", "\x1b.npz", "odd.NPZ", "9" * 40)
    )
    path = folder / rng.choice(
        (name, name, f"test_data_set_{rng.choice(('7', '9' * 30))}/input_0.pb")
    )
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    rng.choice(
        (
            path.touch,
            path.mkdir,
            lambda: os.mkfifo(path),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to("absent"),
            lambda: path.symlink_to("../data"),
            lambda: path.write_bytes(rng.randbytes(100)),
            lambda: np.save(path.open("wb"), np.ones(3)),
            lambda: np.savez_compressed(path.open("wb"), x=np.zeros(1 << 24)),
            lambda: np.savez(path.open("wb"), **{"": np.ones(1), "../x": np.ones(2)}),
            lambda: np.savez(path.open("wb"), x=np.array([{}], dtype=object)),
        )
    )()


def write_set(folder: Path, feed: dict[str, Any], broken: bool, rng: random.Random) -> None:
    folder.mkdir()
    for number, (name, value) in enumerate(feed.items()):
        try:
            tensor = numpy_helper.from_array(np.asarray(value), name)
        except Exception:  # there are arrays that no tensor holds
            tensor = onnx.TensorProto(name=name)
        if broken and rng.random() < 0.5:
            change_message(tensor, rng)
        (folder / f"input_{number}.pb").write_bytes(tensor.SerializeToString())


def write_plan(case: Case, broken: bool) -> None:
    layers = {}
    nodes, sha = [], ""
    with contextlib.suppress(Exception):  # of a broken model
        sha = fingerprint(case.model)
        nodes = Document.read(case.model).graph.nodes
    for node in nodes:
        hidden = node.attrs.get("hidden_size")
        if isinstance(hidden, int) and 0 < hidden < 100 and node.op in ("LSTM", "GRU", "RNN"):
            directions = 2 if str(node.attrs.get("direction")) == "bidirectional" else 1
            keep = [list(range(max(1, hidden // 2)))] * directions
            layers[node.name] = {"scope": "", "hidden_size": hidden, "keep": keep}
    plan: Any = {
        "format": "onnx_rnn_prune.plan/1",
        "model": {"sha256": sha},
        "layers": layers,
    }
    text = json.dumps(plan)
    if broken:
        for _ in range(case.rng.choice((1, 1, 2, 5))):
            if case.rng.random() < 0.7 and isinstance(plan, dict):
                plan = {**plan, "layers": change_value(plan.get("layers"), case.rng)}
            else:
                plan = change_value(plan, case.rng)
        text = json.dumps(plan)
        if case.rng.random() < 0.1:
            text = change_bytes(text.encode(), case.rng).decode(errors="surrogateescape")
    (case.folder / "plan.json").write_bytes(text.encode(errors="surrogateescape"))


def write_study(case: Case, broken: bool) -> None:
    if not broken:
        return
    rng, path = case.rng, case.folder / "study.db"
    if rng.random() < 0.5 and case.command[0] in ("search", "sensitivity"):
        before = {*case.folder.iterdir(), path, case.folder / "cache"}
        with quiet(case):
            cli.run(case.command)  # what it remembers is then changed
        for written in set(case.folder.iterdir()) - before:
            written.unlink()
    if path.is_file() and is_study(path) and rng.random() < 0.7:
        with contextlib.closing(sqlite3.connect(path)) as base, base:
            rows = list(base.execute("SELECT key, value FROM record"))
            for key, value in rng.sample(rows, min(len(rows), rng.choice((1, 3, 100)))):
                changed = json.dumps(change_value(json.loads(value.partition(" ")[2]), rng))
                if rng.random() < 0.2:
                    changed = change_bytes(value.encode(), rng).decode(errors="replace")
                base.execute("UPDATE record SET value = ? WHERE key = ?", (changed, key))
        return
    content = path.read_bytes() if path.is_file() else b""
    path.write_bytes(change_bytes(content or b"SQLite format 3\0", rng))


def write_cache(case: Case, broken: bool) -> None:
    cache = case.folder / "cache" / "onnx_rnn_prune"
    cache.mkdir(parents=True, exist_ok=True)
    if broken:
        path = cache / "timings.json"
        known: Any = {"a": {"b": 1.0}}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(BASE_CACHE.read_text())
        for _ in range(case.rng.choice((1, 3, 20))):
            known = change_value(known, case.rng)
        path.write_text(json.dumps(known))
        if case.rng.random() < 0.3:
            path.write_bytes(change_bytes(path.read_bytes(), case.rng))
    elif BASE_CACHE.is_file():
        shutil.copy(BASE_CACHE, cache / "timings.json")


def write_config(case: Case) -> None:
    rng = case.rng
    given = {"seed": 1, "data": "data"}
    for _ in range(rng.choice((1, 2, 4))):
        word = rng.choice((*WORDS, *GIVEN)).strip("-").replace("_", "-")
        meant = rng.choice(GIVEN.get(word.replace("-", "_"), ("x",)))
        value = meant if rng.random() < 0.5 else change_value(meant, rng)
        given[word] = value
    lines = [f"{word} = {json.dumps(value)}" for word, value in given.items()]
    content = "\n".join(["[tool.onnx-rnn-prune]", *lines]).encode(errors="replace")
    if rng.random() < 0.1:
        content = change_bytes(content, rng)
    (case.folder / "pyproject.toml").write_bytes(content)


@contextlib.contextmanager
def quiet(case: Case) -> Any:
    before = Path.cwd()
    os.chdir(case.folder)
    os.environ["XDG_CACHE_HOME"] = str(case.folder / "cache")
    try:
        with (
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(nothing),
            contextlib.redirect_stderr(nothing),
        ):
            yield
    finally:
        os.chdir(before)


# Files that no disk has to write are faster.
MEMORY = next((name for name in ("/dev/shm",) if os.access(name, os.W_OK)), None)
FIXTURES = Path(__file__).with_name("fixtures")


# -- running them ---------------------------------------------------------------------------------

BASE_CACHE = Path(tempfile.gettempdir()) / f"onnx_rnn_prune-fuzzing-{os.getuid()}" / "timings.json"


def run_case(seed: int, folder: Path) -> tuple[str, int, str]:
    """Runs a case in a process of its own: the command, its code, and what it broke, or ''."""
    draw_base(random.Random(seed))  # it is drawn once, in the process that stays
    child = os.fork()
    if child == 0:
        code = 99
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        try:
            code = in_child(seed, folder)
        except BaseException:
            traceback.print_exc(file=(folder / "fuzzing").open("a"))
        finally:
            os._exit(code)
    ended = signal.sigtimedwait([signal.SIGCHLD], WAIT)
    if not ended:
        os.kill(child, signal.SIGKILL)
        signal.sigwait([signal.SIGCHLD])
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if not ended:
        return shown(folder), code, f"has not ended after {WAIT:.0f} s"
    return shown(folder), code, broken_promise(folder, code, usage.ru_maxrss * 1024)


def shown(folder: Path) -> str:
    path = folder / "command"
    return path.read_text() if path.exists() else "not made"


def in_child(seed: int, folder: Path) -> int:
    inside = folder / "in"
    inside.mkdir()
    case = make_case(seed, inside)
    (folder / "command").write_text(repr(case.command))
    (folder / "before").write_text(json.dumps(contents(inside)))
    os.chdir(inside)
    os.environ["XDG_CACHE_HOME"] = str(inside / "cache")
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    really = cli._fail

    def fail(text: str, error: BaseException, code: int) -> int:
        (folder / "traceback").write_text("".join(traceback.format_exception(error)))
        return really(text, error, code)

    cli._fail = fail
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    code = call(case) if case.command[0] == "python" else cli.run(case.command)
    signal.setitimer(signal.ITIMER_PROF, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / "loads").write_text(check_written(inside))
    return code


def contents(folder: Path) -> dict[str, str]:
    """Names of files in a folder with what they hold."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and "cache" not in path.parts:
            name = str(path.relative_to(folder))
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def broken_promise(folder: Path, code: int, memory: int) -> str:
    if (folder / "fuzzing").exists():
        raised = (folder / "fuzzing").read_text().strip().splitlines()[-1]
        return f"the case could not be made: {raised}"
    err = (folder / "stderr").read_text(errors="replace") if (folder / "stderr").exists() else ""
    out = (folder / "stdout").read_text(errors="replace") if (folder / "stdout").exists() else ""
    if code not in CODES:
        return (
            f"takes more than {SECONDS:.0f} s" if code == -signal.SIGPROF else f"ends with {code}"
        )
    if "defect" in err or "report this" in err:
        return f"calls itself a defect: {err.strip().splitlines()[-1][:150]}"
    if "Traceback" in err or ("Warning: " in err and ".py:" in err):
        return f"shows its inside: {err.strip().splitlines()[-1][:150]}"
    if code == 1 and sum(line.startswith("Error: ") for line in err.splitlines()) != 1:
        return f"tells no reason: {err[:100]!r}"
    hidden = [line for line in (out + err).split("\n") if not line.isprintable()]
    if hidden:
        return f"prints what is not printable: {hidden[0][:100]!r}"
    if memory > BASE_MEMORY + BYTES:
        return f"takes {memory >> 20} MB"
    return files_wrong(folder, code) or (folder / "loads").read_text()


def files_wrong(folder: Path, code: int) -> str:
    inside = folder / "in"
    before, after = json.loads((folder / "before").read_text()), contents(inside)
    command = ast.literal_eval((folder / "command").read_text())
    # Pages are asked for by name, also by that of a file that happens to be there.
    pages = {name for option, name in pairwise(command) if option in PAGES and name in TEXTS}
    changed = [name for name in before if after.get(name) != before[name]]
    changed = [name for name in changed if name not in {"study.db", *pages}]
    # What a study remembers is for the next run, also of a failed one.
    new = [name for name in sorted(after.keys() - before.keys()) if not is_study(inside / name)]
    if changed:
        return f"changes {changed}"
    if code in (1, 2) and new:
        return f"fails and leaves {new}"
    hidden = [name for name in new if Path(name).name.startswith(".")]
    if hidden:
        return f"leaves {hidden}"
    return ""


def is_study(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(7) == b"SQLite "


def check_written(folder: Path) -> str:
    """Whether a written model loads where the original does."""
    import onnxruntime as ort

    if not (folder / "out.onnx").exists():
        return ""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for name in ("model.onnx", "out.onnx"):
        try:
            ort.InferenceSession(
                str(folder / name), options, ["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:
            return "" if name == "model.onnx" else f"writes what does not load: {str(error)[:150]}"
    return ""


def prepare() -> None:
    """Does once what each process would do for itself: imports, tables that are made when needed.

    Times of models mean nothing here, and are taken in a few runs.
    """
    global BASE_MEMORY
    timing._LEAST, timing._ROUNDS = 0.0, 3
    timing.timings.__kwdefaults__["rounds"] = 3
    BASE_CACHE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        case = Case(0, random.Random(0), Path(name), *fixture("torchscript_gru.onnx"))
        write_model(case, broken=False)
        write_data(case, broken=False)
        with quiet(case):
            for command in ("prune", "roll"):
                cli.run([command, "model.onnx", "-o", f"{command}.onnx", "--data", "data"])
    gc.collect()
    gc.freeze()  # what forks share stays shared
    BASE_MEMORY = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])


BASE_MEMORY = 0
FLAGS = sorted({flag for each in cli.cli.commands.values() for o in each.params for flag in o.opts})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10**6 * 1000)
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep", type=Path, help="where the folders of what broke a promise go")
    given = parser.parse_args()
    prepare()
    if given.only is not None:
        folder = Path(tempfile.mkdtemp())
        print(*run_case(given.only, folder), folder, sep="\n")
        return 0
    end, found = time.monotonic() + given.seconds, Counter()
    codes, flags = Counter(), Counter()
    seed, stopped = given.seed, []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    while seed < given.seed + given.count and time.monotonic() < end and not stopped:
        with tempfile.TemporaryDirectory(dir=MEMORY, ignore_cleanup_errors=True) as name:
            command, code, wrong = run_case(seed, Path(name))
            codes[f"{command.partition(',')[0][2:-1]} {code}"] += 1
            flags.update(flag for flag in FLAGS if f"'{flag}'" in command)
            if wrong:
                found[wrong[:60]] += 1
                print(f"seed {seed}: {command}: {wrong}", flush=True)
                if given.keep:
                    shutil.copytree(name, given.keep / str(seed), symlinks=True, dirs_exist_ok=True)
        seed += 1
        if seed % 500 == 0:
            print(f"up to seed {seed}: {sum(found.values())} broke a promise", flush=True)
    wrong = sum(found.values())
    print(f"seeds {given.seed} to {seed - 1}, {wrong} broke a promise")
    print(f"ends: {sorted(codes.items())}", f"given: {flags.most_common()}", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
