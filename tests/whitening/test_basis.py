"""From covariance to whitening basis: definition, ridge, PCA and ZCA, and the ladder of fallbacks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from counterflow.whitening.basis import drift, whitening_basis


def covariance(n: int = 6, rank: int | None = None) -> Tensor:
    factor = torch.randn(n, n if rank is None else rank, dtype=torch.float64)
    return factor @ factor.T


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_inputs_come_out_white(kind):
    sigma = covariance()
    basis = whitening_basis(sigma, 1e-12, kind)
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(basis.matrix @ sigma @ basis.matrix.T, eye, rtol=0, atol=1e-8)
    torch.testing.assert_close(basis.matrix @ basis.inverse, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.metric, basis.matrix.T @ basis.matrix, rtol=1e-12, atol=1e-12)
    assert basis.found_by == "eigh"


def test_the_metric_is_the_inverse_with_the_ridge_inside():
    sigma = covariance(rank=3)  # rank-deficient: the ridge is all there is in half of the directions
    basis = whitening_basis(sigma, 0.1)
    wanted = torch.linalg.inv(sigma + 0.1 * torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(basis.metric, wanted, rtol=1e-10, atol=1e-10)
    assert float(basis.eigenvalues[0]) >= 0.0


def test_the_ridge_outside_the_root():
    basis = whitening_basis(torch.diag(torch.tensor([4.0, 9.0])), 0.5, ridge="outside")
    wanted = torch.tensor([1 / 2.5**2, 1 / 3.5**2], dtype=torch.float64)
    torch.testing.assert_close(basis.metric.diagonal(), wanted)


def test_zca_is_symmetric_and_pca_orders_by_variance():
    sigma = covariance()
    zca = whitening_basis(sigma, 0.1, "zca").matrix
    torch.testing.assert_close(zca, zca.T, rtol=1e-12, atol=1e-12)
    rows = whitening_basis(sigma, 0.1, "pca").matrix.norm(dim=1)
    assert bool((rows[:-1] >= rows[1:]).all())


def test_constant_inputs_have_a_basis():
    basis = whitening_basis(torch.zeros(3, 3), 0.25)
    torch.testing.assert_close(basis.metric, 4.0 * torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(("failures", "found_by"), [(1, "eigh with jitter"), (2, "svd")])
def test_the_ladder_of_fallbacks(monkeypatch, failures, found_by):
    sigma, real, calls = covariance(), torch.linalg.eigh, []
    wanted = whitening_basis(sigma, 0.1)

    def eigh(matrix):
        calls.append(matrix)
        if len(calls) <= failures:
            raise torch.linalg.LinAlgError("failed to converge")
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    basis = whitening_basis(sigma, 0.1)
    assert basis.found_by == found_by
    torch.testing.assert_close(basis.metric, wanted.metric, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(basis.eigenvalues, wanted.eigenvalues, rtol=1e-6, atol=1e-8)


def test_nothing_decomposes_it(monkeypatch):
    def fails(matrix):
        raise torch.linalg.LinAlgError("failed to converge")

    assert whitening_basis(torch.full((2, 2), math.nan), 0.1) is None
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    monkeypatch.setattr(torch.linalg, "svd", fails)
    assert whitening_basis(covariance(), 0.1) is None


def test_drift_is_the_deviation_from_white_in_either_basis():
    then, now = covariance(), covariance()
    bases = [whitening_basis(then, 0.3, kind) for kind in ("pca", "zca")]
    for basis in bases:
        moved = basis.matrix @ (now - then) @ basis.matrix.T
        assert drift(basis.metric, now, then) == pytest.approx(float(moved.norm()) / math.sqrt(6), rel=1e-9)
    assert drift(bases[0].metric, then, then) == 0.0
