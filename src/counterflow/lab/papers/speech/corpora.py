"""The two corpora as features, texts and pronunciations, and who may be learned from, choose and judge.

Of the prompts, the 472 whose words all have pronunciations: 16 mel coefficients from 0 to 4 kHz every 10 ms, each band
relative to its mean over the utterance. Five folds; prompts with the same words are in one. While one fold judges, the
next chooses settings. AN4 has 13 cepstra of every utterance and audio of few. Its test speakers are those of its own
split; 12 of its training speakers choose settings. Whoever learns from some utterances divides each feature by its
deviation over these.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from counterflow.audio import log_mel
from counterflow.exceptions import DataError
from counterflow.lab.data import an4, prompts
from counterflow.seeding import numpy_generator
from counterflow.speech import Lexicon

__all__ = ["ARPABET", "FOLDS", "Corpus", "centered", "load"]

FOLDS = 5
_CHOOSING = 12  # of AN4's 64 training speakers
ARPABET = tuple(
    "SIL AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()  # noqa: SIM905
)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Utterances with what is said in them.

    Args:
        features: Each of shape (time, features).
        texts: Their words.
        parts: The fold of each as ``"0"`` to ``"4"``, or its speaker.
        roles: Of speakers: ``"train"``, ``"choose"`` or ``"test"``; of prompts empty.
        lexicon: Pronunciations of all words that occur, and of no others.
    """

    features: tuple[Tensor, ...]
    texts: tuple[tuple[str, ...], ...]
    parts: tuple[str, ...]
    roles: tuple[str, ...]
    lexicon: Lexicon

    def of(self, *parts: str) -> list[int]:
        """The utterances of some folds, or of speakers with some role."""
        labels = self.roles if any(self.roles) else self.parts
        return [index for index, label in enumerate(labels) if label in parts]

    def scaled(self, learned: Sequence[int]) -> Corpus:
        """The same, each feature divided by its deviation over the utterances that are learned from."""
        spread = torch.cat([self.features[index] for index in learned]).std(0)
        return replace(self, features=tuple(each / spread for each in self.features))


@functools.lru_cache(maxsize=4)
def load(name: str, utterances: int | None) -> Corpus:
    """A corpus, or that many of its utterances, drawn once and for all."""
    return _prompts(utterances) if name == "prompts" else _an4(utterances)


def centered(features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each feature relative to its mean over the utterance."""
    return tuple((each - each.mean(0)).float() for each in features)


def _lexicon(texts: Sequence[Sequence[str]], known: object) -> Lexicon:
    words = sorted({word for text in texts for word in text})
    return Lexicon({word: known[word] for word in words})  # type: ignore[index]


def _prompts(utterances: int | None) -> Corpus:
    data = prompts()
    clips = data.audio.clips
    chosen = [index for index, clip in enumerate(clips) if data.covered(clip)]
    chosen = [chosen[n] for n in numpy_generator(0, "speech prompts").permutation(len(chosen))[:utterances]]
    texts = tuple(clips[index].words for index in chosen)
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    waves = [torch.from_numpy(data.audio[index]) for index in chosen]
    features = centered([log_mel(wave, data.audio.rate, 16, window=0.025) for wave in waves])
    folds = tuple(str(place[text] % FOLDS) for text in texts)
    return Corpus(features, texts, folds, ("",) * len(texts), _lexicon(texts, data.lexicon))


def _an4(utterances: int | None) -> Corpus:
    data = an4()
    if data.frames is None:
        raise DataError(
            "an4: the publisher's archives hold recordings only, and this experiment is on the cepstra of "
            "an4/features.npz; `counterflow data where` shows where it is looked for"
        )
    clips = data.frames.clips
    speakers = sorted({clip.speaker for clip in clips if clip.split == "train"})
    choosing = {speakers[n] for n in numpy_generator(0, "speech an4").permutation(len(speakers))[:_CHOOSING]}
    order = numpy_generator(1, "speech an4").permutation(len(clips))[:utterances]
    chosen = sorted(int(n) for n in order)
    texts = tuple(clips[index].words for index in chosen)
    roles = tuple("choose" if clips[index].speaker in choosing else clips[index].split for index in chosen)
    features = centered([torch.from_numpy(data.frames[index]) for index in chosen])
    parts = tuple(clips[index].speaker for index in chosen)
    return Corpus(features, texts, parts, roles, _lexicon(texts, data.lexicon))
