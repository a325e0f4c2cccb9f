"""Which units win for which inputs: subnetworks of classes, their overlap, dead and over-used units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from counterflow.backward.again import runs_again
from counterflow.competition.layers import LocalWinnerTakeAll
from counterflow.exceptions import InputError, ShapeError, UnsupportedError
from counterflow.handle import Handle, Row, Table
from counterflow.pictures import require_picture, write_picture

__all__ = ["Subnetworks", "monitor", "subnetworks", "winners_of"]


def winners_of(model: nn.Module, x: Tensor, batch_size: int = 500) -> dict[str, Tensor]:
    """Which units win for each input, in every layer of competing units.

    A unit of a convolution counts once for each position. The model is run in eval mode, without gradients.

    Args:
        model: With `LocalWinnerTakeAll` layers, each called once in a forward pass.
        x: Inputs, ``(examples, ...)``.
        batch_size: Inputs at a time; 500 by default.

    Returns:
        By the layer's name, booleans in the shape of its outputs, ``(examples, ...)``, on the processor.

    Raises:
        InputError: If ``batch_size`` is not positive.
        UnsupportedError: If the model has no such layer, or one that is called more than once.

    Example:
        >>> import torch, counterflow as cf
        >>> from torch import nn
        >>> from counterflow.competition import winners_of
        >>> model = nn.Sequential(nn.Linear(4, 6), cf.LocalWinnerTakeAll(), nn.Linear(6, 2))
        >>> winners_of(model, torch.randn(10, 4))["1"].sum(1).tolist() == [3] * 10
        True
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be a whole number >= 1, got {batch_size!r}")
    layers = _layers(model)
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, inputs, name=name: seen[name].append(module.winners(inputs[0]).cpu())
        )
        for name, layer in layers.items()
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            pieces = torch.split(x, batch_size)
            for piece in pieces:
                model(piece)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    twice = next((name for name, each in seen.items() if len(each) != len(pieces)), None)
    if twice is not None:
        raise UnsupportedError(
            f"layer {twice!r} is not called just once in a forward pass, so an input has no one set of winners there"
        )
    return {name: torch.cat(each) for name, each in seen.items()}


def _layers(model: nn.Module) -> dict[str, LocalWinnerTakeAll]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, LocalWinnerTakeAll)}
    if not found:
        raise UnsupportedError(
            f"this {type(model).__name__} has no LocalWinnerTakeAll layer; make them with cf.compete(model)"
        )
    return found


@dataclass(frozen=True)
class Subnetworks:
    """The representative subnetworks of classes in one layer.

    Args:
        classes: The labels, in rising order.
        shares: ``(classes, units)``: for what share of a class's examples a unit is active.
        threshold: From which share on a unit belongs to the class's subnetwork.
        active: How many units are active for one input, on average: the blocks.
    """

    classes: tuple[int, ...]
    shares: Tensor
    threshold: float
    active: float

    @property
    def members(self) -> Tensor:
        """``(classes, units)``, booleans: the subnetworks."""
        return self.shares >= self.threshold

    @property
    def overlap(self) -> Tensor:
        """``(classes, classes)``: units that two subnetworks have in common, over the units active for one input."""
        members = self.members.double()
        return members @ members.T / self.active

    def pairs(self) -> list[tuple[int, int, float]]:
        """The overlap of all pairs of classes, each class with itself too: 55 for ten classes."""
        overlap = self.overlap
        return [
            (first, second, float(overlap[i, j]))
            for i, first in enumerate(self.classes)
            for j, second in enumerate(self.classes)
            if i <= j
        ]

    def plot(self, path: str | Path, before: Subnetworks | None = None, title: str = "Units in common") -> None:
        """Draw the overlap matrix, and beside it the overlap of all pairs, as in the paper's figure 3.

        Args:
            path: The file; its suffix, .png, .svg or .pdf, says what kind of picture.
            before: The same layer's subnetworks before training, which the pairs then stand beside.
            title: Stands above the matrix.

        Raises:
            InputError: If no such file can be written, or ``before`` has other classes.
            MissingExtraError: If matplotlib is not installed.
        """
        if before is not None and before.classes != self.classes:
            raise InputError(f"before must have the classes {self.classes}, got {before.classes}")
        target = require_picture(path, "drawing the overlap of subnetworks")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.2), layout="constrained")
        matrix, pairs = figure.subplots(1, 2)
        image = matrix.imshow(self.overlap.numpy(), cmap="viridis", vmin=0)
        names = [str(each) for each in self.classes]
        matrix.set_xticks(range(len(names)), names)
        matrix.set_yticks(range(len(names)), names)
        matrix.set_title(title)
        figure.colorbar(image, ax=matrix, label="fraction of units in common")
        for found, label in ((before, "untrained"), (self, "trained" if before is not None else None)):
            if found is not None:
                pairs.plot([share for _, _, share in found.pairs()], ".", label=label)
        if before is not None:
            pairs.legend(frameon=False)
        pairs.set_xlabel("pairs of classes")
        pairs.set_ylabel("fraction of units in common")
        write_picture(figure, target, 150)


