r"""What an activation function can do at most: its slope, and the power of its output.

For a function :math:`f` of one variable, the paper's equations 5 and 9 ask for

.. math:: s(f) = \max_u |f'(u)|, \qquad p(f) = \max_u f(u)^2.

Both are found numerically, on a fine grid with a few points far out, so that a function's own arguments (a negative
slope, a limit) count and nothing is typed in. What has no finite bound is told as None, and is then measured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from counterflow.exceptions import InputError

__all__ = ["UNARY", "Bounds", "bounds"]


@dataclass(frozen=True)
class Bounds:
    """What is known about an activation function.

    Args:
        slope: :math:`s(f)`, > 0; None where it has no bound and is measured on the sample.
        power: :math:`p(f)`, > 0; None where it has no bound and is measured on the sample.

    Raises:
        InputError: If a number is not finite and positive.
    """

    slope: float | None
    power: float | None = None

    def __post_init__(self) -> None:
        for name in ("slope", "power"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and math.isfinite(value) and value > 0):
                raise InputError(f"Bounds: {name} must be a number > 0 or None, got {value!r}")


def names(text: str) -> frozenset[str]:
    """A set of words."""
    return frozenset(text.split())


# Elementwise functions of one tensor, by their name in torch.ops.aten; the others of a call's arguments are settings.
UNARY = names(
    "abs acos acosh asin asinh atan atanh celu ceil clamp clamp_max clamp_min clip cos cosh elu erf erfc exp exp2 "
    "expm1 gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu log log10 log1p log2 log_sigmoid logit mish "
    "nan_to_num pow reciprocal relu relu6 rrelu rsqrt selu sigmoid silu sin sinh softplus softshrink sqrt square "
    "tan tanh threshold"
)


@functools.cache
def _grid() -> tuple[Tensor, Tensor]:
    near = torch.linspace(-20.0, 20.0, 400_001, dtype=torch.float64)
    far = torch.logspace(2, 15, 14, dtype=torch.float64)
    return near, torch.cat([far, -far])


def bounds(function: Callable[[Tensor], Tensor]) -> Bounds:
    """The bounds of an elementwise function, found numerically.

    Args:
        function: Maps a float64 tensor to one of the same shape, elementwise.

    Returns:
        Its bounds, None where there is none.

    Example:
        >>> import torch
        >>> bounds(torch.sigmoid)
        Bounds(slope=0.25, power=1.0)
        >>> print(round(bounds(torch.nn.functional.gelu).slope, 3), bounds(torch.relu).power)
        1.129 None
    """
    slopes, powers = [], []
    for points, tail in zip(_grid(), (False, True), strict=True):
        u = points.clone().requires_grad_()
        with torch.enable_grad():
            y = function(u.clone())  # a copy, since the function may work in place
            (slope,) = torch.autograd.grad(y.sum(), u)
        y = y.detach()
        if tail:  # far out, overflow inside a bounded function says nothing
            y, slope = y.nan_to_num(0.0, math.inf, -math.inf), slope.nan_to_num(0.0, math.inf, -math.inf)
        slopes.append(slope.abs().max().item())
        powers.append(y.square().max().item())
    # A function that has reached these numbers grows without end.
    return Bounds(_below(max(slopes), 1e3, slopes), _below(max(powers), 1e6, powers))


def _below(value: float, limit: float, all_values: list[float]) -> float | None:
    finite = all(math.isfinite(v) for v in all_values)
    return value if finite and 0 < value < limit else None


def checked(activations: Mapping[str, Bounds] | None) -> dict[str, Bounds]:
    """The user's own bounds by function name.

    Raises:
        InputError: If it is no dictionary, or a value is not a `Bounds` with a slope.
    """
    if activations is not None and not isinstance(activations, Mapping):
        raise InputError(
            "activations must be a dictionary from functions to bounds, {'erfinv': tempering.Bounds(slope=2.0)} say, "
            f"got {activations!r}"
        )
    given = dict(activations or {})
    for name, value in given.items():
        if not isinstance(value, Bounds) or value.slope is None:
            raise InputError(f"activations[{name!r}] must be a tempering.Bounds(slope=..., power=...), got {value!r}")
    return given


_cache: dict[Any, Bounds] = {}


def bounds_of_call(target: Callable[..., Tensor], rest: tuple[Any, ...], settings: Mapping[str, Any]) -> Bounds:
    """The bounds of ``u -> target(u, *rest, **settings)``; unbounded where a setting is a tensor."""
    try:
        key = (target, rest, tuple(settings.items()))
        hash(key)
    except TypeError:
        return Bounds(None)
    if key not in _cache:
        try:
            _cache[key] = bounds(lambda u: target(u, *rest, **settings))
        except (RuntimeError, TypeError):  # a setting that is not a plain number, but a value of this trace
            return Bounds(None)
    return _cache[key]
