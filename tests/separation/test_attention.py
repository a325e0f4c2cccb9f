"""The classifier, the way of its error back to the spectra, and what that does to unmixing matrices."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import counterflow as cf
from counterflow.audio import ShortTime
from counterflow.exceptions import InputError, ShapeError, UnsupportedError
from counterflow.separation import (
    BipolarSigmoid,
    FrequencyICA,
    ICAMixture,
    MelFrames,
    WordClassifier,
    attend,
    choose_voice,
    confidence,
    pad_spectra,
    recognize,
)

from .mixtures import mixing

TRANSFORM = ShortTime(64, 32)
RATE = 8000


def words(count: int, seed: int) -> tuple[list[torch.Tensor], list[str]]:
    """Two words: energy that rises in frequency, or that falls, of unequal length; shape (frequencies, frames)."""
    generator = torch.Generator().manual_seed(seed)
    found, labels = [], []
    for number in range(count):
        frames = int(torch.randint(14, 22, (), generator=generator))
        up = number % 2
        ridge = torch.linspace(4, 28, frames) if up else torch.linspace(28, 4, frames)
        shape = (-0.5 * ((torch.arange(33.0)[:, None] - ridge) / 3).square()).exp() + 0.02
        found.append(shape * torch.randn(33, frames, dtype=torch.complex64, generator=generator))
        labels.append("up" if up else "down")
    return found, labels


@pytest.fixture(scope="module")
def classifier() -> WordClassifier:
    torch.manual_seed(0)
    made = WordClassifier(["down", "up"], RATE, TRANSFORM, n_mels=8, frames=10, hidden=12)
    return made.fit(*words(80, 0), epochs=20).eval()


@pytest.fixture(scope="module")
def scene() -> tuple[list[torch.Tensor], list[str]]:
    """Words and a steady noise, mixed alike for all; shape (channels, frequencies, frames)."""
    spectra, labels = words(24, 1)
    generator = torch.Generator().manual_seed(5)
    A = mixing(3, 33) * 0.5 + torch.eye(2)
    heard = []
    for each in spectra:
        noise = 0.6 * torch.randn(each.shape, dtype=torch.complex64, generator=generator)
        heard.append((A @ torch.stack([each, noise], 1)).transpose(0, 1))
    return heard, labels


def test_it_learns_words_and_comes_back_from_disk(classifier, tmp_path):
    spectra, labels = words(30, 2)
    assert np.mean([a == b for a, b in zip(classifier.predict(spectra), labels, strict=True)]) > 0.9
    classifier.save(tmp_path / "model")
    again = WordClassifier.load(tmp_path / "model")
    batch = pad_spectra(spectra)
    assert torch.equal(again(*batch), classifier(*batch))
    assert again.transform == TRANSFORM
    (tmp_path / "model" / "model.json").write_text("{}")
    with pytest.raises(InputError, match="format"):
        WordClassifier.load(tmp_path / "model")


def test_features_are_the_formulas_of_the_page(classifier):
    spectra, _ = words(3, 3)
    features = classifier.features
    found = features(*pad_spectra(spectra))
    M = features.filters.numpy()
    for number, each in enumerate(spectra):
        mel = (M @ np.abs(each.numpy())).T
        logs = np.log(mel + features.floor * mel.mean())
        frames = (logs - logs.mean(1, keepdims=True)) / np.sqrt(logs.var(1, keepdims=True) + features.spread)
        at = np.linspace(0, len(frames) - 1, 10)
        wanted = np.stack([np.interp(at, np.arange(len(frames)), frames[:, k]) for k in range(8)], 1)
        np.testing.assert_allclose(found[number], wanted, atol=1e-4)


def test_level_and_padding_are_of_no_consequence(classifier):
    spectra, _ = words(4, 4)
    batch, lengths = pad_spectra(spectra)
    outputs = classifier(batch, lengths)
    torch.testing.assert_close(classifier(30 * batch, lengths), outputs, atol=1e-5, rtol=0)
    torch.testing.assert_close(classifier(nn.functional.pad(batch, (0, 9)), lengths), outputs, atol=1e-5, rtol=0)
    alone = torch.cat([classifier(*pad_spectra([each])) for each in spectra])
    torch.testing.assert_close(alone, outputs, atol=1e-5, rtol=0)


def test_the_gradient_of_the_whole_chain_is_that_of_finite_differences(classifier):
    double = WordClassifier(["down", "up"], RATE, TRANSFORM, n_mels=8, frames=10, hidden=12)
    double.load_state_dict(classifier.state_dict())
    double = double.double()
    waves = torch.randn(2, 300, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: double(TRANSFORM(w), torch.tensor([11, 9])), waves.requires_grad_())
    row = torch.randn(33, 2, dtype=torch.complex128, requires_grad=True)
    x = torch.randn(33, 2, 11, dtype=torch.complex128)

    def error(row):
        y = double(torch.einsum("fk,fkt->ft", row, x)[None], torch.tensor([11]))
        return 0.5 * (torch.tensor([1.0, -1.0]) - y).square().sum()

    assert torch.autograd.gradcheck(error, row)


def test_silence_has_a_gradient():
    features = MelFrames(RATE, 64, 8, 10)
    spectra = torch.zeros(1, 33, 12, dtype=torch.complex64, requires_grad=True)
    features(spectra, torch.tensor([12])).sum().backward()
    assert bool(torch.isfinite(torch.view_as_real(spectra.grad)).all())


def test_the_inverse_map_brings_the_change_about():
    """Bins under one filter only, so that mel can be undone; then features after are features before and the change."""
    features = MelFrames(RATE, 64, 8, 10, floor=0.01)
    spectra = torch.randn(1, 33, 10, dtype=torch.complex128)
    lengths = torch.tensor([10])
    change = torch.zeros(1, 10, 8, dtype=torch.float64)
    assert not bool(features.double().expected_change(spectra, lengths, change).abs().max() > 1e-12)
    change[0, 4, 3] = 0.3
    moved = spectra + features.expected_change(spectra, lengths, change)
    grown = features(moved, lengths) - features(spectra, lengths)
    assert int(grown.abs().flatten().argmax()) == 4 * 8 + 3
    assert 0.05 < float(grown[0, 4, 3]) < 0.5
    torch.testing.assert_close(moved.angle(), spectra.angle())


def plain(ica: FrequencyICA, spectra, passes: int) -> torch.Tensor:
    twin = ica.copy()
    z = twin.whitened(spectra)
    for _ in range(passes):
        twin.update(z)
    return twin.unmixing


def test_without_weight_it_is_independent_component_analysis_to_the_bit(classifier, scene):
    ica = FrequencyICA(iterations=20).fit(scene[0])
    before = ica.unmixing.clone()
    found = attend(ica, scene[0], classifier, gamma=0.0, passes=4)
    assert torch.equal(found.ica.unmixing, plain(ica, scene[0], 4))
    assert torch.equal(ica.unmixing, before)
    assert not torch.equal(attend(ica, scene[0], classifier, gamma=1.0, passes=4).ica.unmixing, found.ica.unmixing)


def test_without_weight_no_error_is_computed(scene):
    ica = FrequencyICA(iterations=5).fit(scene[0])

    class Deaf(nn.Module):
        def forward(self, spectra, lengths):
            assert not torch.is_grad_enabled()
            return torch.zeros(len(spectra), 2)

    attend(ica, scene[0], Deaf(), gamma=0.0, passes=2)


def test_one_pass_is_the_papers_equation(classifier, scene):
    """Item by item, frequency by frequency, from the gradient at the matrices themselves."""
    ica = FrequencyICA(iterations=15, rate=0.1).fit(scene[0])
    found = attend(ica, scene[0], classifier, gamma=7.0, passes=1, voice=0)
    W, z = ica.unmixing.clone(), ica.whitened(scene[0])
    row = W[:, 0].clone().requires_grad_()
    factor = ica.scale()[:, 0, None]
    total = 0.0
    for z_item in z.split([item.shape[2] for item in scene[0]], -1):
        u = torch.einsum("fk,fkt->ft", row, z_item) * factor
        y = classifier(u[None], torch.tensor([u.shape[1]]))[0]
        t = torch.full_like(y, -1.0)
        t[y.argmax()] = 1.0
        total = total + 0.5 * (t - y).square().sum()
    (slope,) = torch.autograd.grad(total, row)
    wanted = plain(ica, scene[0], 1)
    wanted[:, 0] -= 0.1 * 7.0 * slope / z.shape[-1]
    torch.testing.assert_close(found.ica.unmixing, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("form", "gamma"), [("gradient", 200.0), ("inverse", 300.0)])
@pytest.mark.parametrize("weighting", ["none", "margin"])
def test_attention_lowers_the_classifiers_error(classifier, scene, form, gamma, weighting):
    ica = FrequencyICA(iterations=20).fit(scene[0])
    without = attend(ica, scene[0], classifier, gamma=0.0, passes=6)
    found = attend(ica, scene[0], classifier, gamma=gamma, passes=6, form=form, weighting=weighting, step=1.0)
    assert float(found.errors[-1]) < 0.985 * float(without.errors[-1])
    assert found.outputs.shape == (7, 24, 2)
    torch.testing.assert_close(
        recognize(found.ica, scene[0], classifier, found.voice), found.outputs[-1], atol=1e-4, rtol=0
    )


def test_the_voice_is_found_without_labels(classifier, scene):
    ica = FrequencyICA(iterations=60).fit(scene[0])
    voice = choose_voice(ica, scene[0], classifier)
    truth = torch.tensor([int(label == "up") for label in scene[1]])
    right = [(recognize(ica, scene[0], classifier, k).argmax(1) == truth).float().mean() for k in range(2)]
    assert right[voice] > right[1 - voice]
    ica.unmixing = ica.unmixing.flip(1)
    assert choose_voice(ica, scene[0], classifier) == 1 - voice


def test_labels_may_be_the_targets(classifier, scene):
    ica = FrequencyICA(iterations=10).fit(scene[0])
    truth = torch.tensor([int(label == "up") for label in scene[1]])
    own = attend(ica, scene[0], classifier, gamma=30.0, passes=2)
    told = attend(ica, scene[0], classifier, gamma=30.0, passes=2, targets=1 - truth)
    assert not torch.equal(own.ica.unmixing, told.ica.unmixing)
    same = attend(ica, scene[0], classifier, gamma=30.0, passes=1, targets=own.outputs[0].argmax(1))
    one = attend(ica, scene[0], classifier, gamma=30.0, passes=1)
    assert torch.equal(same.ica.unmixing, one.ica.unmixing)


def test_any_classifier_may_stand_in(classifier, scene):
    """A net of one's own, with competing units and noise on its weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(80, 12), nn.ReLU(), nn.Linear(12, 2), BipolarSigmoid())
    cf.compete(net, 2)
    own = WordClassifier(["down", "up"], RATE, TRANSFORM, n_mels=8, frames=10, net=net)
    own.fit(*words(60, 0), epochs=15)
    variational = cf.make_variational(own).model.eval()
    ica = FrequencyICA(iterations=20).fit(scene[0])
    without = attend(ica, scene[0], variational, gamma=0.0, passes=4)
    for form in ("gradient", "inverse"):
        found = attend(ica, scene[0], variational, gamma=100.0, passes=4, form=form)
        assert torch.equal(found.errors[0], without.errors[0])
        assert float(found.errors[-1]) < 0.99 * float(without.errors[-1])
    with pytest.raises(InputError, match="net of your own"):
        own.save("nowhere")


