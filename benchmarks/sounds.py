"""Sounds like speech, made by a source and a filter, for the models of voices: 16 kHz."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

RATE = 16_000
VOWELS = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
"""First three formants in Hz (Peterson and Barney 1952, "Control methods used in a study of the vowels")."""


def speech(seconds: float, voice: int, seed: int) -> Array:
    """Syllables of one voice with pauses: float32[samples] in about [-0.6, 0.6].

    A train of glottal pulses whose pitch wanders goes through resonators at the formants of a vowel; fricatives are
    noise. ``voice`` fixes pitch and length of the vocal tract.
    """
    own, rng = np.random.default_rng(voice), np.random.default_rng(seed)
    pitch, tract = own.uniform(90, 240), own.uniform(0.85, 1.2)
    pieces: list[Array] = []
    while sum(map(len, pieces)) < seconds * RATE:
        pieces.append(_fricative(rng) if rng.random() < 0.3 else np.zeros(0))
        pieces.append(_vowel(pitch * rng.uniform(0.85, 1.15), tract, rng))
        pieces.append(np.zeros(int(RATE * (rng.uniform(0.3, 1.0) if rng.random() < 0.2 else rng.uniform(0, 0.05)))))
    sound = np.concatenate(pieces)[: int(seconds * RATE)]
    return (sound + rng.normal(0, 0.003, len(sound))).astype(np.float32)


def noise(seconds: float, seed: int) -> Array:
    """Hum and hiss without any voice: float32[samples]."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    hum = 0.02 * np.sin(2 * np.pi * 50 * time) * rng.uniform(0, 2)
    return (hum + rng.normal(0, rng.uniform(0.002, 0.05), len(time))).astype(np.float32)


def _vowel(pitch: float, tract: float, rng: np.random.Generator) -> Array:
    from scipy.signal import lfilter

    time = np.arange(int(RATE * rng.uniform(0.12, 0.3))) / RATE
    contour = pitch * (1 + 0.06 * np.sin(2 * np.pi * rng.uniform(2, 5) * time) - 0.3 * time)
    phase = np.cumsum(contour) / RATE
    sound = np.diff(np.floor(phase), prepend=0.0) + rng.normal(0, 0.01, len(time))
    for formant, width in zip(VOWELS[int(rng.integers(len(VOWELS)))], (80, 100, 140), strict=True):
        radius, angle = np.exp(-np.pi * width / RATE), 2 * np.pi * formant * tract / RATE
        sound = lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], sound)
    envelope = np.sin(np.pi * np.arange(len(time)) / len(time)) ** 0.5
    return 0.4 * rng.uniform(0.5, 1.5) * envelope * sound / (np.abs(sound).max() + 1e-9)


def _fricative(rng: np.random.Generator) -> Array:
    from scipy.signal import butter, lfilter

    length = int(RATE * rng.uniform(0.05, 0.12))
    b, a = butter(2, rng.uniform(2500, 5000), "high", fs=RATE)
    return 0.08 * np.hanning(length) * lfilter(b, a, rng.normal(0, 1, length))


def mels(sound: Array, channels: int = 40) -> Array:
    """Mel spectrogram as Resemblyzer's encoder takes it: power, windows of 25 ms every 10 ms, float32[frames, 40].

    Triangular filters on the mel scale of O'Shaughnessy 1987, each of unit area; the sound is brought to -30 dBFS.
    """
    sound = sound * 10 ** (-30 / 20) / (np.sqrt(np.mean(sound**2)) + 1e-9)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, 200, "reflect"), 400)[::160]
    power = np.abs(np.fft.rfft(frames * np.hanning(401)[:400])) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), channels + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(400, 1 / RATE)[:, None]
    rising, falling = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    filters = np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])
    return (power @ filters).astype(np.float32)
