"""Sequences of unlike lengths, in one flat array: audio clips, and frames of features.

Shapes: a clip of audio is ``(samples,)``, float32 from -1 to 1; a sequence of frames is ``(frames,
features)``, float32. The rate lies beside them, in samples or frames a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from counterflow.lab.data.checksums import json_array
from counterflow.lab.data.splits import indices_of

__all__ = ["Clip", "Phone", "Sequences", "Speech"]


class Phone(NamedTuple):
    """One sound in a clip: seconds from its start, and the sound's symbol."""

    start: float
    end: float
    symbol: str


@dataclass(frozen=True)
class Clip:
    """What is known of one sequence; what a set does not say of its sequences is empty.

    Args:
        id: Its name, unique in its set.
        split: The part to which it belongs.
        speaker: Who speaks.
        gender: ``"f"`` or ``"m"``.
        text: What is said, as its publisher writes it.
        words: What is said, in words of the set's own spelling.
        label: Its class: a digit, an emotion, a kind of noise.
        phones: Its sounds with times; None if it has no labels.
        complete: Whether it is whole, rather than cut at its end.
    """

    id: str
    split: str
    speaker: str = ""
    gender: str = ""
    text: str = ""
    words: tuple[str, ...] = ()
    label: str = ""
    phones: tuple[Phone, ...] | None = None
    complete: bool = True


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences and what is known of each; ``sequences[i]`` is an array, ``sequences.clips[i]`` its facts.

    Args:
        name: The name in the catalog.
        rate: Samples, or frames, a second.
        values: Shape (steps,) int16 for audio, or (steps, features) float32 for frames: one sequence after
            the other.
        offsets: Shape (sequences + 1,), int64. Sequence i is ``values[offsets[i]:offsets[i + 1]]``.
        clips: What is known of each.
    """

    name: str
    rate: int
    values: NDArray[np.int16] | NDArray[np.float32]
    offsets: NDArray[np.int64]
    clips: tuple[Clip, ...]

    @classmethod
    def joined(cls, name: str, rate: int, arrays: Sequence[NDArray[np.int16]], clips: Sequence[Clip]) -> Sequences:
        """Put arrays one after the other."""
        offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        values = np.concatenate([np.zeros(0, np.int16), *arrays])
        return cls(name, rate, values, offsets, tuple(clips))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} sequences, and none of the index {index}")
        start, end = self.offsets[index % len(self)], self.offsets[index % len(self) + 1]
        part = self.values[start:end]
        scale = 32768 if part.dtype == np.int16 else 1
        return np.asarray(part, np.float32) / np.float32(scale)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[i] for i in range(len(self)))

    def seconds(self, index: int) -> float:
        """How long a sequence is."""
        return float(self.offsets[index % len(self) + 1] - self.offsets[index % len(self)]) / self.rate

    def indices(self, split: str) -> NDArray[np.int64]:
        """Which sequences belong to a split, in rising order.

        Raises:
            InputError: The set has no such split.
        """
        return indices_of(self.name, self.clips, split)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the checksum is taken of."""
        facts = json_array([asdict(clip) for clip in self.clips])
        return {"values": self.values, "offsets": self.offsets, "rate": np.array(self.rate), "clips": facts}


@dataclass(frozen=True, eq=False)
class Speech:
    """Transcribed speech with the pronunciations of its words.

    Args:
        audio: Clips; perhaps of a part of the utterances only.
        frames: Features of all utterances; None if there are none.
        lexicon: Each word's pronunciations, the usual one first; a pronunciation is a sequence of phones.
        phones: The phones of the lexicon.
    """

    audio: Sequences
    frames: Sequences | None
    lexicon: Mapping[str, tuple[tuple[str, ...], ...]]
    phones: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name in the catalog."""
        return self.audio.name

    def covered(self, clip: Clip) -> bool:
        """Whether the lexicon has all words of a clip."""
        return all(word in self.lexicon for word in clip.words)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the checksum is taken of."""
        parts = {"audio": self.audio, "frames": self.frames}
        named = {f"{key}_{k}": a for key, part in parts.items() if part for k, a in part.arrays().items()}
        return {**named, "lexicon": json_array(self.lexicon), "phones": json_array(self.phones)}
