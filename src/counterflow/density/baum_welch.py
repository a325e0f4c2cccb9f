"""Baum-Welch: models fitted to sequences without looking at other classes. Not in the paper; for initialization.

Source: L. E. Baum, T. Petrie, G. Soules, N. Weiss, "A maximization technique occurring in the statistical analysis of
probabilistic functions of Markov chains", Annals of Mathematical Statistics 41, 1970.

The statistics of a step are the forward-backward pass's: ``gamma`` (batch, time, models, states) and expected
transitions (batch, models, states, states).
"""

from __future__ import annotations

import torch
from torch import Tensor

from counterflow.density.hmm import GaussianHMM
from counterflow.density.recursions import wider
from counterflow.exceptions import InputError, ShapeError

__all__: list[str] = []


@torch.no_grad()
def fit(
    bank: GaussianHMM,
    x: Tensor,
    lengths: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    iterations: int = 20,
    tolerance: float = 1e-4,
    min_variance: float = 1e-3,
    start: bool = True,
    generator: torch.Generator | None = None,
) -> list[float]:
    """`GaussianHMM.fit`, which says what the arguments are."""
    if iterations < 1 or not min_variance > 0 or tolerance < 0:
        given = f"iterations={iterations}, min_variance={min_variance}, tolerance={tolerance}"
        raise InputError(f"iterations must be 1 or more, min_variance positive, tolerance 0 or more; got {given}")
    x, ends = bank._checked(x, lengths)
    M, S, K = bank.n_models, bank.n_states, bank.n_components
    if weights is None:
        weights = x.new_ones(len(x), M)
    if weights.shape != (len(x), M):
        raise ShapeError(f"weights must have shape {(len(x), M)}, got {tuple(weights.shape)}")
    weights = weights.to(x)
    if bool((weights < 0).any()) or not bool((weights.sum(0) > 0).all()):
        raise InputError("weights must not be negative, and must give every model a sequence")
    inside = torch.arange(x.shape[1], device=x.device) < ends[:, None]
    frames = x[inside]
    if start:
        owners = weights.repeat_interleave(ends, 0)
        for m in range(M):
            drawn = torch.multinomial(owners[:, m], S * K, replacement=True, generator=generator)
            bank.means[m] = frames[drawn].view_as(bank.means[m])
        spread = frames.var(0, correction=0).clamp_min(min_variance)
        bank.log_variances.copy_(spread.log().expand_as(bank.log_variances))
    shares = (weights * ends.unsqueeze(1)).sum()
    history: list[float] = []
    for _ in range(iterations):
        total, gamma, moves = bank._run(x, ends, want=True, autograd=False)
        history.append(float((weights * total).sum() / shares))
        if len(history) > 1 and history[-1] - history[-2] < tolerance:
            break
        gamma, moves = gamma * weights[:, None, :, None], (moves * weights[..., None, None]).sum(0)
        _step(bank, x, inside, gamma, moves, min_variance)
    return history


def _step(bank: GaussianHMM, x: Tensor, inside: Tensor, gamma: Tensor, moves: Tensor, min_variance: float) -> None:
    """One maximization from weighted posteriors (batch, time, models, states) and transitions."""
    M, S, K = bank.n_models, bank.n_states, bank.n_components
    tiny = torch.finfo(x.dtype).tiny
    # What never happened stays as unlikely as it can be said in logits, but may come back.
    if bank.initial_logits is not None:
        bank.initial_logits.copy_(gamma[:, 0].sum(0).clamp_min(tiny).log())
    if bank.transition_logits is not None:
        visited = moves.sum(-1, keepdim=True) > 0
        bank.transition_logits.copy_(torch.where(visited, moves.clamp_min(tiny).log(), bank.transition_logits))
    if bank.mixture_logits is not None:
        mixed = torch.unflatten(bank._log_densities(x, False, components=True), 2, (M, S))
        responsibility = gamma.unsqueeze(-1) * mixed.softmax(-1).to(gamma.dtype)
        taken = responsibility.sum((0, 1))
        bank.mixture_logits.copy_(taken.clamp_min(tiny).log())
    else:
        responsibility = gamma.unsqueeze(-1)
    # Padding would draw the center to zero. From it all sums are taken, and in double precision, since squares cancel.
    flat = wider(responsibility.flatten(2)[inside])  # (frames, models * states * components)
    data = wider(x[inside])
    center = data.mean(0)
    data = data - center
    mass = flat.sum(0).view(M, S, K, 1)
    used = mass > 1e-8
    first = (flat.T @ data).view(M, S, K, -1)
    second = (flat.T @ data.square()).view(M, S, K, -1)
    means = torch.where(used, center + first / mass.clamp_min(tiny), wider(bank.means))
    away = means - center
    scatter = second - 2 * away * first + away.square() * mass
    kept = [dim for dim in range(3) if bank.log_variances.shape[dim] == 1 and bank.means.shape[dim] > 1]
    if kept:
        variances = scatter.sum(kept, keepdim=True) / mass.sum(kept, keepdim=True).clamp_min(tiny)
        bank.log_variances.copy_(variances.clamp_min(min_variance).log())
    else:
        new = (scatter / mass.clamp_min(tiny)).clamp_min(min_variance).log()
        bank.log_variances.copy_(torch.where(used, new, bank.log_variances))
    bank.means.copy_(means)
