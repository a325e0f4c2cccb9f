r"""Delta-bar-delta: a learning rate of its own for every weight, raised while its gradient keeps its sign.

R. A. Jacobs, "Increased rates of convergence through learning rate adaptation", Neural Networks 1 (1988),
pages 295-307.

=============================== ==================================================
Jacobs                          here
=============================== ==================================================
:math:`\epsilon_w(t)`           ``lr * gain``, one gain a weight, 1 at the start
:math:`\delta(t)`               the gradient
:math:`\bar\delta(t)`           ``trace``
:math:`\theta`                  ``trace_decay``
:math:`\kappa`                  ``increase`` (in units of ``lr``)
:math:`1 - \phi`                ``decrease``
=============================== ==================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from counterflow.exceptions import InputError, UnsupportedError

__all__ = ["DeltaBarDelta"]


class DeltaBarDelta(torch.optim.Optimizer):
    r"""Jacobs' delta-bar-delta rule, with momentum.

    .. math::
        g(t) &= g(t-1) + \kappa &\text{ if } \bar\delta(t-1)\,\delta(t) > 0 \\
        g(t) &= \varphi\, g(t-1) &\text{ if } \bar\delta(t-1)\,\delta(t) < 0 \\
        \bar\delta(t) &= (1-\theta)\,\delta(t) + \theta\,\bar\delta(t-1) \\
        v(t) &= m\, v(t-1) - \eta\, g(t)\, \delta(t), \qquad w \mathrel{+}= v(t)

    with the gain :math:`g` starting at 1. With the defaults, :math:`\kappa = .1` and :math:`\varphi = .9`,
    rises and falls balance at gain 1, so the rates given are the *equilibrium* rates.

    Implementations differed in what Jacobs left open or did otherwise; the settings after ``trace_decay`` say how.
    With ``compare="step"`` the sign is compared with minus the last step, :math:`-v(t-1)`, in place of the trace; with
    ``gain_on="step"`` the step is :math:`g(t)\, v(t)` with :math:`v(t) = m\, v(t-1) - \eta\,\delta(t)`.

    It means batch learning: gradients that are noisy change sign for no reason and drive all gains down.

    Args:
        params: Parameters or groups; `counterflow.temper`'s ``param_groups`` fit.
        lr: :math:`\eta`, > 0.
        momentum: :math:`m`, in [0, 1).
        increase: :math:`\kappa`, >= 0.
        decrease: :math:`\varphi`, in (0, 1].
        trace_decay: :math:`\theta`, in [0, 1); 0 (default) compares with the last gradient alone, Jacobs used
            .7.
        growth: ``"additive"`` (Jacobs) or ``"multiplicative"``: :math:`g \to (1 + \kappa)\, g`.
        compare: What the gradient's sign is compared with: the ``"trace"`` of past gradients (Jacobs), or the last
            ``"step"``.
        gain_on: Whether a gain multiplies the ``"gradient"`` as it enters the step (Jacobs), or the whole ``"step"``,
            momentum included, which a fallen gain then slows at once.
        turned: By what :math:`v` is multiplied where the sign turned, in [0, 1]; 1 (default) leaves it.
        min_gain: Lower bound on the gains, >= 0.
        max_gain: Upper bound on the gains; None (default) is no bound.
        weight_decay: :math:`\lambda` of a weight cost :math:`\frac{\lambda}{2}\lVert w\rVert^2`,
            whose gradient is added.
        maximize: Go up instead of down.

    Raises:
        InputError: If a setting is out of range.
        UnsupportedError: In ``step``, for sparse gradients.

    Example:
        >>> import torch, counterflow as cf
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = cf.DeltaBarDelta([w], lr=0.05, momentum=0.5)
        >>> for _ in range(60):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     optimizer.step()
        >>> bool(w.abs().max() < 1e-3)
        True
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        momentum: float = 0.9,
        increase: float = 0.1,
        decrease: float = 0.9,
        trace_decay: float = 0.0,
        growth: Literal["additive", "multiplicative"] = "additive",
        compare: Literal["trace", "step"] = "trace",
        gain_on: Literal["gradient", "step"] = "gradient",
        turned: float = 1.0,
        min_gain: float = 0.0,
        max_gain: float | None = None,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "increase": increase,
            "decrease": decrease,
            "trace_decay": trace_decay,
            "growth": growth,
            "compare": compare,
            "gain_on": gain_on,
            "turned": turned,
            "min_gain": min_gain,
            "max_gain": max_gain,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; settings that it leaves out are the optimizer's.

        Raises:
            InputError: If a setting is out of range.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step.

        Args:
            closure: Evaluates the loss anew and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if p.grad.is_sparse:
                raise UnsupportedError(
                    "DeltaBarDelta compares the sign of every weight's gradient from step to step, which a "
                    "sparse gradient does not have; make it dense (Embedding(sparse=False))"
                )
            state = self.state[p]
            if not state:
                state["gain"] = torch.ones_like(p, memory_format=torch.preserve_format)
                state["trace"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["velocity"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        gains = [self.state[p]["gain"] for p in params]
        traces = [self.state[p]["trace"] for p in params]
        velocities = [self.state[p]["velocity"] for p in params]
        gradients: list[Any] | tuple[Any, ...] = [p.grad for p in params]
        if group["maximize"]:
            gradients = torch._foreach_neg(gradients)
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, params, alpha=group["weight_decay"])

        # Signs before the product: that of two small numbers is zero, and would say of no sign that it was kept.
        if group["compare"] == "step":
            agreement = torch._foreach_neg(torch._foreach_sign(velocities))
        else:
            agreement = torch._foreach_sign(traces)
        torch._foreach_mul_(agreement, torch._foreach_sign(gradients))
        kept = torch._foreach_clamp_min(agreement, 0.0)  # 1 where the sign was kept
        turned = torch._foreach_clamp_max(agreement, 0.0)  # -1 where it turned
        if group["growth"] == "multiplicative":
            kept = torch._foreach_mul(kept, gains)
        torch._foreach_addcmul_(gains, gains, turned, value=1.0 - group["decrease"])
        torch._foreach_add_(gains, kept, alpha=group["increase"])
        if group["min_gain"] > 0:
            torch._foreach_clamp_min_(gains, group["min_gain"])
        if group["max_gain"] is not None:
            torch._foreach_clamp_max_(gains, group["max_gain"])
        if group["turned"] < 1:
            torch._foreach_addcmul_(velocities, velocities, turned, value=1.0 - group["turned"])

        torch._foreach_mul_(traces, group["trace_decay"])
        torch._foreach_add_(traces, gradients, alpha=1.0 - group["trace_decay"])
        torch._foreach_mul_(velocities, group["momentum"])
        if group["gain_on"] == "step":
            torch._foreach_add_(velocities, gradients, alpha=-float(group["lr"]))
            torch._foreach_addcmul_(params, gains, velocities)
        else:
            torch._foreach_addcmul_(velocities, gains, gradients, value=-float(group["lr"]))
            torch._foreach_add_(params, velocities)


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda x: x > 0, "> 0"),
    "momentum": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "increase": (lambda x: x >= 0, ">= 0"),
    "decrease": (lambda x: 0 < x <= 1, "in (0, 1]"),
    "trace_decay": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "weight_decay": (lambda x: x >= 0, ">= 0"),
    "turned": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "min_gain": (lambda x: x >= 0, ">= 0"),
}
_CHOICES = {
    "growth": ("additive", "multiplicative"),
    "compare": ("trace", "step"),
    "gain_on": ("gradient", "step"),
}


def _check(settings: dict[str, Any]) -> None:
    for name, (fits, text) in _RANGES.items():
        value = settings[name]
        if not _is_number(value) or not fits(float(value)):
            raise InputError(f"{name} must be a finite number {text}, got {value!r}")
    for name, choices in _CHOICES.items():
        if settings[name] not in choices:
            raise InputError(f"{name} must be {' or '.join(map(repr, choices))}, got {settings[name]!r}")
    highest = settings["max_gain"]
    if highest is not None and not (_is_number(highest) and highest > 0 and highest >= settings["min_gain"]):
        raise InputError(
            f"max_gain must be None or a finite number > 0 and >= min_gain ({settings['min_gain']}), got {highest!r}"
        )


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and bool(value.isfinite())
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
