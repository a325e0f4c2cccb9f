"""The task as a whole: from the noise's source to what the controller gets and what is heard in the quiet zone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from counterflow.adaptive import Signal, count, positive, quantize, signal
from counterflow.exceptions import InputError
from counterflow.noise_control._loop import Slope
from counterflow.noise_control.paths import CubicDistortion, FiniteResponse, check_decibels
from counterflow.seeding import numpy_generator

__all__ = ["Heard", "Scene", "causal_margin", "parse_decibels"]

Place = Literal["target", "speaker"]
Quantized = Literal["none", "input", "target", "both"]

FARTHEST = 1e40  # from one, to either side, that a sample can be


def parse_decibels(value: float | str | None, name: str) -> float | None:
    """A number of decibels, or text such as ``"10dB"``.

    Raises:
        InputError: If it is neither.

    Example:
        >>> parse_decibels("-20 dB", "level")
        -20.0
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*(?:dB)?\s*", str(value), re.IGNORECASE)
    try:
        found = float(match[1]) if match else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{name} is {value!r}; give decibels, such as 10 or '10dB'")
    check_decibels(found, name)
    return found


def causal_margin(primary: ArrayLike, secondary: ArrayLike) -> int:
    """By how many samples the secondary path's sound can be earlier than the noise.

    A path begins where its response first has a tenth of its peak.

    Args:
        primary: C1, from the noise's source to the quiet zone.
        secondary: C2, from the loudspeaker to it.

    Returns:
        Positive where there is time for the controller; zero or less where there is none.

    Example:
        >>> causal_margin([0, 0, 0, 1.0, 0.5], [0, 0.9])
        2
    """

    def begin(response: ArrayLike, name: str) -> int:
        size = np.abs(signal(response, name))
        if not np.any(size):
            raise InputError(f"{name} is silent; give an impulse response with a sample that is not zero")
        return int(np.argmax(size >= 0.1 * size.max()))

    return begin(primary, "primary") - begin(secondary, "secondary")


class Heard(NamedTuple):
    """A block of signals: what the controller gets, and the noise that it has to cancel.

    Attributes:
        reference: x as the controller gets it.
        target: d as the controller gets it.
        noise: d as it is in the quiet zone.
    """

    reference: Signal
    target: Signal
    noise: Signal


