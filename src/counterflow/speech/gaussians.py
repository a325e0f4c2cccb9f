r"""Gaussian phoneme states, alone or mixed: what the paper's predictors are compared with.

Source: J. Tebelskis, A. Waibel, B. Petek, O. Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural
Networks", NIPS 1990, section 3: "a univariate Gaussian whose mean and variance were determined analytically from the
labeled training data". Mixtures are not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from counterflow.exceptions import InputError, ShapeError

__all__ = ["GaussianStates", "add_deltas"]


def add_deltas(x: Tensor, *, orders: int = 1, reach: int = 2) -> Tensor:
    r"""Features with their slopes beside them.

    .. math::  \Delta_t = \frac{\sum_{k=1}^{r} k\,(x_{t+k} - x_{t-k})}{2 \sum_k k^2}

    Args:
        x: An utterance, shape (time, features); frames beyond its ends equal the first and the last.
        orders: 1 for slopes, 2 for slopes of slopes as well.
        reach: r, the frames that are seen on either side.

    Returns:
        Shape (time, features * (1 + orders)).

    Raises:
        ShapeError: If the shape does not fit.
        InputError: If a number is below 1.

    Example:
        >>> add_deltas(torch.arange(5.0)[:, None]).T
        tensor([[0.0000, 1.0000, 2.0000, 3.0000, 4.0000],
                [0.5000, 0.8000, 1.0000, 0.8000, 0.5000]])
    """
    if orders < 1 or reach < 1:
        raise InputError(f"orders and reach must be 1 or more, got {orders} and {reach}")
    if x.ndim != 2 or not len(x):
        raise ShapeError(f"x has shape {tuple(x.shape)}; it needs (time, features), a time of 1 or more")
    parts = [x]
    for _ in range(orders):
        last = parts[-1]
        padded = torch.cat([last[:1].expand(reach, -1), last, last[-1:].expand(reach, -1)])
        slope = torch.zeros_like(last)
        for k in range(1, reach + 1):
            slope = slope + k * (padded[reach + k : reach + k + len(x)] - padded[reach - k : reach - k + len(x)])
        parts.append(slope / (2 * sum(k * k for k in range(1, reach + 1))))
    return torch.cat(parts, 1)


class GaussianStates(nn.Module):
    r"""A mixture of axis-aligned Gaussians for each state, with negative log-likelihoods for distances.

    .. math::

       d_{t,s} = -\log \sum_m c_{sm}\, N(x_t; \mu_{sm}, v_{sm})

    Args:
        n_states: States.
        n_features: Features of a frame.
        n_components: Gaussians at most in each state; the paper's baseline has 1.

    Raises:
        InputError: If a number is below 1.

    Example:
        >>> model = GaussianStates(2, 1)
        >>> x, state = torch.tensor([[0.0], [0.2], [5.0], [5.2]]), torch.tensor([0, 0, 1, 1])
        >>> model.fit([x], [state])
        >>> model.costs(x).argmin(1).tolist()
        [0, 0, 1, 1]
    """

    def __init__(self, n_states: int, n_features: int, n_components: int = 1) -> None:
        super().__init__()
        for name, value in {"n_states": n_states, "n_features": n_features, "n_components": n_components}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number from 1 on, got {value!r}")
        self.n_states, self.n_features, self.n_components = n_states, n_features, n_components
        shape = n_states, n_components, n_features
        self.register_buffer("means", torch.zeros(shape))
        self.register_buffer("variances", torch.ones(shape))
        weights = torch.full(shape[:2], -math.inf)
        weights[:, 0] = 0.0
        self.register_buffer("log_weights", weights)

    def extra_repr(self) -> str:
        """The sizes, for ``print``."""
        return f"n_states={self.n_states}, n_features={self.n_features}, n_components={self.n_components}"

    @torch.no_grad()
    def costs(self, x: Tensor, states: Tensor | None = None) -> Tensor:
        """Negative log-likelihoods of frames in all states, in nats.

        Args:
            x: An utterance, shape (time, features).
            states: Which states are asked, such as those of an utterance's phonemes; all if not given.

        Returns:
            Shape (time, states), infinite where a state was not asked.

        Raises:
            ShapeError: If the shape does not fit.
        """
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise ShapeError(f"x has shape {tuple(x.shape)}; it needs (time, {self.n_features})")
        means, variances, weights = (cast(Tensor, each) for each in (self.means, self.variances, self.log_weights))
        if states is not None:
            means, variances, weights = means[states], variances[states], weights[states]
        used = int(weights.isfinite().sum(1).max())  # a state's components come first
        joint = _joint(x, means[:, :used], variances[:, :used], weights[:, :used])
        found = -(joint[:, 0] if used == 1 else joint.logsumexp(1))
        if states is None:
            return found
        whole = x.new_full((len(x), self.n_states), torch.inf)
        whole[:, states] = found
        return whole

    @torch.no_grad()
    def fit(
        self, utterances: Sequence[Tensor], states: Sequence[Tensor], *, iterations: int = 4, min_variance: float = 0.05
    ) -> None:
        """Estimate all states from frames that an alignment has given to them.

        One Gaussian is the frames' mean and variance; further ones come from splitting each along its deviation,
        followed by steps of expectation and maximization, until there are ``n_components`` or a state has fewer than
        ten frames a component. A state without frames gets the mean and variance of all.

        Args:
            utterances: Each of shape (time, features).
            states: The state of each frame, shape (time,).
            iterations: Steps after each split.
            min_variance: No variance goes below this share of that of all frames.

        Raises:
            ShapeError: If a shape does not fit.
            InputError: If there are no frames, a state is none of the model's, or a number is out of range.
        """
        if iterations < 1 or not 0 < min_variance <= 1:
            given = f"iterations={iterations}, min_variance={min_variance}"
            raise InputError(f"iterations must be 1 or more, and min_variance above 0 and at most 1; got {given}")
        if not utterances or len(utterances) != len(states):
            raise InputError(f"as many utterances as alignments are needed, got {len(utterances)} and {len(states)}")
        for number, (each, path) in enumerate(zip(utterances, states, strict=True)):
            if each.ndim != 2 or each.shape[1] != self.n_features or path.shape != each.shape[:1]:
                wanted = f"(time, {self.n_features}) and (time,)"
                raise ShapeError(f"utterance {number}: {tuple(each.shape)} and {tuple(path.shape)}; it needs {wanted}")
        x, state = torch.cat(list(utterances)), torch.cat(list(states))
        if not len(state):
            raise InputError("there are no frames to learn from; leave empty utterances out")
        if not 0 <= int(state.min()) <= int(state.max()) < self.n_states:
            raise InputError(
                f"states must lie between 0 and {self.n_states - 1}, got {int(state.min())} to {int(state.max())}"
            )
        whole = x.var(0, correction=0).clamp_min(1e-8)
        means, variances, weights = (cast(Tensor, each) for each in (self.means, self.variances, self.log_weights))
        means.copy_(x.mean(0).expand_as(means))
        variances.copy_(whole.expand_as(variances))
        weights.fill_(-math.inf)
        weights[:, 0] = 0.0
        floor = min_variance * whole
        order = state.argsort(stable=True)
        for s, mine in enumerate(torch.split(x[order], torch.bincount(state, minlength=self.n_states).tolist())):
            if not len(mine):
                continue
            center = mine.mean(0)
            mean, variance, weight = (
                torch.zeros_like(center)[None],
                mine.var(0, correction=0)[None].maximum(floor),
                mine.new_ones(1),
            )
            mine = mine - center  # so that squares do not cancel where all are far from zero
            squares = mine.square()
            while 2 * len(mean) <= min(self.n_components, len(mine) // 10):
                shift = 0.5 * variance.sqrt()
                mean, variance, weight = (
                    torch.cat([mean - shift, mean + shift]),
                    variance.repeat(2, 1),
                    weight.repeat(2),
                )
                for _ in range(iterations):
                    share = _joint(mine, mean[None], variance[None], weight.log()[None])[:, :, 0].softmax(1)
                    count = share.sum(0).clamp_min(1e-3)
                    mean = share.T @ mine / count[:, None]
                    variance = (share.T @ squares / count[:, None] - mean.square()).maximum(floor)
                    weight = count / count.sum()
            K = len(mean)
            means[s, :K], variances[s, :K], weights[s, :K] = mean + center, variance, weight.log()


def _joint(x: Tensor, means: Tensor, variances: Tensor, log_weights: Tensor) -> Tensor:
    """Log-likelihood of each component with its weight, shape (time, components, states).

    Components come before states, so that sums over them run along whole rows. Features are taken relative to the mean
    of the means, so that squares do not cancel where all are far from zero.
    """
    center = means.mean((0, 1))
    x, means = x - center, means - center
    flat, precision = means.transpose(0, 1).flatten(0, 1), variances.transpose(0, 1).flatten(0, 1).reciprocal()
    constant = -0.5 * ((flat.square() * precision).sum(1) - precision.log().sum(1)) + log_weights.T.flatten()
    constant = constant - 0.5 * x.shape[1] * math.log(2 * math.pi)
    found = torch.addmm(constant, torch.cat([x.square(), x], 1), torch.cat([-0.5 * precision, flat * precision], 1).T)
    return found.view(len(x), means.shape[1], means.shape[0])
