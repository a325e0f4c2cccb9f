"""The bank of hidden Markov models: likelihoods, derivatives, posteriors, paths, draws and Baum-Welch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from counterflow.density import GaussianHMM, fused, kernels, lanes, pad, use_backend
from counterflow.exceptions import InputError, ShapeError, UnsupportedError

from .reference import derivatives, enumerate_paths

DOUBLE = torch.float64
BACKENDS = ("numba", "torch", "autograd")


def bank_of(*sizes, seed=0, **options):
    torch.manual_seed(seed)
    bank = GaussianHMM(*sizes, dtype=DOUBLE, **options)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.normal_()
    return bank


def fast_and_plain(bank, x, lengths=None, weights=None):
    """The bank's own way, and plain operations: likelihoods, with derivatives and without, and the derivatives."""
    found = []
    for backend in ("auto", "torch"):
        bank.backend = backend
        likelihood = bank.log_likelihood(x, lengths)
        with torch.no_grad():
            alone = bank.log_likelihood(x, lengths)
        total = (likelihood if weights is None else likelihood * weights).sum()
        found.append([likelihood, alone, *torch.autograd.grad(total, list(bank.parameters()))])
    return found


def probabilities(bank, m):
    pi, a = bank.log_initial()[m].exp(), bank.log_transitions()[m].exp()
    return [each.detach().numpy() for each in (pi, a, bank.means[m, :, 0], bank.variances()[m, :, 0])]


# Against the equations


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("models", [2, 5])  # fewer than states, and more: the kernels differ
def test_all_paths_are_summed_and_the_derivatives_are_equations_16_to_19(backend, models):
    bank = bank_of(models, 3, 2, backend=backend)
    x = torch.randn(4, 5, 2, dtype=DOUBLE)
    lengths = torch.tensor([5, 1, 2, 4])
    found = bank.log_likelihood(x, lengths)
    gamma = bank.posteriors(x, lengths)
    paths, best = bank.viterbi(x, lengths)
    for b, m in itertools.product(range(4), range(models)):
        own = x[b, : lengths[b]].numpy()
        total, occupied, _, path, likeliest = enumerate_paths(own, *probabilities(bank, m))
        assert found[b, m].item() == pytest.approx(total, abs=1e-12)
        np.testing.assert_allclose(gamma[b, : lengths[b], m], occupied, atol=1e-13)
        assert paths[b, m, : lengths[b]].tolist() == list(path)
        assert best[b, m].item() == pytest.approx(likeliest, abs=1e-12)
        gradients = torch.autograd.grad(
            bank.log_likelihood(x, lengths)[b, m],
            [bank.transition_logits, bank.initial_logits, bank.means, bank.log_variances],
        )
        for got, wanted in zip(gradients, derivatives(own, *probabilities(bank, m)), strict=True):
            np.testing.assert_allclose(got[m].reshape(wanted.shape), wanted, atol=1e-12)
            assert all(bool((got[other] == 0).all()) for other in range(models) if other != m)


