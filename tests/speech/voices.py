"""Two voices that say words of four phones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

RATE = 8000
FORMANTS = {"l": (350, 2600), "o": (500, 900), "h": (1500, 3500), "i": (300, 2200)}


def say(words: Iterable[Iterable[str]], seed: int, *, pauses: bool = False) -> np.ndarray:
    """The phones of words in a voice of 120 or 150 hertz; each phone has two bands that ring."""
    random = np.random.default_rng(seed)
    pitch = 120 if seed % 2 else 150
    parts = [np.zeros(int(0.15 * RATE))]
    for phones in words:
        for phone in phones:
            time = np.arange(int(random.uniform(0.08, 0.14) * RATE)) / RATE
            harmonics = np.arange(pitch, 3900, pitch)
            gains = sum(np.exp(-(((harmonics - f) / 150) ** 2)) for f in FORMANTS[phone])
            parts.append(0.1 * (gains[:, None] * np.sin(2 * np.pi * harmonics[:, None] * time)).sum(0))
        if pauses:
            parts.append(np.zeros(int(random.uniform(0.0, 0.1) * RATE)))
    wave = np.concatenate([*parts, np.zeros(int(0.15 * RATE))])
    return wave + 0.002 * random.normal(size=len(wave))
