"""Noisy speech for a denoiser: recordings, mixtures, NSNet2's features, and its score.

Only NumPy and the standard library. Audio is a float64 array [samples] at 16 kHz, full scale 1.
NSNet2's frames follow its published inference code at 16 kHz: 20 ms, hop 10 ms, the square root of
a symmetric Hann window both ways, powers from 1e-12 up, gains from -80 dB to 0 dB; at 48 kHz the
same, with a 1024-point transform for 513 bins.
"""

from __future__ import annotations

import math
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Audio = npt.NDArray[np.float64]
Spectra = npt.NDArray[np.complex128]
Features = npt.NDArray[np.float32]

RATE = 16000
FRAME = 320
SIZES = {RATE: FRAME, 48000: 1024}  # of the transform, for frames of 20 ms
LEAST_POWER = 1e-12
LEAST_GAIN = 1e-4
SHORTEST = 1.5
PAUSE = 0.25
LEVEL_DB = -26.0
VOICES = 5
SETS = {"calibration": 0.35, "selection": 0.25, "evaluation": 0.4}


@dataclass(frozen=True)
class Mixture:
    """Speech with noise added; `snr_db` is the power of `clean` over that of the noise."""

    clean: Audio
    noisy: Audio
    noise: str
    snr_db: float


def read_wave(path: Path) -> Audio:
    """The samples [samples] of a 16-bit PCM file, channels averaged, resampled to 16 kHz."""
    with wave.open(str(path), "rb") as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"{path}: {8 * file.getsampwidth()} bits a sample, 16 are needed")
        rate, channels = file.getframerate(), file.getnchannels()
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return resample(data.reshape(-1, channels).mean(1) / 32768.0, rate)


