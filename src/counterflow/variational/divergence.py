r"""The divergence of a dropout posterior from the log-uniform prior, exactly and by two approximations.

For :math:`q(w) = N(\theta, \alpha\theta^2)` and :math:`p(\log|w|) \propto c` it depends on :math:`\alpha` alone, and

.. math::
    -\frac{d\,\mathrm{KL}}{d\log\alpha} = \sqrt u\, D(\sqrt u), \qquad u = \frac{1}{2\alpha}, \qquad
    D(x) = e^{-x^2}\int_0^x e^{t^2} dt .

The prior is improper, so its constant is free; here KL falls to 0 as :math:`\alpha` grows. ``"exact"`` has value and
derivative from polynomials in :math:`\alpha / (\alpha + 0.1)`, off by 1e-7 at most over the whole line; on the
processor both come from one pass of a compiled loop. ``"polynomial"`` is the paper's, and holds for
:math:`\alpha \le 1` only: with the text's :math:`c_2` given the sign that it lost there. ``"sigmoid"`` is that of
Molchanov and others (2017).
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from counterflow.exceptions import InputError
from counterflow.variational.loops import flat, has_loops
from counterflow.variational.noise import below, downhill

__all__ = ["Approximation", "bounded_kl", "dropout_kl", "gaussian_kl"]

Approximation = Literal["exact", "polynomial", "sigmoid"]

_C1, _C2, _C3 = 1.16145124, -1.50204118, 0.58629921
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695

# With v = alpha / (alpha + SCALE) and t = 2 v - 1, KL is (1 - v) VALUES(t) - log(v) / 2, and its derivative by log
# alpha is -(1 - v) SLOPES(t): fitted by least squares in Chebyshev's polynomials to Dawson's function and its integral,
# and written as powers of t, constants first. The tests hold both against numerical integration.
SCALE = 0.1
SLOPES = (
    1.1570508634,
    1.57050955053,
    1.86056691587,
    1.15909973586,
    -0.442418568017,
    -0.80387197937,
    0.473072066293,
    0.396436063897,
    -0.643326352494,
    0.2403531026,
    0.457037270251,
    -0.90896630313,
    0.172126656664,
    1.13540152208,
    -0.733563923519,
    -0.795567153271,
    0.724997161462,
    0.308051492893,
    -0.340394247143,
    -0.051446038556,
    0.0648521866941,
)
VALUES = (
    2.75512851546,
    1.44102684419,
    0.52756795781,
    -0.103841096953,
    -0.209827886122,
    0.0520022674414,
    0.101677256556,
    -0.0767348789613,
    -0.0190606734036,
    0.0760226365245,
    -0.0605525224384,
    -0.0298393411461,
    0.101491000902,
    -0.0263173222025,
    -0.0838862201933,
    0.0433933622391,
    0.0394355306387,
    -0.023938300825,
    -0.00955145165541,
    0.00498885013783,
    0.000815475397211,
)
_FAR = 80.0  # beyond it exp leaves float32's range; KL is a line of slope -1/2 below, and nothing above


def _powers(t: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    found = torch.full_like(t, coefficients[-1])
    for each in reversed(coefficients[:-1]):
        found = each + t * found
    return found


def _parts(rho: Tensor, bound: float | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What log alpha is, what of it lies within the range, and v and 1 - v."""
    x = rho if bound is None else math.log(bound) - rho.abs()
    inside = x.clamp(-_FAR, _FAR)
    alpha = inside.exp()
    share = 1 / (alpha + SCALE)
    return x, inside, alpha * share, SCALE * share


def _slope(rho: Tensor, bound: float | None) -> Tensor:
    """The derivative of KL by rho, in PyTorch's operations: it can be derived once more."""
    _, _, v, rest = _parts(rho, bound)
    slope = -rest * _powers(v - rest, SLOPES)
    return slope if bound is None else slope * downhill(rho)


def _kl_anywhere(rho: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """The sum of KL, and its derivative by element, in PyTorch's operations: any device, and under torch.func."""
    raw = rho.detach()
    x, inside, v, rest = _parts(raw, bound)
    value = rest * _powers(v - rest, VALUES) - 0.5 * v.log() + 0.5 * (inside - torch.minimum(x, inside))
    return value.sum(), _slope(raw, bound)


def _kl_on_cpu(rho: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """The same by one compiled loop, for float32 on the processor."""
    from counterflow.variational import kernels

    out = torch.empty_like(rho)
    top = np.float32(0.0 if bound is None else math.log(bound))
    total = kernels.divergence(flat(rho), bound is not None, top, flat(out))
    return torch.tensor(total, dtype=rho.dtype, device=rho.device), out


_kl_compiled = torch.library.custom_op("counterflow::dropout_kl", _kl_on_cpu, mutates_args=())


@_kl_compiled.register_fake
def _(rho: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    return rho.new_empty(()), torch.empty_like(rho)


class _Exact(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rho: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
        if not has_loops(rho):
            return _kl_anywhere(rho, bound)
        if torch.compiler.is_compiling():
            total, derivative = _kl_compiled(rho, bound)
            return total, derivative
        return _kl_on_cpu(rho, bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        rho, ctx.bound = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rho, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        rho, derivative = ctx.saved_tensors
        if grad is None:
            return None, None
        if torch.is_grad_enabled():  # the derivative is derived
            derivative = _slope(rho, ctx.bound)
        return derivative * grad, None


_Exact.forward.__signature__ = inspect.signature(_Exact.forward)  # type: ignore[attr-defined]  # not at every call


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
        constant = float(_kl_anywhere(torch.zeros((), dtype=torch.float64), None)[0]) + _C1 + _C2 + _C3
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
        std: Of the prior, > 0.

    Raises:
        InputError: If ``std`` is not positive.

    Example:
        >>> import torch
        >>> from counterflow.variational import gaussian_kl
        >>> float(gaussian_kl(torch.zeros(3), torch.zeros(3), 1.0))
        0.0
    """
    if not std > 0:
        raise InputError(f"std must be positive, got {std!r}")
    log_ratio = log_variance - 2 * math.log(std)
    found: Tensor = 0.5 * (log_ratio.exp() + (mean / std).square() - 1 - log_ratio).sum()
    return found
