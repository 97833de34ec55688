"""The tasks of published models: data of each model's own kind, and a quality metric.

Each workload has feeds for calibration and selection and others for reporting, which share nothing:
other recordings, other paragraphs, other messages, other words. Synthetic data is marked as such.
"""

from __future__ import annotations

import gettext
import json
import random
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bench_nsnet2 import CALIBRATION, KINDS, LONG
from onnx_rnn_prune.calibration import opened_feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner, Streaming
from onnx_rnn_prune.opened_model import open_model
from segmentation import Text, labelled, word_f1
from speech import (
    RATE,
    Audio,
    Mixture,
    features,
    log_mel,
    mixtures,
    read_wave,
    resynthesize,
    snr_db,
    spectra,
    split,
    upsampled,
)
from streaming import DETECTORS, chunks, joined

Feed = dict[str, Any]
Numbers = npt.NDArray[Any]
Outputs = dict[str, Numbers]
Pair = tuple[Feed, Outputs]
Metric = Callable[[Iterable[Pair]], float]

DROP = 0.01
STREAM_SECONDS, STREAMS, TESTED_STREAMS = 10.0, 10, 6
SPEECH_SECONDS, TESTED_SECONDS = 5 * CALIBRATION, 300.0
LINES, TESTED_LINES, WINDOWS = 240, 80, 600
CAPTCHAS, TESTED_CAPTCHAS = 480, 240
SPEAKERS = ("speech", "speech_fr", "speech_it", "speech_ru")
UTTERANCES, TESTED_UTTERANCES, VOICE_SECONDS = 128, 64, 2.0
PARAGRAPHS = 1200
COMMON = 20000
NAMES, TESTED_NAMES, BATCH = 9600, 1200, 16
TESTED = 3  # one in this many messages, lines and windows is for testing
CATALOGUES = ("messages", "messages_accounts", "messages_pages", "messages_translations")
TOGETHER = 100  # characters of consecutive messages in one call of oskut
AROUND = 21  # characters that oskut reads to decide on one
EEG_RATE = 200
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
FONTS = [
    *(f"DejaVu{style}.ttf" for style in ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "Serif")),
    *(f"DejaVu{style}.ttf" for style in ("Serif-Bold", "Serif-Italic", "SansMono-Bold")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10.ttf", "cmss10.ttf", "cmtt10.ttf"),
]
THAI = {
    "c": "กขฃคฆงจชซญฎฏฐฑฒณดตถทธนบปพฟภมยรลวศษสฬอ",
    "n": "ฅฉผฟฌหฝฮฤ",
    "v": "ัะาำิีืึุู",
    "w": "เแโใไ",
    "t": "่้๊๋็",
    "s": "์ๆฯ.",
    "d": "0123456789๑๒๓๔๕๖๗๘๙",
    "q": "\"'\u2018\u2019",
    "p": " <>`~\u0e50;:-({)},./+*/-?!@#$%^&=][",
    "s_e": "abcdefghijklmnopqrstuvwxyz",
    "b_e": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
}
KINDS_OF_CHARACTERS = ("b_e", "c", "d", "n", "o", "p", "q", "s", "s_e", "t", "v", "w")
CHARACTERS = [
    "\n",
    *" !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_abcdefghijklmno",
    "other",
    *"pqrstuvwxyz}~กขฃคฅฆงจฉชซฌญฎฏฐฑฒณดตถทธนบปผฝพฟภมยรฤลวศษสหฬอฮฯะัาำิีึืฺุูเแโใไๅๆ็่้๊๋์ํ๐๑๒๓๔๕๖๗๘๙",
    "\u2018",
    "\u2019",
    "\ufeff",
]


@dataclass(frozen=True, eq=False)
class Workload:
    """A model's task.

    Attributes:
        name: of the model.
        metric: the name of its quality.
        text: the format of its values.
        kind: of data, in a few words.
        data: feeds, or streams of feeds, for calibration and selection.
        tests: others for reporting.
        measure: computes the quality from pairs of a feed, labels included, and outputs.
        drop: the acceptable loss, as a share of the original's quality.
        timed: the feeds to time; with streams, the calls of one.
    """

    name: str
    metric: str
    text: str
    kind: str
    data: Sequence[Any]
    tests: Sequence[Any]
    measure: Metric
    drop: float
    timed: Sequence[Feed]

    def least(self, original: float) -> float:
        """The lowest accepted quality, given the original's."""
        return original - self.drop * abs(original)

    @property
    def streams(self) -> bool:
        """Whether states are carried from call to call."""
        return not isinstance(self.data[0], dict)


