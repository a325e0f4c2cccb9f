"""Controllers by name, each with the range in which its step is looked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from counterflow.adaptive import Controller, count, positive
from counterflow.analog import ChipPerceptron, DeviceModel
from counterflow.exceptions import InputError
from counterflow.noise_control.filtered import FilteredX
from counterflow.noise_control.filters import LMS, NLMS, RLS
from counterflow.noise_control.perceptron import Perceptron
from counterflow.noise_control.volterra import Volterra

__all__ = ["CONTROLLERS", "Design"]


@dataclass(frozen=True)
class Design:
    """How large a controller is, and what lies in its loop.

    Attributes:
        taps: Length of the delay line.
        hidden: Hidden units of a perceptron.
        memory: Newest samples of which a Volterra filter takes products, at most ``taps``.
        seed: Of initial weights, and of a chip's cells.
        device: The chip's imperfections; those of the paper's by default.
        rate: Samples a second, in which a chip's charges leak; None for the device's own.
        loop: Arguments for what is in the loop: ``speaker``, ``slope``, ``secondary``.
        block: Samples after which filtered-x learns, as in `FilteredX`.
        domain: In which it learns, as in `FilteredX`.
    """

    taps: int = 25
    hidden: int = 10
    memory: int = 5
    seed: int = 0
    device: DeviceModel | None = None
    rate: float | None = None
    loop: Mapping[str, Any] = field(default_factory=dict)
    block: int | None = None
    domain: Literal["time", "frequency"] = "time"


@dataclass(frozen=True)
class Family:
    """A kind of controller.

    Attributes:
        summary: What it is.
        make: From a step and a design to a controller.
        values: From a budget, a design and the reference's power to as many steps.
    """

    summary: str
    make: Callable[[float, Design], Controller]
    values: Callable[[int, Design, float], NDArray[np.float64]]


def _recursive(forgetting: float, design: Design) -> Controller:
    loop = dict(design.loop)
    if loop.pop("secondary", None) is not None:
        raise InputError("controller is 'rls', which has no secondary path in its loop; take fxlms")
    return RLS(design.taps, forgetting, **loop)


def _chip(step: float, design: Design) -> Controller:
    if design.loop:
        raise InputError(
            "controller is 'chip', whose board gets a reference and a target; put the distortion on the target's path, "
            "and give no secondary path"
        )
    device = DeviceModel.paper() if design.device is None else design.device
    if design.rate is not None:
        device = replace(device, sample_rate=design.rate)
    # The chip has no learning rates between zero and the smallest.
    least = device.rate_resolution
    return ChipPerceptron(design.taps, design.hidden, max(positive(step, "step"), least), design.seed, device)


def _filtered(step: float, design: Design) -> Controller:
    return FilteredX(design.taps, step, block=design.block, domain=design.domain, **design.loop)


def _by_block(budget: int, design: Design, power: float) -> NDArray[np.float64]:
    """Relative steps over the block's size, since a block adds up its samples' updates.

    In the frequency domain nothing is divided: there the power that a step is divided by is the whole block's already.
    """
    steps = _relative(budget, design, power)
    return steps if design.domain == "frequency" else steps / (design.block or 1)


def _relative(budget: int, design: Design, power: float) -> NDArray[np.float64]:
    """Steps between 0.003 and 1, for filters that divide by power themselves."""
    return np.geomspace(0.003, 1.0, count(budget, "budget"))


def _by_power(budget: int, design: Design, power: float) -> NDArray[np.float64]:
    """The same over the power in the delay line."""
    return _relative(budget, design, power) / (design.taps * power)


def _by_unit(budget: int, design: Design, power: float) -> NDArray[np.float64]:
    """From 0.006 to 2 over the power of a hidden unit's inputs, its bias's one among them."""
    return 2 * _relative(budget, design, power) / (1 + design.taps * power)


#: The controllers that `cancel` and the command line know by name.
CONTROLLERS: Mapping[str, Family] = MappingProxyType(
    {
        "lms": Family("least mean squares", lambda s, d: LMS(d.taps, s, **d.loop), _by_power),
        "nlms": Family("normalized least mean squares", lambda s, d: NLMS(d.taps, s, **d.loop), _relative),
        "rls": Family(
            "recursive least squares", _recursive, lambda budget, design, power: 1 - np.geomspace(1e-5, 1e-2, budget)
        ),
        "fxlms": Family(
            "filtered-x least mean squares, normalized, also in blocks and in the frequency domain",
            _filtered,
            _by_block,
        ),
        "volterra": Family(
            "cubic Volterra filter",
            lambda s, d: Volterra(d.taps, min(d.memory, d.taps), s, **d.loop),
            _relative,
        ),
        "perceptron": Family(
            "perceptron with one hidden layer, by backpropagation",
            lambda s, d: Perceptron(d.taps, d.hidden, s, d.seed, **d.loop),
            _by_unit,
        ),
        "chip": Family("that perceptron on a model of the paper's chips", _chip, _by_unit),
    }
)
