"""Independent components and vectors of known mixtures: found, equivariant, and as a slow transliteration has them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.exceptions import DivergenceError, InputError, ShapeError
from counterflow.separation import FrequencyICA, OnlineIVA, align_envelopes, auxiliary_iva, minimal_distortion, score
from counterflow.separation.ica import natural_gradient

from .mixtures import aligned, complex_sources, leak, mixing


def outside(x):
    return x.transpose(0, 1)


@pytest.mark.parametrize("kind", ["cartesian", "polar", "vector"])
@pytest.mark.parametrize("permutation", ["vector", "envelope"])
def test_an_instantaneous_complex_mixture_is_undone_to_permutation_and_scale(kind, permutation):
    s, A = complex_sources(0), mixing(0)
    ica = FrequencyICA(score=kind, rate=0.3, permutation=permutation, iterations=120).fit(outside(A @ s))
    assert leak(ica.matrices(), A) < 0.2
    assert aligned(ica.matrices(), A)
    torch.testing.assert_close(ica.separate(outside(A @ s)).sum(0), (A @ s)[:, 0])


@pytest.mark.parametrize("kind", ["cartesian", "polar", "vector"])
def test_the_natural_gradient_climbs_the_likelihood(kind):
    # Up to the factor of a complex derivative: (d L / d W*) W^H W = 2 (I - <score(u) u^H>) W.
    spectra = outside(mixing(3) @ complex_sources(3, frames=300)).to(torch.complex128)
    ica = FrequencyICA(score=kind, iterations=3).fit(spectra)
    unmixing, step = ica.unmixing, natural_gradient(ica.unmixing, ica.whitened(spectra), kind)
    ica.unmixing = unmixing.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ica.log_likelihood([spectra]).sum(), ica.unmixing)
    torch.testing.assert_close(gradient @ unmixing.mH @ unmixing, 2 * step, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_outputs_are_put_in_the_order_of_the_best_assignment(count):
    generator = torch.Generator().manual_seed(count)
    loud = torch.rand(1, count, 60, generator=generator)
    u = torch.randn(12, count, 60, dtype=torch.complex128, generator=generator) * loud
    u = torch.take_along_dim(u, torch.rand(12, count, 1, generator=generator).argsort(1), 1)
    power = u.abs().square()
    share = power / power.sum(1, keepdim=True)
    share = share - share.mean(-1, keepdim=True)
    share = (share / share.norm(dim=-1, keepdim=True)).numpy()
    every = [list(order) for order in itertools.permutations(range(count))]

    def fitting(envelopes):
        return max(every, key=lambda order: float(np.sum(envelopes[order] * centroids)))

    # From the frequency whose outputs are least alike on, by trying all orders.
    alike = [sum(each[j] @ each[k] for j in range(count) for k in range(count) if j != k) for each in share]
    centroids, before = share[int(np.argmin(alike))], None
    orders = [fitting(each) for each in share]
    while orders != before:
        centroids = np.mean([each[order] for each, order in zip(share, orders, strict=True)], 0)
        centroids = centroids / np.linalg.norm(centroids, axis=-1, keepdims=True)
        before, orders = orders, [fitting(each) for each in share]
    assert len({tuple(order) for order in orders}) > 1
    found = align_envelopes(u)
    # Shares of two are opposite, so that all frequencies are as good to begin with: sources may be numbered otherwise.
    wanted = torch.tensor(orders)
    assert torch.equal(found[:, found[0].argsort()], wanted[:, wanted[0].argsort()])


@pytest.mark.parametrize(("channels", "model"), [(2, "gauss"), (2, "laplace"), (3, "gauss")])
def test_vectors_are_found_whatever_the_channels(channels, model):
    s, A = complex_sources(1, count=channels), mixing(1, channels=channels, sources=channels)
    W = auxiliary_iva(outside(A @ s), model=model)
    assert leak(W, A) < 0.2
    assert aligned(W, A)


@pytest.mark.parametrize("bands", [1, 3])
def test_the_compiled_loop_and_torch_agree_where_they_end(bands):
    s, A = complex_sources(2), mixing(2)
    fast, slow = (auxiliary_iva(outside(A @ s), iterations=60, bands=bands, compiled=c) for c in (True, False))
    if not torch.allclose(fast, slow, atol=1e-2):
        fast = fast.flip(1)
    torch.testing.assert_close(fast, slow, atol=1e-2, rtol=0)


def reference_pair(x, w, iterations, bands=1):
    """Independent vector analysis of two channels, line by line: both generalized eigenvectors of V1 and V2."""
    import scipy.linalg

    F, _, T = x.shape
    at = np.arange(F) * bands // F
    # what each frequency counts in each band: half in its own, a quarter in the neighbors
    share = np.zeros((bands, F))
    for f in range(F):
        for band, part in ((at[f], 0.5), (max(at[f] - 1, 0), 0.25), (min(at[f] + 1, bands - 1), 0.25)):
            share[band, f] += part
    for _ in range(iterations):
        u = w @ x
        r = np.einsum("bf,fkt->bkt", share, np.abs(u) ** 2) / share.sum(1)[:, None, None]
        r = np.maximum(r, 1e-3 * r.mean(-1, keepdims=True))
        weights = np.einsum("bf,bkt->fkt", share, 1 / r)
        for f in range(F):
            V = [(x[f] * weights[f, k]) @ x[f].conj().T / T for k in range(2)]
            _, vectors = scipy.linalg.eigh(V[0], V[1])
            for k in range(2):
                v = vectors[:, k]
                w[f, k] = v.conj() / np.sqrt((v.conj() @ V[k] @ v).real)
    return w


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_one_update_in_closed_form_is_what_scipys_eigenvectors_give(bands):
    from counterflow.separation import kernels

    A = torch.eye(2) + 0.3 * mixing(3)
    x = (A @ complex_sources(3, frames=200)).numpy()
    w = np.tile(np.eye(2, dtype=complex), (9, 1, 1))
    cost = kernels.iterate_pair(kernels.products(x), w, 3, kernels.GAUSS, 1e-3, bands)
    wanted = reference_pair(x.astype(complex), np.tile(np.eye(2, dtype=complex), (9, 1, 1)), 3, bands)
    turn = w[:, :, :1] / wanted[:, :, :1]
    np.testing.assert_allclose(np.abs(turn), 1, atol=2e-3)  # a vector's phase is free
    np.testing.assert_allclose(w, wanted * turn / np.abs(turn), atol=1e-2)
    assert cost[0] > cost[1] > cost[2]


def test_whichever_way_laplace_outputs_have_one_scale_of_their_own():
    s, A = complex_sources(2), mixing(2)
    fast, slow = (
        auxiliary_iva(outside(A @ s), iterations=60, bands=1, model="laplace", scaled=False, compiled=c) @ A @ s
        for c in (True, False)
    )
    levels = [each.abs().square().mean((0, 2)).sort().values for each in (fast, slow)]
    torch.testing.assert_close(*levels, rtol=0.02, atol=0)


def test_the_natural_gradient_is_the_papers_equation():
    z = complex_sources(4, frames=50).to(torch.complex128)
    ica = FrequencyICA(rate=0.1, permutation="none", whiten=False, iterations=3).fit(outside(z))
    for f in range(9):
        x = z[f].numpy()
        x = x / np.sqrt((np.abs(x) ** 2).mean())
        W = np.eye(2, dtype=complex)
        for _ in range(3):
            u = W @ x
            phi = np.tanh(u.real) + 1j * np.tanh(u.imag)
            W = W + 0.1 * (np.eye(2) - phi @ u.conj().T / 50) @ W
        np.testing.assert_allclose(ica.unmixing[f], W, atol=1e-10)


def test_learning_is_equivariant():
    """With W0 moved along, what an invertible mixing is applied to the input is of no consequence."""
    x = complex_sources(5, dtype=torch.complex128)
    A = mixing(5, dtype=torch.complex128)
    plain, mixed = FrequencyICA(permutation="none"), FrequencyICA(permutation="none")
    eye = torch.eye(2, dtype=x.dtype).repeat(9, 1, 1)
    plain.unmixing, plain.whitening, mixed.whitening = eye, eye, eye
    mixed.unmixing = torch.linalg.inv(A)
    for _ in range(30):
        plain.update(x)
        mixed.update(A @ x)
    torch.testing.assert_close(mixed.unmixing @ A, plain.unmixing)
    found = [auxiliary_iva(outside(B @ x.to(torch.complex64))) @ B for B in (mixing(6), mixing(7))]
    pictures = [(W @ x.to(torch.complex64)).abs() for W in found]
    pictures = [p / p.mean(-1, keepdim=True) for p in pictures]
    if float((pictures[0] - pictures[1]).abs().mean()) > 0.2:
        pictures[1] = pictures[1].flip(1)
    assert float((pictures[0] - pictures[1]).abs().mean()) < 0.05


@settings(deadline=None, max_examples=15)
@given(channels=st.integers(2, 4), frames=st.integers(1, 40), frequencies=st.integers(1, 6), seed=st.integers(0, 99))
def test_outputs_add_up_to_the_reference_whatever_the_shape(channels, frames, frequencies, seed):
    x = torch.randn(frequencies, channels, frames, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    for W in (auxiliary_iva(outside(x), iterations=3), FrequencyICA(iterations=3).fit(outside(x)).matrices()):
        assert bool(torch.isfinite(torch.view_as_real(W)).all())
        if frames >= 4 * channels:
            torch.testing.assert_close((W @ x).sum(1), x[:, 0], atol=2e-2, rtol=0)


@pytest.mark.parametrize("count", [2, 3])
def test_envelopes_put_outputs_in_one_order(count):
    s = complex_sources(8, frequencies=20, count=count)
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(20)])
    found = align_envelopes(torch.take_along_dim(s, orders[:, :, None], 1))
    back = torch.take_along_dim(orders, found, 1)
    assert bool((back == back[0]).all())


def test_matrices_of_a_set_are_applied_to_its_items():
    s, A = complex_sources(9), mixing(9)
    items = list(outside(A @ s).split([200, 300, 100], -1))
    ica = FrequencyICA().fit(items)
    torch.testing.assert_close(ica.matrices(), FrequencyICA().fit(outside(A @ s)).matrices())
    assert ica.separate(items[2]).shape == (2, 9, 100)


def test_on_line_both_come_to_the_batchs_solution():
    s, A = complex_sources(10, frames=3000), mixing(10)
    ica = FrequencyICA(rate=0.1, score="vector", permutation="none")
    online = OnlineIVA(9, 2)
    for part in outside(A @ s).split(20, -1):
        ica.partial_fit(part)
        online.process(part)
    assert leak(ica.matrices(), A) < 0.4
    assert leak(online.matrices, A) < 0.3
    assert aligned(online.matrices, A)


def quiet_at_first(channels=2, dtype=torch.complex64):
    """16 frames at a hundredth, then as loud as others, with a pause later."""
    heard = outside(mixing(10, channels=channels, dtype=dtype) @ complex_sources(10, frames=2000, dtype=dtype))
    heard[:, :, :16] *= 0.01
    heard[:, :, 800:1200] *= 0.001
    return heard


@pytest.mark.parametrize("block", [1, 16, 100])
@pytest.mark.parametrize("options", [{}, {"permutation": "none"}, {"score": "polar"}, {"whiten": False}])
def test_on_line_the_natural_gradient_bears_a_quiet_beginning_and_pauses(options, block):
    heard = quiet_at_first()
    ica = FrequencyICA(**options)
    for part in heard.split(block, -1):
        assert bool(torch.view_as_real(ica.partial_fit(part).unmixing).abs().max() < 1e6)
    torch.testing.assert_close(ica.separate(heard).sum(0), heard[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("outputs", [2, 3])
def test_on_line_the_whitening_is_that_of_all_frames_and_outputs_go_on(outputs):
    heard = quiet_at_first(channels=3, dtype=torch.complex128)
    heard = heard + 0.01 * torch.randn(heard.shape, dtype=heard.dtype, generator=torch.Generator().manual_seed(0))
    for fitted in (False, True):
        ica = FrequencyICA(outputs, iterations=3)
        parts = list(heard.split(100, -1))
        if fitted:
            ica.fit(parts.pop(0))
        for number, part in enumerate(parts):
            before = None if number < 5 else ica.whitening
            ica.partial_fit(part)
            if before is not None:  # no sign and no order of principal components is changed
                change = ica.whitening @ torch.linalg.pinv(before)
                assert bool((change.diagonal(dim1=1, dim2=2).real > 0.5).all())
                # Of all whitenings it is the nearest: old and new frames have a Hermitian, positive covariance.
                so_far = heard[..., : 100 * (number + 1 + fitted)].transpose(0, 1)
                both = ica.whitening @ so_far @ (before @ so_far).mH
                torch.testing.assert_close(both, both.mH, rtol=1e-4, atol=1e-4 * float(both.abs().amax()))
                assert bool((torch.linalg.eigvalsh(both) > 0).all())
        z = ica.whitened(heard)
        eye = torch.eye(outputs, dtype=z.dtype).expand(9, -1, -1)
        torch.testing.assert_close(z @ z.mH / 2000, eye, atol=1e-6, rtol=0)


def test_on_line_the_score_is_that_of_whole_vectors_until_a_set_was_fitted():
    heard = outside(mixing(10) @ complex_sources(10, frames=100))
    found, vector = FrequencyICA(iterations=3), FrequencyICA(iterations=3, score="vector")
    own = FrequencyICA(iterations=3, permutation="none")
    for part in heard.split(20, -1):
        vector.partial_fit(part)
        own.partial_fit(part)
        found.partial_fit(torch.cat([torch.zeros(2, 9, 2, dtype=part.dtype), part], -1))
        torch.testing.assert_close(found.unmixing, vector.unmixing, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found.unmixing, own.unmixing, atol=1e-3)
    fitted = FrequencyICA(iterations=3).fit(heard)
    own = fitted.copy()
    own.permutation = "none"
    assert torch.equal(fitted.partial_fit(part).unmixing, own.partial_fit(part).unmixing)
    twin = found.copy()
    assert torch.equal(twin.partial_fit(part).matrices(), found.partial_fit(part).matrices())


@pytest.mark.parametrize("block", [1, 8, 100])
def test_on_line_it_comes_near_the_whole_sets_solution_however_frames_are_divided(block):
    s, A = complex_sources(10, frequencies=40, frames=1200), mixing(10, frequencies=40)
    ica = FrequencyICA()
    for part in outside(A @ s).split(block, -1):
        ica.partial_fit(part)
    assert aligned(ica.matrices(), A)
    assert leak(ica.matrices(), A) < 0.25


@pytest.mark.parametrize("options", [{}, {"score": "polar"}, {"score": "vector"}])
def test_on_line_what_was_fitted_is_kept_and_bettered(options):
    """Also in a frequency in which a source is seldom there, at which large steps made outputs copies of each other."""
    s, A = complex_sources(10, frames=1200), mixing(10)
    s[4, 0] *= (torch.arange(1200) % 50 < 2) * 20
    heard = outside(A @ s)
    ica = FrequencyICA(**options).fit(heard[:, :, :200])
    before = leak(ica.matrices(), A)
    for part in heard[:, :, 200:].split(8, -1):
        ica.partial_fit(part)
        assert float(torch.linalg.cond(ica.unmixing).max()) < 10
    assert leak(ica.matrices(), A) < before


def test_on_line_frames_are_weighed_by_the_score_and_later_ones_count_more():
    """Against the update by the paper's equation, with the weights that frames got when they came."""
    heard = outside(mixing(10, dtype=torch.complex128) @ complex_sources(10, frames=36, dtype=torch.complex128))
    ica = FrequencyICA(permutation="none", whiten=False, iterations=1)
    ica.partial_fit(heard[:, :, :16])
    first, kept = ica.unmixing @ ica.whitening, ica.copy()
    ica.partial_fit(heard[:, :, 16:])
    for f in range(9):
        Q = ica.whitening[f].numpy()
        x, W = heard[:, f].numpy(), kept.unmixing[f].numpy()
        correlation, slopes = np.zeros((2, 2), complex), np.zeros(2)
        for t in range(36):
            u = W @ Q @ x[:, t]
            then = first[f].numpy() @ x[:, t] if t < 16 else u
            real, imaginary = np.tanh(then.real) / then.real, np.tanh(then.imag) / then.imag
            weight = (1 - 40 / 56) / 16 if t < 16 else (40 / 56) / 20
            correlation += weight * np.outer(real * u.real + 1j * imaginary * u.imag, u.conj())
            slopes += weight * (real + imaginary) / 2 * (abs(u) ** 2).sum()
        W = W + min(0.2, 0.5 / slopes.max()) * (np.eye(2) - correlation) @ W
        np.testing.assert_allclose(ica.unmixing[f], W, atol=1e-10)