@dataclass(frozen=True)
class Scene:
    r"""The acoustics, the loudspeaker and the converters; settings, until `measure` has fitted them to a noise.

    The reference is the source's signal over its peak. The noise in the quiet zone is
    :math:`d = f(H x) + n` where the distortion f is on the target's path, :math:`d = H x + n` where it is the
    loudspeaker's in the loop. Without a secondary path H is the paper's difference of two channels, :math:`C_1 / C_2`;
    with one it is :math:`C_1`.

    Attributes:
        channel: H, a name of `CHANNELS` or an impulse response.
        secondary: C2, the impulse response from the loudspeaker to the quiet zone; None for none.
        distortion_db: The signal-to-distortion ratio; None for no distortion. In the loop it is that of what the
            loudspeaker has to play, taken as the noise, over the norm of the secondary path.
        sign: ``"saturating"`` or ``"expanding"``.
        place: ``"target"`` or ``"speaker"``.
        slope: Whether the backward pass knows the slope of the loudspeaker in the loop, or takes it as one.
        level_db: Level of the additive white noise n relative to H x; None for none.
        quantized: What converters are before: ``"none"``, the controller's ``"input"``, its ``"target"`` or ``"both"``.
        bits: Of these converters.
        used: Which fraction of a converter's full scale the signal's peak takes.
        seed: Of the additive noise.

    Raises:
        InputError: If a setting is not one of these, or the channel is silent.
    """

    channel: str | Sequence[float] | Signal = "H2"
    secondary: Sequence[float] | Signal | None = None
    distortion_db: float | None = None
    sign: Literal["saturating", "expanding"] = "saturating"
    place: Place = "target"
    slope: Slope = "known"
    level_db: float | None = None
    quantized: Quantized = "none"
    bits: int = 8
    used: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("sign", ("saturating", "expanding")),
            ("place", ("target", "speaker")),
            ("slope", ("known", "one")),
            ("quantized", ("none", "input", "target", "both")),
        ):
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"{name} is {value!r}; give one of {', '.join(known)}")
        if not 1 <= count(self.bits, "bits") <= 32:
            raise InputError(f"bits is {self.bits}; give 1 to 32")
        if positive(self.used, "used") > 1:
            raise InputError(f"used is {self.used}; give a fraction of the full scale, above 0 and at most 1")
        for name in ("distortion_db", "level_db"):
            check_decibels(getattr(self, name), name)
        if not np.any(FiniteResponse(self.channel).response):
            raise InputError("channel is silent; give an impulse response with a sample that is not zero")

    @classmethod
    def parse(
        cls,
        channel: str | Sequence[float] | Signal,
        secondary: Sequence[float] | Signal | None,
        distortion: float | str | None,
        level: float | str | None,
        marks: str = "",
        **settings: Any,
    ) -> Self:
        """The scene of decibels that may be text, such as ``"10dB"``.

        Args:
            channel: As in `Scene`.
            secondary: As in `Scene`.
            distortion: ``distortion_db``.
            level: ``level_db``.
            marks: What is before these two names in an error, such as ``"--"``.
            settings: All else of a `Scene`.

        Raises:
            InputError: If a setting cannot be used.
        """
        decibels = parse_decibels(distortion, f"{marks}distortion"), parse_decibels(level, f"{marks}level")
        return cls(channel, secondary, distortion_db=decibels[0], level_db=decibels[1], **settings)

    @property
    def margin(self) -> int | None:
        """The causal margin in samples; None without a secondary path."""
        if self.secondary is None:
            return None
        return causal_margin(FiniteResponse(self.channel).response, self.secondary)

    def measure(self, source: Iterable[Signal]) -> Acoustics:
        """Go through a source once, and fit scale, distortion, noise and converters to it.

        Args:
            source: Its samples in blocks.

        Returns:
            What turns blocks of that source into signals, from its beginning on.

        Raises:
            InputError: If it is silent, or its scale is far from any sound's.
        """
        channel = FiniteResponse(self.channel)
        peak, loudest, power, sixth, samples, energy = 0.0, 0.0, 0.0, 0.0, 0, 0.0
        for block in source:
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            # Its sixth power is taken, which has to be a number, too.
            if peak > FARTHEST or 0 < peak < 1 / FARTHEST:
                raise InputError(f"the noise has a sample of {peak:g}; scale it, so that the largest is about 1")
            u = channel.run(block)
            loudest = max(loudest, float(np.abs(u).max(initial=0.0)))
            power += float(u @ u)
            sixth += float(np.sum(u**6))
            energy += float(block @ block)
            samples += len(block)
        if not peak or not power:
            raise InputError("the noise is silent; there is nothing to cancel")
        power, sixth, loudest = power / samples / peak**2, sixth / samples / peak**6, loudest / peak
        speaker = None
        if self.distortion_db is not None:
            size = math.sqrt(power / sixth) * 10 ** (-self.distortion_db / 20)
            if self.place == "speaker" and self.secondary is not None:
                size *= float(np.sum(np.square(self.secondary)))  # of a drive that is the noise over the norm
            speaker = CubicDistortion(size if self.sign == "saturating" else -size)
        level = 0.0 if self.level_db is None else math.sqrt(power) * 10 ** (self.level_db / 20)
        full = loudest
        if speaker and self.place == "target":
            full = float(np.abs(speaker(np.linspace(0, loudest, 1001))).max())
        return Acoustics(self, peak, samples, speaker, level, full, energy / samples / peak**2)


@dataclass
class Acoustics:
    """A `Scene` fitted to a noise; it keeps its place in it.

    Attributes:
        scene: The settings.
        peak: The largest sample of the source, which becomes one.
        samples: How many it has.
        speaker: The distortion.
        level: Standard deviation of the additive noise.
        full: What the target's converter is scaled to.
        power: Mean square of the reference.
    """

    scene: Scene
    peak: float
    samples: int
    speaker: CubicDistortion | None
    level: float
    full: float
    power: float

    def __post_init__(self) -> None:
        self._channel = FiniteResponse(self.scene.channel)
        self._draw = numpy_generator(self.scene.seed, "additive noise")

    @property
    def loop(self) -> dict[str, object]:
        """The arguments that tell a controller what is in its loop; empty if nothing is."""
        found: dict[str, object] = {}
        if self.speaker and self.scene.place == "speaker":
            found |= {"speaker": self.speaker, "slope": self.scene.slope}
        if self.scene.secondary is not None:
            found["secondary"] = self.scene.secondary
        return found

    def again(self) -> Self:
        """The same from the beginning."""
        return replace(self)

    def run(self, source: ArrayLike) -> Heard:
        """The next samples."""
        x = signal(source, "source") / self.peak
        d = self._channel.run(x)
        if self.speaker and self.scene.place == "target":
            d = self.speaker(d)
        if self.level:
            d = d + self.level * self._draw.standard_normal(len(d))
        scene = self.scene
        reference = quantize(x, scene.bits, scene.used) if scene.quantized in ("input", "both") else x
        target = d
        if scene.quantized in ("target", "both"):
            target = self.full * quantize(d / self.full, scene.bits, scene.used)
        return Heard(reference, target, d)
