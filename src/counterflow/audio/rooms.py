r"""Rooms, and mixtures at a given level.

Shapes: sources (sources, samples), responses (microphones, sources, taps), images (sources, microphones, samples): what
each source alone would leave at each microphone. A mixture is the sum of images over sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from counterflow.exceptions import InputError, MissingExtraError, ShapeError

__all__ = ["Room", "active_power", "images", "snr_gain"]

Point = tuple[float, float, float]

MOST_REFLECTIONS = 200  # one after the other: some ten million images of each source, and a gigabyte
SPEED = 343.0  # of sound, in meters a second


@dataclass(frozen=True)
class Room:
    """A box with microphones and sources in it, whose responses come from pyroomacoustics' image method.

    Args:
        size: Length, width and height in meters.
        reverberation: Seconds in which sound falls by 60 dB; 0 for no walls. At most what sound needs for two hundred
            times the shortest side, 1.5 s in a room of 2.6 m.
        microphones: Positions in meters.
        sources: Positions in meters.

    Raises:
        InputError: If a position is outside, or the time negative or too long.

    Example:
        >>> room = Room.draw(0.1, seed=0)
        >>> room.responses(8000).shape[:2]
        torch.Size([2, 2])
    """

    size: Point
    reverberation: float
    microphones: tuple[Point, ...]
    sources: tuple[Point, ...]

    def __post_init__(self) -> None:
        if not self.reverberation >= 0:
            raise InputError(f"reverberation must be 0 or more seconds, got {self.reverberation}")
        longest = MOST_REFLECTIONS * min(self.size) / SPEED
        if self.reverberation > longest:
            raise InputError(
                f"reverberation is {self.reverberation} s; at most {longest:.3g} s can be simulated in a room of "
                f"{self.size} m, whose shortest side decides"
            )
        if not self.microphones or not self.sources:
            raise InputError("a room needs one or more microphones and sources")
        for kind, points in (("microphone", self.microphones), ("source", self.sources)):
            for point in points:
                if not all(0 < x < wall for x, wall in zip(point, self.size, strict=True)):
                    raise InputError(f"{kind} {point} is not inside the room of {self.size} m")

    @classmethod
    def draw(
        cls,
        reverberation: float,
        *,
        seed: int,
        channels: int = 2,
        sources: int = 2,
        spacing: float = 0.1,
        distance: float = 1.0,
        apart: float = 40.0,
    ) -> Room:
        """A room of random size with a row of microphones, and sources on a circle around it.

        Args:
            reverberation: Seconds.
            seed: Of all that is drawn.
            channels: Microphones.
            sources: Sources.
            spacing: Meters between neighboring microphones.
            distance: Meters from the middle of the row to each source.
            apart: Degrees that two directions differ by at the least, on one side of the row and seen from it.

        Raises:
            InputError: If so many sources cannot be so far apart.
        """
        if not (channels >= 1 and sources >= 1 and spacing > 0 and 0 < distance <= 1.4):
            raise InputError(
                f"channels and sources must be 1 or more, spacing positive and distance at most 1.4; got {channels}, "
                f"{sources}, {spacing}, {distance}"
            )
        if apart * (sources - 1) > 160:
            raise InputError(f"{sources} sources cannot all be {apart:g} degrees apart within 180")
        random = np.random.default_rng(seed)
        size = random.uniform((4.0, 4.0, 2.6), (7.0, 6.0, 3.2))
        middle = random.uniform((1.6, 1.6, 1.2), (size[0] - 1.6, size[1] - 1.6, 1.6))
        turn = random.uniform(0, 2 * np.pi)
        for _ in range(100_000):
            angles = np.sort(random.uniform(10, 170, sources))
            if sources == 1 or float(np.diff(angles).min()) >= apart:
                break
        else:
            # Too rare to wait for; without what must lie between them they are as evenly spread.
            angles = np.sort(random.uniform(10, 170 - apart * (sources - 1), sources)) + apart * np.arange(sources)
        random.shuffle(angles)
        along = np.array([np.cos(turn), np.sin(turn), 0.0])
        across = np.array([-np.sin(turn), np.cos(turn), 0.0])
        places = (np.arange(channels) - (channels - 1) / 2) * spacing
        radians = np.deg2rad(angles)
        points = middle + distance * (np.cos(radians)[:, None] * along + np.sin(radians)[:, None] * across)
        return cls(
            _point(size),
            reverberation,
            tuple(_point(middle + place * along) for place in places),
            tuple(_point(point) for point in points),
        )

    def responses(self, rate: int) -> Tensor:
        """The impulse responses, shape (microphones, sources, taps), float32.

        Args:
            rate: Samples a second.

        Raises:
            MissingExtraError: If pyroomacoustics is not installed.
        """
        try:
            import pyroomacoustics
        except ImportError as error:
            raise MissingExtraError("audio", "a room") from error
        x, y, z = self.size
        if self.reverberation:
            # Eyring's formula, which has an answer for every time, where Sabine's wants more than all absorbed.
            surface = 2 * (x * y + y * z + z * x)
            absorption = 1 - math.exp(-24 * math.log(10) * x * y * z / (SPEED * surface * self.reverberation))
            order = math.ceil(SPEED * self.reverberation / min(self.size))
        else:
            absorption, order = 1.0, 0
        room = pyroomacoustics.ShoeBox(
            self.size, fs=rate, materials=pyroomacoustics.Material(absorption), max_order=order
        )
        for source in self.sources:
            room.add_source(source)
        room.add_microphone_array(np.array(self.microphones).T)
        room.compute_rir()
        taps = max(len(each) for row in room.rir for each in row)
        found = torch.zeros(len(self.microphones), len(self.sources), taps)
        for m, row in enumerate(room.rir):
            for s, each in enumerate(row):
                found[m, s, : len(each)] = torch.from_numpy(np.asarray(each, np.float32))
        return found


def _point(values: Sequence[float] | np.ndarray) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z


def images(sources: Tensor, responses: Tensor) -> Tensor:
    """What each source leaves at each microphone: a convolution, cut to the sources' length.

    Args:
        sources: Shape (sources, samples).
        responses: Shape (microphones, sources, taps).

    Returns:
        Shape (sources, microphones, samples).

    Raises:
        ShapeError: If there are not as many sources as responses.

    Example:
        >>> images(torch.ones(1, 3), torch.tensor([[[1.0, 0.5]]]))
        tensor([[[1.0000, 1.5000, 1.5000]]])
    """
    if sources.ndim != 2 or responses.ndim != 3 or sources.shape[0] != responses.shape[1]:
        raise ShapeError(
            "sources must be (sources, samples) and responses (microphones, sources, taps); got "
            f"{tuple(sources.shape)} and {tuple(responses.shape)}"
        )
    samples = sources.shape[1]
    points = 1 << (samples + responses.shape[2] - 2).bit_length()
    spectra = torch.fft.rfft(sources, points).unsqueeze(1) * torch.fft.rfft(responses, points).transpose(0, 1)
    found: Tensor = torch.fft.irfft(spectra, points)[..., :samples]
    return found


def active_power(wave: Tensor, rate: int, *, floor: float = -40.0) -> Tensor:
    """Mean power of a voice where it speaks: over 20 ms frames within ``floor`` decibels of the loudest.

    A level "in dB" means the ratio of this power to the noise's mean power, everywhere in this library.

    Args:
        wave: Shape (samples,).
        rate: Samples a second.
        floor: Decibels.

    Example:
        >>> wave = torch.cat([torch.ones(800), torch.zeros(800)])
        >>> float(active_power(wave, 8000)), float(wave.square().mean())
        (1.0, 0.5)
    """
    size = max(round(0.02 * rate), 1)
    power = torch.nn.functional.pad(wave, (0, -len(wave) % size)).reshape(-1, size).square().mean(1)
    loud = power >= power.max() * 10 ** (floor / 10)
    return power[loud].mean()


def snr_gain(voice: Tensor, noise: Tensor, snr: float, rate: int) -> Tensor:
    """The factor for the noise that puts the voice ``snr`` decibels above it, by `active_power` of the voice.

    Args:
        voice: Shape (samples,).
        noise: Shape (samples,).
        snr: Decibels.
        rate: Samples a second.

    Raises:
        InputError: If one of them is silent.

    Example:
        >>> voice, noise = torch.ones(8000), torch.full((8000,), 0.5)
        >>> snr_gain(voice, noise, 20.0, 8000)
        tensor(0.2000)
    """
    power, level = active_power(voice, rate), noise.square().mean()
    if not (bool(power > 0) and bool(level > 0)):
        raise InputError(f"{'voice' if not power > 0 else 'noise'} is silent, and no factor makes a level of it")
    return (power / level * 10 ** (-snr / 10)).sqrt()
