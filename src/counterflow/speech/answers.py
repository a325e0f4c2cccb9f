"""What a recognizer answers, in seconds: words, alternatives, and the segments of an alignment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from counterflow.speech.acoustics import HOP, Clock
from counterflow.speech.decoding import Hypothesis, WordSpan
from counterflow.speech.lexicon import Linkage

__all__ = ["Alternative", "Segment", "Word", "cheapest", "in_turn", "segments", "spoken"]


@dataclass(frozen=True)
class Word:
    """A recognized word.

    Args:
        text: The word.
        start: Where it begins, in seconds.
        end: Where it ends.
        score: Minus its cost a frame, with the grammar's part; comparable within one model.
    """

    text: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Alternative:
    """One of the best sequences of words.

    Args:
        words: Its words in order.
        cost: Its summed cost, by which alternatives are sorted, in nats where the model's costs are.
    """

    words: tuple[Word, ...]
    cost: float

    @property
    def text(self) -> str:
        """The words with spaces between them."""
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True)
class Segment:
    """A word, a phone or silence, where the alignment of a transcript has it.

    Args:
        text: The word or phone.
        start: Where it begins, in seconds.
        end: Where it ends.
    """

    text: str
    start: float
    end: float


def spoken(span: WordSpan, clock: Clock) -> Word:
    """A word in seconds."""
    return Word(span.text, clock(span.start), clock(span.end), -span.cost / (span.end - span.start))


def alternative(found: Hypothesis, clock: Clock) -> Alternative:
    """A hypothesis in seconds."""
    return Alternative(tuple(spoken(span, clock) for span in found.words), found.cost)


def in_turn(first: Sequence[Alternative], then: Sequence[Alternative], after: float) -> list[Alternative]:
    """All pairs of answers to two parts of a recording, of which the second begins ``after`` seconds; costs add up."""
    late = [
        replace(each, words=tuple(replace(w, start=after + w.start, end=after + w.end) for w in each.words))
        for each in then
    ]
    return [Alternative(a.words + b.words, a.cost + b.cost) for a, b in itertools.product(first, late)]


def cheapest(found: Sequence[Alternative], n: int) -> list[Alternative]:
    """The n best; of those that make the same words, such as "a" and "a a" in either order, the cheapest stays."""
    best: dict[str, Alternative] = {}
    for each in sorted(found, key=lambda each: each.cost):
        best.setdefault(each.text, each)
    return [*best.values()][:n]


def segments(
    pattern: Linkage, states: Tensor, phones: Sequence[str], *, step: float = HOP, shift: float = 0.0
) -> tuple[list[Segment], list[Segment]]:
    """The words and phones of an alignment.

    Args:
        pattern: The linkage pattern.
        states: Its state at each frame, shape (time,), as `Linkage.align` gives them.
        phones: What the lexicon's phones are called.
        step: Seconds from frame to frame.
        shift: Seconds that are added to all boundaries but the first: for frames of a window, half of what it is longer
            than a step, so that a boundary lies between the centers of two windows.

    Returns:
        The words, and the phones with silence between them.

    Example:
        >>> import torch
        >>> from counterflow.speech import Lexicon, Phoneme
        >>> lexicon = Lexicon({"AB": [("A", "B")]})
        >>> pattern = Linkage(["AB"], lexicon, Phoneme(1, 1), silence=False)
        >>> segments(pattern, torch.tensor([0, 0, 1]), lexicon.phones)[1]
        [Segment(text='A', start=0.0, end=0.02), Segment(text='B', start=0.02, end=0.03)]
    """
    clock = Clock(step, shift)
    words: list[Segment] = []
    found: list[Segment] = []
    start = 0
    path = states.tolist()
    before = -1
    for t in range(1, len(path) + 1):
        if t < len(path) and pattern.order[path[t]] == pattern.order[path[t - 1]]:
            continue
        state = path[t - 1]
        found.append(Segment(phones[pattern.phone[state]], clock(start), clock(t)))
        word = int(pattern.word[state])
        if word >= 0 and word == before:
            words[-1] = Segment(words[-1].text, words[-1].start, clock(t))
        elif word >= 0:
            words.append(Segment(pattern.words[word], clock(start), clock(t)))
        before, start = word, t
    return words, found
