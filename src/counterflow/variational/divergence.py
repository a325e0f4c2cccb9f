r"""The divergence of a dropout posterior from the log-uniform prior, exactly and by two approximations.

For :math:`q(w) = N(\theta, \alpha\theta^2)` and :math:`p(\log|w|) \propto c` it depends on :math:`\alpha` alone, and

.. math::
    -\frac{d\,\mathrm{KL}}{d\log\alpha} = \sqrt u\, D(\sqrt u), \qquad u = \frac{1}{2\alpha}, \qquad
    D(x) = e^{-x^2}\int_0^x e^{t^2} dt .

The prior is improper, so its constant is free; here KL falls to 0 as :math:`\alpha` grows. ``"exact"`` interpolates
value and derivative from a table of cubic pieces, right to seven digits and cheaper than any series; on the processor
both come from one pass of a compiled loop. ``"polynomial"`` is the paper's, and holds for :math:`\alpha \le 1` only:
with the text's :math:`c_2` given the sign that it lost there. ``"sigmoid"`` is that of Molchanov and others (2017).
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function

from counterflow.exceptions import InputError
from counterflow.variational.noise import below, downhill

__all__ = ["Approximation", "bounded_kl", "dropout_kl", "gaussian_kl"]

Approximation = Literal["exact", "polynomial", "sigmoid"]

_LOW, _HIGH, _STEPS = -20.0, 20.0, 64  # the table's range of log alpha, and its cells a unit
_C1, _C2, _C3 = 1.16145124, -1.50204118, 0.58629921
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695


def _slope(log_alpha: NDArray[Any]) -> NDArray[Any]:
    """sqrt(u) D(sqrt(u)), in float64."""
    u = 0.5 * np.exp(-np.asarray(log_alpha, dtype=np.float64))
    nodes, weights = np.polynomial.legendre.leggauss(128)
    s, w = 0.5 * (nodes + 1), 0.5 * weights
    small = np.minimum(u, 60.0)  # D(x) = x times the integral of exp(-x^2 (1 - s^2)) over s from 0 to 1
    by_rule = small * (np.exp(-small[..., None] * (1 - s**2)) * w).sum(-1)
    series, term = np.ones_like(u), np.ones_like(u)
    for k in range(1, 12):
        term = term * (2 * k - 1) / (2 * np.maximum(u, 60.0))
        series = series + term
    found: NDArray[Any] = np.where(u <= 60.0, by_rule, 0.5 * series)
    return found


@functools.cache
def _table() -> tuple[NDArray[Any], NDArray[Any]]:
    """KL, and the slope of -KL, at the edges of the cells."""
    edges = np.linspace(_LOW, _HIGH, int((_HIGH - _LOW) * _STEPS) + 1)
    slope = _slope(edges)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    inside = edges[:-1, None] + (0.5 * (nodes + 1) / _STEPS)[None, :]
    pieces = (_slope(inside) * (0.5 * weights / _STEPS)).sum(1)
    tail = 0.5 * np.exp(-_HIGH)
    kl = np.concatenate([np.cumsum(pieces[::-1])[::-1] + tail, [tail]])
    return kl, slope


@functools.cache
def _cubics(kind: type[np.floating[Any]]) -> tuple[NDArray[Any], ...]:
    """KL in each cell as a cubic of the place in it, from Hermite's form, constants first."""
    kl, slope = _table()
    here, there, first, second = kl[:-1], kl[1:], -slope[:-1] / _STEPS, -slope[1:] / _STEPS
    third, fourth = 3 * (there - here) - 2 * first - second, 2 * (here - there) + first + second
    return tuple(np.ascontiguousarray(each, kind) for each in (here, first, third, fourth))


