"""Sound: files, whole or block by block, and features of frames."""

from counterflow.audio.features import log_mel
from counterflow.audio.files import read
from counterflow.audio.streams import Recording, Writer

__all__ = ["Recording", "Writer", "log_mel", "read"]