def resample(samples: Audio, rate: int) -> Audio:
    """Band-limited resampling of [samples] from `rate` Hz to 16 kHz, by its spectrum.

    The spectrum is cropped or zero-padded; 0.1 s of silence at each end prevents wrap-around.
    """
    if rate == RATE or samples.size == 0:
        return samples
    margin = rate // 10
    padded = np.pad(samples, (margin, margin + -samples.size % (rate // math.gcd(rate, RATE))))
    size = round(padded.size * RATE / rate)
    spectrum = np.fft.rfft(padded)
    resized = np.zeros(size // 2 + 1, np.complex128)
    shared = min(spectrum.size, resized.size)
    resized[:shared] = spectrum[:shared]
    start, count = round(margin * RATE / rate), round(samples.size * RATE / rate)
    return (np.fft.irfft(resized, size) * (size / padded.size))[start : start + count]


def split(folder: Path, seed: int = 0) -> dict[str, list[Path]]:
    """The recordings of a folder in disjoint sets: calibration, selection and evaluation.

    Files whose names begin alike stay in one set, since they often repeat the same sentences
    (`conf-usermenu`, `conf-usermenu-162`). The folder `silence` is left out.
    """
    families: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.wav")):
        if path.parent.name != "silence":
            families.setdefault(path.stem[:4], []).append(path)
    order = sorted(families)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda name: -_bytes(families[name]))
    sets: dict[str, list[Path]] = {name: [] for name in SETS}
    for family in order:
        emptiest = min(SETS, key=lambda name: _bytes(sets[name]) / SETS[name])
        sets[emptiest] += families[family]
    return sets


def _bytes(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def mixtures(
    paths: Sequence[Path],
    seconds: float,
    piece: float,
    seed: int,
    kinds: Sequence[str],
    decibels: tuple[float, float] = (0.0, 15.0),
) -> list[Mixture]:
    """Noisy speech of `seconds` in all, in pieces of `piece` seconds.

    Kinds of noise alternate, and signal-to-noise ratios are spread evenly over `decibels`. Each
    recording is used at most once as speech; babble is made from the rest.
    """
    lowest, highest = decibels
    rng = np.random.default_rng(seed)
    audio = [read_wave(paths[index]) for index in rng.permutation(len(paths))]
    count, size = round(seconds / piece), round(piece * RATE)
    speech, rest = _speech([a for a in audio if a.size > SHORTEST * RATE], count * size)
    others = [*rest, *(a for a in audio if a.size <= SHORTEST * RATE)]
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    made = []
    for index in range(count):
        name = kinds[index % len(kinds)]
        clean = speech[index * size : (index + 1) * size]
        noise = NOISES[name](size, rng, others)
        ratio = lowest + (highest - lowest) * ((index + 0.5) * golden % 1.0)
        made.append(mix(clean, noise, name, ratio))
    return made


def _speech(recordings: Sequence[Audio], samples: int) -> tuple[Audio, list[Audio]]:
    """Speech [samples] with pauses at an even level, and the unused recordings."""
    parts: list[Audio] = []
    total = 0
    for index, recording in enumerate(recordings):
        if total >= samples:
            return np.concatenate(parts)[:samples], list(recordings[index:])
        gain = 10.0 ** (LEVEL_DB / 20.0) / _rms(recording)
        parts += [recording * gain, np.zeros(round(PAUSE * RATE))]
        total += parts[-1].size + parts[-2].size
    raise ValueError(f"{total / RATE:.0f} s of speech, {samples / RATE:.0f} s are needed")


def mix(clean: Audio, noise: Audio, name: str, snr_db: float) -> Mixture:
    """Adds noise [samples] to speech [samples] at a signal-to-noise ratio in decibels."""
    gain = _rms(clean) / _rms(noise) * 10.0 ** (-snr_db / 20.0)
    return Mixture(clean, clean + gain * noise, name, snr_db)


def _rms(audio: Audio) -> float:
    return math.sqrt(float(np.mean(np.square(audio)))) + 1e-12


def white(samples: int, rng: np.random.Generator, others: Sequence[Audio]) -> Audio:
    """Noise [samples] with equal power at all frequencies."""
    return rng.standard_normal(samples)


def pink(samples: int, rng: np.random.Generator, others: Sequence[Audio]) -> Audio:
    """Noise [samples] whose power falls by 3 dB per octave above 20 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1.0 / RATE)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(hertz, 20.0)), samples)


def shaped(samples: int, rng: np.random.Generator, others: Sequence[Audio]) -> Audio:
    """Steady noise [samples] with the mean spectrum of speech."""
    power = np.zeros(samples // 2 + 1)
    for recording in others[:20]:
        power += np.square(np.abs(np.fft.rfft(recording / _rms(recording), samples)))
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    width = max(1, samples // 200)
    smooth = np.convolve(power, np.ones(width) / width, mode="same")
    return np.fft.irfft(spectrum * np.sqrt(smooth), samples)


def babble(samples: int, rng: np.random.Generator, others: Sequence[Audio]) -> Audio:
    """Several voices at once, [samples], each reading recordings in its own order."""
    total = np.zeros(samples)
    for _ in range(VOICES):
        parts: list[Audio] = []
        while sum(part.size for part in parts) < 2 * samples:
            recording = others[int(rng.integers(len(others)))]
            parts.append(recording / _rms(recording))
        voice = np.concatenate(parts)
        start = int(rng.integers(voice.size - samples))
        total += voice[start : start + samples]
    return total


def hum(samples: int, rng: np.random.Generator, others: Sequence[Audio]) -> Audio:
    """Mains hum [samples]: 50 Hz and its harmonics, slowly swelling, over a little white noise."""
    time = np.arange(samples) / RATE
    total = 0.1 * rng.standard_normal(samples)
    for harmonic in range(1, 25):
        phase, swell = rng.uniform(0.0, 2.0 * np.pi, 2)
        tone = np.sin(2.0 * np.pi * 50.0 * harmonic * time + phase)
        total += rng.uniform(0.3, 1.0) * tone / harmonic**0.7 * (1 + 0.3 * np.sin(time + swell))
    return total


Noise = Callable[[int, np.random.Generator, Sequence[Audio]], Audio]
NOISES: dict[str, Noise] = {
    "white": white,
    "pink": pink,
    "shaped": shaped,
    "hum": hum,
    "babble": babble,
}


def snr_db(clean: Audio, estimate: Audio) -> float:
    """Power of the clean speech over that of the error, in decibels; both are [samples]."""
    error = float(np.sum(np.square(estimate - clean)))
    return 10.0 * math.log10(float(np.sum(np.square(clean))) / max(error, 1e-20))


def upsampled(audio: Audio, times: int) -> Audio:
    """Band-limited audio [samples * times] at a `times` higher rate."""
    return np.fft.irfft(np.fft.rfft(audio), audio.size * times) * times


def window(frame: int = FRAME) -> Audio:
    """The window [frame] before the transform and after its inverse."""
    return np.sqrt(np.hanning(frame))


def spectra(audio: Audio, rate: int = RATE) -> Spectra:
    """Short-time spectra [frames, bins] of audio [samples]: a frame every 10 ms, from 0 on."""
    hop, size = rate // 100, SIZES[rate]
    frames = -(-audio.size // hop)
    padded = np.pad(audio, (0, (frames + 1) * hop - audio.size))
    views = np.lib.stride_tricks.sliding_window_view(padded, 2 * hop)[::hop]
    return np.fft.rfft(views * window(2 * hop), size)


def features(spectrum: Spectra) -> Features:
    """The model's input [1, frames, bins], log10 of the power, for spectra [frames, bins]."""
    power = np.maximum(np.square(np.abs(spectrum)), LEAST_POWER)
    return np.log10(power)[None].astype(np.float32)


def log_mel(audio: Audio, bands: int = 40, size: int = 512, length: int = 400) -> Features:
    """Powers [frames, bands] of audio [samples] at 16 kHz in dB / 10, a frame every 10 ms.

    Equal-area triangles on the mel scale of Slaney's Auditory Toolbox (1998), which is linear up to
    1 kHz; a Hamming window of `length` samples; a `size`-point transform.
    """
    step, top = math.log(6.4) / 27.0, 15.0 + math.log(RATE / 2000.0) * 27.0 / math.log(6.4)
    mels = np.linspace(0.0, top, bands + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp(step * (mels - 15.0)))
    bins = np.fft.rfftfreq(size, 1.0 / RATE)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (edges[2:] - edges[:-2])
    shape = 0.54 - 0.46 * np.cos(2.0 * np.pi * np.arange(length) / length)
    around = (size - length) // 2
    views = np.lib.stride_tricks.sliding_window_view(audio, size)[:: RATE // 100]
    powers = np.square(np.abs(np.fft.rfft(views * np.pad(shape, around)))) @ triangles
    found: Features = np.log10(powers + 1e-10).astype(np.float32)
    return found


def resynthesize(
    spectrum: Spectra, gain: npt.NDArray[np.floating], samples: int, rate: int = RATE
) -> Audio:
    """Audio [samples] from spectra [frames, bins] times gains [frames, bins], by overlap-add."""
    hop = rate // 100
    limited = np.clip(gain.astype(np.float64), LEAST_GAIN, 1.0)
    frames = np.fft.irfft(spectrum * limited, SIZES[rate])[:, : 2 * hop] * window(2 * hop)
    audio = np.zeros((len(frames) + 1, hop))
    audio[:-1] += frames[:, :hop]
    audio[1:] += frames[:, hop:]
    return audio.reshape(-1)[:samples]
