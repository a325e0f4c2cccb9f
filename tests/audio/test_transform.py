"""The short-time transform: energy, the way back, and what it is sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.audio import ShortTime
from counterflow.exceptions import InputError, ShapeError


@settings(deadline=None, max_examples=40)
@given(
    samples=st.integers(1, 900),
    channels=st.integers(1, 4),
    parts=st.sampled_from([2, 3, 4, 8]),
    hop=st.sampled_from([2, 5, 16]),
    window=st.sampled_from(["hamming", "hann"]),
)
def test_the_pair_keeps_energy_and_the_wave(samples, channels, parts, hop, window):
    size = parts * hop
    transform = ShortTime(size + size % 2 * hop, hop, window)
    wave = torch.randn(channels, samples, dtype=torch.float64)
    spectrum = transform(wave)
    assert spectrum.shape == (channels, transform.frequencies, transform.frames(samples))
    torch.testing.assert_close(transform.energy(spectrum), wave.square().sum(-1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(transform.inverse(spectrum, samples), wave, rtol=1e-9, atol=1e-9)


def test_in_single_precision_energy_is_kept_to_a_millionth():
    wave = torch.randn(2, 16000)
    transform = ShortTime(2048, 512)
    spectrum = transform(wave)
    torch.testing.assert_close(transform.energy(spectrum), wave.square().sum(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        transform.inverse(spectrum, 16000).square().sum(-1), wave.square().sum(-1), rtol=1e-6, atol=0
    )


def test_a_frame_is_what_numpy_says():
    wave = np.random.default_rng(0).normal(size=60)
    found = ShortTime(16, 4)(torch.from_numpy(wave)).numpy()
    w = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(16) / 16)
    w /= np.sqrt(sum(np.roll(w, 4 * k) ** 2 for k in range(4)))
    padded = np.concatenate([np.zeros(12), wave, np.zeros(12)])
    for frame in range(3, 12):
        np.testing.assert_allclose(found[:, frame], np.fft.rfft(w * padded[4 * frame : 4 * frame + 16]) / 4, atol=1e-12)


def test_it_is_differentiable_both_ways():
    transform = ShortTime(8, 2)
    wave = torch.randn(11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: torch.view_as_real(transform(x)), wave)
    spectrum = transform(wave).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: transform.inverse(s, 11), spectrum)


@pytest.mark.parametrize(("size", "hop"), [(511, 73), (512, 100), (512, 512), (0, 1), (8, 0)])
def test_sizes_that_do_not_fit_are_refused(size, hop):
    with pytest.raises(InputError, match=f"size={size}, hop={hop}"):
        ShortTime(size, hop)


def test_what_is_no_wave_or_no_spectrum_is_refused():
    transform = ShortTime(8, 4)
    with pytest.raises(InputError, match="hann"):
        ShortTime(8, 4, "kaiser")
    with pytest.raises(InputError, match="floating point"):
        transform(torch.zeros(9, dtype=torch.int16))
    with pytest.raises(ShapeError, match="no samples"):
        transform(torch.zeros(2, 0))
    with pytest.raises(ShapeError, match="spectrum of 20 samples"):
        transform.inverse(torch.zeros(5, 3, dtype=torch.complex64), 20)
