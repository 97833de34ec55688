"""What NSNet2 reads and gives at 16 kHz: log power spectra in, a gain for each bin out.

The frames are those of the published inference code: 20 ms, hop 10 ms, the root of a symmetric
Hann window both ways, powers from 1e-12 up, gains from -80 dB to 0 dB.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from speech import Audio

Spectra = npt.NDArray[np.complex128]
Features = npt.NDArray[np.float32]

FRAME = 320
HOP = 160
BINS = FRAME // 2 + 1
LEAST_POWER = 1e-12
LEAST_GAIN = 1e-4


def window() -> Audio:
    """The window [320] before the transform and after its inverse."""
    return np.sqrt(np.hanning(FRAME))


def spectra(audio: Audio) -> Spectra:
    """Short-time spectra [frames, 161] of audio [samples]: a frame each 160 samples, from 0 on."""
    frames = -(-audio.size // HOP)
    padded = np.pad(audio, (0, (frames + 1) * HOP - audio.size))
    views = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]
    return np.fft.rfft(views * window())


def features(spectrum: Spectra) -> Features:
    """The model's input [1, frames, 161], log10 of the power, for spectra [frames, 161]."""
    power = np.maximum(np.square(np.abs(spectrum)), LEAST_POWER)
    return np.log10(power)[None].astype(np.float32)


def resynthesize(spectrum: Spectra, gain: npt.NDArray[np.floating], samples: int) -> Audio:
    """Audio [samples] of spectra [frames, 161] times gains [frames, 161], by overlap and add."""
    limited = np.clip(gain.astype(np.float64), LEAST_GAIN, 1.0)
    frames = np.fft.irfft(spectrum * limited, FRAME) * window()
    audio = np.zeros((len(frames) + 1, HOP))
    audio[:-1] += frames[:, :HOP]
    audio[1:] += frames[:, HOP:]
    return audio.reshape(-1)[:samples]
