"""What lies between a controller's output and the quiet zone: a loudspeaker, and the path after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from counterflow.adaptive import Controller, Signal, signal
from counterflow.exceptions import InputError
from counterflow.noise_control.paths import CubicDistortion

Slope = Literal["known", "one"]


@dataclass(frozen=True)
class Loop:
    """The loudspeaker and the secondary path; as it is by default, nothing is between.

    Attributes:
        speaker: The loudspeaker's distortion.
        slope: Whether the backward pass knows the loudspeaker's slope, or takes it as one.
        secondary: C2, the impulse response from the loudspeaker to the quiet zone.
    """

    speaker: CubicDistortion | None = None
    slope: Slope = "known"
    secondary: ArrayLike | None = None
    response: Signal = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.slope not in ("known", "one"):
            raise InputError(f"slope is {self.slope!r}; give 'known' or 'one'")
        response = signal([1.0] if self.secondary is None else self.secondary, "secondary")
        if not np.any(response):
            raise InputError("secondary is silent; give an impulse response with a sample that is not zero")
        # What comes after the last sample that is not zero would only make the update later.
        object.__setattr__(self, "response", response[: np.flatnonzero(response)[-1] + 1].copy())

    @property
    def open(self) -> bool:
        """Whether nothing is between."""
        return self.speaker is None and len(self.response) == 1 and self.response[0] == 1.0

    @property
    def delay(self) -> int:
        """How many samples back the last sound that is heard now was made."""
        return len(self.response) - 1

    @property
    def cubic(self) -> float:
        """The distortion's coefficient."""
        return self.speaker.coefficient if self.speaker else 0.0

    @property
    def known(self) -> bool:
        """Whether the backward pass knows the slope."""
        return self.slope == "known"


class InLoop(Controller):
    """A controller that may have a loudspeaker and a path in its loop; it remembers what is on its way."""

    def __init__(self, taps: int, loop: Loop) -> None:
        super().__init__(taps)
        self.loop = loop
        self._arrays["past"] = np.zeros(self.taps - 1 + loop.delay)
        if not loop.open:
            self._arrays |= {name: np.zeros(loop.delay) for name in ("sounds", "slopes", "errors")}