def test_on_line_no_envelopes_are_compared():
    heard = outside(mixing(10) @ complex_sources(10, frames=100))
    ica = FrequencyICA(permutation="envelope")
    with pytest.raises(InputError, match="permutation='envelope' needs all frames at once; call fit first"):
        ica.partial_fit(heard)
    assert ica.fit(heard).partial_fit(heard) is ica


def test_on_line_matrices_that_run_away_are_told_of_and_given_back():
    heard = outside(mixing(10) @ complex_sources(10, frames=40))
    ica = FrequencyICA().partial_fit(heard)
    ica.unmixing = before = ica.unmixing / 0
    whitening = ica.whitening
    with pytest.raises(DivergenceError, match=r"rate is 0\.2: the matrices diverged"):
        ica.partial_fit(10 * heard)
    assert ica.unmixing is before
    assert ica.whitening is whitening


def test_on_line_silence_teaches_nothing_and_is_not_counted():
    """Neither before sound nor in a block that it shares with it."""
    heard = outside(mixing(10) @ complex_sources(10, frames=200))
    silence = torch.zeros(2, 9, 7, dtype=heard.dtype)
    plain, mixed = OnlineIVA(9, 2), OnlineIVA(9, 2)
    for _ in range(20):
        assert not bool(mixed.process(silence).any())
    for part in heard.split(20, -1):
        wanted = plain.process(part)
        found = mixed.process(torch.cat([silence, part[:, :, :9], silence, part[:, :, 9:]], -1))
        assert torch.equal(mixed.matrices, plain.matrices)
        torch.testing.assert_close(torch.cat([found[:, :, 7:16], found[:, :, 23:]], -1), wanted)


