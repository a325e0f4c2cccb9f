"""Forward-backward in plain operations of torch, in log space: for devices that the kernels do not know.

`analytic` sends the error back by posteriors, one forward and one backward recursion; `unrolled` is the forward
recursion alone, through which autograd goes step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from counterflow.exceptions import UnsupportedError

__all__: list[str] = []

FORBIDDEN = -1e30  # in place of minus infinity, whose differences are no numbers


def wider(values: Tensor) -> Tensor:
    """In double precision, for sums and small differences, where the device has it."""
    return values if values.device.type == "mps" else values.double()


def _forward(
    log_start: Tensor, log_step: Tensor, log_b: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Log-likelihoods, ``log_step`` without infinities, scaled forward logarithms, and which frames are meant.

    The largest logarithm of a frame is taken out of it: sums over thousands of frames are so large that the states'
    differences would be lost in rounding. What is taken out is a constant to autograd, since it comes back at the end.
    """
    log_start, log_step = log_start.clamp_min(FORBIDDEN), log_step.clamp_min(FORBIDDEN)
    inside = (torch.arange(log_b.shape[1], device=log_b.device) < lengths[:, None])[..., None, None]
    alpha = log_start + log_b[:, 0]
    alphas: list[Tensor] = []
    levels: list[Tensor] = []
    for t in range(log_b.shape[1]):
        if t:
            alpha = (alphas[-1].unsqueeze(-1) + log_step).logsumexp(-2) + log_b[:, t]
        # No infinity, which taken from itself is no number
        level = alpha.detach().amax(-1, keepdim=True).clamp_min(FORBIDDEN)
        alphas.append(torch.where(inside[:, t], alpha - level, alphas[-1] if t else alpha))
        levels.append(level)
    taken = torch.where(inside, torch.stack(levels, 1), 0.0)
    total = wider(taken).sum(1).squeeze(-1) + alphas[-1].logsumexp(-1)
    return total.to(log_b.dtype), log_step, alphas, inside


def unrolled(log_start: Tensor, log_step: Tensor, log_b: Tensor, lengths: Tensor) -> Tensor:
    """Log-likelihoods (batch, models) from ``log_b`` (batch, time, models, states), for autograd through time."""
    return _forward(log_start, log_step, log_b, lengths)[0]


class _Once(torch.autograd.Function):
    """Hands on a derivative, tied to what it depends on, and refuses to be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(derivative: Tensor, source: Tensor) -> Tensor:
        """The derivative as it is."""
        return derivative.view_as(derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Any:
        """Raises UnsupportedError: there is no second derivative."""
        raise UnsupportedError('second derivatives of a bank of models need GaussianHMM(..., backend="autograd")')


def once(derivatives: Sequence[Tensor], sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tie first derivatives to what they depend on, so that a second one is refused and not wrong."""
    tied = list(derivatives)
    if torch.is_grad_enabled():
        for source in sources:  # one by one, since the compiler does not follow a function of any number of tensors
            tied = [_Once.apply(each, source) for each in tied]  # type: ignore[no-untyped-call]
    return tuple(tied)


def link_to(tensor: Tensor) -> Tensor:
    """One number that hangs on the tensor's graph, without its memory."""
    return tensor.flatten()[:1].clone()


class _Analytic(torch.autograd.Function):
    """The forward-backward recursions in log space; what they find goes back by equations 14 to 19."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        log_start: Tensor, log_step: Tensor, log_b: Tensor, lengths: Tensor, link: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihoods, posteriors and expected transitions."""
        total, step, alphas, inside = _forward(log_start, log_step, log_b, lengths)
        # Scaled so that posteriors sum to one at each frame: what is rounded is no sum over all that come after.
        beta = (-alphas[-1].logsumexp(-1, keepdim=True)).expand_as(alphas[-1])
        betas = [beta]
        moves = torch.zeros_like(beta.unsqueeze(-1) + step)
        for t in range(log_b.shape[1] - 2, -1, -1):
            joint = step + (log_b[:, t + 1] + beta).unsqueeze(-2)
            before = joint.logsumexp(-1)
            level = (alphas[t] + before).logsumexp(-1, keepdim=True)
            pairs = ((alphas[t] - level).unsqueeze(-1) + joint).exp()
            moves = moves + torch.where(inside[:, t + 1, ..., None], pairs, 0.0)
            beta = torch.where(inside[:, t + 1], before - level, beta)
            betas.append(beta)
        gamma = (torch.stack(alphas, 1) + torch.stack(betas[::-1], 1)).exp()
        return total, torch.where(inside, gamma, 0.0), moves

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keeps posteriors and transitions for the way back."""
        _, gamma, moves = output
        ctx.mark_non_differentiable(gamma, moves)
        ctx.save_for_backward(inputs[0], inputs[1], inputs[4], gamma, moves)

    @staticmethod
    def backward(ctx: Any, error: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """From the error (batch, models) to initial probabilities, transitions and densities."""
        log_start, log_step, link, gamma, moves = ctx.saved_tensors
        sent = gamma * error[:, None, :, None]
        moved = (moves * error[..., None, None]).sum(0)
        return (*once((sent[:, 0].sum(0), moved, sent), (log_start, log_step, link)), None, None)


def analytic(log_start: Tensor, log_step: Tensor, log_b: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `unrolled`, with posteriors (batch, time, models, states) and expected transitions, which go back."""
    arguments = (log_start, log_step, log_b, lengths, link_to(log_b))
    found: tuple[Tensor, Tensor, Tensor] = _Analytic.apply(*arguments)  # type: ignore[no-untyped-call]
    return found


class GaussianDensity(torch.autograd.Function):
    """Log-densities of axis-aligned Gaussians, as two matrix products each way.

    Features are taken relative to the mean of the means, so that squares do not cancel where all are far from zero. In
    float32 they do where means are far from each other: at d standard deviations, log-densities lose about d squared
    units of rounding. Parameters in float64 have no such loss.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
        """From (batch, time, features) and (states, features) to (batch, time, states)."""
        x, means, precision = _centered(x, means, log_variances)
        weights = torch.cat([means * precision, -0.5 * precision], 1)
        constant = -0.5 * (log_variances + 1.8378770664093453 + means.square() * precision).sum(1)
        flat = torch.cat([x, x.square()], -1).flatten(0, 1)
        return torch.unflatten(torch.addmm(constant, flat, weights.t()), 0, x.shape[:2])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Keeps what came in."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """From the error (batch, time, states) to frames, means and log-variances."""
        x, means, precision = _centered(*ctx.saved_tensors)
        error = error.flatten(0, 1)
        to_x = to_means = to_variances = None
        flat = x.flatten(0, 1)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            weight = error.sum(0).unsqueeze(1)
            first = error.t() @ flat
            to_means = (first - weight * means) * precision  # equation 18
            spread = error.t() @ flat.square() - 2 * means * first + means.square() * weight
            to_variances = 0.5 * (spread * precision - weight)  # equation 19
        if ctx.needs_input_grad[0]:
            to_x = torch.unflatten(error @ (means * precision) - flat * (error @ precision), 0, x.shape[:2])
        return to_x, to_means, to_variances


def _centered(x: Tensor, means: Tensor, log_variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    center = means.mean(0)
    return x - center, means - center, (-log_variances).exp()
