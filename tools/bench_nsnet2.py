"""What pruning costs a published speech denoiser: `python tools/bench_nsnet2.py` (needs PyTorch).

Prunes NSNet2 (two GRU layers of 400 units) with a minute of unlabelled noisy speech, and denoises
other recordings with the result. `python tools/fetch_models.py nsnet2 speech` gets model and data.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from fetch_models import default_folder
from onnx_rnn_prune import prune, search
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.options import RECOVERIES as ALL
from onnx_rnn_prune.validate import timings
from pages import markdown, write_section
from speech import NOISES, Mixture, features, mixtures, resynthesize, snr_db, spectra, split

Feed = dict[str, npt.NDArray[np.float32]]
Gain = npt.NDArray[np.float32]

HIDDEN = 400
DENSE = ("MatMul_0", "MatMul_23", "MatMul_26")  # of 400, 600 and 600 units; the last one stays
UNITS = (160, 120, 80)
RECOVERIES = ("auto", "none", "distill")
KINDS = tuple(NOISES)
SHORT, LONG = 5.0, 10.0  # seconds of a piece for calibration, and for evaluation
CALIBRATION = 60.0
# Training: seconds of speech, how often it is mixed with new noise, pieces per feed, minutes.
TRAINING, TIMES, ROWS, MINUTES = 600.0, 4, 16, 7.2


@dataclass(frozen=True)
class Search:
    """The goal and the settings of a search over all layers.

    Attributes:
        recovery: its name in the row.
        speedup: the minimum.
        minutes: time limit.
        recover: see `search`.
        seconds: duration of the noisy speech.
        times: how often each recording is mixed with other noise.
    """

    recovery: str
    speedup: str
    minutes: float
    recover: str | None
    seconds: float
    times: int

    @property
    def options(self) -> str:
        """The options in which searches differ."""
        recover = "" if self.recover is None else f" --recover {self.recover}"
        return f"--speedup {self.speedup} --minutes {self.minutes:g}{recover}"

    @property
    def command(self) -> str:
        """The whole command."""
        return f"search nsnet2.onnx --align 8 --jobs 2 {self.options}"


CLOSED = Search("search", "18x", 5.5, None, 300.0, 1)
TRAINED = Search("search, distill", "22x", 20.0, "distill", 600.0, 2)
EVALUATION = 300.0
TIMED_FRAMES = 500
SECONDS_PER_MODEL = 4.0
NOTE = f"""\
Units per layer; calibrated on {CALIBRATION:.0f} s of unlabelled noisy speech (distill:
{TRAINING:.0f} s, {TIMES} times with other noise, and {MINUTES:g} minutes of training on two cores).
`{CLOSED.command}` over all layers had
{CLOSED.seconds:.0f} s; with `{TRAINED.options}`, {TRAINED.seconds:.0f} s
with {TRAINED.times} draws of noise. SNR and gain RMSE on {EVALUATION:.0f} s of other recordings of
the same speaker (white, pink, speech-shaped noise and hum at 0 to 15 dB; in the second table, white
noise only), speed at {TIMED_FRAMES} frames on one thread. Babble of the speaker's own voice, which
even the original makes worse, is listed separately. By `python tools/bench_nsnet2.py`."""


@dataclass(frozen=True)
class Row:
    """Results of one version of the model on the evaluation recordings.

    Attributes:
        units: units of each recurrent layer, or of all layers.
        recovery: the recovery method.
        speedup: the original's time over its own.
        snr_db: mean signal-to-noise ratio of its output. This and the next three exclude babble,
            which is speech, and which even the original makes worse.
        change_db: `snr_db` minus the original's.
        worst_db: the lowest such difference of a single piece.
        gain_rmse: root mean square difference of its gains, 0 to 1, from the original's.
        babble_rmse: the same for pieces with babble; None without any.
        seconds: total time of pruning.
        pieces_db: the signal-to-noise ratio of each piece.
    """

    units: str
    recovery: str
    speedup: float
    snr_db: float
    change_db: float
    worst_db: float
    gain_rmse: float
    babble_rmse: float | None
    seconds: float
    pieces_db: tuple[float, ...]


@dataclass(frozen=True)
class Pruned:
    """A pruned model and how it was made."""

    model: onnx.ModelProto
    units: str
    recovery: str
    seconds: float


@dataclass(frozen=True)
class Heard:
    """A model's gains [frames, 161] for each piece, and the resulting SNR in decibels."""

    gains: tuple[Gain, ...]
    snr_db: tuple[float, ...]


