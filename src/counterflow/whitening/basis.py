r"""The basis in which a layer's inputs are white: from their covariance to U, its inverse and the metric.

.. math::
    \Sigma = E \,\mathrm{diag}(\lambda)\, E^T, \qquad
    U = \mathrm{diag}(\lambda + \epsilon)^{-1/2}\, E^T \quad (7), \qquad P = U^T U

The ridge stands inside the root in equation 7 and in line 9 of algorithm 1; ``ridge="outside"`` is
:math:`U = (\mathrm{diag}(\lambda)^{1/2} + \epsilon)^{-1} E^T`. ``basis="zca"`` is :math:`E\,U`, the symmetric root,
which differs by a rotation of the whitened inputs and leaves :math:`P` as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Basis", "BasisKind", "Ridge", "drift", "whitening_basis"]

BasisKind = Literal["pca", "zca"]
Ridge = Literal["inside", "outside"]


@dataclass(frozen=True)
class Basis:
    r"""A whitening basis, in float64.

    Args:
        matrix: :math:`U`, shape (n, n).
        inverse: :math:`U^{-1}`, shape (n, n).
        metric: :math:`P = U^T U`, shape (n, n).
        eigenvalues: :math:`\lambda` of :math:`\Sigma`, ascending, without the ridge, shape (n,).
        found_by: ``"eigh"``, or the fallback that was needed.
    """

    matrix: Tensor
    inverse: Tensor
    metric: Tensor
    eigenvalues: Tensor
    found_by: str


def whitening_basis(sigma: Tensor, epsilon: float, kind: BasisKind = "pca", ridge: Ridge = "inside") -> Basis | None:
    r"""The whitening basis of a covariance matrix.

    `torch.linalg.eigh` in float64; where that fails, once more with :math:`10^{-10}` of the mean eigenvalue on the
    diagonal, then by singular values. Eigenvalues below zero are rounding, and count as zero.

    Args:
        sigma: :math:`\Sigma`, symmetric, shape (n, n).
        epsilon: :math:`\epsilon > 0`; in units of the activation's square inside the root, of the activation outside.
        kind: ``"pca"`` or ``"zca"``.
        ridge: ``"inside"`` or ``"outside"`` the root.

    Returns:
        The basis, or None where the matrix is not finite or nothing decomposes it.

    Example:
        >>> basis = whitening_basis(torch.diag(torch.tensor([3.0, 8.0])), epsilon=1.0)
        >>> basis.metric.diagonal()
        tensor([0.2500, 0.1111], dtype=torch.float64)
    """
    sigma = sigma.detach().double()
    if not bool(sigma.isfinite().all()):
        return None
    found = _decompose((sigma + sigma.T) / 2)
    if found is None:
        return None
    eigenvalues, vectors, found_by = found
    # An eigenvector's sign is arbitrary; settled, so that what differs by rounding gives the same basis.
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    eigenvalues = eigenvalues.clamp(min=0.0)
    if ridge == "inside":
        gains = (eigenvalues + epsilon).rsqrt()
    else:
        gains = 1.0 / (eigenvalues.sqrt() + epsilon)
    matrix, inverse = gains[:, None] * vectors.T, vectors / gains
    metric = (vectors * gains.square()) @ vectors.T
    if kind == "zca":
        matrix, inverse = vectors @ matrix, inverse @ vectors.T
    return Basis(matrix, inverse, metric, eigenvalues, found_by)


def _decompose(sigma: Tensor) -> tuple[Tensor, Tensor, str] | None:
    """Ascending eigenvalues, eigenvectors as columns, and which way they were found."""
    jitter = 1e-10 * sigma.diagonal().mean().abs() * torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device)
    for matrix, found_by in ((sigma, "eigh"), (sigma + jitter, "eigh with jitter")):
        try:
            eigenvalues, vectors = torch.linalg.eigh(matrix)
        except RuntimeError:  # LinAlgError is one; other devices have others
            continue
        if bool(eigenvalues.isfinite().all()) and bool(vectors.isfinite().all()):
            return eigenvalues, vectors, found_by
    try:
        vectors, values, _ = torch.linalg.svd(sigma)
    except RuntimeError:
        return None
    if not (bool(values.isfinite().all()) and bool(vectors.isfinite().all())):
        return None
    return values.flip(0), vectors.flip(1), "svd"


def drift(metric: Tensor, sigma: Tensor, sigma_then: Tensor) -> float:
    r"""How far whitening has drifted: :math:`\|U(\Sigma - \Sigma_0)U^T\|_F / \sqrt n`.

    :math:`U\Sigma_0U^T` is the identity but for the ridge, so this is the deviation of :math:`U\Sigma U^T` from the
    identity, with that part of it taken out which no projection could mend. PCA and ZCA give one number.

    Args:
        metric: :math:`P = U^T U` in use, shape (n, n).
        sigma: The covariance of fresh activations, shape (n, n).
        sigma_then: :math:`\Sigma_0`, the one that :math:`U` was made from, shape (n, n).

    Example:
        >>> drift(torch.eye(2), 2 * torch.eye(2), torch.eye(2))
        1.0
    """
    moved = metric.double() @ (sigma.double() - sigma_then.double())
    square = float((moved * moved.T).sum()) / len(moved)
    return float(max(square, 0.0) ** 0.5)
