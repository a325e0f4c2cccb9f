"""The task: spoken digits in a room with a noise, at two microphones, and a classifier of clean words.

The classifier learns from clean words as the first microphone of the room hears them, as the paper's learned from
recordings of its own microphones. *Clean* means that the noise's source is silent; both microphones always have a noise
of their own, 40 dB below the voice. Levels are power ratios at the first microphone, over the voiced part of each word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from counterflow.audio import Room, ShortTime, active_power, images
from counterflow.lab import data
from counterflow.seeding import numpy_generator, seed_of, torch_generator
from counterflow.separation import Microphones, WordClassifier, saturation

__all__ = ["CLEAN", "TRANSFORM", "Scene", "Words", "classifier_of", "draw_words", "scene", "spectra_at"]

RATE = 8000
CLEAN = 99
SENSOR = 40.0
TRANSFORM = ShortTime(256, 128)
DIGITS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class Words:
    """Which recordings are what: numbers of the data set.

    Args:
        learned: What the classifier learns from.
        training: Those of them on which it is scored.
        test: Those that it has never heard.
    """

    learned: tuple[int, ...]
    training: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """A room, with a voice and a noise in it.

    Args:
        responses: Shape (microphones, sources, taps).
        noise: The noise's samples.
        seed: Of the stretches of noise, and of the microphones' own.
        microphones: What they do to what they add up.
    """

    responses: Tensor
    noise: Tensor
    seed: int
    microphones: Microphones = field(default_factory=Microphones)


@lru_cache(maxsize=1)
def _digits() -> data.Sequences:
    return data.fsdd()


@lru_cache(maxsize=1)
def _noises() -> Mapping[str, Tensor]:
    import soxr

    found = data.noise()
    wanted = {clip.label: number for number, clip in enumerate(found.clips) if clip.label in ("engine", "babble")}
    return {
        name: torch.from_numpy(np.asarray(soxr.resample(found[number], found.rate, RATE), np.float32))
        for name, number in wanted.items()
    }


def draw_words(split: str, fold: int, size: int, learned: int, part: str = "judged") -> Words:
    """The words of a fold.

    Args:
        split: ``"recordings"``: recordings 5 fold to 5 fold + 4 of each digit and speaker are held out (the publisher's
            split is fold 0). ``"speakers"``: two speakers are.
        fold: Which.
        size: Words that are scored, of each kind, drawn once and for all.
        learned: Words that are learned from.
        part: ``"tuning"`` holds out recordings 45 to 49 in the place of the fold's, and leaves those out altogether.
    """
    clips = _digits().clips
    index = [int(clip.id.rsplit("_", 1)[1]) for clip in clips]
    speakers = sorted({clip.speaker for clip in clips})
    away = speakers[2 * fold : 2 * fold + 2]
    test: list[int] = []
    rest: list[int] = []
    for number, clip in enumerate(clips):
        if split == "speakers":
            held = clip.speaker in away
        else:
            held = index[number] // 5 == (9 if part == "tuning" else fold)
        if part == "tuning" and split == "recordings" and index[number] // 5 == fold:
            continue  # tuning never sees what is judged
        (test if held else rest).append(number)
    random = numpy_generator(fold, "words", split, part)
    test, rest = random.permutation(test).tolist(), random.permutation(rest).tolist()
    return Words(tuple(rest[:learned]), tuple(rest[: min(size, learned)]), tuple(test[:size]))


def labels_of(numbers: Sequence[int]) -> list[str]:
    """The digits that are said."""
    clips = _digits().clips
    return [clips[number].label for number in numbers]


def scene(noise: str, seed: int, reverberation: float, drive: float = 0.0) -> Scene:
    """A room of its own for each seed; with a drive, its microphones saturate."""
    room = Room.draw(reverberation, seed=seed_of(seed, "room"))
    microphones = Microphones(h=saturation(drive)) if drive else Microphones()
    return Scene(room.responses(RATE), _noises()[noise], seed, microphones)


def waves(where: Scene, numbers: Sequence[int], snr: float, stretch: tuple[float, float] = (0.0, 1.0)) -> list[Tensor]:
    """Words at the microphones, each of shape (microphones, samples).

    Args:
        where: The room.
        numbers: The recordings.
        snr: Decibels; `CLEAN` for no noise.
        stretch: The part of the noise that is played, as shares of its length: training and test words get different
            ones.
    """
    random = numpy_generator(where.seed, "noise", int(snr), int(100 * stretch[0]))
    generator = torch_generator(where.seed, "microphones", int(snr), int(100 * stretch[0]))
    low, high = (int(share * len(where.noise)) for share in stretch)
    tail = where.responses.shape[2]
    found = []
    for number in numbers:
        word = torch.from_numpy(_digits()[number].copy())
        word = word / word.abs().max().clamp_min(1e-4)
        voice = images(word[None], where.responses[:, :1])[0]
        power = active_power(voice[0], RATE)
        mixture = voice
        if snr != CLEAN:
            start = int(random.integers(low, high - len(word) - tail))
            piece = where.noise[start : start + len(word) + tail]
            heard = images(piece[None], where.responses[:, 1:])[0][:, tail:]
            mixture = voice + heard * (power / heard[0].square().mean() * 10 ** (-snr / 10)).sqrt()
        own = torch.randn(mixture.shape, generator=generator) * (power * 10 ** (-SENSOR / 10)).sqrt()
        found.append(where.microphones.hear(mixture + own))
    return found


def spectra_at(
    where: Scene, numbers: Sequence[int], snr: float, stretch: tuple[float, float] = (0.0, 1.0)
) -> list[Tensor]:
    """Their spectra, each of shape (microphones, frequencies, frames)."""
    return [TRANSFORM(wave) for wave in waves(where, numbers, snr, stretch)]


def classifier_of(where: Scene, words: Words, epochs: int, seed: int) -> WordClassifier:
    """A classifier that has learned clean words as the first microphone hears them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "classifier"))
        found = WordClassifier(DIGITS, RATE, TRANSFORM)
    spectra = [each[0] for each in spectra_at(where, words.learned, CLEAN)]
    return found.fit(spectra, labels_of(words.learned), epochs=epochs, seed=seed_of(seed, "order")).eval()
