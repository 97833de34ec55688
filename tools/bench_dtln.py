"""What pruning costs a streaming denoiser in use: `python tools/bench_dtln.py`.

Prunes stage 1 of DTLN (two LSTMs of 128 units, one frame per call, all states in one input and one
output) with streams of noisy speech. Both files then denoise other recordings frame by frame in a
hand-written loop, each carrying its own states. The model is `pretrained_model/model_1.onnx` of
https://github.com/breizhn/DTLN, in the folder of models as `dtln_1.onnx`; `python
tools/fetch_models.py` gets the speech. Distillation needs PyTorch. The trained row is from `--noise
"white, 14 dB" --keep 50% --recover distill --training 1560 --voices 590 --minutes 16`, which takes
25 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from fetch_models import default_folder
from onnx_rnn_prune import prune
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.options import RECOVERIES as ALL
from pages import markdown, write_section
from speech import NOISES, RATE, Audio, mixtures, split

FRAME, HOP = 512, 128
INPUT, MASK = "input_2", "activation_2"
STATE_INPUT, STATE_OUTPUT, STATE = "input_3", "tf_op_layer_stack_2", (1, 2, 128, 2)
# Kinds of noise and signal-to-noise ratios in dB. Babble of the speaker's own voice is also speech.
CONDITIONS = {
    "four kinds, 0 to 15 dB": (tuple(kind for kind in NOISES if kind != "babble"), (0.0, 15.0)),
    "white, 14 dB": (("white",), (14.0, 14.0)),
}
PIECE = 5.0
HEADER = ("noise", "keep", "recovery", "calibrated on", "reported", "by hand", "size left")
NOTE = f"""\
NRMSE of the masks on other recordings of the same speaker, frame by frame, with each file
carrying its own states: as reported by `prune`, and measured by hand in a loop outside the
tool. The four kinds of noise are white, pink, speech-shaped and hum; streams are {PIECE:g} s
long. Where training finds nothing better, `distill` is the least-squares fit it started from."""

TRIED = """\
What was tried with half of the units, in a NumPy copy of the model (the last two rows in PyTorch,
the one before them with the tool), on 60 s of other speech at 0 to 15 dB, and with white noise of
0.01; before and after two to eight refits on the pruned model's own states, calibrated on 45 s:

| units and fit | 0 to 15 dB | noise 0.01 |
| --- | ---: | ---: |
| errors weighted by their effect on the next layer | 32.3%, 29.9% | 23.6%, 21.6% |
| each refit goes only halfway | 32.3%, 30.4% | 23.6%, 21.8% |
| refits without the original's own signals | 32.3%, 29.9% | 23.6%, 21.7% |
| errors weighted by their later effects, diagonal of the Gramian | 28.6%, 27.1% | 20.7%, 19.6% |
| its root | 31.0%, 29.9% | 20.5%, 19.4% |
| the full Gramian, from gradients through all layers | 28.4%, 26.8% | 19.7%, 18.6% |
| back through each layer's loop, resampled between layers (in use) | 29.9%, 27.5% | 20.0%, 19.1% |
| `--recover distill` from the first row, 400 s with two noises, 15 minutes | 28.2% | |
| training on the same 60 s: 11.8% on training data | 28.9% | |
| training on 400 s with three noises: 15.1% on training data | 21.4% | |

How pruning is split between the two layers matters little; with the tool, in closed loop,
calibrated on 60 s:

| units of lstm_4 and lstm_5 | parameters left | 0 to 15 dB |
| --- | ---: | ---: |
| 64, 64 (`--keep 50%`) | 35% | 27.6% |
| 68, 60 (`--allocate joint`) | 36% | 27.6% |
| 80, 48 | 40% | 28.4% |
| 48, 80 | 30% | 29.7% |
| 56, 80: same number of parameters | 35% | 26.4% |

With equally many parameters, a wider second layer deviates by a point less than equal widths.

Training needs a lot of data, and gradients that reach far back. With the tool, white noise at
14 dB, half of the units:

| trained on | window | steps | minutes | trained |
| --- | ---: | ---: | ---: | ---: |
| 1040 s, four draws of noise, twice the learning rate | 208 calls | 10,000 | 15 | 14.1% |
| 1560 s, six draws, held in 1 GB | 208 calls | 31,500 | 15 | 12.6% |
| 2080 s, eight draws | 208 calls | 100,000 | 37 | 12.9% |
| 1040 s, four draws | 625 calls | 8,200 | 6 | 12.6% |
| 2080 s, eight draws, of which 0.5 GB held half | 625 calls | 13,600 | 15 | 12.7% |
| new noise in every batch, in PyTorch alone | 625 calls | 2,800 | 9 | 12.6% |
| 2667 s in five languages, held in 0.5 GB | 625 calls | | 40 | 12.8% |
| 2667 s in five languages | 625 calls | | 35 | 12.6% |
| 2946 s in five languages | 625 calls | | 13 | 12.3% |
| 2760 s in five languages, held in 2 GB | 625 calls | 27,400 | 30 | 12.1% |
| 3901 s in five languages, a twentieth of it for validation (in use) | 625 calls | | 16 | 11.9% |

Without training it is 16.3 to 16.9 %. The fourth row overfits: it reaches 8 % on its 1040 s of
training data. The sixth reaches 12.8 % on its training data, and was still improving when time ran
out. Training on one speaker overfits, however often the recordings are mixed with noise; four more
languages help, if all the data fits in memory (0.5 GB held 1040 s, states included; now 1 GB holds
an hour). In all rows but the last, a quarter of the data was held out for validation.