def feed(mixture: Mixture) -> Feed:
    """The model's input [1, frames, 161] for the noisy audio of a mixture."""
    return {"input": features(spectra(mixture.noisy))}


def cut(
    path: Path, units: int, recovery: str, feeds: Sequence[Feed], dense: Sequence[int] = ()
) -> Pruned:
    """Prunes both layers to `units`, and dense layers, front to back, to `dense`."""
    start = time.perf_counter()
    keep = {"GRU*": units, **dict(zip(DENSE, dense, strict=False))}
    result = prune(
        path,
        keep=keep,
        layers="all" if dense else "recurrent",
        data=feeds,
        recover=recovery,
        distill_minutes=MINUTES,
    )
    seconds = time.perf_counter() - start
    return Pruned(result.model, str(units), str(result.report["recovery"]["used"]), seconds)


def found(path: Path, feeds: Sequence[Feed], asked: Search) -> Pruned:
    """The result of a search over all layers: the best that is fast enough."""
    start = time.perf_counter()
    result = search(
        path,
        data=feeds,
        speedup=asked.speedup,
        align=8,
        jobs=2,
        minutes=asked.minutes,
        recover=asked.recover,
    )
    seconds = time.perf_counter() - start
    widths = [row["hidden_after"] for row in result.report["layers"] if row["hidden_after"] != 161]
    return Pruned(result.model, "/".join(map(str, widths)), asked.recovery, seconds)


def listen(runner: Runner, pieces: Sequence[Mixture]) -> Heard:
    """Denoises the pieces and compares each with its clean speech."""
    gains: list[Gain] = []
    ratios: list[float] = []
    for piece in pieces:
        gain = np.asarray(runner(feed(piece), ["output"])["output"][0], np.float32)
        audio = resynthesize(spectra(piece.noisy), gain, piece.clean.size)
        gains.append(gain)
        ratios.append(snr_db(piece.clean, audio))
    return Heard(tuple(gains), tuple(ratios))


def row(
    pruned: Pruned, speedup: float, heard: Heard, original: Heard, pieces: Sequence[Mixture]
) -> Row:
    """Compares a pruned model's output for the pieces with the original's."""
    steady = np.array([piece.noise != "babble" for piece in pieces])
    ratios = np.array(heard.snr_db)[steady]
    changes = np.subtract(heard.snr_db, original.snr_db)[steady]
    pairs = zip(heard.gains, original.gains, strict=True)
    errors = np.array([np.mean(np.square(own - other)) for own, other in pairs])
    return Row(
        units=pruned.units,
        recovery=pruned.recovery,
        speedup=speedup,
        snr_db=float(ratios.mean()),
        change_db=float(changes.mean()),
        worst_db=float(changes.min()),
        gain_rmse=float(np.sqrt(errors[steady].mean())),
        babble_rmse=None if steady.all() else float(np.sqrt(errors[~steady].mean())),
        seconds=pruned.seconds,
        pieces_db=heard.snr_db,
    )


def measure(path: Path, models: Sequence[Pruned], pieces: Sequence[Mixture]) -> list[Row]:
    """Rows of the original and the pruned models, timed in turns on one thread."""
    models = [Pruned(onnx.load(path), f"{HIDDEN} (original)", "", 0.0), *models]
    runners = [Runner(each.model, name=f"{each.units} units") for each in models]
    sample = {"input": feed(pieces[0])["input"][:, :TIMED_FRAMES]}
    times = timings(runners, sample, seconds=SECONDS_PER_MODEL * len(runners))
    heard = [listen(runner, pieces) for runner in runners]
    return [
        row(each, time.ratio, own, heard[0], pieces)
        for each, time, own in zip(models, times, heard, strict=True)
    ]


