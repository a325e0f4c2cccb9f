"""Recognition and its errors: grammars of a wanted perplexity, word accuracy, and how far phonemes are told apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from counterflow.exceptions import InputError, MissingExtraError
from counterflow.lab.papers.speech.corpora import Corpus
from counterflow.lab.papers.speech.models import Fitted
from counterflow.speech import Decoder, Grammar, Linkage

__all__ = ["PENALTIES", "SCALES", "Errors", "aligned", "errors_of", "explained", "grammar_near", "recognized"]

# What the grammar's costs are multiplied by and what is added for a word, in nats: for every model the same twelve.
SCALES = (4.0, 8.0, 16.0, 32.0)
PENALTIES = (0.0, 10.0, 30.0)
BEAM = 200.0


def grammar_near(
    perplexity: float, sources: Sequence[Sequence[str]], judged: Sequence[Sequence[str]], words: Iterable[str]
) -> tuple[Grammar, float]:
    """The bigram of some texts whose perplexity on others is nearest to a wanted one.

    A smaller discount than the usual half makes it sharper, and flattening it makes it weaker, up to a loop of words.

    Returns:
        The grammar and its perplexity.
    """
    vocabulary = list(words)

    def at(place: float) -> tuple[Grammar, float]:
        discount = 0.5 * 1000.0 ** min(place, 0.0)
        flatten = 1.0 - 1e-6 ** max(place, 0.0)
        grammar = Grammar.bigram(sources, vocabulary, discount=discount, flatten=flatten)
        return grammar, grammar.perplexity(judged)

    sharp, usual, loop = at(-1.0), at(0.0), at(1.0)
    if perplexity <= min(sharp[1], usual[1]):
        return min(sharp, usual, key=lambda end: end[1])
    if perplexity >= loop[1]:
        return loop
    low, high = (-1.0, 0.0) if sharp[1] < perplexity <= usual[1] else (0.0, 1.0)
    for _ in range(16):
        half = (low + high) / 2
        low, high = (half, high) if at(half)[1] < perplexity else (low, half)
    return at(high)


@dataclass(frozen=True)
class Errors:
    """Counted words.

    Args:
        words: Words that were said.
        substitutions: Of them, heard as others.
        deletions: Not heard.
        insertions: Heard, and not said.
    """

    words: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def accuracy(self) -> float:
        """Word accuracy in percent; insertions count against it."""
        return 100.0 * (1 - (self.substitutions + self.deletions + self.insertions) / self.words)


def errors_of(said: Sequence[Sequence[str]], heard: Sequence[Sequence[str]]) -> Errors:
    """Count errors by the best alignment of words."""
    try:
        import jiwer
    except ImportError as error:
        raise MissingExtraError("audio", "counting word errors") from error
    found = jiwer.process_words([" ".join(text) for text in said], [" ".join(text) for text in heard])
    words = found.hits + found.substitutions + found.deletions
    return Errors(words, found.substitutions, found.deletions, found.insertions)


def recognized(
    fitted: Fitted, costs: Sequence[Tensor], grammar: Grammar, scale: float, penalty: float
) -> list[list[str]]:
    """What is heard in utterances whose costs are given; where nothing is left within the beam, no word."""
    decoder = Decoder(fitted.lexicon, grammar, fitted.phoneme, scale=scale, penalty=penalty, beam=BEAM)
    found: list[list[str]] = []
    for each in costs:
        try:
            found.append([word.text for word in decoder.decode(each).words])
        except InputError:
            found.append([])
    return found


def aligned(fitted: Fitted, corpus: Corpus, index: int) -> tuple[Tensor, Tensor, Tensor, Linkage]:
    """An utterance's distances, and the states and predictors along the alignment with its text."""
    distances = fitted.distances(corpus.features[index])
    pattern = Linkage(corpus.texts[index], fitted.lexicon, fitted.phoneme)
    states, _ = pattern.align(distances)
    return distances, states, torch.from_numpy(pattern.units)[states], pattern


def explained(distances: Sequence[Tensor], frames: Sequence[Tensor]) -> float:
    """The share of the frames' variance that predictions explain: one minus squared error over squares."""
    error = sum(float(each.sum()) for each in distances)
    return 1.0 - error / sum(float(each.square().sum()) for each in frames)
