"""Sound: files, and features of frames."""

from counterflow.audio.features import log_mel
from counterflow.audio.files import read

__all__ = ["log_mel", "read"]
