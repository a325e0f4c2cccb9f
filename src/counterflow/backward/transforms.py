"""Elementary transforms of an error: scale, center, mask, clip and noise.

``units="rms"`` measures in the root mean square of the error over the batch, so that a transform means the
same early and late in training and under loss scaling; ``units="absolute"`` takes numbers as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from counterflow.backward.reduce import batch_mean, batch_rms
from counterflow.backward.tap import State, Transform
from counterflow.exceptions import InputError, ShapeError

__all__ = ["center", "clip", "mask", "noise", "scale"]

Units = Literal["rms", "absolute"]


class scale(Transform):  # noqa: N801 - a transform reads as a verb where it is used
    r"""Multiply the error by a factor: :math:`\delta \to c\,\delta`.

    Args:
        factor: A number; or a 0-d tensor for a schedule. The tensor becomes a buffer of the module, so
            changing it in place (``factor.fill_(0.1)``) takes effect at once and without recompiling, and a
            checkpoint keeps it. Make it on the module's device; another one is refused. Move the model to its
            device and dtype before attaching: ``.to`` gives a module buffers of its own, and from then on
            ``module.tap0_factor`` is the one to change. ``load_state_dict`` fills the tensor and keeps it; with
            ``assign=True`` it puts the checkpoint's own in its place, and ``module.tap0_factor`` is the one, too.

    Raises:
        InputError: If the factor is not a finite number, or a tensor that has dimensions or requires a
            gradient.

    Example:
        >>> import torch, counterflow as cf
        >>> from counterflow import backward
        >>> layer = torch.nn.Linear(2, 2)
        >>> h = cf.attach(layer, {"": backward.scale(0.5)})
        >>> layer(torch.zeros(3, 2)).sum().backward()
        >>> layer.bias.grad
        tensor([1.5000, 1.5000])
    """

    def __init__(self, factor: float | Tensor) -> None:
        if isinstance(factor, Tensor):
            if factor.ndim != 0:
                raise InputError(
                    f"factor must be a number or a 0-d tensor, got a tensor of shape {tuple(factor.shape)}"
                )
            if factor.requires_grad:
                raise InputError("factor must not require a gradient, since none reaches it; pass factor.detach()")
        self.factor = factor if isinstance(factor, Tensor) else _number("factor", factor)

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        return error * (state["factor"] if state else self.factor)

    def buffers(self) -> Mapping[str, tuple[Tensor, bool]]:
        return {"factor": (self.factor, True)} if isinstance(self.factor, Tensor) else {}

    def scheduled(self) -> tuple[Tensor, ...]:
        return (self.factor,) if isinstance(self.factor, Tensor) else ()

    def __repr__(self) -> str:
        return f"scale({self.factor!r})"


class center(Transform):  # noqa: N801
    r"""Subtract the mean over the batch: :math:`\delta \to \delta - \langle\delta\rangle`, unit by unit.

    Args:
        dim: The dimensions to average over, that of the batch among them. By default the batch dimension
            alone; ``(0, 2, 3)`` gives one mean a feature map of a convolution, ``(0, 1)`` one a feature of a
            (batch, time, features) sequence.

    Raises:
        InputError: If ``dim`` is not a dimension or several.
        ShapeError: In the backward pass, if the batch holds one example, or if the error has no such
            dimension.

    Example:
        >>> import torch, counterflow as cf
        >>> from counterflow import backward
        >>> layer = torch.nn.Linear(2, 2)
        >>> h = cf.attach(layer, {"": backward.center()})
        >>> (layer(torch.eye(2)) * torch.tensor([[1.0], [3.0]])).sum().backward()  # errors 1 and 3
        >>> layer.weight.grad
        tensor([[-1.,  1.],
                [-1.,  1.]])
    """

    batch_coupled = True

    def __init__(self, dim: int | tuple[int, ...] | None = None) -> None:
        dims = (dim,) if isinstance(dim, int) else dim
        if dims is not None and (not dims or not all(isinstance(axis, int) for axis in dims)):
            raise InputError(f"dim must be a dimension or a tuple of them, such as (0, 2, 3), got {dim!r}")
        self.dim = None if dims is None else tuple(dims)

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        if self.dim is None:
            return error - batch_mean(error, batch, repr(self))
        if not all(-error.ndim <= axis < error.ndim for axis in self.dim):
            raise ShapeError(f"{self!r} does not fit an error of shape {tuple(error.shape)}; choose other dimensions")
        dims = tuple(axis % error.ndim for axis in self.dim)
        examples = tuple(axis for axis in batch if axis in dims) or dims
        return error - batch_mean(error, dims, repr(self), examples)

    def __repr__(self) -> str:
        return "center()" if self.dim is None else f"center(dim={self.dim})"


class mask(Transform):  # noqa: N801
    """Let the error through where ``keep`` is true, and nothing where it is not.

    Args:
        keep: A boolean tensor, broadcastable to one example of the output: without the batch dimension, wherever
            that stands, so that ``(time, features)`` is right for a recurrent layer of either layout. One with as many
            dimensions as the output is taken to have all of them, since a layer may be called without a batch. It
            becomes a buffer that moves with the module and stays out of the state_dict.

    Raises:
        InputError: If ``keep`` is not boolean.
        ShapeError: In the backward pass, if ``keep`` does not fit the error of one example.

    Example:
        >>> import torch, counterflow as cf
        >>> from counterflow import backward
        >>> layer = torch.nn.Linear(2, 2)
        >>> h = cf.attach(layer, {"": backward.mask(torch.tensor([True, False]))})
        >>> layer(torch.zeros(3, 2)).sum().backward()
        >>> layer.bias.grad
        tensor([3., 0.])
    """

    def __init__(self, keep: Tensor) -> None:
        if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
            raise InputError(f"keep must be a boolean tensor, got {getattr(keep, 'dtype', keep)!r}")
        self.keep = keep
        self._text = f"mask({int(keep.sum())} of {keep.numel()} kept)"

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        keep = state["keep"]
        batch = batch if keep.ndim < error.ndim else ()
        example = tuple(size for axis, size in enumerate(error.shape) if axis not in batch)
        if not _fits(tuple(keep.shape), example):
            raise ShapeError(
                f"mask(): keep of shape {tuple(keep.shape)} does not fit one example of an error of shape "
                f"{tuple(error.shape)}; leave out the batch dimension"
            )
        keep = keep.reshape((1,) * (len(example) - keep.ndim) + tuple(keep.shape))
        for axis in sorted(batch):
            keep = keep.unsqueeze(axis)
        # `where`, not a product: what is masked may be infinite or NaN.
        return torch.where(keep, error, 0.0)

    def buffers(self) -> Mapping[str, tuple[Tensor, bool]]:
        return {"keep": (self.keep, False)}

    def __repr__(self) -> str:
        return self._text


class clip(Transform):  # noqa: N801
    r"""Bound every element of the error.

    With ``units="rms"``: :math:`\delta \to \max(-k\sigma, \min(k\sigma, \delta))`, :math:`\sigma` the root
    mean square of the error over the batch, or over the past too where ``momentum`` is given:
    :math:`\sigma^2 \to m\,\sigma^2 + (1-m)\langle\delta^2\rangle`, updated in each backward pass (also those
    of an accumulated gradient), and started at the first. An error that is infinite or not a number leaves it
    as it was.

    Args:
        limit: The bound :math:`k`, > 0.
        units: ``"rms"`` (default) or ``"absolute"``.
        momentum: :math:`m` of the running mean square, in [0, 1); None (default) looks at this batch alone.

    Raises:
        InputError: If the limit or the momentum is out of range, or momentum is given for absolute units.
        ShapeError: In the backward pass with ``units="rms"``, if the batch holds one example.

    Example:
        >>> import torch, counterflow as cf
        >>> from counterflow import backward
        >>> layer = torch.nn.Linear(1, 1)
        >>> h = cf.attach(layer, {"": backward.clip(2.0, units="absolute")})
        >>> (5 * layer(torch.zeros(1, 1))).sum().backward()
        >>> layer.bias.grad
        tensor([2.])
    """

    def __init__(self, limit: float, units: Units = "rms", momentum: float | None = None) -> None:
        if _number("limit", limit) <= 0:
            raise InputError(f"limit must be > 0, got {limit!r}")
        if momentum is not None and not 0 <= _number("momentum", momentum) < 1:
            raise InputError(f"momentum must lie in [0, 1), got {momentum!r}")
        if momentum is not None and units == "absolute":
            raise InputError("momentum has no meaning with units='absolute'; leave it out")
        self.limit, self.units, self.momentum = limit, _units(units), momentum
        self.batch_coupled = units == "rms"
        self.homogeneous = units == "rms" and momentum is None
        self.stateful = momentum is not None

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        if self.units == "absolute":
            return error.clamp(-self.limit, self.limit)
        rms = batch_rms(error, batch, repr(self))
        if self.momentum is not None:
            running = state["mean_square"]
            now = rms.square().to(running.dtype)
            with torch.no_grad():
                new = torch.where(running < 0, now, self.momentum * running + (1 - self.momentum) * now)
                running.copy_(torch.where(now.isfinite(), new, running))
                # Nothing seen yet, or errors whose squares the buffer's precision does not hold: nothing to clip by.
                rms = torch.where(running > 0, running, math.inf).sqrt()
        bound = (self.limit * rms).to(error.dtype)
        return error.clamp(-bound, bound)

    def buffers(self) -> Mapping[str, tuple[Tensor, bool]]:
        # Below zero until the first backward pass has been seen.
        return {} if self.momentum is None else {"mean_square": (torch.tensor(-1.0), True)}

    def __repr__(self) -> str:
        momentum = "" if self.momentum is None else f", momentum={self.momentum}"
        return f"clip({self.limit}{_shown(self.units)}{momentum})"


class noise(Transform):  # noqa: N801
    r"""Add Gaussian noise: :math:`\delta \to \delta + k\sigma\varepsilon,\ \varepsilon \sim N(0, 1)`.

    Args:
        std: :math:`k`, >= 0.
        units: ``"rms"`` (default): :math:`\sigma` is the root mean square of the error over the batch;
            ``"absolute"``: :math:`\sigma = 1`.

    Raises:
        InputError: If ``std`` is negative or not finite.
        ShapeError: In the backward pass with ``units="rms"``, if the batch holds one example.

    The numbers come from torch's default generator of the error's device.

    Example:
        >>> import torch, counterflow as cf
        >>> from counterflow import backward
        >>> layer = torch.nn.Linear(2, 2)
        >>> h = cf.attach(layer, {"": backward.noise(0.1, units="absolute")})
        >>> layer(torch.zeros(1, 2)).sum().backward()  # an error of ones, about
        >>> bool((layer.bias.grad - 1).abs().max() < 1)
        True
    """

    def __init__(self, std: float, units: Units = "rms") -> None:
        if _number("std", std) < 0:
            raise InputError(f"std must be >= 0, got {std!r}")
        self.std, self.units = std, _units(units)
        self.batch_coupled = self.homogeneous = units == "rms"
        self.counts_every_row = units == "absolute"

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        size = batch_rms(error, batch, repr(self)).to(error.dtype) if self.units == "rms" else 1.0
        return error + self.std * size * torch.randn_like(error)

    def __repr__(self) -> str:
        return f"noise({self.std}{_shown(self.units)})"


def _fits(keep: tuple[int, ...], error: tuple[int, ...]) -> bool:
    """Whether a tensor of one shape broadcasts to the other."""
    sizes = list(zip(reversed(keep), reversed(error), strict=False))
    return len(keep) <= len(error) and all(own in (1, other) for own, other in sizes)


def _number(name: str, value: Any) -> float:
    """The value, if it is a finite real number."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _shown(units: str) -> str:
    return "" if units == "rms" else ", units='absolute'"


def _units(units: str) -> str:
    if units not in ("rms", "absolute"):
        raise InputError(f"units must be 'rms' or 'absolute', got {units!r}")
    return units