def decisions(model: str) -> Callable[[Outputs], Numbers]:
    """Reads a model's outputs as its users do, as integers."""
    if model in DETECTORS:
        return lambda outputs: outputs[DETECTORS[model].probability].reshape(-1) > 0.5
    if model == "oskut":
        return lambda outputs: next(iter(outputs.values())).reshape(-1) > 0.5
    if model == "tashkeel":
        return lambda outputs: outputs["predictions"]
    return lambda outputs: list(outputs.values())[-1].argmax(-1)


def agreement(model: str) -> Metric:
    """The metric: share of decisions equal to the original's, which the feeds hold as labels."""
    decide = decisions(model)

    def measure(pairs: Iterable[Pair]) -> float:
        same = count = 0
        for feed, outputs in pairs:
            found = decide(outputs)
            same += int(np.count_nonzero(found == feed["labels"]))
            count += found.size
        return same / max(count, 1)

    return measure


def outcomes(path: Path, model: onnx.ModelProto, given: Sequence[Any]) -> Iterator[Pair]:
    """Each feed, labels included, with all outputs; states are carried within streams.

    Args:
        path: of the original, which determines the states.
        model: the original or a pruned one.
        given: feeds, or streams of feeds.
    """
    streams = not isinstance(given[0], dict)
    run = Streaming(Runner(model, name=path.stem))
    for feed in opened_feeds(open_model(path), given, streams or None):
        labels = {} if feed.labels is None else {"labels": feed.labels}
        yield {**feed, **labels}, dict(run(feed))


def compared(
    path: Path, kind: str, feeds: Sequence[Any], tests: Sequence[Any], timed: Sequence[Feed]
) -> Workload:
    """A workload measured by agreement with the original's decisions."""
    decide, model = decisions(path.stem), onnx.load(path)

    def labelled(given: Sequence[Any]) -> list[Any]:
        found = (decide(outputs) for _, outputs in outcomes(path, model, given))
        if isinstance(given[0], dict):
            return [{**feed, "labels": next(found)} for feed in given]
        return [[{**feed, "labels": next(found)} for feed in stream] for stream in given]

    return Workload(
        name=path.stem,
        metric="agreement",
        text="{:.1%}",
        kind=kind,
        data=labelled(feeds),
        tests=labelled(tests),
        measure=agreement(path.stem),
        drop=DROP,
        timed=timed,
    )


