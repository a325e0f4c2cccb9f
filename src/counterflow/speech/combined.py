r"""A classifier and mixtures of Gaussians as one source of distances.

Not in the paper. The two err on different frames: one has learned where states differ and sees many frames at once, the
other how each state sounds by itself. Their costs are both negative logarithms of likelihoods, and are added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from counterflow.exceptions import InputError
from counterflow.speech.classifier import StateClassifier
from counterflow.speech.gaussians import GaussianStates, add_deltas

__all__ = ["CombinedStates"]


class CombinedStates(nn.Module):
    r"""The costs of a classifier with a share of those of Gaussian states.

    .. math::

       d_{t,s} = d^\text{classifier}_{t,s} + w\, d^\text{Gaussians}_{t,\,o(s)}

    The classifier may tell more states apart, such as those of phones in context; o(s) is the Gaussian state that
    state s is a case of.

    Args:
        classifier: The classifier.
        gaussians: The Gaussian states; they see the classifier's features with two orders of slopes.
        own: o, which Gaussian state each state of the classifier is a case of; the first if not given.
        weight: w, by default what was best for held-out training speakers of CMU's an4.

    Raises:
        InputError: If the parts do not fit together, or ``weight`` is negative.

    Example:
        >>> both = CombinedStates(StateClassifier(4, 2, hidden=8), GaussianStates(2, 6), own=[0, 1, 1, 1])
        >>> both.costs(torch.randn(5, 2)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        classifier: StateClassifier,
        gaussians: GaussianStates,
        own: Sequence[int] | None = None,
        *,
        weight: float = 0.3,
    ) -> None:
        super().__init__()
        if gaussians.n_features != 3 * classifier.n_features:
            sizes = f"{gaussians.n_features} features, and the classifier {classifier.n_features}"
            raise InputError(f"the Gaussians see {sizes}; they need three times as many, with slopes")
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"weight must be 0 or more, got {weight}")
        self.classifier, self.gaussians, self.weight = classifier, gaussians, float(weight)
        self.n_states, self.n_features = classifier.n_states, classifier.n_features
        self.register_buffer("own", torch.zeros(self.n_states, dtype=torch.int64))
        if own is not None:
            self.own = torch.tensor(list(own))
            self.check()

    def check(self) -> None:
        """Find out whether every state is a case of a Gaussian one that is there.

        Raises:
            InputError: If not.
        """
        own = self.own
        if own.shape != (self.n_states,) or not 0 <= int(own.min()) <= int(own.max()) < self.gaussians.n_states:
            raise InputError(f"own needs one of {self.gaussians.n_states} states for each of {self.n_states}")

    @property
    def reach(self) -> int:
        """How many frames on either side a cost depends on."""
        return max(self.classifier.reach, 4)

    @torch.no_grad()
    def costs(self, x: Tensor) -> Tensor:
        """The combined costs of frames in all states, in nats; they may be negative.

        Args:
            x: An utterance, shape (time, features).

        Returns:
            Shape (time, states).

        Raises:
            ShapeError: If the shape does not fit.
        """
        found = self.classifier.costs(x)
        sounds = self.gaussians.costs(add_deltas(x, orders=2))
        return found.add_(sounds[:, self.own], alpha=self.weight)
