r"""Which word may follow which, at what cost: word loops, word pairs, bigrams with back-off, and any finite automaton.

Costs are negative natural logarithms of probabilities. A grammar is an automaton of nodes, arcs that speak a word, and
silent arcs, which back-off takes.
"""

from __future__ import annotations

import functools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from counterflow.exceptions import DataError, InputError

__all__ = ["Grammar"]

_START, _END = "<s>", "</s>"


class Grammar:
    """A finite automaton over words.

    Args:
        arcs: Each from a node to a node, with its word and cost.
        start: The node where an utterance begins.
        finals: The nodes where it may end, and what that costs.
        silent: Arcs without a word, from node to node at a cost. None may follow another.

    Raises:
        InputError: If it has no arc or no final node, a cost is not finite, or one silent arc follows another.

    Example:
        >>> g = Grammar([(0, 1, "call", 0.0), (1, 2, "home", 0.7), (1, 2, "bob", 0.7)], start=0, finals={2: 0.0})
        >>> round(g.cost(["call", "home"]), 2), g.cost(["home"])
        (0.7, inf)
    """

    def __init__(
        self,
        arcs: Iterable[tuple[int, int, str, float]],
        *,
        start: int,
        finals: Mapping[int, float],
        silent: Iterable[tuple[int, int, float]] = (),
    ) -> None:
        self.arcs, self.silent = tuple(arcs), tuple(silent)
        self.start, self.finals = start, dict(finals)
        if not self.arcs or not self.finals:
            raise InputError(f"a grammar needs arcs and final nodes, got {len(self.arcs)} and {len(self.finals)}")
        costs = [*(arc[3] for arc in self.arcs), *(arc[2] for arc in self.silent), *self.finals.values()]
        if not all(math.isfinite(cost) for cost in costs):
            raise InputError("costs of a grammar must be finite; leave an arc out that may not be taken")
        left = {source for source, _, _ in self.silent}
        chained = [target for _, target, _ in self.silent if target in left]
        if chained:
            raise InputError(f"a silent arc ends in node {chained[0]}, where another begins; join them into one")
        linked = [n for arc in (*self.arcs, *self.silent) for n in arc[:2]]
        nodes = {start, *self.finals, *(int(n) for n in linked)}
        self.nodes: tuple[int, ...] = tuple(sorted(nodes))
        self.words: tuple[str, ...] = tuple(dict.fromkeys(arc[2] for arc in self.arcs))
        self._spoken: dict[tuple[int, str], list[tuple[int, float]]] = defaultdict(list)
        for source, target, word, cost in self.arcs:
            self._spoken[source, word].append((target, cost))
        self._silent: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for source, target, cost in self.silent:
            self._silent[source].append((target, cost))

    @classmethod
    def loop(cls, words: Iterable[str]) -> Grammar:
        """Any word may follow any, all as likely; the end is free.

        Args:
            words: The vocabulary.

        Returns:
            A grammar whose perplexity is the number of words.

        Raises:
            InputError: If there are none.
        """
        vocabulary = tuple(dict.fromkeys(words))
        cost = math.log(max(len(vocabulary), 1))
        return cls([(0, 0, word, cost) for word in vocabulary], start=0, finals={0: 0.0})

    @classmethod
    def pairs(cls, texts: Iterable[Sequence[str]]) -> Grammar:
        """Words may follow each other as they do in some texts, all that may follow as likely.

        Args:
            texts: Sequences of words.

        Returns:
            The grammar; beginnings and ends of texts count as words.

        Raises:
            InputError: If there are no words, or a text is a string or marks its own beginning or end.

        Example:
            >>> round(Grammar.pairs([["a", "b"], ["a", "c"]]).perplexity([["a", "c"]]), 3)
            1.26
        """
        following: dict[str, dict[str, None]] = defaultdict(dict)
        for before, word in _pairs(texts):
            following[before][word] = None
        return cls._of_histories({b: {w: math.log(len(some)) for w in some} for b, some in following.items()})

    @classmethod
    def bigram(
        cls, texts: Iterable[Sequence[str]], words: Iterable[str] = (), *, discount: float = 0.5, flatten: float = 0.0
    ) -> Grammar:
        r"""Bigram probabilities with back-off, by absolute discounting.

        .. math::

           p(w | v) &= (1 - F) \frac{c(v, w) - D}{c(v)} + \frac{F}{|W|} \text{ if } c(v, w) > 0, \text{ else }
           \beta(v)\, p(w) \\
           p(w) &= (1 - F) \frac{c(w) + 1}{N + |W|} + \frac{F}{|W|}

        beta makes the probabilities after v sum to one; after a v that all words have followed there is none to back
        off to, and D is 0. The end of a text counts as a word. F goes from the bigram to a loop in which all words are
        as likely, and so sets the perplexity.

        Args:
            texts: Sequences of words.
            words: More words of the vocabulary, which need not occur.
            discount: D, from above 0 to below 1.
            flatten: F, from 0 to below 1.

        Returns:
            The grammar.

        Raises:
            InputError: If there are no words, a text is a string or marks its own beginning or end, or a number is out
                of range.

        References:
            H. Ney, U. Essen, R. Kneser, On structuring probabilistic dependences in stochastic language modelling,
            Computer Speech and Language 8 (1994).

        Example:
            >>> g = Grammar.bigram([["a", "b"], ["a", "c"]], words="abcd")
            >>> g.perplexity([["a", "b"]]) < g.perplexity([["a", "d"]])
            True
        """
        if not 0 < discount < 1:
            raise InputError(f"discount must be above 0 and below 1, got {discount}")
        if not 0 <= flatten < 1:
            raise InputError(f"flatten must be 0 or more and below 1, got {flatten}")
        pairs = Counter(_pairs(texts))
        singles = Counter(word for _, word in pairs.elements())
        vocabulary = list(dict.fromkeys([*singles, *words, _END]))
        total = singles.total() + len(vocabulary)
        kept, even = 1.0 - flatten, flatten / len(vocabulary)
        single = {word: kept * (singles[word] + 1) / total + even for word in vocabulary}
        following: dict[str, dict[str, int]] = defaultdict(dict)
        for (before, word), count in pairs.items():
            following[before][word] = count
        histories: dict[str, dict[str, float]] = {}
        back_off: dict[str, float] = {}
        for before in dict.fromkeys([_START, *vocabulary]):
            if before == _END:
                continue
            seen = following.get(before, {})
            count = sum(seen.values())
            taken = discount if len(seen) < len(vocabulary) else 0.0
            likely = {word: kept * (each - taken) / count + even for word, each in seen.items()}
            histories[before] = {word: -math.log(each) for word, each in likely.items()}
            if not seen:
                back_off[before] = 0.0
            elif taken:
                left = 1.0 - sum(single[word] for word in seen)
                back_off[before] = -math.log((1.0 - sum(likely.values())) / left)
        return cls._of_histories(histories, {word: -math.log(p) for word, p in single.items()}, back_off)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Grammar:
        """Read a finite automaton in the text format of AT&T's and OpenFst's tools.

        A line is an arc, ``source target word [cost]``, or a final node, ``node [cost]``. Nodes are whole numbers, the
        first line's source is the start, and ``<eps>`` stands for no word.

        Args:
            path: The file, in UTF-8.

        Returns:
            The grammar.

        Raises:
            DataError: If it cannot be read, or a line is none of these.
            InputError: As the constructor.
        """
        arcs: list[tuple[int, int, str, float]] = []
        silent: list[tuple[int, int, float]] = []
        finals: dict[int, float] = {}
        start: int | None = None
        try:
            lines = Path(path).read_text("utf-8-sig").splitlines()  # editors on Windows write a mark in front
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}; convert it") from error
        for count, line in enumerate(lines, 1):
            fields = line.split()
            if not fields:
                continue
            try:
                cost = float(fields[-1]) if len(fields) in (2, 4) else 0.0
                if len(fields) > 4:
                    raise ValueError
                start = int(fields[0]) if start is None else start
                if len(fields) <= 2:
                    finals[int(fields[0])] = cost
                elif fields[2] == "<eps>":
                    silent.append((int(fields[0]), int(fields[1]), cost))
                else:
                    arcs.append((int(fields[0]), int(fields[1]), fields[2], cost))
            except ValueError:
                raise DataError(
                    f"{path}, line {count}: {line.strip()!r} is neither 'source target word [cost]' nor 'node [cost]'"
                ) from None
        if start is None:
            raise DataError(f"{path} holds no grammar; write an arc a line")
        return cls(arcs, start=start, finals=finals, silent=silent)

    @classmethod
    def _of_histories(
        cls,
        histories: Mapping[str, Mapping[str, float]],
        single: Mapping[str, float] | None = None,
        back_off: Mapping[str, float] | None = None,
    ) -> Grammar:
        """One node for each word that may have been the last, and one that knows none of them."""
        names = dict.fromkeys([_START, *histories, *(w for some in histories.values() for w in some), *(single or ())])
        node = {name: number for number, name in enumerate(name for name in names if name != _END)}
        arcs = [(node[b], node[w], w, c) for b, some in histories.items() for w, c in some.items() if w != _END]
        finals = {node[before]: some[_END] for before, some in histories.items() if _END in some}
        silent = []
        if single is not None and back_off is not None:
            unknown = len(node)
            arcs += [(unknown, node[word], word, cost) for word, cost in single.items() if word != _END]
            finals[unknown] = single[_END]
            silent = [(node[before], unknown, cost) for before, cost in back_off.items()]
        return cls(arcs, start=node[_START], finals=finals, silent=silent)

    def cost(self, words: Sequence[str]) -> float:
        """The negative log-probability of a text with its end, infinite if it may not be spoken.

        A silent arc is taken only where no arc speaks the word: that is what back-off means. A decoder, which takes the
        cheapest path, may back off where a word was seen, too.

        Raises:
            InputError: If the text is a string.
        """
        here = {self.start: 0.0}
        for word in _split(words):
            here = self._after(here, functools.partial(self._ways, word))
        ends = self._after(here, lambda node: [(-1, self.finals[node])] if node in self.finals else [])
        return ends.get(-1, math.inf)

    def reached(self, words: Sequence[str]) -> dict[int, float]:
        """Where some words lead to, by all paths that a decoder may take.

        Args:
            words: They, from the start on.

        Returns:
            The nodes, also those after a silent arc, and what they cost beyond the cheapest; none if the words may not
            be spoken.

        Raises:
            InputError: If the words are a string.
        """
        here = self._silently({self.start: 0.0})
        for word in _split(words):
            there: dict[int, float] = {}
            for node, cost in here.items():
                for target, more in self._ways(word, node):
                    there[target] = min(cost + more, there.get(target, math.inf))
            here = self._silently(there)
        least = min(here.values(), default=0.0)
        return {node: cost - least for node, cost in here.items()}

    def onward(self, nodes: Mapping[int, float], *, anywhere: bool = False) -> Grammar:
        """What may follow where some nodes were reached.

        Args:
            nodes: They, and what each costs, as `reached` gives them.
            anywhere: Whether it may end in any node at no cost, in the midst of what may be said.

        Returns:
            The grammar of what follows.

        Raises:
            InputError: If there are no nodes, or one is not of this grammar.

        Example:
            >>> g = Grammar([(0, 1, "call", 0.0), (1, 2, "home", 0.7), (1, 2, "bob", 0.7)], start=0, finals={2: 0.0})
            >>> rest = g.onward(g.reached(["call"]))
            >>> rest.cost(["home"]), rest.cost(["call", "home"])
            (0.7, inf)
        """
        strange = [node for node in nodes if node not in self.nodes]
        if strange or not nodes:
            raise InputError(f"nodes must be some of the grammar's, got {strange or 'none'}")
        first = max(self.nodes) + 1
        finals = dict.fromkeys(self.nodes, 0.0) if anywhere else self.finals
        ends = [cost + finals[node] for node, cost in nodes.items() if node in finals]
        begun = [(first, b, word, nodes[a] + cost) for a, b, word, cost in self.arcs if a in nodes]
        return Grammar(
            [*begun, *self.arcs],
            start=first,
            finals={**finals, first: min(ends)} if ends else finals,
            silent=self.silent,
        )

    def perplexity(self, texts: Iterable[Sequence[str]]) -> float:
        r"""The test-set perplexity :math:`\exp(\sum_i C_i / \sum_i (n_i + 1))`; ends count if they cost anything.

        Args:
            texts: Sequences of words.

        Returns:
            The perplexity, infinite if a text may not be spoken, or if it is beyond what a number can hold.

        Raises:
            InputError: If there are no texts, or one is a string.
        """
        several = [_split(text) for text in texts]
        ends = any(self.finals.values()) or len(self.finals) < len({arc[1] for arc in self.arcs})
        count = sum(len(text) + ends for text in several)
        if not count:
            raise InputError("perplexity needs texts with words in them")
        try:
            return math.exp(sum(self.cost(text) for text in several) / count)
        except OverflowError:
            return math.inf

    def _ways(self, word: str, node: int) -> list[tuple[int, float]]:
        return self._spoken.get((node, word), [])

    def _silently(self, here: Mapping[int, float]) -> dict[int, float]:
        found = dict(here)
        for node, cost in here.items():
            for target, more in self._silent.get(node, []):
                found[target] = min(cost + more, found.get(target, math.inf))
        return found

    def _after(self, here: Mapping[int, float], step: Callable[[int], Sequence[tuple[int, float]]]) -> dict[int, float]:
        found: dict[int, float] = {}
        for node, cost in here.items():
            ways = [(target, cost + more) for target, more in step(node)]
            if not ways:
                ways = [(t, cost + c + more) for n, c in self._silent.get(node, []) for t, more in step(n)]
            for target, value in ways:
                found[target] = min(value, found.get(target, math.inf))
        return found


def _split(text: Sequence[str]) -> tuple[str, ...]:
    """The words of a text, which are not its letters."""
    if isinstance(text, str):
        raise InputError(f"a text must be a sequence of words, got the string {text!r}; split it")
    return tuple(text)


def _pairs(texts: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    found = []
    for text in texts:
        words = _split(text)
        if _START in words or _END in words:
            raise InputError(f"a text begins and ends by itself; leave {_START} and {_END} out of {' '.join(words)!r}")
        found += list(zip([_START, *words], [*words, _END], strict=True))
    if not any(word != _END for _, word in found):
        raise InputError("texts have no words; give at least one")
    return found
