"""Recordings of speakers as features, and their random splits.

Features are shaped (frames, features): log mel features of emodb, their orthonormal cosine transform, or an4's cepstra.
A split keeps a third of each speaker's recordings for testing, and its features are brought to mean 0 and variance 1
over the frames that are learned from.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from counterflow.density import pad
from counterflow.exceptions import DataNotFoundError
from counterflow.lab import data
from counterflow.seeding import numpy_generator

__all__ = ["Corpus", "Half", "Split", "corpus", "one_sentence", "split"]


@dataclass(frozen=True)
class Corpus:
    """Recordings.

    Args:
        frames: Each recording's features, (frames, features).
        speakers: The speaker of each, from 0 on.
        texts: What is said in each.
    """

    frames: tuple[Tensor, ...]
    speakers: tuple[int, ...]
    texts: tuple[str, ...]

    @property
    def n_speakers(self) -> int:
        """How many speakers there are."""
        return max(self.speakers) + 1

    def chosen(self, which: Sequence[int]) -> Corpus:
        """Some of the recordings."""
        return Corpus(
            tuple(self.frames[i] for i in which),
            tuple(self.speakers[i] for i in which),
            tuple(self.texts[i] for i in which),
        )


@dataclass(frozen=True)
class Half:
    """One side of a split: a batch (recordings, frames, features), lengths and speakers (recordings,)."""

    x: Tensor
    lengths: Tensor
    y: Tensor


@dataclass(frozen=True)
class Split:
    """Both sides, and the share of test recordings over training recordings."""

    training: Half
    test: Half

    @property
    def ratio(self) -> float:
        """Test recordings over training recordings, for the corrected resampled t test."""
        return len(self.test.y) / len(self.training.y)


def corpus(settings: Mapping[str, Any]) -> Corpus:
    """The recordings that a trial's settings name.

    Args:
        settings: ``corpus`` (``"emodb"`` or ``"an4"``), ``features`` (``"log mel"``, ``"cosine"``, ``"cepstra"``),
            ``speakers`` and ``clips`` of each (0 for all), ``frames`` of each at most (0 for all).
    """
    names = ("corpus", "features", "speakers", "clips", "frames")
    return _read(*(settings[name] for name in names))


@functools.lru_cache(maxsize=4)
def _read(name: str, features: str, speakers: int, clips: int, frames: int) -> Corpus:
    if name == "an4":
        found = data.an4().frames
        if found is None:
            raise DataNotFoundError("an4's cepstra are in its repacked form alone, which is not on this machine")
    else:
        found = data.emodb()
    counts = Counter(clip.speaker for clip in found.clips)
    # Those with most recordings, by name where they have as many.
    kept = sorted(sorted(counts, key=lambda speaker: (-counts[speaker], speaker))[: speakers or None])
    which = [
        index
        for speaker in kept
        for index in [i for i, clip in enumerate(found.clips) if clip.speaker == speaker][: clips or None]
    ]
    sequences = [torch.from_numpy(found[i]).double() for i in which]
    if name != "an4":
        from counterflow.audio import log_mel

        most = frames and int(((frames - 1) * 0.010 + 0.032) * found.rate) + 1
        sequences = [log_mel(wave[: most or None], found.rate) for wave in sequences]
    sequences = [each[: frames or None] for each in sequences]
    if features == "cosine":
        from scipy.fft import dct

        sequences = [torch.from_numpy(dct(each.numpy(), norm="ortho")) for each in sequences]
    return Corpus(
        tuple(sequences),
        tuple(kept.index(found.clips[i].speaker) for i in which),
        tuple(found.clips[i].text for i in which),
    )


def split(recordings: Corpus, seed: int, inner: bool = False) -> Split:
    """A random split, a third of each speaker's recordings for testing.

    Args:
        recordings: What is split.
        seed: Which split.
        inner: Whether the training part is split once more, and the test part is not touched: for choosing settings.
    """
    random = numpy_generator(seed, "density", "split")
    sides: list[list[int]] = [[], []]
    for speaker in range(recordings.n_speakers):
        mine = [i for i, each in enumerate(recordings.speakers) if each == speaker]
        mixed = random.permutation(mine).tolist()
        held = max(1, round(len(mixed) / 3))
        sides[1] += mixed[:held]
        sides[0] += mixed[held:]
    if inner:
        return split(recordings.chosen(sorted(sides[0])), seed + 1)
    training = [recordings.frames[i] for i in sorted(sides[0])]
    frames = torch.cat(training)
    mean, spread = frames.mean(0), frames.std(0, correction=0)
    halves = []
    for side in sides:
        x, lengths = pad([(recordings.frames[i] - mean) / spread for i in sorted(side)])
        halves.append(Half(x, lengths, torch.tensor([recordings.speakers[i] for i in sorted(side)])))
    return Split(*halves)


def one_sentence(recordings: Corpus, number: int, mixed: bool) -> Corpus:
    """Recordings of one sentence; or, of each speaker, as many of any.

    Args:
        recordings: All.
        number: Which sentence.
        mixed: Whether recordings are drawn from all sentences, as many of each speaker as there are of this one.
    """
    sentences = sorted(set(recordings.texts))
    sentence = sentences[number % len(sentences)]
    random = numpy_generator(number, "density", "mixed")
    which: list[int] = []
    for speaker in range(recordings.n_speakers):
        mine = [i for i, each in enumerate(recordings.speakers) if each == speaker]
        same = [i for i in mine if recordings.texts[i] == sentence]
        which += sorted(random.permutation(mine)[: len(same)].tolist()) if mixed else same
    chosen = recordings.chosen(which)
    # A speaker who never said it, or said it once, cannot be on both sides.
    counts = Counter(chosen.speakers)
    there = sorted(speaker for speaker, count in counts.items() if count > 1)
    kept = chosen.chosen([i for i, each in enumerate(chosen.speakers) if each in there])
    return Corpus(kept.frames, tuple(there.index(each) for each in kept.speakers), kept.texts)
