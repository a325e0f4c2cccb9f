r"""One projection: from the layers' statistics to their new bases, the eigendecompositions shared out over ranks.

Lines 6 to 11 of algorithm 1. The decompositions, whose cost goes with :math:`n^3`, are dealt to the ranks of a
distributed run largest first, each to the rank with the least work so far; every rank then has all results to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from counterflow.backward.reduce import sum_over_ranks, world_size
from counterflow.whitening.basis import Basis, BasisKind, Ridge, drift, whitening_basis
from counterflow.whitening.explicit import carry, carry_gradient, carry_state
from counterflow.whitening.layers import Layer, Layers
from counterflow.whitening.statistics import Moments, moments

__all__ = ["Job", "Matrix", "Rules", "project", "share_out", "solve", "unwhiten"]

Matrix = Literal["covariance", "second-moment"]
_FOUND = ("eigh", "eigh with jitter", "svd")


@dataclass(frozen=True)
class Rules:
    """How a basis is made of statistics; see `counterflow.whiten`."""

    epsilon: float
    basis: BasisKind
    ridge: Ridge
    matrix: Matrix
    adaptive: float | None
    diagonal: bool
    errors: float | None


@dataclass(frozen=True)
class Job:
    """One eigendecomposition: a matrix, its ridge, and what is made of it."""

    sigma: Tensor
    epsilon: float
    basis: BasisKind
    ridge: Ridge


def share_out(costs: Sequence[float], ranks: int) -> list[int]:
    """The rank of each job: largest first, each to the rank with the least to do.

    Example:
        >>> share_out([1.0, 8.0, 3.0, 4.0], 2)
        [1, 0, 1, 1]
    """
    load = [0.0] * ranks
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[index] = min(range(ranks), key=load.__getitem__)
        load[owners[index]] += costs[index]
    return owners


def solve(jobs: Sequence[Job]) -> list[Basis | None]:
    """All eigendecompositions, each made on one rank; a collective call in a distributed run."""
    ranks = world_size()
    if ranks == 1 or not jobs:
        return [whitening_basis(job.sigma, job.epsilon, job.basis, job.ridge) for job in jobs]
    owners = share_out([float(len(job.sigma)) ** 3 for job in jobs], ranks)
    packed = [
        _pack(whitening_basis(job.sigma, job.epsilon, job.basis, job.ridge), job)
        if owner == dist.get_rank()
        else job.sigma.new_zeros(_packed_size(len(job.sigma)), dtype=torch.float64)
        for job, owner in zip(jobs, owners, strict=True)
    ]
    # Adding zeros is a broadcast from every owner at once, to the bit.
    everything, _ = sum_over_ranks(torch.cat(packed), 0)
    parts = torch.split(everything, [len(part) for part in packed])
    return [_unpack(part, len(job.sigma)) for part, job in zip(parts, jobs, strict=True)]


def _packed_size(n: int) -> int:
    return 1 + n + 2 * n * n


def _pack(basis: Basis | None, job: Job) -> Tensor:
    if basis is None:
        return job.sigma.new_zeros(_packed_size(len(job.sigma)), dtype=torch.float64)
    found = basis.eigenvalues.new_tensor([1.0 + _FOUND.index(basis.found_by)])
    return torch.cat([found, basis.eigenvalues, basis.matrix.reshape(-1), basis.inverse.reshape(-1)])


def _unpack(part: Tensor, n: int) -> Basis | None:
    found = int(part[0])
    if not found:
        return None
    eigenvalues, matrix, inverse = torch.split(part[1:], [n, n * n, n * n])
    matrix, inverse = matrix.reshape(n, n), inverse.reshape(n, n)
    return Basis(matrix, inverse, matrix.T @ matrix, eigenvalues, _FOUND[found - 1])


def project(layers: Layers, optimizer: torch.optim.Optimizer, rules: Rules, step: int) -> None:
    """Give each layer the basis that its statistics call for; the function of the model stays.

    A layer without statistics, or whose matrix nothing decomposes, keeps the basis that it has, and its note says so.

    Args:
        layers: With statistics.
        optimizer: Whose directions are carried along in the explicit form.
        rules: How.
        step: Of the optimizer, for the table.
    """
    plan: list[tuple[Layer, Tensor, Tensor, int]] = []
    jobs: list[Job] = []
    for layer in layers:
        seen = moments(layer)
        if seen is None:
            layer.note = "kept its basis, since no input came by"
            continue
        mean, sigma = _wanted(layer, *_canonical(layer, seen), rules)
        if rules.adaptive is not None and int(layer["projected"]) >= 0:
            pairs = zip(_metric(layer), sigma, layer["covariance"], strict=True)
            layer.drift = max(drift(*each) for each in pairs)
            if layer.drift <= rules.adaptive:
                layer.note = "kept its basis, since it has not drifted"
                continue
        errors = moments(layer, "error_") if rules.errors is not None else None
        jobs += [Job(each, rules.epsilon, rules.basis, rules.ridge) for each in sigma]
        if errors is not None:
            jobs += [Job(each, rules.errors or 0.0, "zca", "inside") for each in _error_power(errors)]
        plan.append((layer, mean, sigma, layer.groups * (2 if errors is not None else 1)))
    solved = iter(solve(jobs))
    for layer, mean, sigma, count in plan:
        found = [next(solved) for _ in range(count)]
        bases = [basis for basis in found if basis is not None]
        if len(bases) < count:
            layer.note = "kept its basis, since no decomposition succeeded"
            continue
        by = sorted({basis.found_by for basis in bases} - {"eigh"})
        layer.note = f"decomposed by {' and '.join(by)}" if by else ""
        _apply(layer, optimizer, mean, sigma, bases, rules)
        layer["projected"].fill_(step)


def _canonical(layer: Layer, seen: Moments) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the canonical inputs, where those that were seen are the whitened ones."""
    if not layer.sees_white:
        return seen.mean, seen.covariance
    inverse = torch.linalg.inv(layer["basis"].double())
    mean = torch.einsum("gnm,gm->gn", inverse, seen.mean)
    if layer.weight.ndim == 2:  # a convolution's inputs are not centered before its padding
        mean = mean + layer["mean"].double()
    return mean, inverse @ seen.covariance @ inverse.transpose(1, 2)


