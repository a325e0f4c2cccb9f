"""Phonemes in context, and function words with phonemes of their own: what the paper names as its next steps.

Source: J. Tebelskis, A. Waibel, B. Petek, O. Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural
Networks", NIPS 1990, section 6, which leaves open how. Here both only rename phones in a lexicon, so that every kind of
model can have them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from counterflow.exceptions import InputError
from counterflow.speech.lexicon import Lexicon

__all__ = ["bare_phone", "cases_of", "in_context", "own_phones"]


def in_context(lexicon: Lexicon, texts: Iterable[str | Sequence[str]], *, minimum: int = 40) -> Lexicon:
    """Tell phones apart by their neighbors within the word, where there is enough to learn them from.

    A phone becomes ``L-P+R`` if it occurs between L and R often enough, else ``P+R``, else ``L-P``, else it stays P.
    The edge of a word is the neighbor ``#``.

    Args:
        lexicon: Pronunciations.
        texts: What the models will be trained on; the first pronunciation of each word is counted.
        minimum: How often a phone has to occur in a context.

    Returns:
        The lexicon of the same words, with more phones.

    Raises:
        InputError: If ``minimum`` is below 1, ``texts`` is one string, or a word has no pronunciation.

    Example:
        >>> lexicon = Lexicon({"A": [("EY",)], "AB": [("EY", "B")]})
        >>> in_context(lexicon, ["A A AB"], minimum=2).pronunciations
        {'A': (('#-EY+#',),), 'AB': (('#-EY', 'B'),)}
    """
    if minimum < 1:
        raise InputError(f"minimum must be 1 or more, got {minimum}")
    if isinstance(texts, str):  # its letters would be taken for texts
        raise InputError(f"texts is the string {texts[:40]!r}; give a list of texts")
    counts: Counter[str] = Counter()
    for text in texts:
        for word in lexicon.words_of(text):
            for names in _named(lexicon.pronunciations[word][0]):
                counts.update(names)
    return Lexicon(
        {
            word: [
                [next((name for name in names[:-1] if counts[name] >= minimum), names[-1]) for names in _named(each)]
                for each in several
            ]
            for word, several in lexicon.pronunciations.items()
        }
    )


def cases_of(named: Lexicon, lexicon: Lexicon) -> list[int]:
    """Which phone each phone of a lexicon is a case of, in the lexicon from which `in_context` made it.

    Args:
        named: What was made.
        lexicon: What it was made from.

    Returns:
        For each of ``named.phones`` a place in ``lexicon.phones``.

    Raises:
        InputError: If one was not made from the other.

    Example:
        >>> lexicon = Lexicon({"A": [("EY",)], "AB": [("EY", "B")]})
        >>> named = in_context(lexicon, ["A A AB"], minimum=2)
        >>> named.phones, cases_of(named, lexicon)
        (('SIL', '#-EY', '#-EY+#', 'B'), [0, 2, 2, 1])
    """
    found = {named.phones[0]: 0}
    place = {phone: number for number, phone in enumerate(lexicon.phones)}
    try:
        for word, several in named.pronunciations.items():
            for names, phones in zip(several, lexicon.pronunciations[word], strict=True):
                for name, phone in zip(names, phones, strict=True):
                    if found.setdefault(name, place[phone]) != place[phone]:
                        raise ValueError
    except (KeyError, ValueError):
        raise InputError("the lexicon's phones are not cases of the other's; make it by in_context") from None
    return [found[name] for name in named.phones]


def own_phones(lexicon: Lexicon, words: Iterable[str]) -> Lexicon:
    """Give words phones that no other word has: ``P:WORD``.

    Args:
        lexicon: Pronunciations.
        words: Frequent words that are spoken carelessly, such as English *the* and *to*.

    Returns:
        The lexicon of the same words, with more phones.

    Raises:
        InputError: If a word has no pronunciation.

    Example:
        >>> own_phones(Lexicon({"A": [("AH",)], "UP": [("AH", "P")]}), ["A"]).phones
        ('SIL', 'AH', 'AH:A', 'P')
    """
    own = {*lexicon.words_of(list(words))}
    return Lexicon(
        {
            word: [[f"{phone}:{word}" if word in own else phone for phone in each] for each in several]
            for word, several in lexicon.pronunciations.items()
        }
    )


def bare_phone(name: str) -> str:
    """The phone without its context or word.

    Example:
        >>> [bare_phone(name) for name in ("#-EY+B", "EY+B", "EY", "AH:A", "-")]
        ['EY', 'EY', 'EY', 'AH', '-']
    """
    return re.sub(r"(?<=.)\+[^+]+$|(?<=.):[^:]+$|^[^-]+-(?=.)", "", name)


def _named(phones: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Each phone's names, the most special first."""
    edged = ["#", *phones, "#"]
    return [
        (f"{left}-{phone}+{right}", f"{phone}+{right}", f"{left}-{phone}", phone)
        for left, phone, right in zip(edged, phones, edged[2:], strict=False)
    ]
