"""Alignments beside labels by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from counterflow.audio import log_mel
from counterflow.exceptions import InputError
from counterflow.speech import GaussianStates, Grammar, Lexicon, Phoneme, Recognizer, Segment, boundary_error

LEXICON = Lexicon({"ab": [("A", "B")], "ba": [("B", "A")]})


def tone(pitch: float, samples: int, rate: int) -> Tensor:
    noise = 0.001 * torch.randn(samples, generator=torch.Generator().manual_seed(0))
    return 0.1 * torch.sin(2 * torch.pi * pitch * torch.arange(samples) / rate) + noise


def recognizer_of_tones(rate: int) -> Recognizer:
    """One that knows a low tone, A, and a high one, B, of a recording that is half of each."""
    low, high = (log_mel(tone(pitch, rate, rate), rate, 16, window=0.025).mean(0) for pitch in (500, 2000))
    model = GaussianStates(3, 16)
    model.means[:, 0] = torch.stack([torch.full((16,), 50.0), (low - high) / 2, (high - low) / 2])
    return Recognizer(model, LEXICON, Grammar.loop(["ab", "ba"]), Phoneme(1, 1), rate=rate, spread=torch.ones(16))


def test_a_boundary_is_found_where_the_sound_changes():
    """On average over all places within a step, and over the recording and its mirror image."""
    rec, off = recognizer_of_tones(8000), []
    for more in range(0, 80, 8):
        wave = torch.cat([tone(500, 4000 + more, 8000), tone(2000, 4000, 8000)])
        place = (4000 + more) / 8000
        for heard, text, where in ((wave, "ab", place), (wave.flip(0), "ba", len(wave) / 8000 - place)):
            words, phones = rec.align(heard, text)
            assert (phones[0].start, phones[0].end) == (0.0, phones[1].start)
            assert (words[0].start, words[0].end) == (phones[0].start, phones[1].end)
            off.append(phones[1].start - where)
    assert abs(np.mean(off)) < 0.001
    assert np.abs(off).max() < 0.02
    stream = rec.stream()
    [word] = [*stream.push(wave), *stream.finish()]
    assert (word.start, word.end) == (0.0, phones[1].end)


def test_times_do_not_run_away_where_10_ms_are_no_whole_samples():
    """At 11025 hertz they are 110.25, and frames lie 110 apart: in a minute that is 140 ms."""
    _, phones = recognizer_of_tones(11025).align(
        torch.cat([tone(pitch, 30 * 11025, 11025) for pitch in (500, 2000)]), "ab"
    )
    assert phones[1].start == pytest.approx(30, abs=0.02)
    assert 60 - 0.025 < phones[1].end <= 60


def test_differences_are_of_beginnings_without_silence_and_the_first():
    found = [
        [Segment("SIL", 0.0, 0.1), Segment("a", 0.1, 0.3), Segment("b", 0.3, 0.5), Segment("c", 0.5, 0.6)],
        [Segment("a", 0.0, 0.2), Segment("SIL", 0.2, 0.3), Segment("b", 0.3, 0.4)],
    ]
    by_hand = [
        [Segment("a", 0.0, 0.31), Segment("b", 0.31, 0.44), Segment("c", 0.44, 0.6)],
        [Segment("SIL", 0.0, 0.1), Segment("a", 0.1, 0.28), Segment("b", 0.28, 0.4)],
    ]
    error = boundary_error(found, by_hand)
    assert error.count == 3
    assert error.mean == pytest.approx((0.01 + 0.06 + 0.02) / 3)
    assert error.median == pytest.approx(0.02)
    assert error.bias == pytest.approx((-0.01 + 0.06 + 0.02) / 3)
    assert error.within == pytest.approx(2 / 3)


def test_what_cannot_be_compared_is_said():
    one = [Segment("a", 0.0, 0.2), Segment("b", 0.2, 0.3)]
    for found, by_hand, match in (
        ([one], [], "as many alignments as labels"),
        ([one], [one[:1]], "utterance 0 was aligned as 'a b', and its labels say 'a'"),
        ([one[:1]], [one[:1]], "no boundaries to compare"),
    ):
        with pytest.raises(InputError, match=match):
            boundary_error(found, by_hand)