@pytest.mark.parametrize("channels", [2, 9])
def test_on_line_nothing_is_learned_from_too_few_frames(channels):
    heard = outside(mixing(10, channels=channels, sources=2) @ complex_sources(10, frames=18))
    online = OnlineIVA(9, channels)
    waiting = 18 if channels == 9 else 16
    for turn, frame in enumerate(heard.split(1, -1), 1):
        found = online.process(frame)
        torch.testing.assert_close(found.sum(0), frame[0], atol=1e-3, rtol=1e-3)
        shared = torch.allclose(found, frame[:1] / channels)
        assert shared == (turn < waiting)
    wanted = OnlineIVA(9, channels)
    for part in (heard,) if channels == 9 else (heard[:, :, :16], heard[:, :, 16:17], heard[:, :, 17:]):
        wanted.process(part)
    assert torch.equal(online.matrices, wanted.matrices)
    bare = OnlineIVA(9, channels, reference=None)
    assert torch.equal(bare.process(heard[:, :, :3]), heard[:, :, :3])


def test_on_line_in_double_precision():
    heard = outside(mixing(10) @ complex_sources(10, frames=100))
    single, double = OnlineIVA(9, 2), OnlineIVA(9, 2)
    for part in heard.split(20, -1):
        found, wanted = double.process(part.to(torch.complex128)), single.process(part)
    assert found.dtype == torch.complex128
    torch.testing.assert_close(found.to(torch.complex64), wanted, atol=1e-2, rtol=1e-2)


