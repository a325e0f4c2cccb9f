"""A mixture of models, for a set of recordings from places that change: each item belongs to one of them.

The paper names it as what nonstationary environments need (section 4), after T.-W. Lee, M. S. Lewicki, T. J.
Sejnowski's ICA mixture model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from counterflow.exceptions import InputError
from counterflow.separation.attention import Attended, attend
from counterflow.separation.demixing import inside
from counterflow.separation.ica import FrequencyICA

__all__ = ["ICAMixture"]


class ICAMixture:
    """Several `FrequencyICA`, each learned from the items that it explains best.

    It begins with items grouped by the shapes of their spatial covariances. Then, in turn, each model learns from its
    items, and each item goes to the model under which it is likeliest, until none moves.

    Args:
        models: How many.
        rounds: At most.
        seed: Of the first grouping.
        options: Of each `FrequencyICA`.

    Attributes:
        models: The models.
        members: Which model each item of the fitted set belongs to, shape (items,).

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> def place(mixing):
        ...     loud = torch.rand(1, 2, 50, generator=generator) ** 3
        ...     sources = loud * torch.randn(9, 2, 50, dtype=torch.complex64, generator=generator)
        ...     return (mixing @ sources).transpose(0, 1)
        >>> here, there = torch.randn(2, 9, 2, 2, dtype=torch.complex64, generator=generator)
        >>> items = [place(here) for _ in range(6)] + [place(there) for _ in range(6)]
        >>> members = ICAMixture(2, iterations=20).fit(items).members.tolist()
        >>> members[:6] == 6 * members[:1] and members[6:] == 6 * [1 - members[0]]
        True
    """

    def __init__(self, models: int = 2, *, rounds: int = 5, seed: int = 0, **options: Any) -> None:
        if models < 1 or rounds < 1:
            raise InputError(f"models and rounds must be 1 or more, got {models} and {rounds}")
        self.models = [FrequencyICA(**options) for _ in range(models)]
        self.rounds, self.seed = rounds, seed
        self.members = torch.zeros(0, dtype=torch.int64)

    def fit(self, spectra: Sequence[Tensor]) -> Self:
        """Learn from items, each recorded in one place.

        Args:
            spectra: Each of shape (channels, frequencies, frames).

        Returns:
            Itself.

        Raises:
            InputError: If there are fewer items than models, or values that are not finite.
            ShapeError: If the items do not have the same channels and frequencies.
        """
        inside(spectra)
        if len(spectra) < len(self.models):
            raise InputError(f"{len(spectra)} items cannot be of {len(self.models)} places; give more, or fewer models")
        members = self._group(spectra)
        for _ in range(self.rounds):
            for number, model in enumerate(self.models):
                mine = [spectra[i] for i in (members == number).nonzero().flatten().tolist()]
                if mine:  # one that has lost all its items stays as it was
                    model.fit(mine)
                elif model.unmixing is None:
                    model.fit(list(spectra))
            before, members = members, self.assign(spectra)
            if torch.equal(before, members):
                break
        self.members = members
        return self

    def assign(self, spectra: Sequence[Tensor]) -> Tensor:
        """The model under which each item is likeliest, shape (items,)."""
        return torch.stack([model.log_likelihood(spectra) for model in self.models]).argmax(0)

    def separate(self, spectrum: Tensor) -> Tensor:
        """Apply the likeliest model to one item: as `FrequencyICA.separate`."""
        return self.models[int(self.assign([spectrum])[0])].separate(spectrum)

    def attend(self, spectra: Sequence[Tensor], classifier: nn.Module, **options: Any) -> dict[int, Attended]:
        """Attention for each model with its items, by its number; models without items are left out.

        Args:
            spectra: As `fit` takes them.
            classifier: As `attend` takes it.
            options: Of `attend`.
        """
        members = self.assign(spectra)
        found = {}
        for number in sorted(set(members.tolist())):
            mine = [spectra[i] for i in (members == number).nonzero().flatten().tolist()]
            found[number] = attend(self.models[number], mine, classifier, **options)
            self.models[number] = found[number].ica
        return found

    def _group(self, spectra: Sequence[Tensor]) -> Tensor:
        """k-means on normalized spatial covariances, from the items that are furthest apart."""
        shapes = []
        for item in spectra:
            x = item.transpose(0, 1)
            covariance = x @ x.mH
            covariance = covariance / (covariance.diagonal(dim1=1, dim2=2).real.sum(1)[:, None, None] + 1e-20)
            shapes.append(torch.view_as_real(covariance).flatten())
        points = torch.stack(shapes)
        first = int(torch.randint(len(points), (), generator=torch.Generator().manual_seed(self.seed)))
        chosen = [first]
        while len(chosen) < len(self.models):
            chosen.append(int(torch.cdist(points, points[chosen]).amin(1).argmax()))
        centers = points[chosen]
        members = torch.zeros(len(points), dtype=torch.int64)
        for _ in range(20):
            members = torch.cdist(points, centers).argmin(1)
            centers = torch.stack(
                [
                    points[members == k].mean(0) if bool((members == k).any()) else centers[k]
                    for k in range(len(self.models))
                ]
            )
        return members