def parted(items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Items for calibration, and every third for testing."""
    known = [item for number, item in enumerate(items) if number % TESTED]
    return known, list(items[::TESTED])


def denoiser(rate: int, folder: Path, name: str) -> Workload:
    """NSNet2 on noisy speech, measured by the audio that results."""
    sets = split(_there(folder, "speech"))
    paths = [*sets["calibration"], *sets["selection"]]
    kinds = [kind for kind in KINDS if kind != "babble"]  # which even the original makes worse
    data = [_noisy(each, rate) for each in mixtures(paths, SPEECH_SECONDS, LONG, 0, kinds)]
    tests = mixtures(sets["evaluation"], TESTED_SECONDS, LONG, 2, kinds)
    tested = [_noisy(each, rate) for each in tests]
    return Workload(
        name=name,
        metric="SNR",
        text="{:.2f} dB",
        kind="noisy speech" if rate == RATE else "noisy speech, upsampled",
        data=data,
        tests=tested,
        measure=partial(heard, rate),
        drop=DROP,
        timed=[{"input": tested[0]["input"][:, :500]}],
    )


def _noisy(piece: Mixture, rate: int) -> Feed:
    both = [upsampled(audio, rate // RATE) for audio in (piece.noisy, piece.clean)]
    return {"input": features(spectra(both[0], rate)), "labels": np.stack(both)}


def heard(rate: int, pairs: Iterable[Pair]) -> float:
    """Mean signal-to-noise ratio in dB over pieces; labels are noisy and clean audio."""
    ratios = []
    for feed, outputs in pairs:
        noisy, clean = feed["labels"]
        gain = next(iter(outputs.values()))[0]
        ratios.append(snr_db(clean, resynthesize(spectra(noisy, rate), gain, clean.size, rate)))
    return float(np.mean(ratios))


def detector(folder: Path, name: str) -> Workload:
    """Silero on recordings, in chunks, or in longer stretches if it takes sequences."""
    sets = split(_there(folder, "speech"))
    known = _streams([*sets["calibration"], *sets["selection"]], STREAMS)
    others = _streams(sets["evaluation"], TESTED_STREAMS)
    way = DETECTORS[name]
    if name == "silero_vad_sequence":  # with fixed states: a second at a time
        feeds, tests = ([_stretches(chunks(way, a)) for a in part] for part in (known, others))
    else:
        feeds, tests = ([chunks(way, audio) for audio in part] for part in (known, others))
    return compared(folder / f"{name}.onnx", "speech", feeds, tests, tests[0])


def _streams(paths: Sequence[Path], count: int) -> list[Audio]:
    """`count` stretches of recordings with pauses, over faint noise."""
    rng = np.random.default_rng(0)
    audio = [joined(paths[n::count], STREAM_SECONDS) for n in range(count)]
    return [each * 10 ** rng.uniform(-0.8, 0.2) for each in audio]


def _stretches(given: Sequence[Feed]) -> list[Feed]:
    rows = np.concatenate([feed["input"] for feed in given])
    return [{"input": rows[start : start + 32]} for start in range(0, len(rows), 32)]


def voices(folder: Path, name: str) -> Workload:
    """A speaker encoder on several speakers, measured by the direction of its vectors."""
    sets = [split(_there(folder, each)) for each in SPEAKERS]
    known = [path for each in sets for path in [*each["calibration"], *each["selection"]]]
    others = [path for each in sets for path in each["evaluation"]]
    path = folder / f"{name}.onnx"
    model = onnx.load(path)

    def labelled(paths: Sequence[Path], count: int) -> list[Feed]:
        drawn = np.random.default_rng(0).permutation(len(paths))
        every = (read_wave(paths[number]) for number in drawn)
        feeds = [windows(audio) for audio in every if audio.size > VOICE_SECONDS * RATE][:count]
        found = [next(iter(outputs.values())) for _, outputs in outcomes(path, model, feeds)]
        return [{**feed, "labels": value} for feed, value in zip(feeds, found, strict=True)]

    data, tests = labelled(known, UTTERANCES), labelled(others, TESTED_UTTERANCES)
    timed = [{key: value for key, value in tests[0].items() if key != "labels"}]
    kind = "speech of four speakers"
    return Workload(name, "cosine", "{:.4f}", kind, data, tests, cosine, DROP, timed)


def windows(audio: Audio) -> Feed:
    """The input of a speaker encoder, [windows, 80, 40]: 0.8 s each, half overlapping."""
    frames = log_mel(audio)
    views = np.lib.stride_tricks.sliding_window_view(frames, 80, axis=0)[::40]
    return {"mel_window": np.ascontiguousarray(views.transpose(0, 2, 1))}


def cosine(pairs: Iterable[Pair]) -> float:
    """Mean cosine between a recording's embedding and the original's."""
    found = []
    for feed, outputs in pairs:
        ours, theirs = map(voice, (next(iter(outputs.values())), feed["labels"]))
        found.append(float(ours @ theirs))
    return float(np.mean(found))


def voice(embeddings: Numbers) -> Numbers:
    """The direction of a recording [256], from the embeddings of its windows [windows, 256]."""
    mean: Numbers = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).mean(0)
    mean /= np.linalg.norm(mean)
    return mean


def segmenter(folder: Path, name: str, count: int = PARAGRAPHS) -> Workload:
    """lac on a newspaper, measured by F1 of words; `count` paragraphs calibrate and select."""
    text = Text.read(folder)
    return Workload(
        name=name,
        metric="F1",
        text="{:.1%}",
        kind="newspaper",
        data=[labelled(text.tables, words) for words in text.calibration[:count]],
        tests=[labelled(text.tables, words) for words in text.evaluation],
        measure=word_f1(text.tables),
        drop=DROP,
        timed=[text.tables.feed("".join(text.evaluation[0])[:30])],
    )


def thai(folder: Path, name: str) -> Workload:
    """oskut on software messages, after its own first guess."""
    tables = _there(folder, "oskut_tables")
    guess = Runner(onnx.load(tables / "deepcut.onnx"), name="deepcut")
    words = frozenset((tables / "words.txt").read_text("utf-8-sig").split("\n"))
    known, others = (
        [_joined([_around(text, guess, words) for text in row]) for row in _in_rows(texts)]
        for texts in parted(messages(folder, "th", 12))
    )
    kind = f"messages, {TOGETHER} characters a call"
    return compared(folder / f"{name}.onnx", kind, known, others, others[:1])


def _in_rows(texts: Sequence[str]) -> list[list[str]]:
    """Texts grouped in order, each group with at least `TOGETHER` characters."""
    rows: list[list[str]] = [[]]
    for text in texts:
        if sum(map(len, rows[-1])) >= TOGETHER:
            rows.append([])
        rows[-1].append(text)
    return rows


def _joined(feeds: Sequence[Feed]) -> Feed:
    """One feed with the rows of several."""
    return {key: np.concatenate([feed[key] for feed in feeds]) for key in feeds[0]}


def _around(text: str, guess: Runner, words: frozenset[str]) -> Feed:
    """oskut's input for each character: those around it, their types, and hints."""
    ids = {character: number for number, character in enumerate(CHARACTERS)}
    kind = {each: KINDS_OF_CHARACTERS.index(k) for k, group in THAI.items() for each in group}
    half = AROUND // 2
    padded = [" "] * half + list(text) + [" "] * half
    rows = []
    for place in range(half, half + len(text)):
        before, after = padded[place - half : place], padded[place + 1 : place + half + 1]
        rows.append([*after, *reversed(before), padded[place]])
    chars = np.array([[ids.get(each, ids["other"]) for each in row] for row in rows], np.float32)
    kinds = np.array([[kind.get(each, 4) for each in row] for row in rows], np.float32)
    first = guess(dict(zip(guess.inputs, (chars, kinds), strict=True)))
    begins = next(iter(first.values())).reshape(-1)
    shares = np.stack([1.0 - begins, begins], 1)
    shares /= np.linalg.norm(shares, axis=1, keepdims=True)
    hints = np.zeros_like(chars)
    hints[:, 0] = -(shares * np.log(np.maximum(shares, 1e-15))).sum(1)
    hints[:, 1] = begins
    for start in range(len(text)):
        for end in range(start + 1, min(len(text), start + AROUND) + 1):
            if text[start:end] in words:
                hints[start, 2] = hints[end - 1, 3] = 1.0
    return {"input1": chars, "input2": kinds, "input3": hints}


def arabic(folder: Path, name: str) -> Workload:
    """tashkeel on software messages without vowel signs."""
    ids = json.loads((_there(folder, "tashkeel_tables") / "input_id_map.json").read_text("utf-8"))
    found = [[ids[c] for c in text if c in ids] for text in messages(folder, "ar", 12)]
    feeds = [
        {
            "char_inputs": np.array([row]),
            "diac_inputs": np.ones((1, len(row)), np.int64),
            "input_lengths": np.array([len(row)]),
        }
        for row in found
    ]
    known, others = parted(feeds)
    longest = max(others, key=lambda feed: feed["char_inputs"].size)
    return compared(folder / f"{name}.onnx", "messages", known, others, [longest])


def marks(folder: Path, name: str) -> Workload:
    """rawi on the same messages, one per call."""
    tables = _there(folder, "rawi_tables") / "rawi_v2.vocab.json"
    ids = json.loads(tables.read_text("utf-8"))["char_to_idx"]
    feeds = []
    for text in messages(folder, "ar", 12):
        parts = unicodedata.normalize("NFD", text)
        letters = [each for each in parts if unicodedata.category(each) not in ("Mn", "So")]
        feeds.append({"input": np.array([[ids.get(each, ids["<UNK>"]) for each in letters]])})
    known, others = parted(feeds)
    longest = max(others, key=lambda feed: feed["input"].size)
    return compared(folder / f"{name}.onnx", "messages", known, others, [longest])


def domains(folder: Path, name: str) -> Workload:
    """dksplit on synthetic domain names: common English words, joined, some with a number."""
    words = common(folder)
    rng = np.random.default_rng(0)

    def draw(known: Sequence[str], count: int) -> list[list[int]]:
        names = []
        for _ in range(count):
            parts = [str(word) for word in rng.choice(known, rng.integers(2, 5))]
            parts += [str(rng.integers(1, 2000))] if rng.random() < 0.15 else []
            names.append([LETTERS.index(each) + 2 for each in "".join(parts)[:64]])
        return names

    known, others = parted(words)
    data = [{"chars": np.array(batch)} for batch in batches(draw(known, NAMES), BATCH)]
    tests = [{"chars": np.array([each])} for each in draw(others, TESTED_NAMES)]
    kind = "domain names (synthetic)"
    return compared(folder / f"{name}.onnx", kind, data, tests, tests[:1])


def batches(rows: Sequence[list[int]], most: int) -> list[list[list[int]]]:
    """Batches of rows of equal length, at most `most` each."""
    found = []
    for _, alike in groupby(sorted(rows, key=len), key=len):
        each = list(alike)
        found += [each[start : start + most] for start in range(0, len(each), most)]
    return found


def lines(folder: Path, name: str) -> Workload:
    """ppocr on images of text lines, drawn in many fonts over noise."""
    known, others = parted(english(folder))
    feeds = [picture(known, number) for number in range(LINES)]
    tests = [picture(others, LINES + number) for number in range(TESTED_LINES)]
    return compared(folder / f"{name}.onnx", "lines (synthetic)", feeds, tests, tests[:1])


def picture(words: Sequence[str], seed: int) -> Feed:
    """An image [1, 3, 32, width], from -1 to 1, of a line of a few words."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    rng = np.random.default_rng(seed)
    drawn = [str(rng.choice(words)) for _ in range(int(rng.integers(1, 4)))]
    drawn = [each.capitalize() if rng.random() < 0.3 else each for each in drawn]
    if rng.random() < 0.3:
        drawn.append(str(rng.integers(1, 100000)))
    text = " ".join(drawn)
    path = Path(get_data_path()) / "fonts" / "ttf" / str(rng.choice(FONTS))
    font = ImageFont.truetype(str(path), int(rng.integers(20, 40)))
    left, top, right, bottom = font.getbbox(text)
    paper, ink = int(rng.integers(150, 256)), int(rng.integers(0, 90))
    pads = rng.integers(2, 8, 4)
    size = (int(right - left + pads[0] + pads[1]), int(bottom - top + pads[2] + pads[3]))
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).text((pads[0] - left, pads[2] - top), text, fill=ink, font=font)
    image = image.rotate(rng.uniform(-1.5, 1.5), Image.Resampling.BILINEAR, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 1.0)))
    image = image.resize((max(32, 32 * size[0] // size[1]), 32), Image.Resampling.BILINEAR)
    grey = np.asarray(image, np.float32) + rng.normal(0.0, rng.uniform(0.0, 12.0), image.size[::-1])
    scaled = np.clip(grey, 0.0, 255.0) / 127.5 - 1.0
    return {"x": np.repeat(scaled[None, None], 3, 1).astype(np.float32)}


def captchas(folder: Path, name: str) -> Workload:
    """A captcha reader on images by the package `captcha`, which it was made for."""
    feeds = [captcha(number) for number in range(CAPTCHAS)]
    tests = [captcha(CAPTCHAS + number) for number in range(TESTED_CAPTCHAS)]
    return compared(folder / f"{name}.onnx", "captchas (synthetic)", feeds, tests, tests[:1])


def captcha(seed: int) -> Feed:
    """An image of four characters [1, 3, 60, 160], BGR, from 0 to 255."""
    from captcha.image import ImageCaptcha

    random.seed(seed)  # the package's source of randomness
    text = "".join(random.choices((string.digits + string.ascii_uppercase)[1:], k=4))
    image = np.asarray(ImageCaptcha(160, 60).generate_image(text), np.float32)
    return {"image": np.ascontiguousarray(image[None, ..., ::-1].transpose(0, 3, 1, 2))}


def recording(folder: Path, name: str) -> Workload:
    """seizure on synthetic EEG, with and without rhythmic discharges."""
    windows = [spectrogram(eeg(number)) for number in range(WINDOWS)]
    known, others = parted(windows)
    return compared(folder / f"{name}.onnx", "EEG (synthetic)", known, others, others[:1])


def eeg(seed: int) -> Numbers:
    """Two minutes at 200 Hz: noise falling with frequency, alpha rhythm, mains hum, bursts."""
    rng = np.random.default_rng(seed)
    time = np.arange(120 * EEG_RATE) / EEG_RATE
    spectrum = np.fft.rfft(rng.standard_normal(time.size))
    hertz = np.maximum(np.fft.rfftfreq(time.size, 1.0 / EEG_RATE), 0.5)
    signal = np.fft.irfft(spectrum / hertz ** rng.uniform(0.7, 1.3), time.size)
    signal /= signal.std()
    swell = np.maximum(0.0, np.sin(2 * np.pi * rng.uniform(0.02, 0.2) * time))
    signal += rng.uniform(0.0, 1.0) * swell * np.sin(2 * np.pi * rng.uniform(8.0, 12.0) * time)
    signal += rng.uniform(0.0, 0.2) * np.sin(2 * np.pi * 60.0 * time)
    for _ in range(int(rng.integers(0, 3))):
        start, length = rng.uniform(0.0, 90.0), rng.uniform(8.0, 40.0)
        since = np.clip((time - start) / length, 0.0, 1.0)
        slowing = 2 * np.pi * np.cumsum(rng.uniform(5.0, 9.0) - 3.0 * since) / EEG_RATE
        burst = np.sin(slowing) + 0.7 * np.sin(2 * slowing) + 0.5 * np.sin(3 * slowing)
        signal += rng.uniform(1.0, 6.0) * np.sin(np.pi * since) * burst
    return signal


def spectrogram(signal: Numbers) -> Feed:
    """The model's input [1, 100, columns]: power spectra of 1 s windows, scaled band by band."""
    flanks = EEG_RATE // 8
    ramp = 0.5 * (1.0 - np.cos(np.pi * np.arange(flanks) / flanks))
    taper = np.concatenate([ramp, np.ones(EEG_RATE - 2 * flanks), ramp[::-1]])
    views = np.lib.stride_tricks.sliding_window_view(signal, EEG_RATE)[:: EEG_RATE // 2]
    views = views - views.mean(1, keepdims=True)
    power = np.square(np.abs(np.fft.rfft(views * taper)))[:, :100].T
    power = (power - power.mean(1, keepdims=True)) / power.std(1, keepdims=True)
    return {"x": power[None].astype(np.float32)}


def messages(folder: Path, language: str, least: int) -> list[str]:
    """Unique messages in a language with at least `least` letters of its script."""
    scripts = {"ar": "\u0621-\u064a", "th": "\u0e01-\u0e4e"}
    found = dict.fromkeys(text for _, text in _catalogue(folder, language))
    letters = re.compile(f"[{scripts[language]}]")
    return [text for text in found if len(letters.findall(text)) >= least]


def english(folder: Path) -> list[str]:
    """The English words of the same messages, in no particular order."""
    texts = [text for text, _ in _catalogue(folder, "ar")]
    words = {word.lower() for text in texts for word in re.findall("[A-Za-z]{3,}", text)}
    found = sorted(words)
    np.random.default_rng(0).shuffle(found)
    return found


def common(folder: Path) -> list[str]:
    """The English words most frequent on web pages, in no particular order."""
    counted = (_there(folder, "words") / "unigrams.txt").read_text("utf-8").splitlines()
    words = [line.split("\t")[0] for line in counted]
    found = [word for word in words if len(word) > 2][:COMMON]
    np.random.default_rng(0).shuffle(found)
    return found


def _catalogue(folder: Path, language: str) -> list[tuple[str, str]]:
    pairs = []
    folders = [_there(folder, name) for name in CATALOGUES]
    for path in sorted(path for each in folders for path in each.glob(f"{language}_*.mo")):
        with path.open("rb") as file:
            known = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for key, text in known.items():
            first = key if isinstance(key, str) else key[0]
            if first:
                pairs.append(
                    (first, re.sub(r"%\([a-z_]+\)[sd]|%[sd]|<[^>]*>|\n", " ", text).strip())
                )
    return pairs


def _there(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        remedy = f"run python tools/fetch_models.py {name} --to {folder}"
        raise PruneError(f"no {name}", where=str(folder), remedy=remedy)
    return folder / name


WORKLOADS: dict[str, Callable[[Path, str], Workload]] = {
    "nsnet2": partial(denoiser, RATE),
    "nsnet2_48k": partial(denoiser, 3 * RATE),
    "silero_vad": detector,
    "silero_vad_op15": detector,
    "silero_vad_half": detector,
    "silero_vad_sequence": detector,
    "silero_vad_no_lstm": detector,
    "voice_embedder": voices,
    "lac": segmenter,
    "oskut": thai,
    "seizure": recording,
    "ppocr_rec": lines,
    "captcha_crnn": captchas,
    "tashkeel": arabic,
    "rawi": marks,
    "dksplit": domains,
}