def test_scores():
    u = torch.tensor([[[1 - 2j, 0j]], [[0.5j, 0j]]])
    torch.testing.assert_close(score(u, "polar").abs(), u.abs().tanh())
    torch.testing.assert_close(score(u, "vector")[:, 0, 0], u[:, 0, 0] / ((5 + 0.25) / 2) ** 0.5)
    assert bool((score(u, "polar")[:, :, 1] == 0).all())
    with pytest.raises(InputError, match="score must be"):
        score(u, "square")


def test_fewer_sources_than_channels_are_sought_in_principal_components():
    s, A = complex_sources(11), mixing(11, channels=3)
    x = A @ s + 1e-3 * torch.randn(9, 3, 600, dtype=torch.complex64)
    for W in (auxiliary_iva(outside(x), 2), FrequencyICA(2).fit(outside(x)).matrices()):
        assert W.shape == (9, 2, 3)
        assert leak(W, A) < 0.2


def test_scale_is_that_of_a_microphone():
    W = mixing(12, dtype=torch.complex128)
    for reference in (0, 1):
        A = torch.linalg.inv(minimal_distortion(W, reference))
        torch.testing.assert_close(A[:, reference], torch.ones(9, 2, dtype=A.dtype))
    A = torch.linalg.inv(minimal_distortion(W, None))
    torch.testing.assert_close(A.diagonal(dim1=1, dim2=2), torch.ones(9, 2, dtype=A.dtype))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda x: FrequencyICA(3).fit(x), "outputs=3"),
        (lambda x: FrequencyICA(rate=0.0), "rate must be positive"),
        (lambda x: FrequencyICA(score="none"), "score"),
        (lambda x: FrequencyICA(permutation="all"), "permutation"),
        (lambda x: FrequencyICA(reference=2).fit(x), "microphone from 0 to 1, got 2"),
        (lambda x: FrequencyICA(reference=-1).fit(x), "microphone from 0 to 1, got -1"),
        (lambda x: FrequencyICA().separate(x), "nothing has been learned"),
        (lambda x: FrequencyICA().fit([]), "empty"),
        (lambda x: FrequencyICA().fit(x * torch.nan), "not finite"),
        (lambda x: FrequencyICA().fit(x.real), "complex"),
        (lambda x: FrequencyICA().fit([x, x[:, :3]]), r"spectra\[1\]"),
        (lambda x: FrequencyICA().fit(x).separate(x[:, :3]), "learned from"),
        (lambda x: auxiliary_iva(x, 3), "outputs=3"),
        (lambda x: auxiliary_iva(x, 0), "outputs=0"),
        (lambda x: auxiliary_iva(x, model="cauchy"), "model"),
        (lambda x: auxiliary_iva(x, iterations=-1), "iterations"),
        (lambda x: auxiliary_iva(x, bands=10), "bands=10"),
        (lambda x: auxiliary_iva(x.to(torch.complex128), compiled=True), "compiled"),
        (lambda x: OnlineIVA(5, 2, forgetting=1.0), "forgetting"),
        (lambda x: OnlineIVA(5, 2, reference=2), "microphone from 0 to 1, got 2"),
        (lambda x: OnlineIVA(5, 2).process(x), "are expected"),
        (lambda x: minimal_distortion(mixing(0), 2), "microphone"),
    ],
)
def test_what_cannot_be_used_is_refused(call, complaint):
    x = torch.randn(2, 9, 30, dtype=torch.complex64)
    with pytest.raises((InputError, ShapeError), match=complaint):
        call(x)