def table(rows: Sequence[Row], pieces: Sequence[Mixture]) -> str:
    """The rows in Markdown, after that of the noisy input, and the data they were measured on."""
    names = ["SNR", "change", "worst piece", "gain RMSE", "in babble", "took"]
    header = ["units", "recovery", "speed", *names]
    noisy = float(np.mean([piece.snr_db for piece in pieces if piece.noise != "babble"]))
    lines = [["noisy input", "", "", f"{noisy:.2f} dB", *[""] * 5]]
    for each in rows:
        speed, snr = f"{each.speedup:.2f}x", f"{each.snr_db:.2f} dB"
        if not each.recovery:
            lines.append([each.units, "", speed, snr, *[""] * 5])
            continue
        changes = [f"{value:+.2f} dB" for value in (each.change_db, each.worst_db)]
        rmses = (each.gain_rmse, each.babble_rmse)
        errors = ["" if value is None else f"{value:.3f}" for value in rmses]
        cells = [each.units, each.recovery, speed, snr, *changes, *errors]
        lines.append([*cells, f"{each.seconds:.0f} s"])
    return markdown(header, lines)


def noisy(
    paths: Sequence[Path], seconds: float, times: int, rows: int, kinds: Sequence[str] = KINDS
) -> list[Feed]:
    """Feeds of `seconds` of noisy speech, `times` over with new noise, `rows` pieces each."""
    pieces = [
        feed(mixture)["input"]
        for seed in range(times)
        for mixture in mixtures(paths, seconds, SHORT, seed, kinds)
    ]
    stacks = (pieces[first : first + rows] for first in range(0, len(pieces), rows))
    return [{"input": np.concatenate(stack)} for stack in stacks]


def bench(
    folder: Path,
    units: Sequence[int],
    recoveries: Sequence[str],
    dense: Sequence[int] = (),
    searches: Sequence[Search] = (),
    kinds: Sequence[str] = KINDS,
) -> tuple[list[Row], list[Mixture]]:
    """The rows, the original's first, and the noisy pieces they were measured on."""
    path, recordings = folder / "nsnet2.onnx", folder / "speech"
    if not path.exists() or not recordings.is_dir():
        remedy = f"python tools/fetch_models.py nsnet2 speech --to {folder}"
        raise PruneError("no nsnet2.onnx and speech", where=str(folder), remedy=f"run {remedy}")
    sets = split(recordings)
    feeds = noisy(sets["calibration"], CALIBRATION, 1, 1, kinds)
    training = [*sets["calibration"], *sets["selection"]]
    more = noisy(training, TRAINING, TIMES, ROWS, kinds) if "distill" in recoveries else []
    pieces = mixtures(sets["evaluation"], EVALUATION, LONG, 2, kinds)
    # Training takes long and pays most for the deepest cut.
    asked = [
        (count, recovery)
        for count in units
        for recovery in recoveries
        if recovery != "distill" or count == min(units)
    ]
    models = []
    for count, recovery in asked:
        print(f"{count} units, recovery {recovery}", file=sys.stderr)
        models.append(cut(path, count, recovery, more if recovery == "distill" else feeds, dense))
    for each in searches:
        print(each.recovery, file=sys.stderr)
        models.append(found(path, noisy(training, each.seconds, each.times, 1, kinds), each))
    return measure(path, models, pieces), pieces


def main() -> int:
    """Runs the measurements; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder to read")
    parser.add_argument("--units", type=int, nargs="+", default=UNITS, help="units to keep")
    parser.add_argument(
        "--recover",
        nargs="+",
        choices=(*ALL, "auto"),
        default=RECOVERIES,
        help="recoveries to measure",
    )
    parser.add_argument(
        "--dense", type=int, nargs=3, default=(), help="units of the dense layers to keep, too"
    )
    parser.add_argument("--no-search", action="store_true", help="leave the search out")
    parser.add_argument("--json", type=Path, help="file to write all numbers to")
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    try:
        searches = () if choices.no_search else (CLOSED,)
        benches = [bench(choices.models, choices.units, choices.recover, choices.dense, searches)]
        if searches:
            benches.append(bench(choices.models, (), (), (), (*searches, TRAINED), ("white",)))
        text = "\n\n".join([*(table(rows, pieces) for rows, pieces in benches), NOTE])
        print(text)
        if choices.json:
            numbers = [
                {
                    "pieces": [{"noise": piece.noise, "snr_db": piece.snr_db} for piece in pieces],
                    "rows": [asdict(each) for each in rows],
                }
                for rows, pieces in benches
            ]
            choices.json.write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
        if choices.write:
            write_section("nsnet2", text)
    except (PruneError, ValueError, OSError) as error:
        print(f"bench_nsnet2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