So 20 % without training and 12 % with training are reached with white noise, not at 0 to 15 dB."""

Frames = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Asked:
    """The settings of a measurement.

    Attributes:
        noise: one of `CONDITIONS`.
        keep: share of units of each layer.
        recover: see `prune`.
        seconds: duration of the noisy speech to calibrate or train on.
        noises: how often each recording is mixed with other noise.
        voices: seconds of noisy speech in each other language to train on as well.
        minutes: of training.
    """

    noise: str
    keep: str
    recover: str
    seconds: float
    noises: int
    voices: float
    minutes: float


def frames(audio: Audio) -> Frames:
    """The model's input, [frames, 1, 1, 257]: magnitude spectra of 512 samples."""
    views = np.lib.stride_tricks.sliding_window_view(audio, FRAME)[::HOP]
    return np.abs(np.fft.rfft(views))[:, None, None].astype(np.float32)


def noisy(paths: Sequence[Path], seconds: float, seeds: Sequence[int], noise: str) -> list[Frames]:
    """Streams of noisy speech, each recording once per seed; `noise` is one of `CONDITIONS`."""
    kinds, decibels = CONDITIONS[noise]
    return [
        frames(mixture.noisy)
        for seed in seeds
        for mixture in mixtures(paths, seconds, PIECE, seed, kinds, decibels)
    ]


def denoise(run: Runner, streams: Sequence[Frames]) -> npt.NDArray[np.float64]:
    """All masks [frames, 257], with states carried from call to call."""
    found = []
    for stream in streams:
        state = np.zeros(STATE, np.float32)
        for frame in stream:
            outputs = run({INPUT: frame, STATE_INPUT: state})
            state = outputs[STATE_OUTPUT]
            found.append(outputs[MASK].reshape(-1))
    return np.array(found, np.float64)


def learned(models: Path, asked: Asked) -> list[Frames]:
    """Streams to calibrate or train on."""
    sets = split(models / "speech")
    paths = [*sets["calibration"], *(sets["selection"] if asked.noises > 1 else [])]
    seeds = [1 + 10 * n for n in range(asked.noises)]
    streams = noisy(paths, asked.seconds / asked.noises, seeds, asked.noise)
    for folder in sorted(models.glob("speech_*")) if asked.voices else []:
        every = [path for paths in split(folder).values() for path in paths]
        streams += noisy(every, asked.voices, [3], asked.noise)
    return streams


def row(path: Path, streams: Sequence[Frames], asked: Asked, others: Sequence[Frames]) -> list[str]:
    """Prunes, and measures both as reported and by hand."""
    result = prune(
        path,
        keep=asked.keep,
        data=[[{INPUT: frame} for frame in stream] for stream in streams],
        eval_data=[[{INPUT: frame} for frame in stream] for stream in others],
        stream=True,
        recover=asked.recover,
        distill_minutes=asked.minutes,
    )
    original, pruned = (denoise(Runner(model), others) for model in (onnx.load(path), result.model))
    by_hand = np.sqrt(np.mean((pruned - original) ** 2)) / original.std()
    totals = result.report["totals"]
    return [
        asked.noise,
        asked.keep,
        result.report["recovery"]["used"],
        f"{sum(map(len, streams)) * HOP / RATE:.0f} s",
        f"{result.report['drift'][MASK]['nrmse']:.1%}",
        f"{by_hand:.1%}",
        f"{totals['bytes_after'] / totals['bytes_before']:.0%}",
    ]


def main() -> int:
    """Runs the measurements; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder to read")
    parser.add_argument("--model", type=Path, help="the model, if not dtln_1.onnx in it")
    parser.add_argument("--noise", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--keep", nargs="+", default=["75%", "50%"], help="units to keep")
    parser.add_argument("--recover", nargs="+", choices=(*ALL, "auto"), default=["auto", "distill"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of speech to calibrate on")
    parser.add_argument("--training", type=float, default=60.0, help="of speech to learn on")
    parser.add_argument("--voices", type=float, default=0.0, help="of each other language, too")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training")
    parser.add_argument("--evaluation", type=float, default=60.0, help="seconds of other speech")
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    try:
        path = choices.model or choices.models / "dtln_1.onnx"
        rows = []
        for noise, keep, recover in product(choices.noise, choices.keep, choices.recover):
            # Training takes long and pays most for the deepest cut, which comes last.
            if recover == "distill" and keep != choices.keep[-1]:
                continue
            learns = recover == "distill" and choices.training > choices.seconds
            seconds, noises = (choices.training, 2) if learns else (choices.seconds, 1)
            voices = choices.voices if learns else 0.0
            asked = Asked(noise, keep, recover, seconds, noises, voices, choices.minutes)
            sets = split(choices.models / "speech")
            others = noisy(sets["evaluation"], choices.evaluation, [2], noise)
            rows.append(row(path, learned(choices.models, asked), asked, others))
            print(markdown(HEADER, rows), flush=True)
        if choices.write:
            write_section("dtln", f"{markdown(HEADER, rows)}\n\n{NOTE}\n\n{TRIED}")
    except (PruneError, ValueError, OSError) as error:
        print(f"bench_dtln: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