@pytest.mark.parametrize("permutation", ["vector", "envelope"])
def test_a_rate_at_which_matrices_run_away_is_told_of(permutation):
    x = outside(mixing(0) @ complex_sources(0))
    ica = FrequencyICA(iterations=2, permutation=permutation).fit(x)
    before = ica.unmixing
    ica.rate, ica.iterations = 50.0, 200
    with pytest.raises(DivergenceError, match=r"rate is 50\.0: the matrices diverged"):
        ica.fit(x)
    assert ica.unmixing is before


@pytest.mark.parametrize("kind", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(("channels", "outputs"), [(2, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("silent", ["all", "one frequency"])
def test_silence_stays_silent(silent, channels, outputs, kind):
    x = torch.zeros(channels, 5, 20, dtype=kind)
    if silent == "one frequency":
        x[:, 1:] = torch.randn(channels, 4, 20, dtype=kind, generator=torch.Generator().manual_seed(0))
    for model in ("gauss", "laplace"):
        W = auxiliary_iva(x, outputs, model=model, iterations=5)
        assert bool(torch.isfinite(torch.view_as_real(W)).all())
    assert bool(torch.isfinite(torch.view_as_real(FrequencyICA(outputs, iterations=3).fit(x).matrices())).all())
    online = OnlineIVA(5, channels)
    assert not bool(online.process(x)[:, 0].any())
