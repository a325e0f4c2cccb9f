r"""Classifiers of sequences that put a network on top of density models, and learn both by one error.

Source: A. D. Brown, G. E. Hinton, "Relative Density Nets: A New Way to Combine Backpropagation with HMMs", NIPS 2001.

======================================  ============================================================
the paper                               here
======================================  ============================================================
M                                       ``n_models``
K (equation 8)                          ``n_classes``
L_m, averaged over time (footnote 2)    ``scores(x, lengths)``, shape (batch, models)
h_(mn) (equation 7)                     ``hidden(x, lengths)``, shape (batch, M (M - 1) / 2)
W_(mn)k                                 ``output.weight``, shape (classes, M (M - 1) / 2)
a_k (equation 8)                        what a net returns, shape (batch, classes); p_k is its softmax
======================================  ============================================================

No layer has a bias (equations 7 and 8). Sequences are (batch, time, features) with lengths (batch,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from counterflow.density.hmm import GaussianHMM
from counterflow.exceptions import InputError, ShapeError

__all__ = [
    "Alphanet",
    "ComparativeDensityNet",
    "ComparativeDensityNet1",
    "DensityNet",
    "MatchedSizes",
    "MixtureNet",
    "RelativeDensityNet",
    "matched_sizes",
]


class DensityNet(nn.Module):
    """What the five nets share: a bank of density models, and classes told from their log-likelihoods.

    Args:
        bank: The density models.
        n_classes: Classes to tell apart.
        time_average: Whether log-likelihoods are divided by the sequence's length.

    Raises:
        InputError: If there are fewer than two classes.
    """

    def __init__(self, bank: GaussianHMM, n_classes: int, *, time_average: bool = True) -> None:
        super().__init__()
        if isinstance(n_classes, bool) or not isinstance(n_classes, int) or n_classes < 2:
            raise InputError(f"n_classes must be a whole number from 2 on, got {n_classes!r}")
        self.bank, self.n_classes, self.time_average = bank, n_classes, time_average

    def scores(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The log-likelihood of each sequence under each model, averaged over time or not, (batch, models)."""
        found: Tensor = self.bank(x, lengths)
        if not self.time_average:
            return found
        if lengths is None:
            return found / x.shape[1]
        return found / lengths.to(found.device, found.dtype).unsqueeze(1)

    def readout(self, scores: Tensor) -> Tensor:
        """From log-likelihoods (batch, models) to inputs of the softmax (batch, classes)."""
        raise NotImplementedError

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Inputs of the softmax, for `torch.nn.functional.cross_entropy`.

        Args:
            x: Sequences, shape (batch, time, features).
            lengths: Frames of each, shape (batch,); all of them if not given.

        Returns:
            Shape (batch, classes).

        Raises:
            ShapeError: If a shape does not fit.
            InputError: If a frame that is meant is not finite, or a length is not between 1 and the time.
        """
        return self.readout(self.scores(x, lengths))

    @property
    def n_parameters(self) -> int:
        """How many free parameters there are, counted before the softmaxes as the paper's sizes are."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def initialize(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Put the means on frames of the data and the variances at its variance; the paper does not say how it began.

        Args:
            x: Sequences, shape (batch, time, features).
            lengths: Frames of each; all of them if not given.
            targets: Classes (batch,); with them model m takes frames of class m modulo the number of classes.
            generator: Which frames are taken.

        Raises:
            ShapeError, InputError: As `forward`, or if ``targets`` are not one class a sequence.
        """
        x, ends = self.bank._checked(x, lengths)
        if targets is not None:
            check_targets(targets, len(x), self.n_classes)
        inside = torch.arange(x.shape[1], device=x.device) < ends[:, None]
        every = x[inside]
        for m in range(self.bank.n_models):
            frames = every
            if targets is not None:
                mine = targets == m % self.n_classes
                frames = x[mine][inside[mine]] if bool(mine.any()) else every
            wanted = self.bank.n_states * self.bank.n_components
            chosen = torch.randint(len(frames), (wanted,), generator=generator)
            self.bank.means[m] = frames[chosen.to(x.device)].view_as(self.bank.means[m])
        self.bank.log_variances.copy_(
            every.var(0, correction=0).clamp_min(1e-6).log().expand_as(self.bank.log_variances)
        )


def _linear(inputs: int, outputs: int, scale: float, like: Tensor) -> nn.Linear:
    """A layer without biases, of normal weights."""
    if not scale > 0 or not math.isfinite(scale):
        raise InputError(f"the scale of initial weights must be positive, got {scale}")
    layer = nn.Linear(inputs, outputs, bias=False, dtype=like.dtype, device=like.device)
    nn.init.normal_(layer.weight, std=scale)
    return layer


class RelativeDensityNet(DensityNet):
    r"""All pairs of hidden Markov models, compared by logistic units, and a linear layer on top (equations 7 to 9).

    .. math::

       h_{(mn)} = \sigma(L_m - L_n), \qquad a_k = \sum_{(mn)} W_{(mn)k} h_{(mn)}, \qquad
       p_k = \frac{e^{a_k}}{\sum_{k'} e^{a_{k'}}}

    Args:
        n_models: Hidden Markov models, M; two or more, and they need not be as many as the classes. Two make one
            unit, which without a bias favors the same class whatever it sees: three are the least that tell apart.
        n_states: States of each; the paper has 4.
        n_features: Features of a frame.
        n_classes: Classes.
        time_average: Whether log-likelihoods are divided by the length (the paper's footnote 2).
        weight_scale: Standard deviation of the initial output weights; the paper only says small.
        hmm: Options of `GaussianHMM`.

    Raises:
        InputError: If a number is out of range.

    References:
        A. D. Brown, G. E. Hinton, Relative Density Nets, NIPS 2001, section 4.

    Example:
        >>> net = RelativeDensityNet(n_models=5, n_states=2, n_features=4, n_classes=3)
        >>> x, lengths = torch.randn(6, 30, 4), torch.tensor([30, 8, 1, 30, 20, 5])
        >>> net(x, lengths).shape, net.hidden(x, lengths).shape
        (torch.Size([6, 3]), torch.Size([6, 10]))
    """

    def __init__(
        self,
        n_models: int,
        n_states: int,
        n_features: int,
        n_classes: int,
        *,
        time_average: bool = True,
        weight_scale: float = 0.1,
        **hmm: Any,
    ) -> None:
        super().__init__(GaussianHMM(n_models, n_states, n_features, **hmm), n_classes, time_average=time_average)
        if n_models < 2:
            raise InputError(f"n_models must be 2 or more, so that there is a pair to compare, got {n_models}")
        self.output = _linear(n_models * (n_models - 1) // 2, n_classes, weight_scale, self.bank.means)

    def hidden(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The comparisons, shape (batch, M (M - 1) / 2): pairs (1, 2), (1, 3), ... (M - 1, M)."""
        return self._compared(self.scores(x, lengths))

    def readout(self, scores: Tensor) -> Tensor:
        """From log-likelihoods (batch, models) to inputs of the softmax (batch, classes)."""
        out: Tensor = self.output(self._compared(scores))
        return out

    def _compared(self, scores: Tensor) -> Tensor:
        first, second = torch.triu_indices(self.bank.n_models, self.bank.n_models, 1, device=scores.device)
        return torch.sigmoid(scores[:, first] - scores[:, second])


class Alphanet(DensityNet):
    """One hidden Markov model a class, and a softmax of their log-likelihoods (Bridle, 1990).

    Args:
        n_states: States of each model.
        n_features: Features of a frame.
        n_classes: Classes, and models.
        time_average: Whether log-likelihoods are divided by the length; the paper leaves open whether its Alphanet's
            were.
        hmm: Options of `GaussianHMM`.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> Alphanet(n_states=5, n_features=24, n_classes=12).n_parameters
        3240
    """

    def __init__(
        self, n_states: int, n_features: int, n_classes: int, *, time_average: bool = True, **hmm: Any
    ) -> None:
        super().__init__(GaussianHMM(n_classes, n_states, n_features, **hmm), n_classes, time_average=time_average)

    def readout(self, scores: Tensor) -> Tensor:
        """The log-likelihoods themselves."""
        return scores


class MixtureNet(Alphanet):
    """An `Alphanet` of Gaussian mixtures: the order of the frames does not matter.

    Args:
        n_components: Gaussians of each mixture; the paper takes as many as its Alphanet has states.
        n_features: Features of a frame.
        n_classes: Classes, and mixtures.
        time_average: Whether log-likelihoods are divided by the length.
        hmm: Options of `GaussianHMM`.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> net = MixtureNet(n_components=5, n_features=4, n_classes=3).double()
        >>> x = torch.randn(2, 9, 4, dtype=torch.float64)
        >>> torch.allclose(net(x), net(x.flip(1)))
        True
    """

    def __init__(
        self, n_components: int, n_features: int, n_classes: int, *, time_average: bool = True, **hmm: Any
    ) -> None:
        super().__init__(1, n_features, n_classes, time_average=time_average, n_components=n_components, **hmm)


class ComparativeDensityNet(DensityNet):
    """A relative density net whose first layer is learned in the place of the fixed +-1 between pairs.

    Args:
        n_models: Hidden Markov models.
        n_states: States of each.
        n_features: Features of a frame.
        n_classes: Classes.
        n_hidden: Logistic units; M (M - 1) / 2 where ``first="pairs"``.
        time_average: Whether log-likelihoods are divided by the length.
        first: Where the first layer starts: ``"random"``, or at the ``"pairs"`` of a relative density net.
        first_scale: Standard deviation of random initial weights behind the models; small ones attenuate the error.
        weight_scale: The same of the output weights.
        hmm: Options of `GaussianHMM`.

    Raises:
        InputError: If a number is out of range, or ``n_hidden`` is not the number of pairs where it has to be.

    Example:
        >>> ComparativeDensityNet(12, 4, 24, 12, n_hidden=33).n_parameters
        3336
    """

    def __init__(
        self,
        n_models: int,
        n_states: int,
        n_features: int,
        n_classes: int,
        n_hidden: int | None = None,
        *,
        time_average: bool = True,
        first: Literal["random", "pairs"] = "random",
        first_scale: float = 0.1,
        weight_scale: float = 0.1,
        **hmm: Any,
    ) -> None:
        super().__init__(GaussianHMM(n_models, n_states, n_features, **hmm), n_classes, time_average=time_average)
        pairs = n_models * (n_models - 1) // 2
        n_hidden = pairs if n_hidden is None else n_hidden
        if isinstance(n_hidden, bool) or not isinstance(n_hidden, int) or n_hidden < 1:
            raise InputError(f"n_hidden must be a whole number from 1 on, got {n_hidden!r}")
        if first not in ("random", "pairs"):
            raise InputError(f"first must be 'random' or 'pairs', got {first!r}")
        if first == "pairs" and n_hidden != pairs:
            raise InputError(f"first='pairs' with {n_models} models needs n_hidden={pairs}, got {n_hidden}")
        self.first = _linear(n_models, n_hidden, first_scale, self.bank.means)
        self.output = _linear(n_hidden, n_classes, weight_scale, self.bank.means)
        if first == "pairs":
            one, other = torch.triu_indices(n_models, n_models, 1)
            pattern = torch.zeros(pairs, n_models)
            pattern[torch.arange(pairs), one] = 1.0
            pattern[torch.arange(pairs), other] = -1.0
            with torch.no_grad():
                self.first.weight.copy_(pattern)

    def hidden(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The logistic units, shape (batch, hidden)."""
        return torch.sigmoid(self.first(self.scores(x, lengths)))

    def readout(self, scores: Tensor) -> Tensor:
        """From log-likelihoods (batch, models) to inputs of the softmax (batch, classes)."""
        out: Tensor = self.output(torch.sigmoid(self.first(scores)))
        return out


class ComparativeDensityNet1(DensityNet):
    """A linear layer from log-likelihoods to the softmax: a comparative density net without hidden units.

    Args:
        n_models: Hidden Markov models.
        n_states: States of each.
        n_features: Features of a frame.
        n_classes: Classes.
        time_average: Whether log-likelihoods are divided by the length.
        weight_scale: Standard deviation of the initial weights behind the models.
        hmm: Options of `GaussianHMM`.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> ComparativeDensityNet1(12, 5, 24, 12).n_parameters
        3384
    """

    def __init__(
        self,
        n_models: int,
        n_states: int,
        n_features: int,
        n_classes: int,
        *,
        time_average: bool = True,
        weight_scale: float = 0.1,
        **hmm: Any,
    ) -> None:
        super().__init__(GaussianHMM(n_models, n_states, n_features, **hmm), n_classes, time_average=time_average)
        self.output = _linear(n_models, n_classes, weight_scale, self.bank.means)

    def readout(self, scores: Tensor) -> Tensor:
        """From log-likelihoods (batch, models) to inputs of the softmax (batch, classes)."""
        out: Tensor = self.output(scores)
        return out


@dataclass(frozen=True)
class MatchedSizes:
    """Sizes with as many parameters as a relative density net, as near as they come.

    Args:
        parameters: Of the relative density net.
        alphanet_states: States of each of an `Alphanet`'s models.
        hidden: Logistic units of a `ComparativeDensityNet` with the same models.
        cdn1_states: States of each model of a `ComparativeDensityNet1` with as many models.
        mixture_components: Gaussians of a `MixtureNet`: as many as ``alphanet_states``, so it has fewer parameters.
    """

    parameters: int
    alphanet_states: int
    hidden: int
    cdn1_states: int
    mixture_components: int


def matched_sizes(n_models: int, n_classes: int, n_features: int, n_states: int = 4) -> MatchedSizes:
    """Sizes of the other nets with the parameter count of a relative density net (section 6).

    Args:
        n_models: Models of the relative density net.
        n_classes: Classes.
        n_features: Features of a frame.
        n_states: States of each of its models.

    Returns:
        The sizes whose parameter counts are nearest; of two as near, the smaller.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> matched_sizes(n_models=12, n_classes=12, n_features=24)
        MatchedSizes(parameters=3336, alphanet_states=5, hidden=33, cdn1_states=5, mixture_components=5)
    """
    for name, value, least in (
        ("n_models", n_models, 2), ("n_classes", n_classes, 2), ("n_features", n_features, 1), ("n_states", n_states, 1)
    ):  # fmt: skip
        if value < least:
            raise InputError(f"{name} must be {least} or more, got {value}")

    def bank(models: int, states: int) -> int:
        return models * (2 * states * n_features + (states * states + states if states > 1 else 0))

    target = bank(n_models, n_states) + n_models * (n_models - 1) // 2 * n_classes
    sizes = range(1, target + 1)  # one state more is one parameter more at least
    alphanet = min(sizes, key=lambda s: abs(bank(n_classes, s) - target))
    own = bank(n_models, n_states)
    hidden = min(sizes, key=lambda h: abs(own + h * (n_models + n_classes) - target))
    cdn1 = min(sizes, key=lambda s: abs(bank(n_models, s) + n_models * n_classes - target))
    return MatchedSizes(target, alphanet, hidden, cdn1, alphanet)


def check_targets(targets: Tensor, batch: int, n_classes: int) -> None:
    """Refuse targets that are no classes of a batch.

    Raises:
        ShapeError: If they are not one class a sequence.
        InputError: If one is no class.
    """
    if targets.shape != (batch,) or targets.is_floating_point() or targets.dtype == torch.bool:
        found = f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise ShapeError(f"targets must be whole numbers of shape ({batch},), got {found}")
    if batch and not (int(targets.min()) >= 0 and int(targets.max()) < n_classes):
        worst = int(((targets < 0) | (targets >= n_classes)).nonzero()[0])
        raise InputError(f"targets[{worst}] is {int(targets[worst])}; classes go from 0 to {n_classes - 1}")
