"""The best sequences of words, rather than the best alone.

The set of all sequences is cut into parts, each with a beginning that is given and next words that are excluded; the
best of each part is decoded, and the part that it came from is cut further (E. L. Lawler, "A procedure for computing
the K best solutions to discrete optimization problems", Management Science 18, 1972). So the list is exact, and its
sequences differ in their words rather than in times or pronunciations.
"""

from __future__ import annotations

import heapq
import itertools

from torch import Tensor

from counterflow.exceptions import InputError
from counterflow.speech.decoding import Decoder, Hypothesis
from counterflow.speech.grammar import Grammar

__all__ = ["n_best"]

_Excluded = frozenset[str | None]  # None is the end of the utterance


def n_best(decoder: Decoder, costs: Tensor, n: int = 10) -> list[Hypothesis]:
    """The cheapest sequences of words in an utterance.

    Args:
        decoder: The decoder; its beam bounds what is found.
        costs: The distance matrix of all predictors, shape (time, predictors).
        n: How many at most.

    Returns:
        Hypotheses in rising order of cost, all of different words; fewer where the grammar or the frames permit no
        more. It takes a decoding for each word of each.

    Raises:
        ShapeError: If the matrix has another shape.
        InputError: If ``n`` is below 1, or no permitted sequence of words fits.

    Example:
        >>> import torch
        >>> from counterflow.speech import Lexicon, Phoneme
        >>> lexicon = Lexicon({"a": [("A",)], "b": [("B",)]})
        >>> decoder = Decoder(lexicon, Grammar.loop("ab"), Phoneme(1, 1), penalty=1.0)
        >>> costs = torch.tensor([[9.0, 0.0, 2.0]] * 2)
        >>> [(each.text, round(each.cost, 2)) for each in n_best(decoder, costs, 3)]
        [('a', 1.69), ('a a', 3.39), ('b a', 5.39)]
    """
    if n < 1:
        raise InputError(f"n must be 1 or more, got {n}")
    order = itertools.count()
    first = decoder.decode(costs)
    heap: list[tuple[float, int, Hypothesis, int, _Excluded]] = [(first.cost, next(order), first, 0, frozenset())]
    found: list[Hypothesis] = []
    while heap and len(found) < n:
        _, _, best, given, excluded = heapq.heappop(heap)
        found.append(best)
        if len(found) == n:
            break
        words = [word.text for word in best.words]
        for place in range(given, len(words) + 1):
            taken = words[place] if place < len(words) else None
            without = frozenset({taken}) | (excluded if place == given else frozenset())
            part = _part(decoder.grammar, words[:place], without)
            if part is None:
                continue
            try:
                other = decoder.with_grammar(part).decode(costs)
            except InputError:  # nothing of this part fits into the frames
                continue
            heapq.heappush(heap, (other.cost, next(order), other, place, without))
    return found


def _part(grammar: Grammar, given: list[str], excluded: _Excluded) -> Grammar | None:
    """The sequences of a grammar that begin with some words, and go on with none of others; None if there are none."""
    free = len(given) + 1
    # A node of the part is a level, the number of given words that were spoken, and a node of the grammar.
    arcs: list[tuple[tuple[int, int], tuple[int, int], str, float]] = []
    for level in range(free + 1):
        onward = min(level + 1, free)
        for source, target, word, cost in grammar.arcs:
            wanted = word == given[level] if level < len(given) else level == free or word not in excluded
            if wanted:
                arcs.append(((level, source), (onward, target), word, cost))
    silent = [((level, a), (level, b), cost) for level in range(free + 1) for a, b, cost in grammar.silent]
    ends = [free] if None in excluded else [len(given), free]
    finals = {(level, node): cost for level in ends for node, cost in grammar.finals.items()}
    onward_from: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for here, there in [(arc[0], arc[1]) for arc in arcs] + [(arc[0], arc[1]) for arc in silent]:
        onward_from.setdefault(here, []).append(there)
    reached, front = {(0, grammar.start)}, [(0, grammar.start)]
    while front:
        for node in onward_from.get(front.pop(), []):
            if node not in reached:
                reached.add(node)
                front.append(node)
    number = {node: index for index, node in enumerate(sorted(reached))}
    kept = [(number[a], number[b], word, cost) for a, b, word, cost in arcs if a in reached]
    stops = {number[node]: cost for node, cost in finals.items() if node in reached}
    if not stops:
        return None
    if not kept:  # silence alone; a grammar has an arc, and this one is not reached
        kept = [(len(number), len(number), grammar.arcs[0][2], 0.0)]
    return Grammar(
        kept,
        start=number[0, grammar.start],
        finals=stops,
        silent=[(number[a], number[b], cost) for a, b, cost in silent if a in reached],
    )
