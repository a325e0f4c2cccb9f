"""When statistics are gathered and when layers are projected, counted in steps of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from counterflow.whitening.statistics import Gather

__all__ = ["CLOCK", "Schedule"]

CLOCK = "whiten_clock"  # the name of the buffer on the model that holds `Schedule.values`


class Schedule:
    """Counts steps, and switches gathering on in the last steps before a projection.

    It is itself the hook that reads the model's ``whiten_clock`` after ``load_state_dict``, and refers to nothing that
    a copy of the model should not have.

    Args:
        every: Steps from one projection to the next.
        samples: Examples that a projection wants.
        initial: Whether the first projection comes as soon as there are enough, in place of after ``every`` steps.
        modules: Those with a `Gather`; none where a loader is given.
    """

    def __init__(self, every: int, samples: int, initial: bool, modules: Sequence[nn.Module]) -> None:
        self.every, self.samples, self.modules = every, samples, tuple(modules)
        self.step = self.last = self.gathered = self.window = 0
        self.begun = not initial
        self.switch()

    @property
    def gathering(self) -> bool:
        """Whether the next backward pass is gathered from."""
        if not self.modules:
            return False
        # The first step of all also tells how many examples a step has.
        return not self.begun or self.window == 0 or self.last + self.every - self.step <= self.window

    def switch(self) -> None:
        """Tell the layers whether they gather."""
        for module in self.modules:
            vars(module)[Gather.SWITCH] = self.gathering

    def due(self, examples: int) -> bool:
        """Whether a projection is due, given the examples gathered so far."""
        if not self.begun:
            return examples >= self.samples
        return self.step - self.last >= self.every

    def measure(self, examples: int) -> None:
        """Learn from what was gathered how many steps it takes to gather enough."""
        if examples and self.gathered:
            self.window = max(1, math.ceil(self.samples * self.gathered / examples))

    def projected(self) -> None:
        """A projection was made after the present step."""
        self.begun, self.last, self.gathered = True, self.step, 0

    def values(self) -> Tensor:
        """All that the next step depends on."""
        return torch.tensor([self.step, self.last, self.gathered, self.window, int(self.begun)])

    def __call__(self, model: nn.Module, incompatible_keys: Any) -> None:
        self.step, self.last, self.gathered, self.window, begun = model.get_buffer(CLOCK).tolist()
        self.begun = bool(begun)
        self.switch()
