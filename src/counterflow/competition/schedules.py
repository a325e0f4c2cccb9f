"""The paper's training schedule: an annealed rate with a floor, a momentum ramp, and max-norm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle, Row, Table

__all__ = ["AnnealedRate", "MomentumRamp", "max_norm"]


class AnnealedRate(LambdaLR):
    r"""The rate falls by a factor every epoch, down to a floor.

    .. math::
        \eta_t = \max(\eta_0 \lambda^t, \eta_{\min})

    Args:
        optimizer: Its groups' rates are the :math:`\eta_0`.
        factor: :math:`\lambda`, above 0 and at most 1.
        floor: :math:`\eta_{\min}`, not above any group's rate.
        last_epoch: As for any of PyTorch's schedulers.

    Raises:
        InputError: If an argument is out of range.

    References:
        Srivastava et al., "Compete to Compute", NIPS 2013, section 5.

    Example:
        >>> import torch
        >>> from counterflow.competition import AnnealedRate
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> schedule = AnnealedRate(optimizer, factor=0.5, floor=0.03)
        >>> for _ in range(3):
        ...     optimizer.step()
        ...     schedule.step()
        >>> schedule.get_last_lr()
        [0.03]
    """

    def __init__(self, optimizer: Optimizer, factor: float, floor: float, last_epoch: int = -1) -> None:
        if not 0 < factor <= 1:
            raise InputError(f"factor must lie above 0 and not above 1, got {factor!r}")
        begins = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        if not 0 <= floor <= min(begins):
            raise InputError(f"floor must not be negative, nor above the rate {min(begins):g}, got {floor!r}")
        # A function a group, so that each ends at the floor itself.
        super().__init__(optimizer, [_Fall(factor, floor, rate) for rate in begins], last_epoch)


class _Fall:
    """A callable object rather than a function: PyTorch puts its attributes into the scheduler's state_dict."""

    def __init__(self, factor: float, floor: float, rate: float) -> None:
        self.factor, self.floor, self.rate = factor, floor, rate

    def __call__(self, epoch: int) -> float:
        return max(self.factor**epoch, self.floor / self.rate if self.rate else 0.0)


