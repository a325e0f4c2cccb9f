"""One-Stage decoding against exhaustive search over sequences of words; grammars against their definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.exceptions import DataError, InputError, ShapeError
from counterflow.speech import Decoder, Grammar, Lexicon, Linkage, Phoneme, n_best

LEXICON = Lexicon({"ab": [("a", "b")], "a": [("a",), ("b", "b")], "c": [("c",)]})
TEXTS = [["ab", "a"], ["c"], ["ab", "c", "a"]]
GRAMMARS = {
    "loop": Grammar.loop(["ab", "a", "c"]),
    "pairs": Grammar.pairs(TEXTS),
    "bigram": Grammar.bigram(TEXTS, ["a", "c"]),
    "automaton": Grammar(
        [(0, 1, "a", 0.3), (1, 1, "c", 0.1), (1, 2, "ab", 0.2), (0, 2, "c", 0.5)],
        start=0,
        finals={2: 0.4},
        silent=[(0, 1, 0.6)],
    ),
}
TOPOLOGIES = [Phoneme(1, 1), Phoneme(2, 2, skip=False), Phoneme(2, 1), Phoneme(4, 2)]


def cheapest(grammar: Grammar, words: tuple[str, ...]) -> float:
    """What the grammar asks for a sequence of words, over all of its paths."""

    def rest(node: int, left: tuple[str, ...], silent: bool) -> float:
        ways = [math.inf]
        if not left and node in grammar.finals:
            ways.append(grammar.finals[node])
        ways += [c + rest(b, left[1:], False) for a, b, word, c in grammar.arcs if a == node and left[:1] == (word,)]
        if not silent:
            ways += [c + rest(b, left, True) for a, b, c in grammar.silent if a == node]
        return min(ways)

    return rest(grammar.start, words, False)


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(GRAMMARS)),
    phoneme=st.sampled_from(TOPOLOGIES),
    frames=st.integers(1, 9),
    scale=st.sampled_from([0.0, 1.0, 0.2]),
    penalty=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_one_stage_equals_exhaustive_search(name, phoneme, frames, scale, penalty, seed):
    costs = torch.rand(frames, 4 * phoneme.predictors, generator=torch.Generator().manual_seed(seed)).double()
    grammar = GRAMMARS[name]
    totals = {}
    for count in range(min(frames, 4) + 1):
        for words in itertools.product(LEXICON.pronunciations, repeat=count):
            price = cheapest(grammar, words)
            if math.isfinite(price):
                try:
                    _, cost = Linkage(words, LEXICON, phoneme).align(costs)
                except InputError:
                    continue
                totals[words] = cost + scale * price + penalty * count
    decoder = Decoder(LEXICON, grammar, phoneme, scale=scale, penalty=penalty)
    if not totals:
        with pytest.raises(InputError, match="no sequence of words that the grammar permits fits"):
            decoder.decode(costs)
        return
    found = decoder.decode(costs)
    spoken = tuple(word.text for word in found.words)
    assert found.text == " ".join(spoken)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found.words))
    assert all(0 <= word.start < word.end <= frames for word in found.words)
    if len(spoken) <= 4:
        assert found.cost == pytest.approx(totals[spoken])
    assert found.cost <= min(totals.values()) + 1e-9
    if frames < 5 * phoneme.least_frames:  # no more words fit than were tried
        assert found.cost == pytest.approx(min(totals.values()))
        several = n_best(decoder, costs, 4)
        assert [each.cost for each in several] == pytest.approx(sorted(totals.values())[:4])
        assert len({each.text for each in several}) == len(several)
        for each in several:
            assert each.cost == pytest.approx(totals[tuple(each.text.split())])


@pytest.mark.parametrize("name", sorted(GRAMMARS))
def test_a_grammar_goes_on_after_words_at_the_cost_of_both(name):
    grammar = GRAMMARS[name]
    texts = [text for count in range(3) for text in itertools.product(["ab", "a", "c"], repeat=count)]
    begun = grammar.onward(grammar.reached([]), anywhere=True)
    for first in texts:
        nodes = grammar.reached(first)
        if not nodes:
            assert cheapest(begun, first) == math.inf
            with pytest.raises(InputError, match="nodes must be some of the grammar's, got none"):
                grammar.onward(nodes)
            continue
        rest = grammar.onward(nodes)
        for then in texts:
            both = cheapest(begun, first) + cheapest(rest, then)
            assert both == pytest.approx(cheapest(grammar, first + then))
    with pytest.raises(InputError, match=r"nodes must be some of the grammar's, got \[99\]"):
        grammar.onward({99: 0.0})


def test_an_automaton_is_read_from_a_file(tmp_path):
    file = tmp_path / "dial.fst"
    file.write_text("0 1 call 0.5\n1 2 home\n\n1 2 <eps> 1.5\n2 0.25\n0\n", "utf-8-sig")
    grammar = Grammar.read(file)
    assert grammar.cost(["call", "home"]) == 0.75
    assert grammar.cost(["call"]) == 2.25
    assert grammar.cost([]) == 0.0
    for text, match in (
        ("", "holds no grammar"),
        ("0 1 call x\n", "line 1"),
        ("0 1 call 1 2\n", "line 1"),
        ("a\n", "line 1"),
        ("0 1 call\n", "arcs and final nodes"),
    ):
        file.write_text(text)
        with pytest.raises((DataError, InputError), match=match):
            Grammar.read(file)
    with pytest.raises(DataError, match="cannot be read"):
        Grammar.read(tmp_path / "none")


def speech(words: list[str], seed: int) -> torch.Tensor:
    """Costs of an utterance with clear words and some silence between them."""
    random = np.random.default_rng(seed)
    rows = []
    for word in words:
        phones = [0, *LEXICON.spelled(word, 0)]
        rows += [phone for phone in phones for _ in range(random.integers(2, 6))]
    costs = random.random((len(rows), len(LEXICON.phones))) + 2.0
    costs[np.arange(len(rows)), rows] -= 2.0
    return torch.from_numpy(costs)


@pytest.mark.parametrize("name", ["loop", "bigram"])
def test_a_stream_gives_the_same_words_early_and_forgets_them(name):
    random = np.random.default_rng(0)
    most = {}
    for length in (30, 300):
        words = [str(each) for each in random.choice(["ab", "a", "c"], length)]
        costs = speech(words, length)
        decoder = Decoder(LEXICON, GRAMMARS[name], Phoneme(1, 1), beam=50.0)
        whole = decoder.decode(costs)
        assert whole.text.split() == words
        for size in (1, 37):
            stream = decoder.stream()
            found, first, held = [], None, 0
            for begin in range(0, len(costs), size):
                found += stream.push(costs[begin : begin + size])
                held = max(held, stream.records)
                first = begin if found and first is None else first
            early = len(found)
            last = stream.finish()
            assert (*found, *last.words) == whole.words
            assert last.cost == whole.cost
            assert first is not None
            assert first < 0.2 * len(costs) + 80
            assert early > 0.9 * len(words)
            most[length, size] = held
    assert most[300, 37] <= 1.5 * most[30, 37]


def test_half_precision_is_decoded_and_aligned():
    words = ["ab", "c"]
    costs = speech(words, 2)
    decoder = Decoder(LEXICON, GRAMMARS["loop"], Phoneme(1, 1))
    for dtype in (torch.bfloat16, torch.float16):
        half = costs.to(dtype)
        assert decoder.decode(half) == decoder.decode(half.float())
        pattern = Linkage(words, LEXICON, Phoneme(1, 1))
        assert pattern.align(half)[0].tolist() == pattern.align(half.float())[0].tolist()


def test_a_beam_drops_what_is_hopeless_and_says_when_nothing_is_left():
    costs = speech(["ab", "c", "a"], 1)
    wide, narrow = (Decoder(LEXICON, GRAMMARS["loop"], Phoneme(1, 1), beam=beam) for beam in (math.inf, 8.0))
    assert narrow.decode(costs) == wide.decode(costs)
    costs_of_silence = torch.full((20, 8), 9.0)
    costs_of_silence[:, :2] = 0.0
    forced = Grammar([(0, 1, "c", 0.0)], start=0, finals={1: 0.0})
    with pytest.raises(InputError, match="a wider beam"):
        Decoder(LEXICON, forced, Phoneme(2, 2, skip=False), beam=0.1).decode(costs_of_silence)


def test_probabilities_sum_to_one():
    g = GRAMMARS["bigram"]
    for history in ([], ["ab"], ["a"], ["c"]):
        before = {g.start: 0.0}
        for word in history:
            before = g._after(before, lambda node, word=word: g._ways(word, node))
        follow = [g._after(before, lambda node, w=w: [(-1, c) for _, c in g._ways(w, node)]) for w in g.words]
        ends = g._after(before, lambda node: [(-1, g.finals[node])] if node in g.finals else [])
        paid = min(before.values())
        assert sum(math.exp(paid - each[-1]) for each in [*follow, ends]) == pytest.approx(1.0)


def test_probabilities_sum_to_one_where_every_word_was_seen():
    g = Grammar.bigram([["a"], ["a", "b", "a"], ["b", "b"]], flatten=0.2)
    [node] = {target for source, target, word, _ in g.arcs if word == "b" and source == g.start}
    assert node not in {source for source, _, _ in g.silent}  # there is nothing to back off to
    followed = [cost for source, _, _, cost in g.arcs if source == node]
    assert sum(math.exp(-cost) for cost in [*followed, g.finals[node]]) == pytest.approx(1.0)


def test_perplexities():
    assert Grammar.loop("abcde").perplexity([["a", "e"], ["b"]]) == pytest.approx(5.0)
    # After the beginning a or b, after a only the end, after b only a.
    g = Grammar.pairs([["a"], ["b", "a"]])
    assert g.perplexity([["a"], ["b", "a"]]) == pytest.approx(4 ** (1 / 5))
    assert g.perplexity([["b", "b"]]) == math.inf
    assert Grammar([(0, 0, "a", 1000.0)], start=0, finals={0: 0.0}).perplexity([["a"]]) == math.inf
    assert GRAMMARS["bigram"].perplexity(TEXTS) < GRAMMARS["bigram"].perplexity([["c", "c"], ["a", "ab"]]) < math.inf


def test_what_cannot_be_is_said():
    with pytest.raises(InputError, match="lacks a word: d"):
        Decoder(LEXICON, Grammar.loop("ad"))
    with pytest.raises(InputError, match="penalty must be a finite number"):
        Decoder(LEXICON, GRAMMARS["loop"], penalty=math.nan)
    with pytest.raises(InputError, match="beam above 0"):
        Decoder(LEXICON, GRAMMARS["loop"], beam=0.0)
    decoder = Decoder(LEXICON, GRAMMARS["loop"], Phoneme(1, 1))
    with pytest.raises(ShapeError, match="with 4 predictors or more"):
        decoder.decode(torch.rand(5, 3))
    with pytest.raises(InputError, match="not numbers"):
        decoder.decode(torch.full((5, 4), math.nan))
    with pytest.raises(InputError, match="fits into 0 frames"):
        decoder.decode(torch.rand(0, 4))
    for call in (
        lambda: Grammar([], start=0, finals={0: 0.0}),
        lambda: Grammar([(0, 1, "a", math.inf)], start=0, finals={1: 0.0}),
        lambda: Grammar([(0, 1, "a", 0.0)], start=0, finals={1: 0.0}, silent=[(0, 1, 0.0), (1, 2, 0.0)]),
        lambda: Grammar.loop([]),
        lambda: Grammar.pairs([[]]),
        lambda: Grammar.pairs(["ab"]),
        lambda: Grammar.bigram([["<s>", "a", "</s>"]]),
        lambda: GRAMMARS["loop"].cost("a c"),
        lambda: GRAMMARS["loop"].reached("c"),
        lambda: GRAMMARS["loop"].perplexity(["c"]),
        lambda: Grammar.bigram(TEXTS, discount=1.0),
        lambda: GRAMMARS["loop"].perplexity([]),
    ):
        with pytest.raises(InputError):
            call()
