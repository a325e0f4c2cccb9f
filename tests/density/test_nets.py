"""The five nets, their sizes, their training, and the classifier made of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import OptimizeResult
from sklearn.base import clone, is_classifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import counterflow as cf
from counterflow.density import (
    Alphanet,
    ComparativeDensityNet,
    ComparativeDensityNet1,
    MixtureNet,
    RelativeDensityClassifier,
    RelativeDensityNet,
    conjugate_gradients,
    matched_sizes,
    train,
)
from counterflow.exceptions import DivergenceError, InputError, ShapeError

DOUBLE = torch.float64


# The nets


def test_one_state_one_frame_and_tied_variances_are_the_logistic_layer_of_equations_2_to_6():
    torch.manual_seed(0)
    net = RelativeDensityNet(5, 1, 4, 3, tied="models", dtype=DOUBLE)
    with torch.no_grad():
        net.bank.log_variances.normal_()
    x = torch.randn(7, 1, 4, dtype=DOUBLE)
    mean, variance = net.bank.means[:, 0, 0], net.bank.log_variances[0, 0, 0].exp()
    h = net.hidden(x)
    column = 0
    for m in range(5):
        for n in range(m + 1, 5):
            w = (mean[m] - mean[n]) / variance  # equation 5, for the odds of m over n
            b = 0.5 * ((mean[n] ** 2 - mean[m] ** 2) / variance).sum()  # equation 6 with equal priors
            wanted = 1 / (1 + torch.exp(-(x[:, 0] @ w + b)))
            torch.testing.assert_close(h[:, column], wanted, rtol=0, atol=1e-12)
            column += 1
    torch.testing.assert_close(net(x), h @ net.output.weight.T)
    assert net.output.bias is None


def test_identical_models_send_nothing_through_their_comparison():
    torch.manual_seed(0)
    net = RelativeDensityNet(2, 3, 2, 2, dtype=DOUBLE)
    with torch.no_grad():
        for parameter in net.bank.parameters():
            parameter[1] = parameter[0]
    x, y = torch.randn(5, 9, 2, dtype=DOUBLE, requires_grad=True), torch.arange(5) % 2
    scores = net.scores(x)
    torch.testing.assert_close(scores[:, 0], scores[:, 1], rtol=1e-14, atol=0)
    loss = torch.nn.functional.cross_entropy(net.readout(scores), y)
    error, to_x, *to_parameters = torch.autograd.grad(loss, [scores, x, *net.bank.parameters()])
    assert bool((error[:, 0] != 0).all())
    assert bool((error.sum(1) == 0).all())  # what one is told, the other is told with the other sign, to the bit
    # Behind that lie sums over frames and states, whose order may differ from model to model.
    for gradient in to_parameters:
        assert (gradient[0] + gradient[1]).abs().max() <= 1e-14 * gradient.abs().max()
    assert to_x.abs().max() < 1e-14 * to_parameters[0].abs().max()


def test_scores_are_averaged_over_the_length_or_not():
    net = Alphanet(2, 2, 3, dtype=DOUBLE)
    x, lengths = torch.randn(4, 8, 2, dtype=DOUBLE), torch.tensor([8, 1, 3, 5])
    whole = net.bank.log_likelihood(x, lengths)
    torch.testing.assert_close(net(x, lengths), whole / lengths[:, None])
    torch.testing.assert_close(net(x), net.bank.log_likelihood(x) / 8)
    net.time_average = False
    torch.testing.assert_close(net(x, lengths), whole)
    for kind, sizes in ((RelativeDensityNet, (3, 2, 2, 2)), (Alphanet, (2, 2, 2)), (MixtureNet, (2, 2, 2)),
                        (ComparativeDensityNet, (3, 2, 2, 2)), (ComparativeDensityNet1, (3, 2, 2, 2))):  # fmt: skip
        assert [kind(*sizes, time_average=average).time_average for average in (True, False)] == [True, False]


def test_a_comparative_net_that_starts_at_the_pairs_is_a_relative_one():
    torch.manual_seed(0)
    relative = RelativeDensityNet(4, 2, 3, 2, dtype=DOUBLE)
    comparative = ComparativeDensityNet(4, 2, 3, 2, first="pairs", dtype=DOUBLE)
    comparative.load_state_dict({**relative.state_dict(), "first.weight": comparative.first.weight})
    x = torch.randn(3, 6, 3, dtype=DOUBLE)
    torch.testing.assert_close(comparative(x), relative(x))
    torch.testing.assert_close(comparative.hidden(x), relative.hidden(x))
    linear = ComparativeDensityNet1(4, 2, 3, 2, dtype=DOUBLE)
    torch.testing.assert_close(linear(x), linear.scores(x) @ linear.output.weight.T)


def test_nets_begin_at_frames_of_their_classes_and_at_the_variance_of_all():
    # In class k all frames have a first feature of k + 1; padding is zero, and the second feature never changes.
    y, lengths = torch.tensor([0, 2, 1, 0]), torch.tensor([2, 5, 1, 3])
    x = torch.stack([(y + 1.0).unsqueeze(1).expand(4, 5), torch.full((4, 5), 7.0)], -1).double()
    inside = torch.arange(5) < lengths[:, None]
    x[~inside] = 0.0
    net = RelativeDensityNet(5, 4, 2, 3, n_components=2, dtype=DOUBLE)
    net.initialize(x, lengths, y, generator=torch.Generator().manual_seed(0))
    for m in range(5):
        wanted = torch.tensor([m % 3 + 1.0, 7.0]).double()
        assert torch.equal(net.bank.means[m], wanted.expand_as(net.bank.means[m]))
    spread = torch.stack([x[inside][:, 0].var(correction=0), torch.tensor(1e-6).double()])  # none is below that
    torch.testing.assert_close(net.bank.variances(), spread.expand_as(net.bank.variances()))


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_initial_weights_have_the_scale_that_is_asked_for(scale):
    torch.manual_seed(0)
    relative = RelativeDensityNet(40, 1, 1, 20, weight_scale=scale)
    comparative = ComparativeDensityNet(40, 1, 1, 20, 500, first_scale=scale, weight_scale=2 * scale)
    linear = ComparativeDensityNet1(100, 1, 1, 100, weight_scale=scale)
    for layer in (relative.output, comparative.first, linear.output):
        assert layer.weight.std().item() == pytest.approx(scale, rel=0.05)
    assert comparative.output.weight.std().item() == pytest.approx(2 * scale, rel=0.05)


@pytest.mark.parametrize(
    ("models", "classes", "wanted"),
    [
        (12, 12, (3336, 5, 33, 5)),
        (16, 12, (4832, 7, 51, 5)),
        (20, 12, (6520, 9, 71, 6)),
        (24, 12, (8400, 12, 92, 6)),
        (8, 8, (1920, 4, 14, 4)),
    ],
)
def test_sizes_are_matched_as_in_the_paper(models, classes, wanted):
    sizes = matched_sizes(models, classes, 24)
    assert (sizes.parameters, sizes.alphanet_states, sizes.hidden, sizes.cdn1_states) == wanted
    nets = [
        RelativeDensityNet(models, 4, 24, classes),
        Alphanet(sizes.alphanet_states, 24, classes),
        ComparativeDensityNet(models, 4, 24, classes, sizes.hidden),
        ComparativeDensityNet1(models, sizes.cdn1_states, 24, classes),
    ]
    assert nets[0].n_parameters == sizes.parameters
    # A tenth at the paper's sizes. With 8 speakers the sizes of 4 and 5 states lie an eighth below and above.
    most = 0.1 if classes == 12 else 0.125
    for net in nets[1:]:
        assert abs(net.n_parameters - sizes.parameters) < most * sizes.parameters
    mixture = MixtureNet(sizes.mixture_components, 24, classes)
    assert mixture.bank.n_components == sizes.alphanet_states
    assert mixture.n_parameters < nets[1].n_parameters


def test_models_of_one_state_have_no_transitions_to_count():
    sizes = matched_sizes(6, 3, 5, n_states=1)
    assert sizes.parameters == RelativeDensityNet(6, 1, 5, 3).n_parameters


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: RelativeDensityNet(1, 2, 2, 2), "n_models"),
        (lambda: RelativeDensityNet(3, 2, 2, 1), "n_classes"),
        (lambda: RelativeDensityNet(3, 2, 2, 2, weight_scale=0.0), "scale"),
        (lambda: ComparativeDensityNet(3, 2, 2, 2, 0), "n_hidden"),
        (lambda: ComparativeDensityNet(3, 2, 2, 2, 4, first="pairs"), "n_hidden=3"),
        (lambda: ComparativeDensityNet(3, 2, 2, 2, first="zeros"), "first"),
        (lambda: matched_sizes(1, 2, 2), "n_models"),
    ],
)
def test_nets_that_cannot_be_are_refused(make, complaint):
    with pytest.raises(InputError, match=complaint):
        make()


@pytest.mark.parametrize("frames_need_error", [False, True])
def test_a_tap_at_the_bank_scales_the_models_gradients_and_no_others(frames_need_error):
    torch.manual_seed(0)
    net = RelativeDensityNet(4, 2, 3, 2, dtype=DOUBLE)
    x, y = torch.randn(5, 30, 3, dtype=DOUBLE, requires_grad=frames_need_error), torch.arange(5) % 2

    def gradients():
        loss = torch.nn.functional.cross_entropy(net(x), y, reduction="sum")
        return dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, list(net.parameters())), strict=True))

    plain = gradients()
    with cf.attach(net, {"bank": cf.backward.scale(0.25)}), cf.probe(net, "bank", every=1) as seen:
        scaled = gradients()
    assert seen.table().to_dict()
    for name, gradient in plain.items():
        torch.testing.assert_close(scaled[name], gradient * (0.25 if name.startswith("bank") else 1.0))


def test_tempering_a_relative_nets_way_back_attenuates_what_the_models_hear():
    """By the slope of the comparisons and the weights that they feed, whatever the scale of those weights is."""
    heard = []
    for scale in (0.001, 0.01):
        torch.manual_seed(0)
        net = RelativeDensityNet(4, 2, 3, 2, dtype=DOUBLE)
        with torch.no_grad():
            net.output.weight.copy_(scale * torch.linspace(-1, 1, net.output.weight.numel()).view_as(net.output.weight))
        x, y = torch.randn(6, 20, 3, dtype=DOUBLE), torch.arange(6) % 2
        hidden = net.hidden(x).detach()
        top = torch.nn.Sequential(net.output)
        handle = cf.temper(top, hidden, loss="cross_entropy_sum", attenuation="weights", shunt=False)
        fed = net.output.weight.detach().square().sum(0).mean().sqrt().item()
        with cf.attach(net, {"bank": cf.backward.scale(4 / fed)}):  # a logistic unit's slope is at most a quarter
            loss = torch.nn.functional.cross_entropy(net(x), y, reduction="sum")
            heard.append(torch.autograd.grad(loss, net.bank.means)[0].square().mean().sqrt().item())
        assert len(handle.param_groups(lr=0.1)) >= 1
        handle.undo()
    assert heard[1] == pytest.approx(heard[0], rel=0.1)


# Training


def two_classes(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, 2, dtype=DOUBLE, generator=generator)
    y = torch.arange(n) % 2
    lengths = torch.randint(4, 13, (n,), generator=generator)
    return x + 0.8 * y[:, None, None], lengths, y


@pytest.mark.parametrize(
    "net",
    [
        lambda: RelativeDensityNet(3, 2, 2, 2, dtype=DOUBLE),
        lambda: Alphanet(2, 2, 2, dtype=DOUBLE),
        lambda: MixtureNet(2, 2, 2, dtype=DOUBLE),
        lambda: ComparativeDensityNet(3, 2, 2, 2, 4, dtype=DOUBLE),
        lambda: ComparativeDensityNet1(3, 2, 2, 2, dtype=DOUBLE),
        lambda: RelativeDensityNet(3, 2, 2, 2),  # float32 learns too
    ],
)
def test_conjugate_gradients_learn(net):
    torch.manual_seed(0)
    model, (x, lengths, y) = net(), two_classes()
    model.initialize(x, lengths, y, generator=torch.Generator().manual_seed(0))
    calls = []
    done = conjugate_gradients(model, x, lengths, y, iterations=15, callback=lambda n, loss: calls.append((n, loss)))
    assert done.iterations == len(done.losses) - 1 == len(calls) <= 15
    assert calls == list(enumerate(done.losses))[1:]
    assert done.evaluations >= done.iterations
    assert all(b <= a + 1e-9 for a, b in zip(done.losses, done.losses[1:], strict=False))
    assert done.losses[-1] < 0.7 * done.losses[0]
    final = torch.nn.functional.cross_entropy(model(x, lengths), y).item()  # it ends where it says
    assert final == pytest.approx(done.losses[-1], rel=1e-4)


def test_an_optimizers_steps_are_down_the_gradient_of_all_sequences():
    x, lengths, y = two_classes()
    one, other = ComparativeDensityNet1(2, 2, 2, 2, dtype=DOUBLE), ComparativeDensityNet1(2, 2, 2, 2, dtype=DOUBLE)
    other.load_state_dict(one.state_dict())
    calls, losses = [], []
    sgd = torch.optim.SGD(one.parameters(), lr=0.1)
    done = train(one, x, lengths, y, sgd, iterations=3, callback=lambda n, loss: calls.append((n, loss)))
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(other(x, lengths), y)
        losses.append(loss.item())
        if len(losses) < 4:
            with torch.no_grad():
                for parameter, slope in zip(
                    other.parameters(), torch.autograd.grad(loss, list(other.parameters())), strict=True
                ):
                    parameter -= 0.1 * slope
    assert done.losses == pytest.approx(losses)
    assert calls == list(enumerate(done.losses[:3], 1))  # the loss before each step
    for parameter, wanted in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted)


def test_a_search_that_ends_early_is_started_again_for_what_is_left(monkeypatch):
    x, lengths, y = two_classes()
    net, asked = RelativeDensityNet(3, 2, 2, 2, dtype=DOUBLE), []
    before = [parameter.detach().clone() for parameter in net.parameters()]

    def minimize(evaluate, point, *, callback, options, **_):
        asked.append(options["maxiter"])
        for _ in range(min(2, options["maxiter"])):
            callback(OptimizeResult(fun=evaluate(point)[0]))
        value, slope = evaluate(np.full_like(point, 1e300))  # far out, where nothing is a number
        assert value == np.inf
        assert not slope.any()
        return OptimizeResult(x=point, status=2)

    monkeypatch.setattr("scipy.optimize.minimize", minimize)
    done = conjugate_gradients(net, x, lengths, y, iterations=5)
    assert (asked, done.iterations) == ([5, 3, 1], 5)
    # The net is where the search ended, and not where it looked last.
    assert all(torch.equal(now, then) for now, then in zip(net.parameters(), before, strict=True))


def test_evaluations_are_those_of_the_line_searches():
    x, lengths, y = two_classes()
    net = RelativeDensityNet(3, 2, 2, 2, dtype=DOUBLE)
    looked = []
    net.register_forward_hook(lambda *_: looked.append(None))
    done = conjugate_gradients(net, x, lengths, y, iterations=4)
    assert done.evaluations == len(looked) - 1  # without the first, which sees whether it can start at all


def test_frozen_parameters_stay_and_torchs_optimizers_work():
    torch.manual_seed(0)
    x, lengths, y = two_classes()
    net = RelativeDensityNet(3, 2, 2, 2, dtype=DOUBLE)
    net.bank.means.requires_grad_(False)
    before = net.bank.means.clone()
    conjugate_gradients(net, x, lengths, y, iterations=3)
    assert torch.equal(net.bank.means, before)
    for kind, options in ((torch.optim.Adam, {"lr": 0.05}), (torch.optim.LBFGS, {"lr": 0.5})):
        net = RelativeDensityNet(3, 2, 2, 2, dtype=DOUBLE)
        done = train(net, x, lengths, y, kind(net.parameters(), **options), iterations=20)
        assert done.losses[-1] < done.losses[0]
        assert done.evaluations >= 20
    for targets, complaint in (
        (y + 1, r"targets\[1\] is 2"),
        (y - 1, r"targets\[0\] is -1"),
        (y.double(), "whole numbers"),
        (y[:3], "shape"),
    ):
        with pytest.raises((InputError, ShapeError), match=complaint):
            conjugate_gradients(net, x, lengths, targets)
        with pytest.raises((InputError, ShapeError), match=complaint):
            net.initialize(x, lengths, targets)
    with pytest.raises(InputError, match="iterations"):
        conjugate_gradients(net, x, lengths, y, iterations=0)
    with pytest.raises(InputError, match="nothing to train"):
        conjugate_gradients(net.requires_grad_(False), x, lengths, y)


# The classifier


def sequences(n=24):
    x, lengths, y = two_classes(n)
    return [each[:length].numpy() for each, length in zip(x, lengths, strict=True)], np.array(["no", "yes"])[y]


def test_training_that_runs_away_says_at_which_rate():
    x, y = torch.randn(12, 10, 2, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
    classifier = RelativeDensityClassifier(3, 2, optimizer="adam", learning_rate=1000.0, random_state=0)
    with pytest.raises(DivergenceError, match=r"the loss is (nan|inf) after \d+ steps at a rate of 1000; lower it"):
        classifier.fit(list(x.numpy()), y.numpy())
    assert not hasattr(classifier, "net_")


@pytest.mark.parametrize("net", ["rdn", "alphanet", "mixture", "cdn", "cdn1"])
def test_the_classifier_learns_is_saved_and_comes_back(net, tmp_path):
    X, y = sequences()
    options = {"n_hidden": 3} if net == "cdn" else {}
    clf = RelativeDensityClassifier(3, 2, net=net, iterations=15, **options).fit(X, y)
    proba = clf.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert clf.score(X, y) > 0.8
    assert clf.score(X, y) == (clf.classes_[proba.argmax(1)] == y).mean()
    clf.save(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    again = RelativeDensityClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(X), proba)
    assert again.predict(X).tolist() == clf.predict(X).tolist()
    assert again.get_params() == clf.get_params()
    assert again.training_ == clf.training_


@pytest.mark.parametrize("change", [{"time_average": False}, {"n_states": 4}, {"net": "mixture"}])
def test_parameters_set_after_the_fit_are_of_the_next_one_and_not_saved(change, tmp_path):
    X, y = sequences()
    clf = RelativeDensityClassifier(3, 2, iterations=3).fit(X, y)
    fitted, proba = clf.get_params(), clf.predict_proba(X)
    for folder in (tmp_path / "one", tmp_path / "two"):
        clf.set_params(**change).save(folder)
        clf = RelativeDensityClassifier.load(folder)  # and what was loaded is as good as what was fitted
        np.testing.assert_array_equal(clf.predict_proba(X), proba)
        assert clf.get_params() == fitted


def test_scikit_learn_takes_it_for_one_of_its_own():
    X, y = sequences()
    clf = RelativeDensityClassifier(n_models=3, n_states=1, iterations=8)
    assert is_classifier(clf)
    assert clone(clf.set_params(n_models=4)).get_params()["n_models"] == 4
    scores = cross_val_score(clf, X, y, cv=3)
    assert scores.mean() > 0.6
    pipe = make_pipeline(FunctionTransformer(lambda X: [2 * each for each in X]), clf)
    assert cross_val_score(pipe, X, y, cv=2).shape == (2,)
    with pytest.raises(InputError, match="no parameter 'depth'"):
        clf.set_params(depth=2)


def test_features_are_standardized_where_nothing_else_is_asked_for():
    X, y = sequences()
    plain = RelativeDensityClassifier(2, 2, iterations=5).fit(X, y)
    moved = RelativeDensityClassifier(2, 2, iterations=5).fit([each * 8 + 1024 for each in X], y)
    np.testing.assert_allclose(moved.predict_proba([each * 8 + 1024 for each in X]), plain.predict_proba(X), rtol=1e-6)
    # A feature that never changes is of no use, and does no harm.
    with_constant = [np.concatenate([each, np.full((len(each), 1), 3.0)], 1) for each in X]
    found = RelativeDensityClassifier(2, 2, iterations=5).fit(with_constant, y)
    assert np.isfinite(found.predict_proba(with_constant)).all()


def test_baum_welch_begins_each_model_with_the_sequences_of_one_class():
    X, y = [np.full((6, 1), float(label)) for label in (0, 0, 1, 1)], [0, 0, 1, 1]
    X = [each + 0.01 * np.arange(6)[:, None] for each in X]
    options = {"net": "cdn1", "optimizer": "adam", "learning_rate": 1e-12, "iterations": 1, "standardize": False}
    bank = RelativeDensityClassifier(4, 1, baum_welch=2, **options).fit(X, y).net_.bank
    wanted = torch.tensor([0.025, 1.025, 0.025, 1.025]).double()  # means of their classes, in turn
    torch.testing.assert_close(bank.means.flatten(), wanted)


def test_a_weight_of_the_score_is_as_good_as_copies():
    X, y = sequences()
    clf = RelativeDensityClassifier(2, 2, iterations=2).fit(X, y)
    right = (clf.predict(X) == y).astype(float)
    assert 0 < right.mean() < 1
    assert clf.score(X, y, sample_weight=right) == 1.0
    assert clf.score(X, y, sample_weight=1 - right) == 0.0


def test_equal_seeds_are_equal_and_the_callers_randomness_stays():
    X, y = sequences()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (
        RelativeDensityClassifier(2, 2, iterations=3, random_state=seed).fit(X, y).predict_proba(X)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)


@pytest.mark.parametrize(
    "options", [{"baum_welch": 3}, {"optimizer": "adam", "iterations": 40}, {"standardize": False}]
)
def test_the_options_are_not_ignored(options):
    X, y = sequences()
    base = {"n_models": 2, "n_states": 2, "iterations": 5}
    plain = RelativeDensityClassifier(**base).fit(X, y).predict_proba(X)
    other = RelativeDensityClassifier(**{**base, **options}).fit(X, y).predict_proba(X)
    assert not np.allclose(plain, other)


@pytest.mark.parametrize(
    ("options", "change", "complaint"),
    [
        ({"net": "lstm"}, lambda X, y: (X, y), "net must be one of"),
        ({"optimizer": "sgd"}, lambda X, y: (X, y), "optimizer must be one of"),
        ({"n_hidden": 3}, lambda X, y: (X, y), "n_hidden=3"),
        ({"baum_welch": -1}, lambda X, y: (X, y), "baum_welch"),
        ({}, lambda X, y: (X, y[:3]), "one label a sequence"),
        ({}, lambda X, y: (X, np.array(["no"] * len(X))), "one class 'no' only"),
        ({}, lambda X, y: ([*X[:-1], X[-1] * np.nan], y), r"X\[23\]"),
        ({}, lambda X, y: ([*X[:-1], X[-1][:, :1]], y), "sequence 23"),
        ({}, lambda X, y: ([], y), "empty"),
        ({}, lambda X, y: ([each[0] for each in X], y), r"sequence 0 has shape \(2,\)"),
        ({"optimizer": "adam", "learning_rate": 0.0}, lambda X, y: (X, y), "learning_rate"),
    ],
)
def test_what_the_classifier_cannot_use_is_named(options, change, complaint):
    X, y = change(*sequences())
    with pytest.raises((InputError, ShapeError), match=complaint):
        RelativeDensityClassifier(2, 2, iterations=2, **options).fit(X, y)


def test_sequences_to_judge_that_do_not_fit_are_named():
    X, y = sequences()
    clf = RelativeDensityClassifier(2, 2, iterations=2).fit(X, y)
    with pytest.raises(ShapeError, match="sequence 1 has shape"):
        clf.predict([X[0], X[1][:, :1]])  # one feature would be spread over all
    with pytest.raises(ShapeError, match=r"sequence 0 has shape \(2,\)"):
        clf.predict(X[0])  # one sequence in place of a list of them
    with pytest.raises(ShapeError, match="one label a sequence"):
        clf.score(X, y[:1])


def test_a_second_fit_that_fails_leaves_what_the_first_has_learned():
    X, y = sequences()
    clf = RelativeDensityClassifier(2, 2, iterations=2).fit(X, y)
    before = clf.predict(X).tolist()
    with pytest.raises(InputError, match=r"X\[0\] holds values that are not finite"):
        clf.fit([X[0] * np.nan, *X[1:]], np.array(["a", "b", "c"])[np.arange(len(X)) % 3])
    assert clf.predict(X).tolist() == before


def test_numbers_of_numpy_are_numbers(tmp_path):
    X, y = sequences()
    clf = RelativeDensityClassifier(np.int64(2), np.int64(2), iterations=np.int64(2), weight_scale=np.float64(0.1))
    clf.fit(X, y).save(tmp_path)
    assert RelativeDensityClassifier.load(tmp_path).get_params()["n_models"] == 2


def test_unfitted_and_damaged_models_are_named(tmp_path):
    X, y = sequences()
    for call in (lambda c: c.predict(X), lambda c: c.save(tmp_path)):
        with pytest.raises(InputError, match="not been fitted"):
            call(RelativeDensityClassifier())
    clf = RelativeDensityClassifier(2, 2, iterations=2).fit(X, y)
    with pytest.raises(ShapeError, match="3 features"):
        clf.predict([np.zeros((4, 3))])
    clf.save(tmp_path)
    config = json.loads((tmp_path / "model.json").read_text())
    for change, complaint in (
        ({"kind": "speech"}, "is needed"), ({"format_version": 9}, "format 9"), ({"config": {}}, "damaged")
    ):  # fmt: skip
        (tmp_path / "model.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=complaint):
            RelativeDensityClassifier.load(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        RelativeDensityClassifier.load(tmp_path)
    with pytest.raises(InputError, match="no model that can be read"):
        RelativeDensityClassifier.load(tmp_path / "nowhere")