def _wanted(layer: Layer, mean: Tensor, covariance: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """The center c and the matrix to whiten by. Without a bias c is 0, and whitening is about 0 then."""
    about_zero = covariance + mean[:, :, None] * mean[:, None, :]
    if not layer.centered:
        return torch.zeros_like(mean), about_zero
    return mean, covariance if rules.matrix == "covariance" else about_zero


def _metric(layer: Layer) -> Tensor:
    if f"{layer.prefix}metric" in layer.module._buffers:
        return layer["metric"]
    return layer["basis"].transpose(1, 2) @ layer["basis"]


def _error_power(errors: Moments) -> Tensor:
    """The errors' second moment in units of its own mean eigenvalue, so that the loss's scale does not matter."""
    power = errors.covariance + errors.mean[:, :, None] * errors.mean[:, None, :]
    scale = power.diagonal(dim1=1, dim2=2).mean(1)
    return power / torch.where(scale > 0, scale, torch.ones_like(scale))[:, None, None]


def _apply(
    layer: Layer, optimizer: torch.optim.Optimizer, mean: Tensor, sigma: Tensor, bases: list[Basis], rules: Rules
) -> None:
    own = bases[: layer.groups]
    matrix = torch.stack([basis.matrix for basis in own])
    if layer.form == "explicit":
        inverse = torch.stack([basis.inverse for basis in own])
        _move(layer, optimizer, matrix, inverse, mean)
    else:
        layer["mean"].copy_(mean)
        if rules.diagonal:
            layer["basis"].copy_(matrix)
            power = (matrix @ sigma @ matrix.transpose(1, 2)).diagonal(dim1=1, dim2=2)
            layer["slack"].copy_((1.0 - power).clamp(min=0.0))
        else:
            layer["metric"].copy_(torch.stack([basis.metric for basis in own]))
    if len(bases) > len(own):
        layer["error_metric"].copy_(torch.stack([basis.metric for basis in bases[layer.groups :]]))
    layer["eigenvalues"].copy_(torch.stack([basis.eigenvalues for basis in own]))
    if rules.adaptive is not None:
        layer["covariance"].copy_(sigma)
        layer.drift = 0.0


def _move(layer: Layer, optimizer: torch.optim.Optimizer | None, matrix: Tensor, inverse: Tensor, mean: Tensor) -> None:
    """Take the explicit form to another basis and center."""
    now = layer["basis"].double()
    mean = mean.to(layer.wide).double()  # as the buffer will hold it
    change, shift = now @ inverse, torch.einsum("gmn,gn->gm", now, mean - layer["mean"].double())
    carry(layer, layer.weight, layer.bias, change, shift)
    carry_gradient(layer, change, shift)
    unknown = [] if optimizer is None else carry_state(layer, optimizer, change, shift)
    if unknown:
        names = " and ".join(map(repr, unknown))
        layer.note = f"the optimizer's {names} stayed in the old basis, since what it is was not known"
    layer["basis"].copy_(matrix)
    layer["mean"].copy_(mean)


def unwhiten(layer: Layer, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Make the parameters canonical, and the directions that the optimizer keeps."""
    if layer.form == "explicit":
        eye = layer.matrices(layer.inputs, 1.0).double()
        _move(layer, optimizer, eye, eye, torch.zeros_like(layer["mean"]).double())