class MomentumRamp(LRScheduler):
    r"""Momentum goes from one value to another in even steps, and stays there.

    .. math::
        m_t = \bigl(1 - \tfrac tT\bigr) m_i + \tfrac tT m_f \quad (t < T), \qquad m_t = m_f \quad (t \ge T)

    The printed formula runs the other way, from :math:`m_f` to :math:`m_i`; this is what the words beside it say.

    Args:
        optimizer: With ``momentum``, or with ``betas``, of which it is the first.
        initial: :math:`m_i`.
        final: :math:`m_f`.
        epochs: :math:`T`.
        last_epoch: As for any of PyTorch's schedulers.

    Raises:
        InputError: If an argument is out of range.
        UnsupportedError: If the optimizer has no momentum.

    References:
        Srivastava et al., "Compete to Compute", NIPS 2013, section 5.

    Example:
        >>> import torch
        >>> from counterflow.competition import MomentumRamp
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.5)
        >>> ramp = MomentumRamp(optimizer, initial=0.5, final=0.9, epochs=4)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     ramp.step()
        >>> round(optimizer.param_groups[0]["momentum"], 6)
        0.7
    """

    def __init__(self, optimizer: Optimizer, initial: float, final: float, epochs: int, last_epoch: int = -1) -> None:
        for name, value in (("initial", initial), ("final", final)):
            if not 0 <= value < 1:
                raise InputError(f"{name} must lie between 0 and 1, got {value!r}")
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise InputError(f"epochs must be a whole number >= 1, got {epochs!r}")
        for group in optimizer.param_groups:
            if "momentum" not in group and "betas" not in group:
                raise UnsupportedError(f"{type(optimizer).__name__} has no momentum to ramp")
        self.initial, self.final, self.epochs = initial, final, epochs
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The rates as they are; momentum is set on the way."""
        share = min(self.last_epoch / self.epochs, 1.0)
        momentum = (1 - share) * self.initial + share * self.final
        for group in self.optimizer.param_groups:
            if "momentum" in group:
                group["momentum"] = momentum
            else:
                group["betas"] = (momentum, *group["betas"][1:])
        return [group["lr"] for group in self.optimizer.param_groups]


def max_norm(model: nn.Module, optimizer: Optimizer, limit: float) -> Handle:
    r"""After every step, shrink each unit's incoming weights to a norm of at most a limit.

    .. math::
        w_j \leftarrow w_j \min\bigl(1, c / \|w_j\|\bigr)

    Args:
        model: Its linear and convolutional layers and attention's projections are kept within the limit; biases are
            not counted. Left alone is a layer that is frozen or not held by the optimizer, as long as it is, and one
            whose weight is computed from other parameters, as by weight normalization.
        optimizer: Whose steps are followed.
        limit: :math:`c > 0`.

    Returns:
        A handle; ``undo()`` ends it. Weights stay as they are then.

    Raises:
        InputError: If the limit is not positive.
        UnsupportedError: If the model has no layer that can be kept.

    References:
        Srivastava et al., "Compete to Compute", NIPS 2013, section 5; Hinton et al., arXiv:1207.0580, 2012.

    Example:
        >>> import torch
        >>> from counterflow.competition import max_norm
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
        >>> h = max_norm(model, optimizer, limit=1.0)
        >>> model(torch.ones(2, 4)).sum().backward()
        >>> optimizer.step()
        >>> bool((model.weight.norm(dim=1) <= 1.0001).all())
        True
    """
    if not (isinstance(limit, int | float) and math.isfinite(limit) and limit > 0):
        raise InputError(f"limit must be positive and finite, got {limit!r}")
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _KINDS)]

    def held() -> set[int]:
        return {id(p) for group in optimizer.param_groups for p in group["params"]}

    reasons = [_why_left(module, held()) for _, module in layers]
    if all(reasons):
        why = "; ".join(f"{name!r}: {why}" for (name, _), why in zip(layers, reasons, strict=True))
        raise UnsupportedError(
            f"this {type(model).__name__} has no linear or convolutional layer with a weight of its own, which the "
            f"optimizer moves, to keep within a norm{f' ({why})' if why else ''}"
        )

    def shrink(*_: Any) -> None:
        moved = held()  # a layer may be frozen, or given to the optimizer, at any time
        with torch.no_grad():
            for _, module in layers:
                for weight in [] if _why_left(module, moved) else _weights(module):
                    _shrink(weight.detach(), getattr(module, "transposed", False), getattr(module, "groups", 1), limit)

    def table() -> Table:
        moved = held()
        rows = []
        for name, module in layers:
            why = _why_left(module, moved)
            rows.append(Row(name, type(module).__name__, "left alone" if why else f"norm <= {limit:g}", why))
        return Table("Max-norm", rows)

    hook = optimizer.register_step_post_hook(shrink)
    return Handle(model, table, [hook.remove])


_KINDS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """A layer's weights, each row of which comes into one unit; none if they are computed from other parameters."""
    names = ["weight"]
    if isinstance(module, nn.MultiheadAttention):  # whose output is projected by a layer of its own
        same = module._qkv_same_embed_dim
        names = ["in_proj_weight"] if same else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    found = [module._parameters.get(name) for name in names]
    return [weight for weight in found if weight is not None]


def _why_left(module: nn.Module, moved: set[int]) -> str:
    """Why a layer is left alone; empty if it is not."""
    weights = _weights(module)
    if not weights:  # as by weight normalization; they cannot be shrunk in place
        return "its weight is computed from other parameters"
    if not all(weight.requires_grad for weight in weights):
        return "its weight is frozen"
    if not all(id(weight) in moved for weight in weights):
        return "the optimizer does not hold its weight"
    return ""


def _shrink(weight: Any, transposed: bool, groups: int, limit: float) -> None:
    units = [0]
    if transposed:  # (inputs, outputs of a group, ...)
        weight, units = weight.unflatten(0, (groups, -1)), [0, 2]
    others = [d for d in range(weight.ndim) if d not in units]
    norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    # Most often nothing is over the limit, and one pass over the weights is enough instead of three. On other devices
    # the question would cost a wait, and a break in a compiled graph.
    if weight.is_cpu and not torch.compiler.is_compiling() and bool((norms <= limit).all()):
        return
    # Exactly 1 within the limit. Faster than `torch.renorm`, which copies.
    weight.mul_(limit / norms.clamp_min(limit))
