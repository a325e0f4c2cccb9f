"""An example corpus that ``espeak-ng`` speaks, so that the recognizer can be tried without recordings."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

from counterflow.exceptions import DataError, InputError
from counterflow.files import replacing
from counterflow.seeding import numpy_generator

__all__ = ["speak_corpus"]

WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "CALL", "STOP", "YES", "NO")
VOICES = ("en-us+m1", "en-us+m3", "en-us+f1", "en-us+f3")


def speak_corpus(folder: Path, count: int, seed: int) -> list[tuple[str, str]]:
    """Speak random texts of two to five words in several voices, and write the table of a corpus.

    Args:
        folder: Where to; it must not be there yet, or be empty.
        count: Recordings.
        seed: Of texts, voices, speeds and pitches.

    Returns:
        The file and text of each.

    Raises:
        InputError: If espeak-ng is not installed, the folder is not empty or cannot be written, or ``count`` is below
            1.
        DataError: If espeak-ng fails.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise InputError(
            "espeak-ng is not installed; install it as a package of your system: apt-get install espeak-ng"
        )
    if count < 1:
        raise InputError(f"--count {count}: it has to be 1 or more")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; name another folder")
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror or error}") from error
    random = numpy_generator(seed, "espeak")
    found = []
    for number in range(count):
        text = " ".join(random.choice(WORDS, int(random.integers(2, 6))))
        name = f"{number:04}.wav"
        options = ["-v", str(random.choice(VOICES)), "-s", str(random.integers(130, 190))]
        options += ["-p", str(random.integers(30, 70)), "-w", str(folder / name)]
        ran = subprocess.run([program, *options, text.lower()], capture_output=True, check=False)
        if ran.returncode or not (folder / name).is_file():
            reason = ran.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {ran.returncode}"]
            raise DataError(f"espeak-ng cannot speak {text!r}: {reason[-1]}")
        found.append((name, text))
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("file", "text"))
    rows.writerows(found)
    with replacing(folder / "transcripts.csv") as new:
        new.write_text(table.getvalue(), "utf-8")
    return found
