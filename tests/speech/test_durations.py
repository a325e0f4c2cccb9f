"""Durations of phones against their definition, and a second look that they decide."""

from __future__ import annotations

import math

import pytest
import torch

from counterflow.exceptions import InputError
from counterflow.speech import Decoder, Durations, Grammar, Lexicon, Linkage, Phoneme, rescore

LEXICON = Lexicon({"long": [("L",)], "short": [("S",)]})
PHONEME = Phoneme(1, 1)


def aligned(word: str, frames: int) -> tuple[Linkage, torch.Tensor]:
    """Silence, the word, silence."""
    return Linkage([word], LEXICON, PHONEME), torch.tensor([0] * 3 + [1] * frames + [2] * 40)


def test_durations_are_log_normal_and_silence_is_free():
    data = [aligned("long", n) for n in (18, 20, 22, 20)] + [aligned("short", n) for n in (3, 4, 5)]
    lengths = Durations(data, 3)
    logs = [math.log(n) for n in (18, 20, 22, 20, 3, 4, 5)]
    mean = sum(logs) / 7
    variance = sum((value - mean) ** 2 for value in logs) / 7 + 0.01
    center = (sum(logs[:4]) + 5 * mean) / 9
    spread = math.sqrt((sum((value - center) ** 2 for value in logs[:4]) + 5 * variance) / 9)
    expected = 0.5 * ((math.log(10) - center) / spread) ** 2 + math.log(spread)
    assert lengths.cost(*aligned("long", 10)) == pytest.approx(expected, rel=1e-5)
    pattern, states = aligned("long", 10)
    assert lengths.cost(pattern, torch.cat([states, states[-1:].expand(90)])) == pytest.approx(expected, rel=1e-5)


def test_a_second_look_prefers_phones_of_their_usual_length():
    data = [aligned("long", n) for n in (18, 20, 22) * 9] + [aligned("short", n) for n in (3, 4, 5) * 9]
    lengths = Durations(data, 3)
    decoder = Decoder(LEXICON, Grammar.loop(LEXICON.pronunciations), PHONEME, penalty=1.0)
    costs = torch.tensor([[0.0, 9.0, 9.0]] * 5 + [[9.0, 0.0, 0.05]] * 4 + [[0.0, 9.0, 9.0]] * 5)
    assert decoder.decode(costs).text == "long"
    found = rescore(decoder, costs, lengths, n=3)
    assert found[0].text == "short"
    assert [each.cost for each in found] == sorted(each.cost for each in found)
    assert rescore(decoder, costs, lengths, n=3, weight=0.0)[0] == decoder.decode(costs)


def test_what_durations_refuse():
    silence = Linkage([], LEXICON, PHONEME), torch.zeros(4, dtype=torch.int64)
    for data, phones, match in (
        ([silence], 3, "no phone but silence"),
        ([aligned("short", 3)], 1, "phones=1"),
        ([(aligned("short", 3)[0], torch.tensor([7]))], 3, "states must lie"),
    ):
        with pytest.raises(InputError, match=match):
            Durations(data, phones)
