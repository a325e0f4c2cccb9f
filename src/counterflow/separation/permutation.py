"""The order of outputs, made the same in all frequencies."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["align_envelopes"]


def align_envelopes(u: Tensor, rounds: int = 20) -> Tensor:
    r"""The order of outputs in each frequency by which their envelopes correlate best with those of other frequencies.

    Envelopes are :math:`|u_{fk}(t)|^2 / \sum_j |u_{fj}(t)|^2`, which bring out who is dominant, centered and of unit
    norm over time. In turn, each output's centroid is the mean of the envelopes that have been given to it, and each
    frequency takes the assignment that correlates best with the centroids, until nothing changes. It begins with the
    frequency whose outputs are least alike.

    Args:
        u: Outputs, shape (frequencies, outputs, frames), complex.
        rounds: At most.

    Returns:
        Shape (frequencies, outputs): ``order[f, k]`` is the output of frequency f that belongs to source k.

    References:
        H. Sawada, S. Araki, S. Makino, Measuring dependence of bin-wise separated signals for permutation alignment in
        frequency-domain BSS, ISCAS 2007.

    Example:
        >>> t = torch.arange(200) / 10
        >>> loud = torch.stack([t.sin().square(), t.cos().square()]) + 0.01
        >>> u = torch.randn(9, 2, 200, dtype=torch.complex64) * loud
        >>> u[3] = u[3].flip(0)
        >>> order = align_envelopes(u)
        >>> (order == order[0]).all(1).tolist()
        [True, True, True, False, True, True, True, True, True]
    """
    from scipy.optimize import linear_sum_assignment

    power = u.real.square() + u.imag.square()
    share = power / (power.sum(1, keepdim=True) + 1e-30)
    share = share - share.mean(-1, keepdim=True)
    share = (share / (share.norm(dim=-1, keepdim=True) + 1e-12)).double()
    F, K, _ = share.shape
    alike = torch.einsum("fkt,fjt->fkj", share, share)
    first = int((alike.sum((1, 2)) - alike.diagonal(dim1=1, dim2=2).sum(1)).argmin())
    centroids = share[first]
    order = torch.arange(K, device=u.device).expand(F, K).clone()
    for turn in range(rounds):
        score = torch.einsum("fjt,kt->fkj", share, centroids)
        if K == 2:
            swap = score[:, 0, 1] + score[:, 1, 0] > score[:, 0, 0] + score[:, 1, 1]
            found = torch.where(swap[:, None], order.new_tensor([1, 0]), order.new_tensor([0, 1]))
        else:
            assigned = [linear_sum_assignment(-each)[1] for each in score.cpu().numpy()]
            found = torch.from_numpy(np.stack(assigned)).to(u.device)
        if turn and bool((found == order).all()):
            break
        order = found
        placed = torch.take_along_dim(share, order[:, :, None], 1)
        centroids = placed.mean(0)
        centroids = centroids / (centroids.norm(dim=-1, keepdim=True) + 1e-12)
    return order
