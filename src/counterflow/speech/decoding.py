"""Continuous recognition by the One-Stage algorithm.

Source: H. Ney, "The Use of a One-Stage Dynamic Programming Algorithm for Connected Word Recognition", 1984, which
Tebelskis and others (NIPS 1990) use in section 2.1. Word templates are linkage patterns; costs are summed over frames,
and a grammar's costs are added where a word begins.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from counterflow.exceptions import InputError, ShapeError
from counterflow.speech import kernels
from counterflow.speech.grammar import Grammar
from counterflow.speech.lexicon import Lexicon, Phoneme

__all__ = ["Decoder", "DecoderStream", "Hypothesis", "WordSpan"]

_BLOCK = 128  # frames between looks at what is decided


@dataclass(frozen=True)
class WordSpan:
    """A recognized word.

    Args:
        text: The word.
        start: Its first frame.
        end: The frame after its last.
        cost: What it adds to the cost of the utterance, with the grammar's part.
    """

    text: str
    start: int
    end: int
    cost: float


@dataclass(frozen=True)
class Hypothesis:
    """What was said.

    Args:
        words: Its words in order.
        cost: The summed cost of the best path, with the grammar's part.
    """

    words: tuple[WordSpan, ...]
    cost: float

    @property
    def text(self) -> str:
        """The words with spaces between them."""
        return " ".join(word.text for word in self.words)


class Decoder:
    """The cheapest sequence of words that a grammar permits, with silence wherever it is cheaper.

    Args:
        lexicon: Pronunciations of the words.
        grammar: Which words may follow which.
        phoneme: The topology of all phonemes.
        scale: By how much the grammar's costs are multiplied; distances and logarithms are of different sizes.
        penalty: Added to the cost of each word.
        beam: States whose cost lies above the best by more are dropped; all are kept if infinite.

    Raises:
        InputError: If a word has no pronunciation, or a number is out of range.

    References:
        H. Ney, The use of a one-stage dynamic programming algorithm for connected word recognition, IEEE Transactions
        on Acoustics, Speech, and Signal Processing 32 (1984).

    Example:
        >>> import torch
        >>> lexicon = Lexicon({"a": [("A",)], "b": [("B",)]})
        >>> decoder = Decoder(lexicon, Grammar.loop("ab"), Phoneme(1, 1))
        >>> costs = torch.tensor([[9.0, 0.0, 9.0]] * 3 + [[0.0, 9.0, 9.0]] * 2 + [[9.0, 9.0, 0.0]] * 2)
        >>> [(word.text, word.start, word.end) for word in decoder.decode(costs).words]
        [('a', 0, 3), ('b', 5, 7)]
    """

    def __init__(
        self,
        lexicon: Lexicon,
        grammar: Grammar,
        phoneme: Phoneme | None = None,
        *,
        scale: float = 1.0,
        penalty: float = 0.0,
        beam: float = math.inf,
    ) -> None:
        for name, value in {"scale": scale, "penalty": penalty}.items():
            if not math.isfinite(value):
                raise InputError(f"{name} must be a finite number, got {value}")
        if not (scale >= 0 and beam > 0):
            raise InputError(f"scale must be 0 or more and beam above 0, got {scale} and {beam}")
        lexicon.words_of(grammar.words)
        self.lexicon, self.grammar, self.phoneme = lexicon, grammar, phoneme or Phoneme()
        self.scale, self.penalty, self.beam = scale, penalty, beam
        number = {node: index for index, node in enumerate(grammar.nodes)}
        N = len(number)
        # Node n + N is node n after silence, which is not followed by silence.
        entries: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)
        for source, target, word, cost in grammar.arcs:
            entries[word, number[target]].append((number[source], scale * cost + penalty))
        templates: list[tuple[str | None, list[int], int, list[tuple[int, float]]]] = []
        for (word, target), ways in entries.items():
            both = [(source + late, cost) for source, cost in ways for late in (0, N)]
            for variant in range(len(lexicon.pronunciations[word])):
                templates.append((word, lexicon.spelled(word, variant), target, both))
        templates += [(None, [0], node + N, [(node, 0.0)]) for node in range(N)]
        self._words: list[str | None] = [word for word, *_ in templates]
        units: list[int] = []
        skips: list[bool] = []
        first = [0]
        for _, phones, _, _ in templates:
            for place, phone in enumerate(phones):
                for state, tied in enumerate(self.phoneme.tied):
                    units.append(phone * self.phoneme.predictors + tied)
                    # Over a state within a phoneme, or over the last of the phoneme before.
                    skips.append(self.phoneme.skip and (state > 1 or (state == 0 and place > 0 and self._pairs)))
            first.append(len(units))
        self._units = np.array(units, np.int64)
        arcs = [ways for *_, ways in templates]
        silent = [(number[a] + late, number[b] + late, scale * c) for a, b, c in grammar.silent for late in (0, N)]
        self._tables: tuple[Any, ...] = (
            self._units,
            np.array(first, np.int64),
            np.array(skips, np.bool_),
            self.phoneme.skip and self._pairs,
            np.cumsum([0, *map(len, arcs)]),
            np.array([source for ways in arcs for source, _ in ways], np.int64),
            np.array([cost for ways in arcs for _, cost in ways], np.float64),
            np.array([target for _, _, target, _ in templates], np.int64),
            np.array([a for a, _, _ in silent], np.int64),
            np.array([b for _, b, _ in silent], np.int64),
            np.array([c for *_, c in silent], np.float64),
        )
        self._finals = np.full(2 * N, np.inf)
        for node, cost in grammar.finals.items():
            self._finals[[number[node], number[node] + N]] = scale * cost
        self._begins = {number[grammar.start]: 0.0}
        for a, b, c in silent:
            if a == number[grammar.start]:
                self._begins[b] = min(c, self._begins.get(b, math.inf))

    def with_grammar(self, grammar: Grammar) -> Decoder:
        """The same but for the grammar.

        Args:
            grammar: It; its words must have pronunciations.

        Returns:
            Another decoder.

        Raises:
            InputError: If a word has no pronunciation.
        """
        return Decoder(self.lexicon, grammar, self.phoneme, scale=self.scale, penalty=self.penalty, beam=self.beam)

    @property
    def _pairs(self) -> bool:
        return self.phoneme.states > 1

    def decode(self, costs: Tensor) -> Hypothesis:
        """Recognize an utterance.

        Args:
            costs: The distance matrix of all predictors, shape (time, predictors).

        Returns:
            The cheapest words.

        Raises:
            ShapeError: If the matrix has another shape.
            InputError: If no permitted sequence of words fits into the frames, or within the beam.
        """
        stream = self.stream()
        early = stream.push(costs)
        last = stream.finish()
        return Hypothesis((*early, *last.words), last.cost)

    def stream(self) -> DecoderStream:
        """Begin to recognize frames as they come."""
        return DecoderStream(self)


class DecoderStream:
    """The state of a decoder in the midst of an utterance; made by `Decoder.stream`.

    A word is given out as soon as all paths that are still followed agree on it, and then forgotten: memory depends on
    how long they disagree, not on how long the utterance is. The words are those of `Decoder.decode`, to the bit.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        S, N = len(decoder._units), len(decoder._finals)
        self._score: NDArray[np.float64] = np.full(S, np.inf)
        self._token: NDArray[np.int64] = np.full(S, -1)
        self._node_score: NDArray[np.float64] = np.full(N, np.inf)
        self._node_token: NDArray[np.int64] = np.full(N, -1)
        for node, cost in decoder._begins.items():
            self._node_score[node] = cost
        room = 2 * (_BLOCK + 1) * N
        whole = [np.empty(room, np.int64) for _ in range(3)]
        self._records: list[NDArray[Any]] = [*whole, np.empty(room)]
        self._used = self._time = 0
        # Where the last word that was given out ended: its record, which is the first that is kept, frame and cost.
        self._given, self._end, self._cost = -1, 0, 0.0

    @property
    def records(self) -> int:
        """How many ends of words are remembered."""
        return self._used

    def push(self, costs: Tensor) -> tuple[WordSpan, ...]:
        """Go on by some frames.

        Args:
            costs: Their distances, shape (time, predictors).

        Returns:
            The words that are now decided.

        Raises:
            ShapeError: If the shape does not fit.
            InputError: If a cost is not a number.
        """
        needed = int(self._decoder._units.max()) + 1
        if costs.ndim != 2 or costs.shape[1] < needed or not costs.is_floating_point():
            wanted = f"(time, predictors) with {needed} predictors or more"
            raise ShapeError(f"costs must be of floating point and {wanted}, got {costs.dtype} {tuple(costs.shape)}")
        if bool(costs.isnan().any()):
            raise InputError("costs hold values that are not numbers; mend them, or leave the utterance out")
        found: list[WordSpan] = []
        table: NDArray[Any] = kernels.as_table(costs)
        run: Any = kernels.advance
        for begin in range(0, len(table), _BLOCK):
            part = table[begin : begin + _BLOCK]
            need = self._used + len(part) * len(self._node_score)
            if need > len(self._records[0]):
                self._records = [np.concatenate([each, np.empty(need, each.dtype)]) for each in self._records]
            state = (self._score, self._token, self._node_score, self._node_token)
            beam = self._decoder.beam
            self._used = run(part, *self._decoder._tables, beam, *state, *self._records, self._used, self._time)
            self._time += len(part)
            self._forget()
            found += self._decided()
        return tuple(found)

    def finish(self) -> Hypothesis:
        """End the utterance.

        Returns:
            The words that had not been given out, and the cost of the whole utterance.

        Raises:
            InputError: If no permitted sequence of words fits.
        """
        ends = self._node_score + self._decoder._finals
        best = int(ends.argmin())
        if not np.isfinite(ends[best]) or not self._time:
            raise InputError(
                f"no sequence of words that the grammar permits fits into {self._time} frames; "
                "give more audio, another grammar or a wider beam"
            )
        chain = []
        record = int(self._node_token[best])
        while record != self._given:
            chain.append(record)
            record = int(self._records[1][record])
        words = [span for each in reversed(chain) for span in self._give(each)]
        return Hypothesis(tuple(words), float(ends[best]))

    def _give(self, record: int) -> list[WordSpan]:
        template, _, end, cost = (each[record] for each in self._records)
        text = self._decoder._words[int(template)]
        found = [] if text is None else [WordSpan(text, self._end, int(end), float(cost) - self._cost)]
        self._given, self._end, self._cost = record, int(end), float(cost)
        return found

    def _followed(self) -> NDArray[np.int64]:
        """The records that paths end in."""
        tokens = np.concatenate(
            [self._token[np.isfinite(self._score)], self._node_token[np.isfinite(self._node_score)]]
        )
        return np.unique(tokens)

    def _forget(self) -> None:
        """Drop the records that no path leads to."""
        before = self._records[1]
        alive = np.zeros(self._used, np.bool_)
        front = self._followed()
        if self._given >= 0:
            front = np.append(front, self._given)
        while len(front := front[front >= 0]):
            alive[front] = True
            front = np.unique(before[front])
            front = front[~alive[front]]
        kept = np.flatnonzero(alive)
        moved = np.full(self._used + 1, -1)  # the last is for -1
        moved[kept] = np.arange(len(kept))
        for each in self._records:
            each[: len(kept)] = each[kept]
        before[: len(kept)] = moved[before[: len(kept)]]
        self._token[:] = moved[self._token]
        self._node_token[:] = moved[self._node_token]
        self._given = int(moved[self._given])
        self._used = len(kept)

    def _decided(self) -> list[WordSpan]:
        """Give out words while there is one way only."""
        found: list[WordSpan] = []
        followed = self._followed()
        before = self._records[1][: self._used]
        while self._given not in followed:
            ways = np.flatnonzero(before == self._given)
            if len(ways) != 1:
                break
            found += self._give(int(ways[0]))
        if self._given >= 0:
            before[self._given] = -1  # what came before it is forgotten
        return found
