"""Gaussian states against scipy, and what they learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

from counterflow.exceptions import InputError, ShapeError
from counterflow.speech import GaussianStates, add_deltas


def test_costs_are_negative_log_likelihoods():
    torch.manual_seed(0)
    model = GaussianStates(3, 2, 2).double()
    model.means.normal_()
    model.variances.uniform_(0.5, 2.0)
    model.log_weights.copy_(torch.rand(3, 2, dtype=torch.float64).log_softmax(1))
    x = torch.randn(7, 2, dtype=torch.float64)
    means, deviations, weights = model.means.numpy(), model.variances.sqrt().numpy(), model.log_weights.numpy()
    each = norm.logpdf(x.numpy()[:, None, None], means, deviations).sum(-1) + weights
    np.testing.assert_allclose(model.costs(x).numpy(), -logsumexp(each, -1), atol=1e-10)


def test_one_gaussian_is_mean_and_variance():
    torch.manual_seed(1)
    x, state = torch.randn(90, 3).double(), torch.arange(90) % 3
    state[state == 2] = 0
    model = GaussianStates(3, 3).double()
    model.fit([x[:40], x[40:]], [state[:40], state[40:]])
    for s in range(2):
        torch.testing.assert_close(model.means[s, 0], x[state == s].mean(0))
        torch.testing.assert_close(model.variances[s, 0], x[state == s].var(0, correction=0))
    torch.testing.assert_close(model.means[2, 0], x.mean(0))  # it has no frames


def test_a_mixture_finds_modes_and_stays_small_where_frames_are_few():
    torch.manual_seed(2)
    modes = torch.tensor([-3.0, 0.0, 3.0, 6.0])
    x = (modes[torch.randint(4, (400,))] + 0.2 * torch.randn(400))[:, None]
    state = torch.zeros(400, dtype=torch.int64)
    state[:15] = 1
    model = GaussianStates(2, 1, 4)
    model.fit([x], [state], iterations=20, min_variance=1e-3)
    torch.testing.assert_close(model.means[0, :, 0].sort().values, modes, atol=0.2, rtol=0)
    assert model.log_weights[1].isfinite().sum() == 1
    one = GaussianStates(2, 1)
    one.fit([x], [state])
    assert model.costs(x)[15:, 0].mean() < one.costs(x)[15:, 0].mean() - 0.3


def test_features_far_from_zero_cost_what_they_cost_there():
    torch.manual_seed(3)
    x, state = torch.randn(200, 2).round(decimals=2), torch.arange(200) % 2
    near, far = (GaussianStates(2, 2, 4) for _ in range(2))
    near.fit([x], [state])
    far.fit([x + 1000], [state])
    torch.testing.assert_close(far.variances, near.variances, rtol=0.01, atol=0)
    torch.testing.assert_close(far.costs(x + 1000), near.costs(x), rtol=0, atol=0.02)


def test_slopes():
    line = torch.stack([2.0 * torch.arange(9), torch.ones(9)], 1)
    found = add_deltas(line, orders=2)
    assert found.shape == (9, 6)
    torch.testing.assert_close(found[2:-2, 2], torch.full((5,), 2.0))
    assert found[:, 3].abs().max() == 0
    torch.testing.assert_close(found[:, 4], add_deltas(found[:, 2:3])[:, 1])
    assert add_deltas(line[:1]).shape == (1, 4)


def test_what_cannot_be_is_said():
    with pytest.raises(InputError, match="n_components must be"):
        GaussianStates(2, 3, 0)
    model = GaussianStates(2, 3)
    with pytest.raises(ShapeError, match=r"needs \(time, 3\)"):
        model.costs(torch.rand(3, 2))
    x, s = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
    for call in (
        lambda: model.fit([], []),
        lambda: model.fit([x[:0]], [s[:0]]),
        lambda: model.fit([x], [s + 2]),
        lambda: model.fit([x], [s], iterations=0),
        lambda: add_deltas(x, orders=0),
    ):
        with pytest.raises(InputError):
            call()
    with pytest.raises(ShapeError, match="utterance 1"):
        model.fit([x, x], [s, s[1:]])
    with pytest.raises(ShapeError):
        add_deltas(x[:0])
