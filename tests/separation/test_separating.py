"""From a recording to its sources: rooms, microphones, and recordings that nothing can be made of."""

from __future__ import annotations

import pytest
import torch

from counterflow.audio import Room, ShortTime, images
from counterflow.exceptions import DivergenceError, InputError, ShapeError
from counterflow.separation import (
    FrequencyICA,
    Microphones,
    WordClassifier,
    auxiliary_iva,
    saturation,
    separate,
    separating,
)

RATE = 8000


@pytest.fixture(scope="module")
def recording() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sources that stop and go, in a room: images (sources, microphones, samples) and their sum."""
    generator = torch.Generator().manual_seed(0)
    loud = (torch.rand(2, 60, generator=generator) ** 4).repeat_interleave(400, 1)
    sources = loud * torch.randn(2, 24000, generator=generator)
    found = images(sources, Room.draw(0.1, seed=1).responses(RATE))
    return found, found.sum(0)


def ratio(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Decibels of truth over what is not truth, of the better order of outputs."""

    def one(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 10 * (b.square().sum(-1) / (a - b).square().sum(-1)).log10().mean()

    return float(max(one(found, truth), one(found.flip(0), truth)))


@pytest.mark.parametrize(("options", "least"), [({}, 8.0), ({"method": "ica"}, 5.0), ({"online": True}, 2.0)])
def test_sources_in_a_room_are_separated(recording, options, least):
    truth, heard = recording
    found = separate(heard, RATE, **options)
    assert found.shape == heard.shape
    assert ratio(found, truth[:, 0]) > ratio(heard[:1].expand(2, -1), truth[:, 0]) + least
    torch.testing.assert_close(found.sum(0), heard[0], atol=1e-3 * float(heard.abs().max()), rtol=0)


@pytest.mark.parametrize("silence", [0.0, 0.08, 0.23, 0.5])
@pytest.mark.parametrize("block", [1, 8])
def test_on_line_neither_digital_silence_before_nor_blocks_matter(silence, block, recording, monkeypatch):
    """Frames come one at a time, or eight; the first of them with sound share a block with silence."""
    truth, heard = recording
    whole = separating._online
    monkeypatch.setattr(separating, "_online", lambda spectrum, _: whole(spectrum, block))
    late = round(silence * RATE)
    found = separate(torch.cat([torch.zeros(2, late), heard], 1), RATE, online=True)[:, late:]
    torch.testing.assert_close(found.sum(0), heard[0], atol=1e-3 * float(heard.abs().max()), rtol=0)
    found, heard, truth = found[:, RATE:], heard[:, RATE:], truth[:, 0, RATE:]
    assert ratio(found, truth) > 12.0


def diverging_above(rate, monkeypatch):
    """Let the natural gradient run away at all larger rates, as it does where each source is there a short time."""
    fit = FrequencyICA.fit

    def fitted(ica, spectra):
        if ica.rate > rate:
            raise DivergenceError(f"rate is {ica.rate}: the matrices diverged; lower it")
        return fit(ica, spectra)

    monkeypatch.setattr(FrequencyICA, "fit", fitted)


def test_where_the_natural_gradient_runs_away_it_starts_again_at_a_smaller_rate(recording, monkeypatch):
    heard = recording[1][:, :4000]
    transform = ShortTime(256, 64)
    spectra = transform(heard)
    wanted = FrequencyICA(rate=0.05, iterations=5).fit(spectra).separate(spectra)
    diverging_above(0.06, monkeypatch)
    found = separate(heard, RATE, method="ica", transform=transform, iterations=5)
    assert torch.equal(found, transform.inverse(wanted, 4000))


def test_where_no_rate_helps_another_method_is_named(recording, monkeypatch):
    diverging_above(0.0, monkeypatch)
    with pytest.raises(DivergenceError, match=r"down to a step of 0\.00625; take method='iva'"):
        separate(recording[1], RATE, method="ica")


class Low(WordClassifier):
    """Is the surer, the more of the power lies below 1 kHz."""

    def forward(self, spectra, lengths):
        power = spectra.abs().square().sum(-1)
        share = power[:, : power.shape[1] // 4].sum(1) / power.sum(1)
        return torch.stack([share, -share], 1)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("method", ["iva", "ica"])
def test_the_output_that_the_classifier_is_sure_of_comes_first(method, turned, monkeypatch):
    """Whichever output it is that holds it: the matrices are turned round before attention sees them."""
    generator = torch.Generator().manual_seed(0)
    loud = (torch.rand(2, 40, generator=generator) ** 4).repeat_interleave(200, 1)
    sources = loud * torch.randn(2, 8000, generator=generator)
    spectrum = torch.fft.rfft(sources[0])
    spectrum[1000:] = 0
    sources[0] = 3 * torch.fft.irfft(spectrum, 8000)
    heard = torch.tensor([[1.0, 0.7], [0.6, 1.0]]) @ sources
    if turned:
        fit = FrequencyICA.fit

        def fitted(ica, spectra):
            fit(ica, spectra)
            ica.unmixing = ica.unmixing.flip(1)

        monkeypatch.setattr(FrequencyICA, "fit", fitted)
        monkeypatch.setattr(separating, "auxiliary_iva", lambda *a, **options: auxiliary_iva(*a, **options).flip(1))
    words = Low(["low", "high"], RATE, ShortTime(256, 64)).eval()
    found = separate(heard, RATE, attend=words, method=method, gamma=1.0, passes=2)
    likeness = [abs(float(torch.corrcoef(torch.stack([each, sources[0]]))[0, 1])) for each in found]
    assert likeness[0] > 0.9
    assert likeness[1] < 0.3


def test_with_a_classifier_sources_add_up_too(recording):
    _, heard = recording
    torch.manual_seed(0)
    words = WordClassifier(["a", "b"], RATE, ShortTime(512, 128)).eval()
    for method in ("iva", "ica"):
        found = separate(heard, RATE, attend=words, method=method, iterations=10, passes=2)
        assert found.shape == heard.shape
        torch.testing.assert_close(found.sum(0), heard[0], atol=1e-3 * float(heard.abs().max()), rtol=0)
    with pytest.raises(InputError, match="8000 Hz"):
        separate(heard, 16000, attend=words)
    with pytest.raises(InputError, match="leave transform out"):
        separate(heard, RATE, attend=words, transform=ShortTime(256, 64))


@pytest.mark.parametrize("options", [{}, {"online": True}, {"method": "ica", "iterations": 3}, {"attend": True}])
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_recording_may_have_any_precision(kind, options, recording):
    if "attend" in options:
        torch.manual_seed(0)
        words = WordClassifier(["a", "b"], RATE, ShortTime(256, 64), hidden=3).eval()
        options = {"attend": words, "iterations": 3, "passes": 1}
    heard = recording[1][:, :4000].to(kind)
    found = separate(heard, RATE, **options)
    assert found.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    torch.testing.assert_close(found.sum(0), heard[0].to(found.dtype), atol=1e-3 * float(heard.abs().max()), rtol=0)


def test_it_works_with_and_without_gradients(recording):
    torch.manual_seed(0)
    words = WordClassifier(["a", "b"], RATE, ShortTime(256, 64), hidden=3).eval()
    heard = recording[1][:, :4000]
    options = {"attend": words, "iterations": 3, "passes": 1}
    wanted = separate(heard, RATE, **options)
    with torch.no_grad():
        assert torch.equal(separate(heard, RATE, **options), wanted)
    watched = heard.clone().requires_grad_()
    assert torch.equal(separate(watched, RATE), separate(heard, RATE))


def test_three_channels_and_fewer_sources():
    generator = torch.Generator().manual_seed(0)
    loud = (torch.rand(3, 60, generator=generator) ** 4).repeat_interleave(200, 1)
    sources = loud * torch.randn(3, 12000, generator=generator)
    A = torch.tensor([[1.0, 0.5, 0.2], [0.4, 1.0, 0.3], [0.1, 0.6, 1.0]])
    truth = A[0, :, None] * sources
    found = separate(A @ sources, RATE)
    best = [max(float(torch.corrcoef(torch.stack([f, t]))[0, 1]) for f in found) for t in truth]
    assert min(best) > 0.95
    two = separate(A[:, :2] @ sources[:2], RATE, sources=2)
    assert two.shape == (2, 12000)


def test_channels_that_are_mixtures_of_fewer_are_refused_unless_fewer_are_asked_for(recording):
    heard = recording[1][:, :4000]
    mixed = torch.cat([heard, heard.mean(0, keepdim=True)])
    for kept in (mixed, (0.5 / mixed.abs().max() * mixed * 2**15).round() / 2**15):
        with pytest.raises(InputError, match=r"3 channels of mixture are mixtures of 2; ask for 2 sources"):
            separate(kept, RATE)
        found = separate(kept, RATE, sources=2, iterations=3)
        assert bool((found.square().mean(1) > 1e-3 * kept[0].square().mean()).all())


@pytest.mark.parametrize("channels", [6, 8])
@pytest.mark.parametrize("attended", [False, True])
def test_delays_of_one_signal_are_told_of_unless_fewer_are_asked_for(channels, attended):
    """No channel is a mixture of the others; in each frequency they are, nearly."""
    generator = torch.Generator().manual_seed(0)
    loud = (torch.rand(41, generator=generator) ** 4).repeat_interleave(400)
    signal = loud * torch.randn(16400, generator=generator)
    heard = torch.stack([signal[k : 16000 + k] for k in range(channels)])
    words = WordClassifier(["a", "b"], RATE, separating.default_transform(RATE), hidden=3).eval() if attended else None
    with pytest.raises(DivergenceError, match=rf"the matrices of {channels} outputs diverged.*sources=2"):
        separate(heard, RATE, attend=words)
    found = separate(heard, RATE, sources=2)
    assert bool(found.isfinite().all())
    assert 0.5 < float(found.sum(0).std() / heard[0].std()) < 1.5


@pytest.mark.parametrize(("bits", "size"), [(16, 150), (16, 1500), (8, 30)])
def test_a_copy_at_half_the_level_that_was_rounded_is_one(bits, size, recording):
    """``size`` is the root mean square in steps of the format."""
    loud = recording[1][:, :4000]
    whole = (size / loud[0].square().mean().sqrt() * loud).round()
    copy = torch.stack([whole[0], (0.5 * whole[0]).round()]) / 2 ** (bits - 1)
    with pytest.raises(InputError, match="copies of each other"):
        separate(copy, RATE)
    assert separate(whole / 2 ** (bits - 1), RATE, iterations=1).shape == loud.shape


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda x: x[:1], "two microphones"),
        (lambda x: x[0], "two microphones"),
        (lambda x: x[None], r"give one recording, \(channels, samples\)"),
        (lambda x: x.T, r"shape \(24000, 2\) is \(channels, samples\)"),
        (lambda x: x[:, :0], "0.2 s is the least"),
        (lambda x: x * 0, "channel 0 of mixture is silent"),
        (lambda x: torch.stack([x[0], 0 * x[1]]), "channel 1 of mixture is silent"),
        (lambda x: torch.cat([x, torch.full((2, 1), torch.nan)], 1), "not finite"),
        (lambda x: torch.stack([x[0], 0.3 * x[0]]), "copies of each other"),
        (lambda x: x[:, :900], "0.2 s is the least"),
        (lambda x: (x * 1000).to(torch.int16), "floating point"),
    ],
)
def test_recordings_that_nothing_can_be_made_of_are_refused(spoil, complaint, recording):
    with pytest.raises((InputError, ShapeError), match=complaint):
        separate(spoil(recording[1]), RATE)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sources": 3}, "sources=3"),
        ({"sources": 0}, "sources=0"),
        ({"method": "pca"}, "method"),
        ({"online": True, "method": "ica"}, "online"),
        ({"online": True, "iterations": 3}, "online"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, complaint, recording):
    with pytest.raises(InputError, match=complaint):
        separate(recording[1], RATE, **options)


def test_a_microphone_that_saturates_leaves_outputs_dependent():
    """G keeps sources independent, h does not: section 2.2 of the paper, by the correlation of powers."""
    generator = torch.Generator().manual_seed(3)
    sources = torch.randn(2, 40000, generator=generator)
    responses = torch.eye(2)[:, :, None] + 0.6 * (1 - torch.eye(2))[:, :, None]

    def dependence(microphones: Microphones) -> float:
        x = microphones.record(sources, responses)
        u = torch.linalg.inv(responses[:, :, 0]) @ x
        return abs(float(torch.corrcoef(u.square())[0, 1]))

    assert dependence(Microphones()) < 0.02
    assert dependence(Microphones(g=saturation(1.0))) < 0.02
    assert dependence(Microphones(h=saturation(1.0))) > 0.05
    with pytest.raises(InputError, match="drive"):
        saturation(0.0)
