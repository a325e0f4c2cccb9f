"""How long phonemes last, for a second look at the best sequences of words.

The paper has no model of durations, and says so (section 6); this is an option. A path through a phoneme's states costs
the same however long it stays, so what is heard may have phonemes of a length that nobody speaks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from counterflow.exceptions import InputError
from counterflow.speech.decoding import Decoder, Hypothesis
from counterflow.speech.lexicon import Linkage
from counterflow.speech.nbest import n_best

__all__ = ["Durations", "rescore"]

_FEW = 5  # occurrences that all phones together count for


class Durations:
    r"""The length of each phoneme, a log-normal distribution; silence may last as it likes.

    .. math::

       -\log p(n) = \tfrac{1}{2} \Big(\frac{\log n - \mu_p}{s_p}\Big)^2 + \log s_p

    Means and deviations are drawn toward those of all phones where there are few of one.

    Args:
        aligned: For each utterance its linkage pattern and the state of each frame, shape (time,), as `Linkage.align`
            gives them.
        phones: How many phones the lexicon has, with silence.

    Raises:
        InputError: If there is no phone but silence, or a pattern and its states do not fit together.

    Example:
        >>> from counterflow.speech import Lexicon, Phoneme
        >>> pattern = Linkage(["AB"], Lexicon({"AB": [("A", "B")]}), Phoneme(1, 1), silence=False)
        >>> slow, fast = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 1, 1, 1, 1])
        >>> lengths = Durations([(pattern, slow)] * 9, 3)
        >>> lengths.cost(pattern, slow) < lengths.cost(pattern, fast)
        True
    """

    def __init__(self, aligned: Sequence[tuple[Linkage, Tensor]], phones: int) -> None:
        found: list[list[float]] = [[] for _ in range(phones)]
        for pattern, states in aligned:
            for phone, frames in _lengths(pattern, states):
                if not 0 <= phone < phones:
                    raise InputError(f"a pattern has phone {phone}, and phones={phones}")
                found[phone].append(math.log(frames))
        every = torch.tensor([value for values in found for value in values])
        if not len(every):
            raise InputError("the alignments have no phone but silence; give some with words")
        mean, variance = float(every.mean()), float(every.var(correction=0)) + 0.01
        self.means: list[float] = []
        self.deviations: list[float] = []
        for values in found:
            count = len(values) + _FEW
            center = (sum(values) + _FEW * mean) / count
            spread = (sum((value - center) ** 2 for value in values) + _FEW * variance) / count
            self.means.append(center)
            self.deviations.append(math.sqrt(spread))

    @classmethod
    def of(cls, means: Sequence[float], deviations: Sequence[float]) -> Durations:
        """Durations whose numbers are known, such as those of a model that was saved.

        Args:
            means: Of the logarithm of each phone's frames.
            deviations: Theirs.

        Returns:
            The durations.

        Raises:
            InputError: If they are not as many, not finite, or a deviation is not above 0.

        Example:
            >>> Durations.of([0.0, 1.5], [1.0, 0.5]).means
            [0.0, 1.5]
        """
        fits = len(means) == len(deviations) and all(map(math.isfinite, [*means, *deviations]))
        if not fits or any(each <= 0 for each in deviations):
            raise InputError("durations need a finite mean and a deviation above 0 for each phone")
        found = cls.__new__(cls)
        found.means, found.deviations = [float(each) for each in means], [float(each) for each in deviations]
        return found

    def cost(self, pattern: Linkage, states: Tensor) -> float:
        """The summed cost of an alignment's phones, in nats.

        Args:
            pattern: The linkage pattern.
            states: The state of each frame, shape (time,).

        Returns:
            The cost; silence has none.
        """
        total = 0.0
        for phone, frames in _lengths(pattern, states):
            off = (math.log(frames) - self.means[phone]) / self.deviations[phone]
            total += 0.5 * off * off + math.log(self.deviations[phone])
        return total


def rescore(
    decoder: Decoder, costs: Tensor, durations: Durations, *, n: int = 10, weight: float = 1.0
) -> list[Hypothesis]:
    """Sort the best sequences of words anew, with the durations of their phones.

    Args:
        decoder: The decoder.
        costs: The distance matrix of all predictors, shape (time, predictors).
        durations: How long phones last.
        n: How many sequences are looked at.
        weight: What durations count for.

    Returns:
        The sequences in rising order of cost with durations. Times are those that were found without them.

    Raises:
        ShapeError, InputError: As `n_best`.

    Example:
        >>> from counterflow.speech import Decoder, Grammar, Lexicon, Phoneme, n_best
        >>> decoder = Decoder(Lexicon({"a": [("A",)], "b": [("B",)]}), Grammar.loop("ab"), Phoneme(1, 1), penalty=1.0)
        >>> costs = torch.tensor([[9.0, 0.0, 0.5]] * 2)
        >>> lengths = Durations.of([0.0, -3.0, 0.7], [1.0, 0.1, 0.1])  # of silence, A, which is short, and B
        >>> [each.text for each in n_best(decoder, costs, 2)]
        ['a', 'b']
        >>> [each.text for each in rescore(decoder, costs, lengths, n=2)]
        ['b', 'a']
    """
    found = []
    for each in n_best(decoder, costs, n):
        pattern = Linkage([word.text for word in each.words], decoder.lexicon, decoder.phoneme)
        states, _ = pattern.align(costs)
        found.append(replace(each, cost=each.cost + weight * durations.cost(pattern, states)))
    return sorted(found, key=lambda each: each.cost)


def _lengths(pattern: Linkage, states: Tensor) -> list[tuple[int, int]]:
    """The phones of an alignment that are not silence, and how many frames each lasts."""
    path = states.tolist()
    if path and not 0 <= min(path) <= max(path) < len(pattern.units):
        raise InputError(f"states must lie between 0 and {len(pattern.units) - 1}, got {min(path)} to {max(path)}")
    found: list[tuple[int, int]] = []
    last = -1
    for state in path:
        order = int(pattern.order[state])
        if order == last and pattern.word[state] >= 0:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        elif pattern.word[state] >= 0:
            found.append((int(pattern.phone[state]), 1))
        last = order
    return found
