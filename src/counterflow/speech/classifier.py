r"""A network that classifies frames into phoneme states, as a source of distances.

Not in the paper, which predicts frames because classification is hard to link to words; it cites H. Bourlard and
C. J. Wellekens, "Links Between Markov Models and Multilayer Perceptrons" (1990), for the way that is taken here:
divided by the states' frequencies, a classifier's posteriors are likelihoods up to a factor that is the same for all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.exceptions import DivergenceError, InputError, ShapeError
from counterflow.speech.resume import Checkpoint, optimizer_state, restore

__all__ = ["StateClassifier"]

_CHUNK = 1024  # frames at once


class StateClassifier(nn.Module):
    r"""A perceptron from a frame and its neighbors to the state that the frame is of.

    .. math::

       d_{t,s} = -\log p(s \mid x_{t-r}, \ldots, x_{t+r}) + \log p(s)

    Args:
        n_states: States.
        n_features: Features of a frame.
        reach: Neighbors on either side, r; frames beyond the ends equal the first and the last.
        hidden: Units of each hidden layer.
        layers: Hidden layers, of rectified units.
        dropout: The share of units that are left out in training.
        generator: Where the first weights come from; torch's own if not given.

    Raises:
        InputError: If a number is out of range.

    References:
        H. Bourlard, C. J. Wellekens, Links between Markov models and multilayer perceptrons, IEEE Transactions on
        Pattern Analysis and Machine Intelligence 12 (1990).

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> model = StateClassifier(2, 1, reach=1, hidden=16, dropout=0.0, generator=draw)
        >>> x, state = torch.tensor([[0.0], [0.2], [5.0], [5.2]]), torch.tensor([0, 0, 1, 1])
        >>> _ = model.fit([x], [state], passes=100, generator=draw)
        >>> model.costs(x).argmin(1).tolist()
        [0, 0, 1, 1]
    """

    def __init__(
        self,
        n_states: int,
        n_features: int,
        *,
        reach: int = 7,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        numbers = {"n_states": n_states, "n_features": n_features, "hidden": hidden, "layers": layers}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number from 1 on, got {value!r}")
        if isinstance(reach, bool) or not isinstance(reach, int) or reach < 0 or not 0 <= dropout < 1:
            raise InputError(f"reach must be 0 or more, dropout 0 or more and below 1; got {reach!r} and {dropout!r}")
        self.n_states, self.n_features, self.reach = n_states, n_features, reach
        self.hidden, self.layers, self.dropout = hidden, layers, dropout
        sizes = [(2 * reach + 1) * n_features, *[hidden] * layers, n_states]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        with torch.no_grad():
            for linear in self.linears:
                assert isinstance(linear, nn.Linear)
                linear.weight.normal_(0.0, (2 / linear.in_features) ** 0.5, generator=generator)
                linear.bias.zero_()
        self.register_buffer("log_prior", torch.zeros(n_states))
        self.log_prior: Tensor

    def extra_repr(self) -> str:
        """The sizes, for ``print``."""
        return f"n_states={self.n_states}, n_features={self.n_features}, reach={self.reach}, dropout={self.dropout}"

    def forward(self, windows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits of the states.

        Args:
            windows: Frames with their neighbors, shape (frames, (2 reach + 1) * features), the earliest first.
            generator: Of the units that are left out in training.

        Returns:
            Shape (frames, states), differentiable.
        """
        *inner, last = self.linears
        for linear in inner:
            windows = linear(windows).relu()
            if self.training and self.dropout:
                left = torch.rand(windows.shape, generator=generator, device=windows.device) >= self.dropout
                windows = windows * left / (1 - self.dropout)
        found: Tensor = last(windows)
        return found

    @torch.no_grad()
    def costs(self, x: Tensor) -> Tensor:
        """Negative logarithms of scaled likelihoods, in nats; they may be negative.

        Args:
            x: An utterance, shape (time, features).

        Returns:
            Shape (time, states).

        Raises:
            ShapeError: If the shape does not fit.
        """
        windows = self._padded(x).unfold(0, 2 * self.reach + 1, 1).transpose(1, 2)
        training = self.training
        self.eval()
        parts = [self(part.flatten(1)) for part in torch.split(windows, _CHUNK)]
        self.train(training)
        return self.log_prior - F.log_softmax(torch.cat(parts), 1)

    def fit(
        self,
        utterances: Sequence[Tensor],
        states: Sequence[Tensor],
        *,
        passes: int = 10,
        lr: float = 0.003,
        batch: int | None = None,
        generator: torch.Generator | None = None,
        report: Callable[[int, float], None] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> list[float]:
        """Learn which state each frame is of, from an alignment.

        Steps are Adam's on the cross-entropy, with a rate that falls to zero as a cosine.

        Args:
            utterances: Each of shape (time, features).
            states: The state of each frame, shape (time,).
            passes: Over all frames.
            lr: The first learning rate.
            batch: Frames a step; by default 512, and fewer where there are fewer than 102,400 frames, down to 16.
            generator: Of the order of the frames and of the units that are left out.
            report: Called after each pass with its number and cross-entropy.
            checkpoint: Where the state is kept after each pass, and gone on from.

        Returns:
            The mean cross-entropy in each pass, in nats.

        Raises:
            DivergenceError: If the cross-entropy of a pass is not finite.
            ShapeError: If a shape does not fit.
            InputError: If there are no frames, a state is none of the model's, or a number is out of range.
        """
        if not utterances or len(utterances) != len(states):
            raise InputError(f"as many utterances as alignments are needed, got {len(utterances)} and {len(states)}")
        if passes < 1 or (batch is not None and batch < 1) or not lr > 0:
            raise InputError(f"passes and batch must be 1 or more and lr above 0, got {passes}, {batch} and {lr}")
        for number, (x, path) in enumerate(zip(utterances, states, strict=True)):
            if path.shape != x.shape[:1]:
                raise ShapeError(f"utterance {number} has {len(x)} frames, and its alignment is {tuple(path.shape)}")
        target = torch.cat(list(states))
        if not len(target):
            raise InputError("there are no frames to learn from; leave empty utterances out")
        batch = batch or min(512, max(16, len(target) // 200))
        if not 0 <= int(target.min()) <= int(target.max()) < self.n_states:
            raise InputError(f"states must lie between 0 and {self.n_states - 1}, got {target.min()} to {target.max()}")
        frames = torch.cat([self._padded(x) for x in utterances])
        # Where each frame's window begins: every utterance has 2 reach frames more.
        begin = torch.cat([torch.full((len(x),), 2 * self.reach * n) for n, x in enumerate(utterances)])
        begin = begin + torch.arange(len(target))
        reaches = torch.arange(2 * self.reach + 1)
        self.log_prior = (torch.bincount(target, minlength=self.n_states) + 1.0).div(len(target)).log()
        optimizer = torch.optim.Adam(self.parameters(), lr=lr, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, passes * -(-len(target) // batch))
        self.train()
        found: list[float] = []
        if checkpoint is not None:
            found, held = checkpoint.load("classifier")
            if held:
                with checkpoint.readable():
                    restore(held, self, optimizer, schedule, generator)
        for number in range(len(found), passes):
            total = 0.0
            for chosen in torch.split(torch.randperm(len(target), generator=generator), batch):
                windows = frames[begin[chosen, None] + reaches].flatten(1)
                loss = F.cross_entropy(self(windows, generator), target[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(chosen)
            found.append(total / len(target))
            if not math.isfinite(found[-1]):
                raise DivergenceError(
                    f"training diverged in pass {number + 1} with lr={lr}; lower it, or normalize the features"
                )
            if checkpoint is not None:
                checkpoint.save("classifier", found, optimizer_state(self, optimizer, schedule, generator))
            if report is not None:
                report(number, found[-1])
        self.eval()
        return found

    def _padded(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.n_features or not len(x):
            raise ShapeError(f"x has shape {tuple(x.shape)}; it needs (time, {self.n_features}), a time of 1 or more")
        return torch.cat([x[:1].expand(self.reach, -1), x, x[-1:].expand(self.reach, -1)])
