"""Rooms: responses, images, and levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from counterflow.audio import Room, active_power, images, snr_gain
from counterflow.exceptions import InputError, ShapeError


def test_without_walls_sound_comes_late_and_weak_by_its_distance():
    room = Room((5.0, 5.0, 3.0), 0.0, ((1.0, 1.0, 1.0),), ((2.0, 1.0, 1.0), (3.0, 1.0, 1.0)))
    near, far = room.responses(16000)[0]
    assert int(far.abs().argmax() - near.abs().argmax()) == pytest.approx(16000 / 343, abs=1.0)
    assert float(near.abs().max() / far.abs().max()) == pytest.approx(2.0, rel=0.3)


@pytest.mark.parametrize("reverberation", [0.1, 0.3])
def test_a_room_has_the_reverberation_that_was_asked_for(reverberation):
    response = Room.draw(reverberation, seed=3).responses(8000)[0, 0].double()
    decay = response.square().flip(0).cumsum(0).flip(0)
    level = 10 * torch.log10(decay / decay[0] + 1e-12)
    at = [int((level < bound).nonzero()[0]) for bound in (-5, -25)]
    assert 3 * (at[1] - at[0]) / 8000 == pytest.approx(reverberation, rel=0.5)


def test_drawn_rooms_are_as_asked():
    for seed in range(20):
        room = Room.draw(0.2, seed=seed, channels=3, spacing=0.05, distance=0.8)
        microphones, sources = np.array(room.microphones), np.array(room.sources)
        middle = microphones.mean(0)
        np.testing.assert_allclose(np.linalg.norm(np.diff(microphones, axis=0), axis=1), 0.05)
        np.testing.assert_allclose(np.linalg.norm(sources - middle, axis=1), 0.8)
        a, b = sources - middle
        assert a @ b / 0.64 <= math.cos(math.radians(40)) + 1e-9
        assert room == Room.draw(0.2, seed=seed, channels=3, spacing=0.05, distance=0.8)
    assert Room.draw(0.2, seed=0) != Room.draw(0.2, seed=1)


@pytest.mark.parametrize("apart", [39.0, 40.0])
def test_sources_that_hardly_fit_are_placed_all_the_same(apart):
    room = Room.draw(0.0, seed=0, sources=5, apart=apart)
    middle = np.array(room.microphones).mean(0)
    along = np.array(room.microphones)[1] - middle
    cosines = (np.array(room.sources) - middle) @ along / np.linalg.norm(along)
    angles = np.sort(np.degrees(np.arccos(cosines)))
    assert np.diff(angles).min() > apart - 1e-6
    assert angles.min() > 10 - 1e-6
    assert angles.max() < 170 + 1e-6


def test_images_are_convolutions():
    sources, responses = torch.randn(2, 50), torch.randn(3, 2, 7)
    found = images(sources, responses)
    for s in range(2):
        for m in range(3):
            wanted = np.convolve(sources[s].numpy(), responses[m, s].numpy())[:50]
            np.testing.assert_allclose(found[s, m], wanted, atol=1e-4)


def test_levels_count_the_voice_where_it_speaks():
    rate = 8000
    voice = torch.cat([torch.zeros(4000), torch.randn(4000), torch.zeros(4000)])
    noise = 3 * torch.randn(12000)
    gain = snr_gain(voice, noise, 10.0, rate)
    ratio = active_power(voice, rate) / (gain * noise).square().mean()
    assert float(10 * torch.log10(ratio)) == pytest.approx(10.0, abs=1e-4)
    assert float(active_power(voice, rate)) == pytest.approx(1.0, rel=0.1)
    for silent in ((0 * voice, noise), (voice, 0 * noise)):
        with pytest.raises(InputError, match="silent"):
            snr_gain(*silent, 0.0, rate)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Room((4.0, 4.0, 3.0), 0.2, ((5.0, 1.0, 1.0),), ((1.0, 1.0, 1.0),)), "not inside"),
        (lambda: Room((4.0, 4.0, 3.0), -1.0, ((1.0, 1.0, 1.0),), ((2.0, 1.0, 1.0),)), "reverberation"),
        (lambda: Room((4.0, 4.0, 3.0), math.inf, ((1.0, 1.0, 1.0),), ((2.0, 1.0, 1.0),)), "inf s; at most 1.75 s"),
        (lambda: Room((4.0, 4.0, 3.0), 30.0, ((1.0, 1.0, 1.0),), ((2.0, 1.0, 1.0),)), "at most 1.75 s"),
        (lambda: Room((4.0, 4.0, 3.0), math.nan, ((1.0, 1.0, 1.0),), ((2.0, 1.0, 1.0),)), "reverberation"),
        (lambda: Room((4.0, 4.0, 3.0), 0.1, (), ((2.0, 1.0, 1.0),)), "one or more"),
        (lambda: Room.draw(0.1, seed=0, distance=9.0), "distance"),
        (lambda: Room.draw(0.1, seed=0, sources=8), "degrees apart"),
    ],
)
def test_rooms_that_cannot_be_are_refused(make, complaint):
    with pytest.raises(InputError, match=complaint):
        make()


def test_images_need_a_response_a_source():
    with pytest.raises(ShapeError, match="sources, samples"):
        images(torch.zeros(2, 5), torch.zeros(2, 3, 4))
