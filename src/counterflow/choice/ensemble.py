"""An ensemble whose training step computes gradients of the winners alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._pytree import tree_leaves, tree_map

from counterflow.backward.again import running_again
from counterflow.choice.oracle import check_k, weighted_loss, winners
from counterflow.exceptions import InputError, ShapeError, UnsupportedError
from counterflow.handle import Row, Table

__all__ = ["MultipleChoice", "Step"]

# Above this share of winners running their rows again costs more than the losers' backward passes.
_WORTHWHILE = 0.7


@dataclass(frozen=True)
class Step:
    """What a training step of `MultipleChoice` has found.

    Args:
        loss: The oracle loss, or that of the weights that were given, a scalar without a graph.
        losses: Per-example losses of all members, ``(members, batch)``, without a graph; NaN where a weight of zero was
            given and nothing was computed.
        winners: Who has won, a boolean mask, ``(members, batch)``; with a tensor of weights, who has any.
        cut: By member of this process, whether its losers' rows were cut out; if not, it took the naive path.
        weights: What each loss counted, ``(members, batch)``; 1 for winners and 0 for losers unless others were given.
        gradient_norms: Of each member of this process, over all its parameters, as they stand in ``grad`` after the
            step: with what has been accumulated there, and scaled if a scaler was given.
    """

    loss: Tensor
    losses: Tensor
    winners: Tensor
    cut: tuple[bool, ...]
    weights: Tensor
    gradient_norms: Tensor

    @property
    def mean_weight(self) -> Tensor:
        """What an example counts for each member on average, ``(members,)``."""
        return self.weights.mean(1)

    @property
    def usage(self) -> Tensor:
        """The share of all wins that each member has, ``(members,)``; it sums to 1."""
        counts: Tensor = self.winners.sum(1)
        return counts / counts.sum()

    @property
    def entropy(self) -> Tensor:
        """The entropy of the usage in nats; log M where all members are used alike, 0 where one has it all."""
        entropy: Tensor = torch.special.entr(self.usage).sum()
        return entropy

    @property
    def dead(self) -> list[int]:
        """The members that have won nothing."""
        return (~self.winners.any(1)).nonzero().flatten().tolist()


def _hindrance(member: nn.Module) -> str:
    """Why no cutting of rows equals the whole batch; empty if it does."""
    for module in member.modules():
        kind = type(module).__name__
        if isinstance(module, nn.FractionalMaxPool2d | nn.FractionalMaxPool3d):  # in any mode
            return f"{kind} draws its regions for the whole batch"
        # Taps, adjoints and layers of a kind of their own say what the losers' errors of zero, and their number, do.
        for acts in (module, *(getattr(hook, "transform", hook) for hook in module._forward_hooks.values())):
            name = kind if acts is module else f"{acts!r} on a {kind}"
            if getattr(acts, "batch_coupled", False) is True:
                return f"{name} mixes the examples of a batch"
            if getattr(acts, "counts_every_row", False) is True:
                return f"{name} counts every row, whatever its error"
        if not module.training:
            continue
        # Both keep statistics of the batch that they see, and a second forward pass would count it twice.
        if isinstance(module, nn.modules.batchnorm._NormBase) and (
            module.track_running_stats or isinstance(module, nn.modules.batchnorm._BatchNorm)
        ):
            return f"{kind} takes statistics of the whole batch"
        share = getattr(module, "dropout", 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            share = module.p
        if isinstance(share, float) and share > 0:
            return f"{kind} draws a mask for the whole batch"
        # Layers with noise on their weights say so by `noisy`; another draw would be another loss than was compared.
        if isinstance(module, nn.RReLU) or getattr(module, "noisy", False) is True:
            return f"{kind} draws noise for the whole batch"
        # Both forms of spectral normalization go on with their power iteration in every forward pass.
        hooks = module._forward_pre_hooks.values()
        if isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
            return "spectral normalization estimates the norm anew in every forward pass"
    return ""


class MultipleChoice(nn.Module):
    r"""An ensemble that learns by stochastic multiple choice learning (algorithm 2).

    A step runs all members without a graph, finds the winners, and runs the winners' rows again for the backward pass:
    its cost is about :math:`F + k(F + B)/M` of the members' forward and backward passes F and B. Gradients are those of
    `oracle_loss` over all members, up to rounding. A trunk runs once, on all rows; the errors of its heads add up, and
    go through it once.

    Where cutting rows would change the result or save nothing, a member takes the naive path, a graph of all rows: in
    training mode with batch normalization, dropout or noise on weights, with taps and adjoints that mix the examples of
    a batch, on analog hardware, and where more than 0.7 of the members win. `table` says which. A member that draws
    numbers in a function of its own needs ``cut=False``. What is measured in backward passes, by `counterflow.probe` or
    by `counterflow.whiten` without a loader, is measured on the rows that are in the graph: with cut rows those that
    the member learns from.

    Args:
        members: The members, :math:`f_1 \dots f_M`; with a trunk, its heads. They take the input, or what the trunk
            makes of it, and treat the examples of a batch one by one.
        trunk: A module that all members share; its output is one tensor with the batch first.
        k: How many members win each example, from 1 to M.
        cut: Whether to cut rows: None decides for each member, False never does. True does where ``None`` would not,
            except where the result would be another. On the naive path a loser's row is in the graph with an error of
            zero, and zero times a slope that is infinite or NaN is NaN: one such row, and all gradients of its member
            (and of a trunk) are NaN. Cut rows cannot do that.
        group: A process group whose ranks each hold their own members, and all see the same batch; only losses travel
            (and the error of the trunk, which each rank holds a copy of). Members are counted by rank.

    Raises:
        InputError: If there is no member, or if k is no whole number from 1 to M.

    References:
        Lee and others (2016), algorithm 2.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> ensemble = MultipleChoice([nn.Linear(4, 3) for _ in range(5)])
        >>> x, y = torch.randn(8, 4), torch.randint(3, (8,))
        >>> step = ensemble.step(x, y, lambda out, y: nn.functional.cross_entropy(out, y, reduction="none"))
        >>> step.winners.shape, step.winners.sum(0).tolist()
        (torch.Size([5, 8]), [1, 1, 1, 1, 1, 1, 1, 1])
        >>> ensemble(x).shape
        torch.Size([5, 8, 3])
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        trunk: nn.Module | None = None,
        k: int = 1,
        cut: bool | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if not members:
            raise InputError("members is empty; an ensemble needs at least one")
        self.members = nn.ModuleList(members)
        self.trunk = trunk
        self.group = group
        counts = [len(self.members)]
        if group is not None:
            counts = [0] * dist.get_world_size(group)
            dist.all_gather_object(counts, len(self.members), group=group)
        self._counts = counts
        check_k(k, sum(counts))
        self.k = k
        self.cut = cut

    def forward(self, x: Any) -> Tensor:
        """The outputs of all members of this process, ``(members, batch, ...)``."""
        shared = x if self.trunk is None else self.trunk(x)
        return torch.stack([member(shared) for member in self.members])

    def losses(self, x: Any, y: Any, loss_fn: Callable[[Any, Any], Tensor]) -> Tensor:
        """Per-example losses of all members of this process, ``(members, batch)``, with their whole graph."""
        shared = x if self.trunk is None else self.trunk(x)
        return torch.stack([self._loss(member, shared, y, loss_fn) for member in self.members])

    def table(self) -> Table:
        """Which path each member of this process takes in its present mode, and why."""
        rows = []
        for name, member in self.members.named_children():
            why = self._why(member)
            rows.append(Row(f"members.{name}", type(member).__name__, "naive" if why else "rows cut", why))
        return Table("Multiple choice", rows)

    def step(
        self,
        x: Any,
        y: Any,
        loss_fn: Callable[[Any, Any], Tensor],
        scaler: torch.amp.GradScaler | None = None,
        weights: Tensor | Callable[[Tensor], Tensor] | None = None,
    ) -> Step:
        """Forward and backward pass: gradients of the oracle loss are added to the parameters'.

        A member that has won nothing gets gradients of zero, as in the naive step, so that weight decay and momentum
        go on.

        Args:
            x: A batch, ``(batch, ...)``, or lists, tuples and dictionaries of such tensors.
            y: The targets, likewise.
            loss_fn: Maps a member's output and targets to losses of the examples, ``(batch,)``.
            scaler: Scales the loss for the backward pass under float16; unscaling and stepping are left to the loop.
            weights: What each member's loss on each example counts, ``(members, batch)``, or a function that maps the
                losses, of that shape and without a graph, to it. A tensor fixes the assignment beforehand: a member
                whose weights are all zero is not run at all, nor, where rows are cut, is a row of weight zero. By
                default the k winners count 1.

        Returns:
            The oracle loss, who has won, and how often.

        Raises:
            ShapeError: If ``loss_fn`` does not give one loss an example, or the weights are not ``(members, batch)``.
            InputError: If fewer than k losses of an example are numbers, or a weight is negative or not a number.
            UnsupportedError: If the trunk gives anything but one tensor.

        References:
            Lee and others (2016), algorithm 2.
        """
        shared = x if self.trunk is None else self.trunk(x)
        if self.trunk is not None and not isinstance(shared, Tensor):
            raise UnsupportedError(f"trunk gives a {type(shared).__name__}; its heads can share one tensor only")
        # The members' errors add up here, and go further back once.
        leaf = tree_map(_cut_off, shared)
        start = 0 if self.group is None else sum(self._counts[: dist.get_rank(self.group)])
        fixed = _numbers(weights).to(_device(leaf)) if isinstance(weights, Tensor) else None
        if fixed is not None:
            self._check(fixed, _batch(leaf))
        cut = tuple(not self._why(member, weights) for member in self.members)
        found = []
        for index, (member, short) in enumerate(zip(self.members, cut, strict=True)):
            # Who is to learn what is known: one pass will do, and none for a member that learns nothing.
            if fixed is not None and (short or not fixed[start + index].any()):
                found.append(fixed.new_full(fixed.shape[1:], torch.nan))
                continue
            with torch.set_grad_enabled(not short):
                found.append(self._loss(member, leaf, y, loss_fn))
        # What autocast has cast without a graph would be used again, and the weights would get no gradient.
        torch.clear_autocast_cache()
        mine = torch.stack([loss.detach() for loss in found])
        if fixed is None:
            everyone = self._gather(mine)
            chosen = winners(everyone, self.k)
            given = chosen.to(everyone.dtype)
            if weights is not None and not isinstance(weights, Tensor):
                given = _numbers(weights(everyone)).to(everyone.device)
                self._check(given, everyone.shape[1])
        else:
            given, chosen = fixed, fixed > 0
        scale: Callable[[Tensor], Tensor] = (lambda value: value) if scaler is None else scaler.scale
        for index, (member, short) in enumerate(zip(self.members, cut, strict=True)):
            weight = given[start + index]
            rows = weight.nonzero().flatten()
            if len(rows) == 0:
                for parameter in member.parameters():
                    if parameter.requires_grad and parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                continue
            if short:
                with contextlib.nullcontext() if fixed is not None else running_again():
                    each = self._loss(member, _select(leaf, rows), _select(y, rows), loss_fn)
                if fixed is not None:
                    mine[index, rows] = each.detach().to(mine.dtype)
                each = each * weight[rows]
            else:
                each = torch.where(weight > 0, found[index] * weight, torch.zeros_like(found[index]))
            if each.requires_grad:
                scale(each.sum() / len(weight)).backward()  # type: ignore[no-untyped-call]
            del each
        if fixed is not None:
            everyone = self._gather(mine)
        grads = [[_values(p.grad) for p in member.parameters() if p.grad is not None] for member in self.members]
        norms = torch.stack([nn.utils.get_total_norm(each) if each else mine.new_zeros(()) for each in grads])
        ends = [pair for pair in zip(tree_leaves(shared), tree_leaves(leaf), strict=True) if pair[0] is not pair[1]]
        errors = [torch.zeros_like(cut_off) if cut_off.grad is None else cut_off.grad for _, cut_off in ends]
        if self.group is not None and self.trunk is not None:
            for error in errors:
                dist.all_reduce(error, group=self.group)
        if ends:
            torch.autograd.backward([end for end, _ in ends], errors)
        return Step(weighted_loss(everyone, given), everyone, chosen, cut, given, norms)

    def _check(self, weights: Tensor, batch: int | None) -> None:
        """Refuse weights of another shape, and such as would turn an error round."""
        if weights.dim() != 2 or weights.shape[0] != sum(self._counts) or batch not in (None, weights.shape[1]):
            raise ShapeError(
                f"weights has shape {tuple(weights.shape)}; give (members, batch), here ({sum(self._counts)}, "
                f"{'batch' if batch is None else batch})"
            )
        if not bool((weights >= 0).all()):
            raise InputError("weights holds a negative number or NaN; give zero where a member is not to learn")

    def _why(self, member: nn.Module, weights: object = None) -> str:
        """Why a member takes the naive path; empty if it does not."""
        if self.cut is False:
            return "cut=False"
        hindrance = _hindrance(member)
        if weights is not None:
            # A function of the losses gives nearly all rows some weight; a tensor is known beforehand.
            return hindrance or ("" if isinstance(weights, Tensor) or self.cut else "weights of all rows")
        if not hindrance and self.cut is None and self.k / sum(self._counts) > _WORTHWHILE:
            return f"{self.k} of {sum(self._counts)} members win"
        return hindrance

    def _loss(self, member: nn.Module, x: Any, y: Any, loss_fn: Callable[[Any, Any], Tensor]) -> Tensor:
        loss = loss_fn(member(x), y)
        batch = _batch(x)
        if loss.dim() != 1 or batch not in (None, len(loss)):
            wanted = "batch" if batch is None else batch
            raise ShapeError(
                f"loss_fn gives shape {tuple(loss.shape)}; give one loss an example, ({wanted},), as reduction='none' "
                "does"
            )
        return loss

    def _gather(self, mine: Tensor) -> Tensor:
        """Losses of the members of all ranks."""
        if self.group is None:
            return mine
        padded = mine.new_zeros(max(self._counts), mine.shape[1])
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in self._counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, self._counts, strict=True)])


def _cut_off(leaf: Any) -> Any:
    """A tensor that errors go to, as the beginning of a graph of its own."""
    return leaf.detach().requires_grad_() if isinstance(leaf, Tensor) and leaf.requires_grad else leaf


def _batch(tree: Any) -> int | None:
    """How many examples an input holds; None where no tensor says it."""
    return next((len(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.dim()), None)


def _device(tree: Any) -> torch.device | None:
    """Where an input is; None, which moves nothing, where it holds no tensor."""
    return next((leaf.device for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)), None)


def _values(gradient: Tensor) -> Tensor:
    """The numbers of a gradient; of a sparse one, as an embedding may make, those that are there."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _numbers(weights: Tensor) -> Tensor:
    """Weights that can be multiplied; a mask of winners counts 1 and 0."""
    return weights if weights.is_floating_point() else weights.to(torch.get_default_dtype())


def _select(tree: Any, rows: Tensor) -> Any:
    """Some rows of each tensor, in its memory format, which `torch.index_select` does not keep."""

    def select(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(leaf.dim(), torch.contiguous_format)
        kept = form if leaf.is_contiguous(memory_format=form) else torch.contiguous_format
        return leaf.index_select(0, rows).contiguous(memory_format=kept)

    return tree_map(select, tree)