VARIANTS = {
    "plain": ((3, 2, 3), {}),
    "many models": ((6, 3, 2), {}),
    "one state": ((4, 1, 2), {}),
    "mixture of one state": ((3, 1, 2), {"n_components": 4}),
    "mixtures": ((5, 2, 2), {"n_components": 3}),
    "many states": ((2, 11, 2), {}),
    "left to right": ((2, 4, 2), {"topology": "left-to-right"}),
    "left to right, many": ((6, 3, 2), {"topology": "left-to-right"}),
    "own topology": ((2, 3, 2), {"topology": torch.tensor([[1, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)}),
    "tied states": ((2, 3, 2), {"tied": "states"}),
    "tied models": ((4, 2, 2), {"tied": "models", "n_components": 2}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_derivatives_are_autograds_through_time(variant):
    sizes, options = VARIANTS[variant]
    bank = bank_of(*sizes, **options)
    x = torch.randn(3, 7, sizes[2], dtype=DOUBLE, requires_grad=True)
    lengths, weights = torch.tensor([7, 1, 5]), torch.randn(3, sizes[0], dtype=DOUBLE)
    results = {}
    for backend in BACKENDS:
        bank.backend = backend
        likelihood = bank.log_likelihood(x, lengths)
        gradients = torch.autograd.grad((likelihood * weights).sum(), [x, *bank.parameters()])
        results[backend] = [likelihood.detach(), *gradients, bank.posteriors(x.detach(), lengths)]
    for backend in ("numba", "torch"):
        for got, wanted in zip(results[backend], results["autograd"], strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_derivatives_are_finite_differences(backend):
    bank = bank_of(3, 2, 2, n_components=2, backend=backend)
    names = [name for name, _ in bank.named_parameters()]
    lengths = torch.tensor([4, 2])

    def likelihood(x, *values):
        return torch.func.functional_call(bank, dict(zip(names, values, strict=True)), (x, lengths))

    x = torch.randn(2, 4, 2, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(likelihood, (x, *bank.parameters()))


@pytest.mark.parametrize("models", [2, 5])
def test_going_back_computes_what_was_not_wanted_on_the_way(models):
    bank, lengths, last = bank_of(models, 3, 2), torch.tensor([6, 1, 4, 5]), models > 3
    log_b, found = bank._log_densities(torch.randn(4, 6, 2, dtype=DOUBLE), last), []
    for want in (True, False):
        inputs = [each.detach().requires_grad_() for each in (bank.log_initial(), bank.log_transitions(), log_b)]
        total = kernels.recursion(*inputs, lengths, last, want)[0]
        weights = torch.arange(1.0, 1 + total.numel()).view_as(total)
        found.append([total, *torch.autograd.grad((total * weights).sum(), inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_second_derivative_is_refused_and_not_wrong(backend):
    bank = bank_of(2, 2, 2, backend=backend)
    x = torch.randn(1, 4, 2, dtype=DOUBLE, requires_grad=True)
    (first,) = torch.autograd.grad(bank.log_likelihood(x).sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="autograd"):
        first.sum().backward()
    with use_backend(bank, "autograd"):
        (first,) = torch.autograd.grad(bank.log_likelihood(x).sum(), x, create_graph=True)
        first.sum().backward()


# Against hmmlearn


@pytest.mark.parametrize("topology", ["ergodic", "left-to-right"])
def test_hmmlearn_agrees(topology):
    hmm = pytest.importorskip("hmmlearn.hmm")
    bank = bank_of(2, 4, 3, topology=topology)
    sequences = [torch.randn(n, 3, dtype=DOUBLE) * 2 for n in (50, 1, 17)]
    x, lengths = pad(sequences)
    found, gamma = bank.log_likelihood(x, lengths), bank.posteriors(x, lengths)
    paths, best = bank.viterbi(x, lengths)
    for m in range(2):
        peer = hmm.GaussianHMM(4, "diag", implementation="log")
        peer.startprob_, peer.transmat_, peer.means_, peer.covars_ = probabilities(bank, m)
        for b, each in enumerate(sequences):
            n = len(each)
            assert found[b, m].item() == pytest.approx(peer.score(each.numpy()), abs=1e-8)
            np.testing.assert_allclose(gamma[b, :n, m], peer.predict_proba(each.numpy()), atol=1e-8)
            log, path = peer.decode(each.numpy())
            assert best[b, m].item() == pytest.approx(log, abs=1e-8)
            assert paths[b, m, :n].tolist() == path.tolist()
            assert bool((paths[b, m, n:] == -1).all())


def test_of_paths_that_are_as_likely_the_one_with_the_lower_states_at_the_end_is_told():
    bank = GaussianHMM(1, 3, 1, dtype=DOUBLE)
    with torch.no_grad():
        bank.means.zero_()  # all paths are as likely
    assert bank.viterbi(torch.zeros(1, 4, 1))[0].tolist() == [[[0, 0, 0, 0]]]


# Where scaling underflows


def ladder(models):
    """Left to right: the second state likes what comes first, and the first must be passed."""
    bank = bank_of(models, 3, 1, topology="left-to-right", seed=1)
    with torch.no_grad():
        bank.log_variances.fill_(0.0)
        bank.means.copy_(torch.tensor([0.0, 60.0, 120.0]).view(1, 3, 1, 1).expand_as(bank.means))
    return bank


@pytest.mark.parametrize("models", [1, 5])
def test_an_only_path_a_thousand_nats_below_the_frames_best(models):
    bank = ladder(models)
    # The first frame fits the second state, where no sequence may start; one later skips a state.
    for values in ([60.0, 60.0, 120.0], [0.0, 0.0, 120.0, 0.0], [0.0, 120.0, 0.0], [0.0] * 400 + [120.0] * 3):
        x = torch.tensor(values, dtype=DOUBLE).view(1, -1, 1).requires_grad_()
        results = []
        for backend in BACKENDS:
            bank.backend = backend
            likelihood = bank.log_likelihood(x)
            assert bool(likelihood.isfinite().all())
            results.append([likelihood, *torch.autograd.grad(likelihood.sum(), [x, *bank.parameters()])])
        for got in results[:2]:
            for one, other in zip(got, results[2], strict=True):
                # Log space itself is no better in the long one: sums of hundreds of thousands of nats are rounded at
                # each of 400 frames, and their last digits are probabilities' ninth.
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-8 if len(values) > 100 else 1e-10)


def test_what_was_lost_on_the_way_is_noticed_when_it_matters():
    # Two states that never exchange: the second is far behind for a while, and then the only one that fits.
    closed = torch.eye(2, dtype=torch.bool)
    bank = bank_of(1, 2, 1, topology=closed, backend="numba")
    with torch.no_grad():
        bank.means.copy_(torch.tensor([0.0, 20.0]).view(1, 2, 1, 1))
        bank.log_variances.fill_(0.0)
    x = torch.tensor([0.0] * 10 + [20.0] * 12, dtype=DOUBLE).view(1, -1, 1)  # each frame is worth 200 nats
    gamma = bank.posteriors(x)
    assert gamma[0, :, 0, 1].min() > 0.999
    with torch.no_grad():
        value = bank.log_likelihood(x)
        bank.backend = "autograd"
        torch.testing.assert_close(value, bank.log_likelihood(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("models", [1, 5])
@pytest.mark.parametrize("copies", [1, 8])  # few frames, whose posteriors are kept, and more
def test_frames_that_are_all_hardly_likely_are_all_counted(models, copies):
    # Each frame fits the other state, to which a step has a probability of 1e-90: products of a few underflow.
    bank = bank_of(models, 2, 1)
    with torch.no_grad():
        bank.means.copy_(torch.tensor([0.0, 25.0]).view(1, 2, 1, 1).expand_as(bank.means))
        bank.log_variances.fill_(0.0)
        bank.transition_logits.copy_(torch.tensor([[0.0, -90.0], [-90.0, 0.0]]) * math.log(10))
    x = (25.0 * (torch.arange(20) % 2).double()).view(1, -1, 1).repeat(copies, 1, 1)
    assert (bank._fused(x, None) is not None) == (copies > 1)
    got, wanted = fast_and_plain(bank, x)
    torch.testing.assert_close(got[:2], wanted[:2], rtol=1e-12, atol=0)
    torch.testing.assert_close(got[2:], wanted[2:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("models", [1, 5])
@pytest.mark.parametrize("copies", [1, 4])
def test_what_is_lost_in_a_frame_that_is_itself_hardly_likely_is_noticed(models, copies):
    # Three states that never exchange. No sequence starts in the third, which alone fits a frame of zero: there the
    # first has a probability of 1e-95, and the second, 1e-250 of that, is lost. Frames that it fits make up for more.
    bank = bank_of(models, 3, 1, topology=torch.eye(3, dtype=torch.bool))
    with torch.no_grad():
        bank.means.copy_(torch.tensor([20.9, 40.0, 0.0]).view(1, 3, 1, 1).expand_as(bank.means))
        bank.log_variances.fill_(0.0)
        bank.initial_logits.copy_(torch.tensor([0.0, 0.0, -1e4]).expand_as(bank.initial_logits))
    mattered, mattered_not = [0.0, 40.0, 40.0, 40.0, 34.6] + [30.45] * 4, [0.0] + [20.9] * 8
    impossible = [40.0] * 8 + [0.0]  # or nearly so
    x = torch.tensor([mattered, mattered_not, impossible], dtype=DOUBLE).unsqueeze(-1).repeat(copies, 1, 1)
    assert (bank._fused(x, None) is not None) == (copies > 1)
    posteriors = bank.posteriors(x)
    assert posteriors[0, :, :, 1].min() > 0.999
    got, wanted = fast_and_plain(bank, x)
    torch.testing.assert_close([*got, posteriors], [*wanted, bank.posteriors(x)], rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("models", [2, 5])
@pytest.mark.parametrize("copies", [1, 8])
def test_frames_that_no_density_can_tell_are_of_no_state(models, copies):
    bank = bank_of(models, 3, 2, backend="numba")
    x = torch.zeros(2 * copies, 9, 2, dtype=DOUBLE)
    x[1::2, 2] = 1e200  # finite, and its square is not
    assert (bank._fused(x, None) is not None) == (copies > 1)
    with torch.no_grad():
        assert bank.log_likelihood(x).isneginf().tolist() == [[False] * models, [True] * models] * copies
    gamma = bank.posteriors(x).sum(-1)
    wanted = torch.tensor([1.0, 0.0]).double().repeat(copies)
    torch.testing.assert_close(gamma, wanted.view(-1, 1, 1).expand_as(gamma))


@pytest.mark.parametrize("models", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sequences_that_do_not_fit_into_the_cache_at_once_are_computed_bit_for_bit_alike(models, dtype, monkeypatch):
    bank = bank_of(models, 3, 2)
    with torch.no_grad():
        bank.means.copy_(torch.tensor([0.0, 60.0, 120.0]).view(1, 3, 1, 1).expand_as(bank.means))
        bank.transition_logits.copy_(400 * torch.eye(3).expand(models, 3, 3))
    x, lengths = torch.randn(5, 6, 2, dtype=DOUBLE), torch.tensor([6, 2, 5, 4, 1])
    x[3, 2:] += 60.0  # a step that underflows, not in the first round
    bank, x, found = bank.to(dtype), x.to(dtype).requires_grad_(), []
    for elements in (kernels._CHUNK, 2 * 6 * 3 * models):  # all five, and two at once
        monkeypatch.setattr(kernels, "_CHUNK", elements)
        likelihood = bank.log_likelihood(x, lengths)
        gradients = torch.autograd.grad(likelihood.sum(), [x, *bank.parameters()])
        found.append([likelihood, bank.posteriors(x, lengths), *gradients])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_outlier_and_a_hundred_thousand_frames():
    bank = bank_of(2, 3, 2)
    x = torch.randn(1, 100_000, 2, dtype=DOUBLE)
    x[0, 50_000] = 1e4
    found = bank.log_likelihood(x)
    assert bool(found.isfinite().all())
    assert bool(found.requires_grad)
    half = bank.log_likelihood(x[:, :50_000]) + bank.log_likelihood(x[:, 50_001:])
    assert bool((found < half - 1e6).all())


def test_float32_is_as_good_as_its_digits():
    bank = bank_of(5, 3, 4)
    x = torch.randn(3, 40, 4)
    wanted = bank.log_likelihood(x.double())
    got = bank.float().log_likelihood(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_keeps_its_digits_over_a_thousand_frames(backend):
    torch.manual_seed(0)
    bank = GaussianHMM(2, 3, 39, backend=backend, dtype=DOUBLE)
    with torch.no_grad():
        bank.means.mul_(0.3)  # states that are hard to tell apart
    x, lengths = torch.randn(2, 1000, 39, dtype=DOUBLE), torch.tensor([1000, 700])
    results = []
    for dtype in (torch.float32, DOUBLE):
        bank = bank.to(dtype)
        likelihood = bank.log_likelihood(x.to(dtype).requires_grad_(), lengths)
        gradients = torch.autograd.grad(likelihood.sum(), list(bank.parameters()))
        results.append([likelihood.detach(), bank.posteriors(x, lengths), *gradients])
    for got, wanted in zip(*results, strict=True):
        assert (got - wanted).norm() < 1e-4 * wanted.norm()
    assert (results[0][1] - results[1][1]).abs().max() < 1e-4


@pytest.mark.parametrize("components", [1, 2])
def test_autocast_takes_no_digits(components):
    bank = bank_of(2, 3, 4, n_components=components).float()
    x = torch.randn(3, 40, 4)
    wanted = [bank.log_likelihood(x), bank.posteriors(x), bank.viterbi(x)[1]]
    with torch.autocast("cpu", torch.bfloat16):
        got = [bank.log_likelihood(x), bank.posteriors(x), bank.viterbi(x)[1]]
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("components", [1, 2])
def test_half_precision_is_computed_in_single(backend, dtype, components):
    bank = bank_of(2, 3, 4, n_components=components, backend=backend).to(dtype)
    x = torch.randn(3, 40, 4).to(dtype)
    found = [bank.log_likelihood(x), bank.posteriors(x), bank.viterbi(x)[1]]
    slopes = torch.autograd.grad(found[0].sum(), bank.means)
    bank.float()
    wanted = [bank.log_likelihood(x), bank.posteriors(x), bank.viterbi(x)[1]]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other.to(dtype), rtol=0.02, atol=0.02)
    wanted_slopes = torch.autograd.grad(wanted[0].sum(), bank.means)[0].to(dtype)
    torch.testing.assert_close(slopes[0], wanted_slopes, rtol=0.02, atol=0.1)


# What is not meant, and what is refused


@pytest.mark.parametrize("models", [2, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_after_the_end_never_matter_bit_for_bit(models, backend):
    bank = bank_of(models, 3, 2, backend=backend)
    lengths = torch.tensor([3, 6])
    results = []
    for filling in (0.0, 1e300, float("nan"), float("inf")):
        x = torch.randn(2, 6, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
        x[0, 3:] = filling
        x.requires_grad_()
        likelihood = bank.log_likelihood(x, lengths)
        results.append([likelihood, *torch.autograd.grad(likelihood.sum(), [x, *bank.parameters()])])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
    assert bool((results[0][1][0, 3:] == 0).all())


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4), steps=st.integers(1, 6), models=st.integers(1, 5), states=st.integers(1, 4),
    features=st.integers(1, 3), components=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_shapes(batch, steps, models, states, features, components, seed):
    bank = bank_of(models, states, features, n_components=components, seed=seed)
    lengths = torch.randint(1, steps + 1, (batch,))
    x = torch.randn(batch, steps, features, dtype=DOUBLE)
    found, gamma = bank(x, lengths), bank.posteriors(x, lengths)
    assert found.shape == (batch, models)
    assert gamma.shape == (batch, steps, models, states)
    inside = (torch.arange(steps) < lengths[:, None])[..., None].double()
    torch.testing.assert_close(gamma.sum(-1), inside.expand(-1, -1, models))
    alone = torch.cat([bank(x[b : b + 1, : lengths[b]]) for b in range(batch)])
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)
    _, best = bank.viterbi(x, lengths)
    if components == 1:
        assert bool((best <= found + 1e-9).all())


def test_frames_that_are_not_finite_are_refused_with_the_sequences_index():
    bank = bank_of(2, 2, 2)
    x = torch.randn(3, 4, 2, dtype=DOUBLE)
    x[1, 2, 0] = float("nan")
    with pytest.raises(InputError, match="sequence 1 is not finite at frame 2"):
        bank.log_likelihood(x)
    assert bool(bank.log_likelihood(x, torch.tensor([4, 2, 4])).isfinite().all())


@pytest.mark.parametrize(
    ("x", "lengths", "complaint"),
    [
        (torch.zeros(2, 4, 3), None, r"x has shape \(2, 4, 3\)"),
        (torch.zeros(4, 2), None, "x has shape"),
        (torch.zeros(2, 0, 2), None, "time of 1 or more"),
        (torch.zeros(2, 4, 2), torch.tensor([4, 5]), r"lengths\[1\] is 5"),
        (torch.zeros(2, 4, 2), torch.tensor([0, 4]), r"lengths\[0\] is 0"),
        (torch.zeros(2, 4, 2), torch.tensor([1.0, 2.0]), "whole numbers"),
        (torch.zeros(2, 4, 2), torch.tensor([1]), "whole numbers of shape"),
    ],
)
def test_input_that_cannot_be_used_is_named(x, lengths, complaint):
    with pytest.raises((InputError, ShapeError), match=complaint):
        bank_of(2, 2, 2).log_likelihood(x, lengths)


@pytest.mark.parametrize(
    ("sizes", "options", "complaint"),
    [
        ((0, 2, 2), {}, "n_models"),
        ((1, 2, 2.0), {}, "n_features"),
        ((1, 2, 2), {"topology": "circle"}, "topology must be one of"),
        ((1, 2, 2), {"topology": torch.ones(3, 3, dtype=torch.bool)}, "of shape"),
        ((1, 2, 2), {"topology": torch.zeros(2, 2, dtype=torch.bool)}, "successor"),
        ((1, 2, 2), {"tied": "all"}, "tied"),
        ((1, 2, 2), {"backend": "jax"}, "backend"),
        ((1, 2, 2), {"n_components": 0}, "n_components"),
    ],
)
def test_banks_that_cannot_be_are_refused(sizes, options, complaint):
    with pytest.raises((InputError, ShapeError), match=complaint):
        GaussianHMM(*sizes, **options)


def test_left_to_right_is_to_stay_or_to_go_on_by_one():
    bank = bank_of(2, 4, 1, topology="left-to-right")
    ahead = torch.arange(4) - torch.arange(4)[:, None]
    assert torch.equal(bank.log_transitions().exp() > 0, ((ahead == 0) | (ahead == 1)).expand(2, 4, 4))
    assert torch.equal(bank.log_initial().exp(), torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2).double())


@pytest.mark.parametrize("tied", ["none", "states", "models"])
def test_tied_variances_are_those_of_a_model_or_of_all(tied):
    bank = bank_of(2, 3, 4, n_components=2, tied=tied)
    free = {"none": 2 * 3 * 2, "states": 2, "models": 1}[tied]  # each for every feature
    assert bank.log_variances.numel() == 4 * free
    spread = bank.variances().flatten(0, 2)
    assert len(spread.unique(dim=0)) == free
    assert len(bank.variances()[0].flatten(0, 1).unique(dim=0)) == (6 if tied == "none" else 1)


def test_padding_refuses_what_is_no_sequence():
    for broken, complaint in (([], "empty"), ([torch.zeros(2, 3), torch.zeros(0, 3)], "sequence 1")):
        with pytest.raises(InputError, match=complaint):
            pad(broken)


def test_a_backend_is_chosen_for_all_banks_and_taken_back():
    with pytest.raises(UnsupportedError, match="no GaussianHMM"):
        use_backend(torch.nn.Linear(2, 2))
    bank = GaussianHMM(1, 2, 2, backend="torch")
    with pytest.raises(InputError, match="backend"):
        use_backend(bank, "cuda")
    with use_backend(bank, "autograd"):
        assert bank.backend == "autograd"
    assert bank.backend == "torch"


@pytest.mark.parametrize("through_frames", [False, True])
def test_memory_that_is_kept_is_at_most_twice_the_posteriors(through_frames):
    bank = bank_of(6, 4, 8)
    x = torch.randn(4, 200, 8, dtype=DOUBLE, requires_grad=through_frames)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        bank.log_likelihood(x)
    posteriors, sums = 8 * 4 * 200 * 6 * 4, 8 * 4 * 6 * 4 * (2 * 8 + 1)
    assert (posteriors if through_frames else sums) <= sum(kept.values()) <= 2 * posteriors


def test_what_a_thread_works_in_is_its_own_and_holds_nothing_of_the_call_before():
    from concurrent.futures import ThreadPoolExecutor

    banks = [bank_of(2, states, 3) for states in (3, 9)]
    batches = [torch.randn(batch, steps, 3).double() for batch, steps in ((40, 60), (8, 60), (33, 200), (12, 41))]
    calls = [(bank, x) for bank in banks for x in batches] * 5

    def derivatives(call):
        bank, x = call
        assert bank._fused(x, None) is not None
        return torch.autograd.grad(bank.log_likelihood(x).sum(), list(bank.parameters()))

    alone = [derivatives(call) for call in calls]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(derivatives, calls))
    for here, there, again in zip(alone, together, alone[8:], strict=False):
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(here, there, again, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_keeps_no_posteriors_computes_the_same(variant, dtype):
    sizes, options = VARIANTS[variant]
    bank = bank_of(*sizes, **options).to(dtype)
    lengths = torch.randint(1, 41, (70,), generator=torch.Generator().manual_seed(0))  # several rounds of the lanes
    x = torch.randn(70, 41, sizes[2], dtype=dtype)
    x[torch.arange(41) >= lengths[:, None]] = float("nan")
    weights = torch.randn(70, sizes[0], dtype=dtype)
    assert bank._fused(x, lengths) is not None
    results = []
    for backend in ("auto", "torch"):
        bank.backend = backend
        if backend == "torch":
            bank, x, weights = bank.double(), x.double(), weights.double()
        likelihood = bank.log_likelihood(x, lengths)
        with torch.no_grad():
            alone = bank.log_likelihood(x, lengths)
        gradients = torch.autograd.grad((likelihood * weights).sum(), list(bank.parameters()))
        results.append([likelihood.detach(), alone, *gradients])
    for got, wanted in zip(*results, strict=True):
        # Logarithms of probabilities are of single precision, and count in each frame.
        tolerance = 1e-10 if dtype == DOUBLE else 1e-3
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("states", [3, 11])
def test_what_keeps_no_posteriors_never_looks_behind_the_end_bit_for_bit(states):
    bank = bank_of(3, states, 2)
    lengths = torch.randint(
        1, 31, (37,), generator=torch.Generator().manual_seed(0)
    )  # two blocks, of which one has gaps
    kept = torch.arange(30) < lengths[:, None]
    plain = torch.randn(37, 30, 2, dtype=DOUBLE)
    results = []
    for filling, more in ((0.0, 0), (1e300, 0), (float("nan"), 0), (float("inf"), 9)):
        x = torch.full((37, 30 + more, 2), filling, dtype=DOUBLE)
        x[:, :30][kept] = plain[kept]
        assert bank._fused(x, lengths) is not None
        likelihood = bank.log_likelihood(x, lengths)
        results.append([likelihood, *torch.autograd.grad(likelihood.sum(), list(bank.parameters()))])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_a_longer_neighbor_changes_no_bit_of_a_likelihood():
    bank, found = bank_of(2, 3, 2), []
    x = torch.randn(8, 90, 2, dtype=DOUBLE)
    for longest in (30, 90):
        lengths = torch.tensor([longest, 30, 29, 17, 5, 30, 1, 12])
        assert bank._fused(x, lengths) is not None
        likelihood = bank.log_likelihood(x, lengths)[1:]
        found.append([likelihood, *torch.autograd.grad(likelihood.sum(), list(bank.parameters()))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("batch", [1, 3, 32, 33, 65])
def test_what_keeps_no_posteriors_does_so_in_blocks_of_any_size(batch, monkeypatch):
    monkeypatch.setattr(fused, "_repaired", lambda *_: pytest.fail("nothing underflows here"))
    bank = bank_of(2, 5, 1)
    x = torch.randn(batch, 80, 1, dtype=DOUBLE)
    lengths = torch.randint(40, 81, (batch,))
    assert bank._fused(x, lengths) is not None
    got, wanted = fast_and_plain(bank, x, lengths, torch.randn(batch, 2, dtype=DOUBLE))
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_what_keeps_no_posteriors_repairs_the_sequences_that_underflow_and_only_those():
    bank = ladder(2)
    x = torch.zeros(12, 40, 1, dtype=DOUBLE)
    x[5, 20:] = 120.0  # the second state is never where the frames are
    assert bank._fused(x, None) is not None
    got, wanted = fast_and_plain(bank, x)
    assert all(torch.equal(likelihood, alone) for likelihood, alone, *_ in (got, wanted))
    assert got[0][5, 0] < got[0][4, 0] - 1000
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-8)


def test_what_is_repaired_counts_up_to_its_end(monkeypatch):
    # Three states far from each other: a step between them has a probability of e^-400. Every other sequence has one.
    bank = bank_of(2, 3, 2)
    with torch.no_grad():
        bank.means.copy_(torch.tensor([0.0, 60.0, 120.0]).view(1, 3, 1, 1).expand_as(bank.means))
        bank.transition_logits.copy_(400 * torch.eye(3).expand(2, 3, 3))
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 21, (40,), generator=generator)  # two blocks
    state = torch.arange(40)[:, None] % 3 + (
        (torch.arange(20) >= lengths[:, None] // 2) & (torch.arange(40)[:, None] % 2 == 0)
    )
    x = 60.0 * (state % 3).double().unsqueeze(-1) + torch.randn(40, 20, 2, dtype=DOUBLE, generator=generator)
    x[torch.arange(20) >= lengths[:, None]] = 60.0  # what is behind the end looks like frames
    repaired, repair = [], fused._repaired
    monkeypatch.setattr(fused, "_repaired", lambda x, *more: repaired.append(len(x)) or repair(x, *more))
    assert bank._fused(x, lengths) is not None
    got, wanted = fast_and_plain(bank, x, lengths)
    assert sorted(repaired) == sorted(lengths[::2].tolist() * 6)  # two models; with derivatives, and without
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-8)


def test_frames_that_were_refused_leave_nothing_to_what_follows(monkeypatch):
    bank = bank_of(2, 3, 2)
    x, lengths = torch.randn(6, 30, 2, dtype=DOUBLE), torch.arange(25, 31)

    def derivatives():
        assert bank._fused(x, lengths) is not None
        return torch.autograd.grad(bank.log_likelihood(x, lengths).sum(), list(bank.parameters()))

    wanted = derivatives()
    with pytest.raises(InputError, match="not finite"):
        bank.log_likelihood(torch.full((32, 90, 2), float("nan"), dtype=DOUBLE))
    monkeypatch.setattr(fused, "_repaired", lambda *_: pytest.fail("nothing underflows here"))
    assert all(torch.equal(one, other) for one, other in zip(derivatives(), wanted, strict=True))


def test_a_state_whose_variance_is_infinite_leaves_nothing_in_lanes_that_are_empty():
    bank = bank_of(2, 3, 2)
    with torch.no_grad():
        bank.log_variances[:, 1] = math.inf  # no frame has a density there; five sequences leave three lanes empty
    x = torch.randn(5, 20, 2, dtype=DOUBLE)
    assert bank._fused(x, None) is not None
    got, wanted = fast_and_plain(bank, x)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("states", [3, 9])
def test_what_keeps_no_posteriors_does_so_over_many_frames(states):
    bank = bank_of(1, states, 1)
    x, lengths = torch.randn(6, 230, 1, dtype=DOUBLE), torch.tensor([230, 97, 96, 98, 193, 194])  # rounds of 96 steps
    assert bank._fused(x, lengths) is not None
    got, wanted = fast_and_plain(bank, x, lengths)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_sequence_that_overflows_leaves_nothing_in_the_derivatives_of_others(seed):
    torch.manual_seed(seed)
    bank = GaussianHMM(1, 9, 2, topology="left-to-right", dtype=DOUBLE)  # more states than loops go over
    x, lengths = torch.randn(200, 60, 2, dtype=DOUBLE) * 20, torch.randint(1, 61, (200,))
    with torch.no_grad():
        bank.means.mul_(20)
    assert bank._fused(x, lengths) is not None
    got, wanted = fast_and_plain(bank, x, lengths, torch.tensor(1 / 200))
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gpu_computes_the_same(variant):
    sizes, options = VARIANTS[variant]
    bank = bank_of(*sizes, **options)
    x, lengths = torch.randn(4, 12, sizes[2], dtype=DOUBLE), torch.tensor([12, 7, 1, 4])
    results = []
    for device in ("cpu", "cuda"):
        bank, own = bank.to(device), x.to(device).detach().requires_grad_()
        likelihood = bank.log_likelihood(own, lengths.to(device))
        found = [likelihood, *torch.autograd.grad(likelihood.sum(), [own, *bank.parameters()])]
        results.append([each.cpu() for each in found])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_what_keeps_no_posteriors_refuses_a_second_derivative_and_frames_that_are_not_finite():
    bank = bank_of(3, 2, 2)
    x = torch.randn(8, 30, 2, dtype=DOUBLE)
    assert bank._fused(x, None) is not None
    (first,) = torch.autograd.grad(bank.log_likelihood(x).sum(), bank.means, create_graph=True)
    with pytest.raises(UnsupportedError, match="autograd"):
        first.sum().backward()
    x[2, 7, 1] = float("inf")
    with pytest.raises(InputError, match="sequence 2 is not finite at frame 7"):
        bank.log_likelihood(x)


def test_exponentials_are_exact_to_the_last_digits():
    values = -torch.cat([torch.linspace(0, 700, 100_001, dtype=DOUBLE), torch.logspace(-20, 0, 999, dtype=DOUBLE)])
    got, scratch = values.numpy().copy(), np.empty(len(values))
    lanes.exponentials(got, len(got), scratch, scratch.view(np.int64))
    np.testing.assert_allclose(got, np.exp(values.numpy()), rtol=4e-16)
    far = np.array([-709.0, -1e6, -np.inf])
    lanes.exponentials(far, 3, scratch, scratch.view(np.int64))
    assert (far < 1e-300).all()


# Draws and Baum-Welch


def test_draws_have_the_models_statistics():
    bank = bank_of(2, 2, 1, n_components=2)
    x, states = bank.sample(4, n=20_000, model=1, generator=torch.Generator().manual_seed(0))
    first = torch.bincount(states[:, 0]) / 20_000
    torch.testing.assert_close(first.double(), bank.log_initial()[1].exp(), rtol=0, atol=0.02)
    moved = (states[:, 1] == 1)[states[:, 0] == 0].double().mean()
    assert moved.item() == pytest.approx(bank.log_transitions()[1, 0, 1].exp().item(), abs=0.02)
    weights = bank.mixture_logits[1].softmax(-1)
    mean = (weights * bank.means[1, ..., 0]).sum(-1)
    for state in range(2):
        assert x[states == state].mean().item() == pytest.approx(mean[state].item(), abs=0.1)
    for state, component in itertools.product(range(2), range(2)):  # mixtures so far apart that it is seen which drew
        bank.means.data[1, state, component] = 1000.0 * component
    x, states = bank.sample(4, n=20_000, model=1, generator=torch.Generator().manual_seed(0))
    for state, component in itertools.product(range(2), range(2)):
        drawn = x[(states == state) & ((x[..., 0] > 500) == component)]
        wanted = bank.variances()[1, state, component].item()
        assert drawn.var().item() == pytest.approx(wanted, rel=0.05)
    for bad in ({"steps": 0}, {"steps": 1, "n": 0}, {"steps": 1, "model": 2}):
        with pytest.raises(InputError):
            bank.sample(**bad)


@pytest.mark.parametrize("options", [{}, {"tied": "states"}, {"n_components": 2}, {"topology": "left-to-right"}])
def test_baum_welch_never_falls_and_finds_what_drew_the_data(options):
    teacher = bank_of(1, 3, 2, seed=3)
    with torch.no_grad():
        teacher.means.mul_(4)
    x, _ = teacher.sample(60, n=20, generator=torch.Generator().manual_seed(1))
    student = GaussianHMM(2, 3, 2, dtype=DOUBLE, **options)
    before = student.log_transitions()
    history = student.fit(x, iterations=30, tolerance=0.0, generator=torch.Generator().manual_seed(2))
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(history))
    assert history[-1] > history[0] + 0.1
    assert bool((student.log_transitions().isneginf() == before.isneginf()).all())


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # by hmmlearn, since NumPy 2.5
def test_baum_welch_steps_are_hmmlearns():
    hmm = pytest.importorskip("hmmlearn.hmm")
    bank = bank_of(1, 3, 2)
    x, lengths = pad([torch.randn(n, 2, dtype=DOUBLE) * 2 for n in (30, 12)])
    # Its defaults are a prior on variances; with these there is none.
    peer = hmm.GaussianHMM(
        3, "diag", n_iter=1, init_params="", implementation="log", covars_prior=0, covars_weight=1, min_covar=0
    )
    peer.startprob_, peer.transmat_, peer.means_, peer.covars_ = probabilities(bank, 0)
    together = torch.cat([x[0, :30], x[1, :12]]).numpy()
    peer.fit(together, [30, 12])
    bank.fit(x, lengths, iterations=1, start=False, min_variance=1e-12)
    pi, a, mean, variance = probabilities(bank, 0)
    np.testing.assert_allclose(pi, peer.startprob_, atol=1e-8)
    np.testing.assert_allclose(a, peer.transmat_, atol=1e-8)
    np.testing.assert_allclose(mean, peer.means_, atol=1e-8)
    np.testing.assert_allclose(variance, np.array([np.diag(c) for c in peer.covars_]), atol=1e-8)


def test_a_baum_welch_step_of_one_state_is_that_of_a_mixture():
    bank = bank_of(1, 1, 1, n_components=2)
    x, lengths = torch.randn(3, 9, 1, dtype=DOUBLE) * 2, torch.tensor([9, 4, 1])
    frames = x[torch.arange(9) < lengths[:, None]].squeeze(1)
    share, mean = bank.mixture_logits[0, 0].softmax(-1).detach(), bank.means[0, 0, :, 0].detach().clone()
    joint = (
        share
        * torch.distributions.Normal(mean, bank.variances()[0, 0, :, 0].detach().sqrt()).log_prob(frames[:, None]).exp()
    )
    drew = joint / joint.sum(1, keepdim=True)  # which of the two, in expectation
    history = bank.fit(x, lengths, iterations=1, start=False, min_variance=1e-12)
    assert history == pytest.approx([joint.sum(1).log().mean().item()])
    torch.testing.assert_close(bank.mixture_logits[0, 0].softmax(-1), drew.mean(0))
    mean = (drew * frames[:, None]).sum(0) / drew.sum(0)
    torch.testing.assert_close(bank.means[0, 0, :, 0], mean)
    spread = (drew * (frames[:, None] - mean).square()).sum(0) / drew.sum(0)
    torch.testing.assert_close(bank.variances()[0, 0, :, 0], spread)


@pytest.mark.parametrize("components", [1, 2])
def test_a_weight_in_baum_welch_is_as_good_as_copies(components):
    x, lengths = torch.randn(3, 9, 2, dtype=DOUBLE), torch.tensor([9, 4, 6])
    weighted, copied = (bank_of(1, 3, 2, n_components=components) for _ in range(2))
    copies = torch.tensor([2, 0, 1])
    histories = [
        weighted.fit(x, lengths, weights=copies[:, None], iterations=3, start=False),
        copied.fit(x.repeat_interleave(copies, 0), lengths.repeat_interleave(copies), iterations=3, start=False),
    ]
    assert histories[0] == pytest.approx(histories[1])
    for one, other in zip(weighted.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_baum_welch_of_no_tolerance_goes_on_where_nothing_rises():
    bank = GaussianHMM(1, 1, 1, dtype=DOUBLE)
    history = bank.fit(torch.ones(2, 5, 1, dtype=DOUBLE), iterations=4, tolerance=0.0)
    assert history == [history[0]] * 4


def test_baum_welch_fits_each_model_to_its_own_sequences():
    x = torch.cat([torch.randn(6, 20, 1), torch.randn(6, 20, 1) + 8]).double()
    weights = torch.zeros(12, 2)
    weights[:6, 0] = weights[6:, 1] = 1
    bank = GaussianHMM(2, 2, 1, dtype=DOUBLE)
    bank.fit(x, weights=weights, generator=torch.Generator().manual_seed(0))
    assert bool((bank.means[0] < 4).all())
    assert bool((bank.means[1] > 4).all())
    for bad, complaint in (({"iterations": 0}, "iterations"), ({"weights": weights[:, :1]}, "weights"),
                           ({"weights": weights * torch.tensor([1, 0])}, "every model")):  # fmt: skip
        with pytest.raises(InputError, match=complaint):
            bank.fit(x, **bad)


def test_baum_welch_begins_at_frames_of_each_models_own_sequences():
    x, lengths = torch.zeros(6, 20, 1, dtype=DOUBLE), torch.tensor([1, 2, 1, 15, 20, 6])
    x[3:] = 8
    weights = torch.eye(2).repeat_interleave(3, 0)
    history = GaussianHMM(2, 3, 1, dtype=DOUBLE).fit(x, lengths, weights=weights, iterations=1)
    # Every frame is its model's mean, and all frames together, 4 of 45 of which are 0, have this variance.
    assert history == pytest.approx([-0.5 * math.log(2 * math.pi * 64 * 4 * 41 / 45**2)])


@pytest.mark.parametrize("tied", ["none", "states", "models"])
def test_baum_welch_lets_no_variance_below_the_least(tied):
    x = torch.randn(6, 20, 2, dtype=DOUBLE)
    x[:, :, 1] = 3
    bank = GaussianHMM(2, 2, 2, tied=tied, dtype=DOUBLE)
    bank.fit(x, min_variance=0.05, iterations=4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bank.variances()[..., 1], torch.full((2, 2, 1), 0.05, dtype=DOUBLE))
    assert float(bank.variances().detach().min()) > 0.05 - 1e-9


def test_baum_welch_leaves_a_state_that_nothing_visits_as_it_is():
    bank = bank_of(1, 3, 2)
    with torch.no_grad():
        bank.means[0, 1] = 1e4
    before, spread = bank.log_transitions().detach().clone(), bank.log_variances.detach().clone()
    bank.fit(torch.randn(4, 20, 2, dtype=DOUBLE), iterations=2, start=False)
    torch.testing.assert_close(bank.log_transitions()[0, 1], before[0, 1])
    assert not torch.allclose(bank.log_transitions()[0, 0], before[0, 0])
    torch.testing.assert_close(bank.means[0, 1], torch.full((1, 2), 1e4, dtype=DOUBLE))
    torch.testing.assert_close(bank.log_variances[0, 1], spread[0, 1])
    assert not torch.allclose(bank.log_variances[0, 0], spread[0, 0])


def test_baum_welch_asks_for_a_frame_in_a_hundred_million_to_move_a_state():
    bank = bank_of(1, 3, 2)
    with torch.no_grad():
        bank.means[0, 1] = 12.0
    x, spread = torch.randn(4, 20, 2, dtype=DOUBLE), bank.log_variances.detach().clone()
    assert 0 < bank.posteriors(x)[..., 1].sum() < 1e-8
    bank.fit(x, iterations=1, start=False)
    torch.testing.assert_close(bank.means[0, 1], torch.full((1, 2), 12.0, dtype=DOUBLE))
    torch.testing.assert_close(bank.log_variances[0, 1], spread[0, 1])


def test_baum_welch_ends_at_the_first_rise_below_the_tolerance():
    x, _ = bank_of(1, 3, 2, seed=3).sample(60, n=5, generator=torch.Generator().manual_seed(1))
    fitted = GaussianHMM(1, 3, 2, dtype=DOUBLE)
    history = fitted.fit(x, iterations=200, tolerance=2e-3, generator=torch.Generator().manual_seed(2))
    *rises, last = (later - earlier for earlier, later in itertools.pairwise(history))
    assert len(rises) > 1
    assert all(rise >= 2e-3 for rise in rises)
    assert 0 <= last < 2e-3


@pytest.mark.parametrize("components", [1, 2])
def test_baum_welch_in_float32_is_far_from_zero_what_it_is_near_it(components):
    # Short sequences in a long batch: most of it is padding, which is zero.
    x, lengths = torch.randn(4, 400, 2, generator=torch.Generator().manual_seed(0)), torch.full((4,), 20)
    x[2:] += 50
    for offset in (0.0, 1000.0, 30_000.0):
        moved, banks, ends = x + offset, [], []
        for dtype in (torch.float32, DOUBLE):
            torch.manual_seed(0)
            bank = GaussianHMM(1, 2, 2, n_components=components).to(dtype)
            generator = torch.Generator().manual_seed(2)
            history = bank.fit(moved.to(dtype), lengths, iterations=8, generator=generator)
            assert all(later >= earlier - 1e-4 for earlier, later in itertools.pairwise(history))
            banks.append(bank)
            ends.append(history[-1])
        assert ends[0] == pytest.approx(ends[1], abs=1e-3)
        torch.testing.assert_close(banks[0].variances().double(), banks[1].variances(), rtol=1e-2, atol=0)
