"""Sound: files, whole or block by block, features of frames, the short-time transform, and rooms."""

from counterflow.audio.features import log_mel, log_mel_of, mel_filters
from counterflow.audio.files import read, read_channels, write
from counterflow.audio.pauses import read_parts
from counterflow.audio.rooms import Room, active_power, images, snr_gain
from counterflow.audio.streams import Recording, Writer
from counterflow.audio.transform import ShortTime

__all__ = [
    "Recording",
    "Room",
    "ShortTime",
    "Writer",
    "active_power",
    "images",
    "log_mel",
    "log_mel_of",
    "mel_filters",
    "read",
    "read_channels",
    "read_parts",
    "snr_gain",
    "write",
]