@functools.cache
def _compiled() -> Any:
    import numba

    @numba.njit(cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy")
    def look_up(
        rho: Any, bounded: bool, bound: Any, a: Any, b: Any, c: Any, d: Any, low: Any, high: Any, steps: Any, out: Any
    ) -> float:
        """The sum of KL; its derivative by rho goes into out. All numbers but the sum are of rho's precision."""
        total = 0.0
        one, half, three = a.dtype.type(1.0), a.dtype.type(0.5), a.dtype.type(3.0)
        for i in range(rho.size):
            raw = rho[i]
            value = bound - abs(raw) if bounded else raw
            inside = value if value > low else low  # NaN too
            inside = inside if inside < high else high
            place = (inside - low) * steps
            cell = np.uint32(place)  # unsigned: no look for indices below zero
            f = place - a.dtype.type(cell)
            # Below the table KL is a line of slope -1/2; above it, nothing is left.
            below = inside - value if value < inside else inside - inside
            total += a[cell] + f * (b[cell] + f * (c[cell] + f * d[cell])) + half * below
            slope = (b[cell] + f * (c[cell] + c[cell] + three * f * d[cell])) * steps
            # NaN has become an edge of the table: it is put back.
            out[i] = raw if raw != raw else slope * (-one if bounded and raw >= 0 else one)
        return total

    return look_up


@torch.library.custom_op("counterflow::dropout_kl", mutates_args=())
def _kl_on_cpu(rho: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """The sum of KL, and its derivative by element."""
    x = rho.detach().contiguous()
    out = torch.empty_like(x)
    kind = np.float32 if x.dtype == torch.float32 else np.float64
    edges = kind(_LOW), kind(_HIGH - 1e-3), kind(_STEPS)
    top = kind(0.0 if bound is None else math.log(bound))
    flat = x.view(-1).numpy()
    total = _compiled()(flat, bound is not None, top, *_cubics(kind), *edges, out.view(-1).numpy())
    return torch.tensor(total, dtype=x.dtype), out


@_kl_on_cpu.register_fake
def _(rho: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    return rho.new_empty(()), torch.empty_like(rho)


def _kl_anywhere(rho: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """The same in PyTorch's operations: any device, and under torch.func."""
    raw = rho.detach()
    x = raw if bound is None else math.log(bound) - raw.abs()
    inside = x.clamp(_LOW, _HIGH - 1e-3)
    place = (inside - _LOW) * _STEPS
    cell = place.nan_to_num().floor().long()
    f = place - cell
    a, b, c, d = (torch.as_tensor(each, dtype=x.dtype, device=x.device)[cell] for each in _cubics(np.float64))
    value = a + f * (b + f * (c + f * d)) + 0.5 * (inside - torch.minimum(x, inside))
    slope = (b + f * (2 * c + 3 * f * d)) * _STEPS
    return value.sum(), slope if bound is None else slope * downhill(raw)


class _Exact(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rho: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
        plain = rho.device.type == "cpu" and rho.dtype in (torch.float32, torch.float64)
        if plain and torch._C._functorch.maybe_current_level() is None:
            total, derivative = _kl_on_cpu(rho, bound)
        else:
            total, derivative = _kl_anywhere(rho, bound)
        return total, derivative

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        (derivative,) = ctx.saved_tensors
        return None if grad is None else derivative * grad, None


def bounded_kl(rho: Tensor, bound: float | None, approximation: Approximation) -> Tensor:
    """`dropout_kl` of the rates' own parameters: log alpha, or, with a bound, log bound - |rho|."""
    if approximation == "exact":
        total: Tensor = _Exact.apply(rho, bound)[0]  # type: ignore[no-untyped-call]
        return total
    return dropout_kl(below(rho, bound), approximation, bound)


def dropout_kl(log_alpha: Tensor, approximation: Approximation = "exact", max_alpha: float | None = None) -> Tensor:
    r"""The sum over all rates of KL(q || p) for a dropout posterior and the log-uniform prior.

    Args:
        log_alpha: :math:`\log\alpha`, of any shape.
        approximation: ``"exact"`` (default), the paper's ``"polynomial"`` or Molchanov's ``"sigmoid"``.
        max_alpha: The bound that rates keep, if any; the polynomial asks for one of 1 at most.

    Returns:
        A number; 0 for infinite rates (the polynomial agrees with the exact form at :math:`\alpha = 1`).

    Raises:
        InputError: If the approximation is not known, or the polynomial is asked for rates above 1.

    References:
        Kingma et al. 2015, section 3.3 and appendix C; Molchanov et al., "Variational Dropout Sparsifies Deep Neural
        Networks", ICML 2017, equation 14.

    Example:
        >>> import torch
        >>> from counterflow.variational import dropout_kl
        >>> [round(float(dropout_kl(torch.zeros(1), a, max_alpha=1.0)), 3) for a in ("exact", "polynomial", "sigmoid")]
        [0.427, 0.427, 0.431]
    """
    if approximation == "exact":
        return bounded_kl(log_alpha, None, approximation)
    if approximation == "polynomial":
        if max_alpha is None or max_alpha > 1:
            raise InputError(
                f"approximation='polynomial' holds for alpha <= 1, but max_alpha={max_alpha!r}; take 'exact', or "
                "bound the rates"
            )
        alpha = log_alpha.exp()
        constant = float(_table()[0][int(-_LOW * _STEPS)]) + _C1 + _C2 + _C3
        return (constant - 0.5 * log_alpha - alpha * (_C1 + alpha * (_C2 + alpha * _C3))).sum()
    if approximation == "sigmoid":
        away = torch.sigmoid(-(_K2 + _K3 * log_alpha))  # 1 - sigmoid(...), without loss
        return (_K1 * away + 0.5 * torch.nn.functional.softplus(-log_alpha)).sum()
    raise InputError(f"approximation must be exact, polynomial or sigmoid, got {approximation!r}")


def gaussian_kl(mean: Tensor, log_variance: Tensor, std: float) -> Tensor:
    r"""The sum over weights of KL(N(mean, variance) || N(0, std^2)).

    Args:
        mean: Posterior means.
        log_variance: Logarithms of the posterior variances, in the same shape.
        std: Of the prior.

    Example:
        >>> import torch
        >>> from counterflow.variational import gaussian_kl
        >>> float(gaussian_kl(torch.zeros(3), torch.zeros(3), 1.0))
        0.0
    """
    log_ratio = log_variance - 2 * math.log(std)
    found: Tensor = 0.5 * (log_ratio.exp() + (mean / std).square() - 1 - log_ratio).sum()
    return found
