"""From a noise to what a controller leaves of it, in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterflow.adaptive import Controller, Signal, count, positive, signal
from counterflow.analog import DeviceModel
from counterflow.exceptions import InputError
from counterflow.noise_control._loop import Slope
from counterflow.noise_control.families import CONTROLLERS, Design
from counterflow.noise_control.measures import Measures
from counterflow.noise_control.scene import Acoustics, Heard, Place, Quantized, Scene
from counterflow.noise_control.tuning import Tuned, tune

__all__ = ["Cancellation", "Stream", "cancel", "choose_step", "warnings_of"]

TUNED_SECONDS = 10.0
BLOCK = 16384


def _known(controller: str) -> None:
    if controller not in CONTROLLERS:
        raise InputError(f"controller is {controller!r}; give one of {', '.join(CONTROLLERS)}")


def check_taps(taps: int, samples: int, option: str = "taps") -> None:
    """Raise InputError for a delay line that no sample of the noise would ever fill."""
    if taps >= samples:
        raise InputError(
            f"{option} is {taps}, and the noise has {samples} samples; a delay line has to be shorter than the noise"
        )


def choose_step(controller: str, design: Design, heard: Heard, power: float, budget: int = 10) -> Tuned:
    """Try as many steps as the budget has, each with a fresh controller, and take the best.

    Args:
        controller: A name of `CONTROLLERS`.
        design: How large it is, and what is in its loop.
        heard: The signals on which it is tried.
        power: Mean square of the reference.
        budget: How many steps are tried: the same for all controllers.

    Raises:
        InputError: If it is not known, diverges with every step, or the noise is silent where it is judged.

    Example:
        >>> from counterflow.noise_control.families import Design
        >>> acoustics = Scene("H2").measure([np.random.default_rng(0).standard_normal(4000)])
        >>> heard = acoustics.again().run(np.random.default_rng(0).standard_normal(4000))
        >>> choose_step("nlms", Design(taps=25), heard, acoustics.power, budget=4).best
        1.0
    """
    _known(controller)
    family = CONTROLLERS[controller]
    return tune(
        lambda step: family.make(step, design),
        family.values(count(budget, "budget"), replace(design, taps=count(design.taps, "taps")), power),
        heard.reference,
        heard.target,
        noise=heard.noise,
    )


def tuned_samples(samples: int, rate: float) -> int:
    """How many samples at the beginning a step is chosen on: the first half, at most ten seconds of it."""
    return max(1, min(samples // 2, round(TUNED_SECONDS * rate)))


def warnings_of(scene: Scene) -> list[str]:
    """What a user should know of a scene before trusting its numbers."""
    margin = scene.margin
    if margin is None or margin > 0:
        return []
    late = f"{-margin} samples after" if margin else "no earlier than"
    return [
        f"the secondary path leaves no causal margin: the loudspeaker is heard {late} the noise; only what can be "
        "predicted is canceled"
    ]


class Stream:
    """Signals through a scene and a controller, block by block; memory does not grow.

    Args:
        acoustics: A scene fitted to the noise, at its beginning.
        controller: What learns.
        rate: Samples a second.
    """

    def __init__(self, acoustics: Acoustics, controller: Controller, rate: float) -> None:
        self.acoustics, self.controller = acoustics, controller
        self.measures = Measures(acoustics.samples, rate)

    def run(self, source: Iterable[Signal]) -> Iterator[tuple[Signal, Signal, Signal]]:
        """For each block of the source the noise, the anti-noise and the residual, as loud as the source.

        Raises:
            InputError: If the controller diverges.
        """
        for block in source:
            heard = self.acoustics.run(block)
            output, _ = self.controller.run(heard.reference, heard.target)
            residual = heard.noise - output
            self.measures.add(heard.noise, residual)
            peak = self.acoustics.peak
            yield peak * heard.noise, peak * output, peak * residual


@dataclass(frozen=True)
class Cancellation:
    """What `cancel` gives.

    Attributes:
        noise: In the quiet zone, ``(samples,)``.
        anti_noise: What the controller makes arrive there.
        residual: What is left, their difference.
        rate: Samples a second.
        controller: The controller as it is at the end.
        measures: All that is measured.
        step: With which it learned.
        tuned: How the step was chosen; None if it was given.
        warnings: What a user should know.
    """

    noise: Signal = field(repr=False)
    anti_noise: Signal = field(repr=False)
    residual: Signal = field(repr=False)
    rate: float
    controller: Controller = field(repr=False)
    measures: Measures = field(repr=False)
    step: float
    tuned: Tuned | None = field(repr=False)
    warnings: Sequence[str] = ()

    @property
    def reduction_db(self) -> float:
        """By how many decibels the noise is weaker in the last half; positive is good."""
        return self.measures.reduction_db

    @property
    def a_weighted_db(self) -> float:
        """The same as the ear weighs it."""
        return self.measures.a_weighted_db

    @property
    def thirds_db(self) -> dict[float, float]:
        """The same by third octaves."""
        return self.measures.thirds_db

    @property
    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The learning curve, in seconds and decibels."""
        return self.measures.curve

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw noise, anti-noise and residual, and the learning curve, into a file.

        Raises:
            InputError: If it cannot be written.
            MissingExtraError: If matplotlib is not installed.
        """
        from counterflow.noise_control.pictures import draw

        first = max(0, len(self.noise) - round(0.1 * self.rate))
        parts = self.noise[first:], self.anti_noise[first:], self.residual[first:]
        name = type(self.controller).__name__
        draw(path, parts, first / self.rate, self.rate, {name: self.measures}, name)


def cancel(
    noise: ArrayLike,
    channel: str | Sequence[float] | Signal = "H2",
    *,
    distortion: float | str | None = None,
    controller: str = "perceptron",
    rate: float = 16_000.0,
    step: float | None = None,
    budget: int = 10,
    secondary: Sequence[float] | Signal | None = None,
    sign: Literal["saturating", "expanding"] = "saturating",
    place: Place = "target",
    slope: Slope = "known",
    level: float | str | None = None,
    quantized: Quantized = "none",
    bits: int = 8,
    used: float = 1.0,
    taps: int = 25,
    hidden: int = 10,
    memory: int = 5,
    block: int | None = None,
    domain: Literal["time", "frequency"] = "time",
    device: DeviceModel | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Cancellation:
    """Cancel a noise, and say how well it went.

    Without a step, ``budget`` of them are tried on the noise's first half, at most ten seconds of it, and the best one
    learns from the beginning; reductions are those of the last half.

    Args:
        noise: What the reference microphone hears, ``(samples,)``.
        channel: From there to the quiet zone: a name of `CHANNELS` or an impulse response.
        distortion: The loudspeaker's signal-to-distortion ratio, a number of decibels or text such as ``"10dB"``; None
            for none.
        controller: A name of `CONTROLLERS`.
        rate: Samples a second.
        step: The controller's learning rate; recursive least squares have a forgetting factor there.
        budget: How many steps are tried where none is given.
        secondary: The impulse response from the loudspeaker to the quiet zone; None for none.
        sign: As in `Scene`.
        place: As in `Scene`.
        slope: As in `Scene`.
        level: The additive noise's level relative to the noise, in decibels such as ``"-20dB"``; None for none.
        quantized: As in `Scene`.
        bits: As in `Scene`.
        used: As in `Scene`.
        taps: Length of the delay line.
        hidden: Hidden units of a perceptron.
        memory: Newest samples of which a Volterra filter takes products.
        block: Samples after which filtered-x learns, as in `FilteredX`.
        domain: In which it learns, as in `FilteredX`.
        device: The imperfections of a ``chip``; those of the paper's by default.
        seed: Of initial weights, a chip's cells and the additive noise.
        progress: Called with the share that is done.

    Raises:
        InputError: If an argument cannot be used, the noise is silent, or the controller diverges.
        ShapeError: If the noise has more than one dimension.

    Example:
        >>> noise = np.random.default_rng(0).standard_normal(8000)
        >>> run = cancel(noise, channel="H1", controller="nlms", step=0.1)
        >>> run.reduction_db > 40, len(run.residual)
        (True, 8000)
    """
    x = signal(noise, "noise")
    _known(controller)
    if controller != "fxlms" and (block is not None or domain != "time"):
        raise InputError(f"block and domain are of fxlms, and controller is {controller!r}; leave them out")
    if controller != "chip" and device is not None:
        raise InputError(f"device is of chip, and controller is {controller!r}; leave it out")
    positive(rate, "rate")
    if not len(x):
        raise InputError("noise is empty; give at least one sample")
    check_taps(count(taps, "taps"), len(x))
    converters: dict[str, Any] = {"quantized": quantized, "bits": bits, "used": used}
    loudspeaker: dict[str, Any] = {"sign": sign, "place": place, "slope": slope}
    scene = Scene.parse(channel, secondary, distortion, level, seed=seed, **loudspeaker, **converters)
    acoustics = scene.measure([x])
    design = Design(taps, hidden, memory, seed, device, rate, acoustics.loop, block, domain)
    tuned = None
    if step is None:
        part = x[: tuned_samples(len(x), rate)]
        tuned = choose_step(controller, design, acoustics.again().run(part), acoustics.power, budget)
        step = tuned.best
    stream = Stream(acoustics, CONTROLLERS[controller].make(step, design), rate)
    step = float(getattr(stream.controller, "step", step))  # a chip has none below its smallest
    found = []
    for number, passed in enumerate(stream.run(x[at : at + BLOCK] for at in range(0, len(x), BLOCK))):
        found.append(passed)
        if progress:
            progress(min(1.0, (number + 1) * BLOCK / len(x)))
    heard, made, left = (np.concatenate(each) for each in zip(*found, strict=True))
    return Cancellation(heard, made, left, rate, stream.controller, stream.measures, step, tuned, warnings_of(scene))