def test_models_of_several_places_find_their_items(classifier):
    spectra, _ = words(16, 6)
    places = [mixing(20, 33), mixing(21, 33)]
    items = []
    for number, each in enumerate(spectra):
        noise = torch.randn(each.shape, dtype=torch.complex64)
        items.append((places[number // 8] @ torch.stack([each, noise], 1)).transpose(0, 1))
    mixture = ICAMixture(2, iterations=15).fit(items)
    members = mixture.members.tolist()
    assert members == 8 * members[:1] + 8 * [1 - members[0]]
    assert mixture.separate(items[0]).shape == items[0].shape
    before = [model.unmixing.clone() for model in mixture.models]
    found = mixture.attend(items, classifier, gamma=10.0, passes=1)
    assert sorted(found) == [0, 1]
    assert not any(torch.equal(a, model.unmixing) for a, model in zip(before, mixture.models, strict=True))


def test_one_word_alone_may_be_given_as_it_is(classifier, scene):
    ica = FrequencyICA(iterations=5).fit(scene[0])
    one, listed = (attend(ica, words, classifier, gamma=10.0, passes=2) for words in (scene[0][0], scene[0][:1]))
    assert torch.equal(one.ica.unmixing, listed.ica.unmixing)
    assert torch.equal(one.outputs, listed.outputs)


def test_attention_works_where_gradients_are_switched_off(classifier, scene):
    ica = FrequencyICA(iterations=5).fit(scene[0])
    wanted = attend(ica, scene[0], classifier, gamma=10.0, passes=1)
    with torch.no_grad():
        found = attend(ica, scene[0], classifier, gamma=10.0, passes=1)
    assert torch.equal(found.ica.unmixing, wanted.ica.unmixing)


def test_a_hostile_model_cannot_ask_for_memory(classifier, tmp_path):
    classifier.save(tmp_path / "model")
    place = tmp_path / "model" / "model.json"
    config = json.loads(place.read_text())
    config["config"]["hidden"] = 10**12
    place.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"is damaged: net\.0\.bias has shape"):
        WordClassifier.load(tmp_path / "model")


def test_confidence_is_the_margin():
    torch.testing.assert_close(confidence(torch.tensor([[1.0, -1.0, 0.0]])), torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": 1.0, "form": "other"}, "form"),
        ({"gamma": 1.0, "weighting": "other"}, "weighting"),
        ({"gamma": 1.0, "voice": 2}, "voice"),
        ({"gamma": 1.0, "targets": torch.zeros(3, dtype=torch.int64)}, "targets"),
        ({"gamma": 1.0, "targets": torch.full((24,), 7)}, "from 0 to 1"),
        ({"gamma": 1.0, "targets": torch.zeros(24)}, "whole numbers"),
        ({"gamma": 1.0, "rate": 0.0}, "rate"),
        ({"gamma": 1.0, "step": 0.0}, "step"),
    ],
)
def test_what_cannot_be_used_is_refused(options, complaint, classifier, scene):
    ica = FrequencyICA(iterations=1).fit(scene[0])
    with pytest.raises((InputError, ShapeError), match=complaint):
        attend(ica, scene[0], classifier, **options)


def test_matrices_that_diverge_are_told_of(classifier, scene):
    ica = FrequencyICA(iterations=1).fit(scene[0])
    with pytest.raises(UnsupportedError, match="smaller gamma than 1e"):
        attend(ica, scene[0], classifier, gamma=1e12, passes=5, rate=100.0)


def test_matrices_that_diverge_can_be_taken_back(classifier, scene):
    ica = FrequencyICA(iterations=1).fit(scene[0])
    steady = attend(ica, scene[0], classifier, gamma=1.0, passes=5, diverging="stop")
    assert steady.diverged is None
    found = attend(ica, scene[0], classifier, gamma=1e12, passes=5, rate=100.0, diverging="stop")
    assert found.diverged == 1
    assert found.outputs.shape[0] == 6
    assert all(torch.equal(each, found.outputs[0]) for each in found.outputs)
    torch.testing.assert_close(found.ica.unmixing, ica.unmixing)
    later = attend(ica, scene[0], classifier, gamma=1e3, passes=5, rate=10.0, diverging="stop")
    assert later.diverged is not None
    assert 1 < later.diverged < 5
    # As many passes as were asked for; from the one that was taken back on, nothing changes.
    assert later.outputs.shape[0] == len(later.errors) == 6
    kept = attend(ica, scene[0], classifier, gamma=1e3, passes=later.diverged - 1, rate=10.0)
    torch.testing.assert_close(later.ica.unmixing, kept.ica.unmixing)
    torch.testing.assert_close(later.outputs[: later.diverged], kept.outputs)
    assert all(torch.equal(each, kept.outputs[-1]) for each in later.outputs[later.diverged :])
    with pytest.raises(InputError, match="diverging must be"):
        attend(ica, scene[0], classifier, gamma=1.0, diverging="hope")


def test_the_inverse_map_needs_a_classifier_that_has_one(scene):
    ica = FrequencyICA(iterations=1).fit(scene[0])
    with pytest.raises(InputError, match="take form='gradient'"):
        attend(ica, scene[0], nn.Identity(), gamma=1.0, form="inverse", voice=0)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda c: WordClassifier(["a", "a"], RATE, TRANSFORM, n_mels=8), "different words"),
        (lambda c: c.fit([torch.zeros(33, 4, dtype=torch.complex64)], ["sideways"]), "sideways"),
        (lambda c: WordClassifier(["a", "b"], RATE, TRANSFORM, n_mels=8, hidden=0), "hidden"),
        (lambda c: c.fit([], ["up"]), "one a spectrum"),
        (lambda c: c.fit([], []), "at least one word"),
        (lambda c: c.fit([torch.full((33, 4), torch.nan, dtype=torch.complex64)], ["up"]), "not finite"),
        (lambda c: c.fit(*words(2, 0), weight_decay=-1.0), "weight_decay"),
        (lambda c: c(torch.zeros(1, 9, 4, dtype=torch.complex64), torch.tensor([4])), "must have shape"),
        (lambda c: MelFrames(RATE, 64, 8, 1), "frames"),
        (lambda c: pad_spectra([]), "empty"),
    ],
)
def test_classifiers_refuse_what_they_cannot_use(call, complaint, classifier):
    with pytest.raises((InputError, ShapeError), match=complaint):
        call(classifier)