def subnetworks(
    model: nn.Module, x: Tensor, labels: Tensor, layer: str | None = None, threshold: float = 0.9
) -> Subnetworks:
    """The representative subnetwork of each class: units that win for at least 90% of its examples.

    Args:
        model: With `LocalWinnerTakeAll` layers.
        x: Inputs, ``(examples, ...)``.
        labels: Their classes, ``(examples,)``, integers.
        layer: The layer's name; None is the last one.
        threshold: The share of a class's examples; .9 by default, as in the paper.

    Raises:
        InputError: If there is no such layer, the threshold is out of range, or labels are not whole numbers or none.
        ShapeError: If there is not one label for each input.
        UnsupportedError: If the model has no such layer, or one that is called more than once.

    References:
        Srivastava et al., "Compete to Compute", NIPS 2013, section 7 and figure 3.

    Example:
        >>> import torch, counterflow as cf
        >>> from torch import nn
        >>> from counterflow.competition import subnetworks
        >>> model = nn.Sequential(nn.Linear(4, 20), cf.LocalWinnerTakeAll(), nn.Linear(20, 2))
        >>> found = subnetworks(model, torch.randn(100, 4), torch.arange(100) % 10)
        >>> found.overlap.shape, len(found.pairs())
        (torch.Size([10, 10]), 55)
    """
    names = list(_layers(model))
    if layer is not None and layer not in names:
        raise InputError(f"layer must be one of {', '.join(names)}, got {layer!r}")
    if not 0 < threshold <= 1:
        raise InputError(f"threshold must lie above 0 and not above 1, got {threshold!r}")
    if labels.shape != (len(x),):
        raise ShapeError(f"labels must be ({len(x)},), one for each input, got {tuple(labels.shape)}")
    if labels.is_floating_point() or not len(labels):
        raise InputError(f"labels must be whole numbers, at least one, got {len(labels)} of {labels.dtype}")
    labels = labels.cpu()
    won = winners_of(model, x)[names[-1] if layer is None else layer].flatten(1)
    classes = tuple(int(c) for c in torch.unique(labels))
    shares = torch.stack([won[labels == c].double().mean(0) for c in classes])
    return Subnetworks(classes, shares, threshold, float(won.sum(1).double().mean()))


class _Tally:
    """The hook of a layer that is watched: how often each of its units has won.

    An object rather than a function, so that the model can be pickled, and a copy of it counts for itself.
    """

    def __init__(self) -> None:
        self.inputs = 0
        self.wins: Tensor | None = None

    def __call__(self, layer: LocalWinnerTakeAll, args: tuple[Tensor, ...]) -> None:
        if runs_again():
            return
        x = args[0].detach()
        won = layer.winners(x)
        dim = layer.dim % won.ndim
        by_unit = won.movedim(dim, 0).reshape(won.shape[dim], -1).sum(1).double().cpu()
        self.wins = by_unit if self.wins is None else self.wins + by_unit
        self.inputs += 1 if dim == 0 else len(x)  # without a batch


def monitor(model: nn.Module, overused: float = 0.95) -> Handle:
    """Watch how often each unit wins while the model trains or runs: dead units never do, over-used ones nearly always.

    ``table()`` of the handle has, for each layer, the inputs seen, the units that have never won, those that have more
    than a share of their block's wins, and the entropy of wins within a block, 1 where all units win equally often.
    Results stay as they are; ``undo()`` ends it.

    Each forward pass counts once, with gradients or without: not again where it runs again for the backward pass, as
    under `torch.utils.checkpoint`, `counterflow.bptt.unroll` and the step of `counterflow.MultipleChoice`. A copy of
    the model counts for itself, and into no table.

    Args:
        model: With `LocalWinnerTakeAll` layers; not compiled.
        overused: The share of wins in its block above which a unit is over-used; .95 by default.

    Raises:
        InputError: If the share is out of range.
        UnsupportedError: If the model has no such layer.

    Example:
        >>> import torch, counterflow as cf
        >>> from torch import nn
        >>> from counterflow.competition import monitor
        >>> model = nn.Sequential(nn.Linear(4, 6), cf.LocalWinnerTakeAll(), nn.Linear(6, 2))
        >>> with monitor(model) as h:
        ...     y = model(torch.randn(50, 4))
        ...     h.table()["1"].values["inputs"]
        50
    """
    if not 0.5 <= overused <= 1:
        raise InputError(f"overused must lie between 0.5 and 1, got {overused!r}")
    layers = _layers(model)
    tallies = {name: _Tally() for name in layers}
    hooks = [layer.register_forward_pre_hook(tallies[name]) for name, layer in layers.items()]

    def table() -> Table:
        rows = []
        for name, layer in layers.items():
            values: dict[str, float | int | str | None] = {"inputs": tallies[name].inputs}
            wins = tallies[name].wins
            if wins is not None:
                each = wins.view(-1, layer.block)
                share = each / each.sum(1, keepdim=True).clamp_min(1)
                entropy = -torch.xlogy(share, share).sum(1) / torch.log(torch.tensor(max(layer.block, 2.0)))
                values |= {
                    "units": each.numel(),
                    "dead": int((each == 0).sum()),
                    "over-used": int((share > overused).sum()) if layer.block > 1 else 0,
                    "entropy": round(float(entropy.mean()), 3),
                }
            rows.append(Row(name, f"LWTA-{layer.block}", "watched", values=values))
        return Table("Wins of competing units", rows)

    return Handle(model, table, [hook.remove for hook in hooks])
