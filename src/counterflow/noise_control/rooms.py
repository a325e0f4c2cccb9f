"""Paths of a simulated room."""

from __future__ import annotations

import numpy as np

from counterflow.adaptive import Signal
from counterflow.audio import Room

__all__ = ["room_paths"]


def room_paths(
    rate: int, size: tuple[float, float, float] = (5.0, 4.0, 2.7), reverberation: float = 0.1
) -> tuple[Signal, Signal]:
    """The noise's path and the loudspeaker's in a room, by the image method.

    The noise's source is at one end of the room, an eighth of its length from the wall, the quiet zone at three fourths
    of it, and the loudspeaker beside the quiet zone, a tenth of the room's width away. The reference microphone is at
    the source.

    Args:
        rate: Samples a second.
        size: Length, width and height in meters.
        reverberation: Seconds in which sound falls by 60 dB; 0 for no walls.

    Returns:
        The primary and the secondary impulse response, of one scale, in which the primary's squares sum to one.

    Raises:
        InputError: If the room or the time cannot be.
        MissingExtraError: If pyroomacoustics is not installed.

    Example:
        >>> from counterflow.noise_control import causal_margin
        >>> primary, secondary = room_paths(8000, reverberation=0.0)
        >>> 50 < causal_margin(primary, secondary) < 70
        True
    """
    length, width, height = size
    quiet = (0.75 * length, 0.5 * width, 0.5 * height)
    source = (0.125 * length, 0.5 * width, 0.5 * height)
    speaker = (quiet[0], 0.6 * width, quiet[2])
    responses = Room(size, reverberation, (quiet,), (source, speaker)).responses(rate).double().numpy()[0]
    responses = responses / np.linalg.norm(responses[0])
    primary, secondary = (np.trim_zeros(each, "b") for each in responses)
    return primary, secondary
