"""What all separations share: whitening, scale, and the checks of spectra.

Inside, spectra are (frequencies, channels, frames) and matrices (frequencies, outputs, channels), so that all
frequencies are one batch; outside, spectra are (channels, frequencies, frames), as the transform gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from counterflow.exceptions import InputError, ShapeError

__all__ = ["minimal_distortion", "whitener"]


def whitener(x: Tensor, outputs: int | None = None) -> Tensor:
    r"""Matrices :math:`Q_f` with :math:`Q_f\, E[x x^H]\, Q_f^H = I`, by the Hermitian root.

    Args:
        x: Shape (frequencies, channels, frames), complex.
        outputs: Fewer than channels: the strongest principal components alone.

    Returns:
        Shape (frequencies, outputs, channels). Directions without power are bounded: silence stays silent.
    """
    return root(x @ x.mH / x.shape[-1], outputs)


def root(covariance: Tensor, outputs: int | None = None) -> Tensor:
    """`whitener` of a covariance, shape (frequencies, channels, channels)."""
    # in double precision: neighboring microphones hear nearly the same at low frequencies
    values, vectors = torch.linalg.eigh(covariance.to(torch.complex128))
    least = 1e-10 * values[:, -1:] + 1e-10 * values.amax() + 1e-30
    roots = torch.maximum(values, least).rsqrt()
    if outputs is None or outputs == covariance.shape[1]:
        found = (vectors * roots.unsqueeze(1)) @ vectors.mH
    else:
        found = (vectors * roots.unsqueeze(1)).mH[:, -outputs:]
    whitening: Tensor = found.to(covariance.dtype)
    return whitening


def minimal_distortion(matrices: Tensor, reference: int | None = 0) -> Tensor:
    r"""Demixing matrices whose outputs have the scale that their source has at a microphone.

    .. math:: W'_f = \operatorname{diag}(a_f)\, W_f

    where :math:`a_f` is the row of :math:`W_f^{-1}` (of its pseudo-inverse) for the reference microphone. Without a
    reference it is the diagonal, the minimal distortion principle as Matsuoka has it: each output then has the scale of
    the microphone of its own number.

    Args:
        matrices: Shape (frequencies, outputs, channels).
        reference: The number of a microphone, or None.

    Raises:
        InputError: If there is no such microphone.

    Example:
        >>> W = torch.randn(5, 2, 2, dtype=torch.complex128)
        >>> A = torch.linalg.inv(minimal_distortion(W, 1))
        >>> torch.allclose(A[:, 1], torch.ones(5, 2, dtype=A.dtype))
        True
    """
    check_reference(reference, matrices.shape[2])
    return distortion_scale(matrices, reference).unsqueeze(-1) * matrices


def check_reference(reference: int | None, channels: int) -> None:
    """Raise InputError for a microphone that is not there."""
    if reference is not None and not 0 <= reference < channels:
        raise InputError(f"reference must be a microphone from 0 to {channels - 1}, got {reference}")


def distortion_scale(matrices: Tensor, reference: int | None) -> Tensor:
    """The factor of each output, shape (frequencies, outputs)."""
    mixing = inverse(matrices.to(torch.complex128))
    scale = mixing.diagonal(dim1=1, dim2=2) if reference is None else mixing[:, reference]
    factors: Tensor = scale.to(matrices.dtype)
    return factors


def inverse(matrices: Tensor) -> Tensor:
    """The pseudo-inverse; of pairs in closed form where all have an inverse."""
    if matrices.shape[1:] == (2, 2):
        a, b, c, d = matrices.flatten(1).unbind(1)
        determinant = a * d - b * c
        if bool((determinant.abs() > 1e-12 * matrices.abs().square().sum((1, 2))).all()):
            return torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / determinant[:, None, None]
    inverse: Tensor = torch.linalg.pinv(matrices, rtol=1e-12)
    return inverse


def inside(spectra: Tensor | Sequence[Tensor], called: str = "spectra") -> tuple[Tensor, list[int]]:
    """One array (frequencies, channels, frames) of all items, and the frames of each.

    Args:
        spectra: Shape (channels, frequencies, frames), or several such with frames of their own.
        called: What the argument is called.
    """
    items = [spectra] if isinstance(spectra, Tensor) else list(spectra)
    if not items:
        raise InputError(f"{called} is empty; give at least one item")
    for number, item in enumerate(items):
        if not item.is_complex() or item.ndim != 3 or item.shape[:2] != items[0].shape[:2] or not item.shape[2]:
            raise ShapeError(
                f"{called}[{number}] must be complex, (channels, frequencies, frames), as the first of them; got "
                f"{item.dtype}, {tuple(item.shape)}"
            )
    whole = torch.cat(items, -1) if len(items) > 1 else items[0]
    found = whole.transpose(0, 1).contiguous()
    parts = torch.view_as_real(found.resolve_conj())
    # One that is not finite makes the sum so, which is sooner known; a sum of finite ones may still be too large.
    if not (bool(parts.sum().isfinite()) or bool(parts.isfinite().all())):
        raise InputError(f"{called} holds values that are not finite; mend the recording")
    return found, [item.shape[2] for item in items]
