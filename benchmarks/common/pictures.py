"""A benchmark's picture, which holds the numbers that it shows, so that it can be told from one of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY = "Comment"  # a PNG's own word for what else is to be said


def write_drawn(figure: Figure, path: Path, numbers: Any) -> None:
    """Write a PNG, with the numbers that it shows as JSON beside it in the file."""
    figure.savefig(path, dpi=120, format="png", metadata={KEY: json.dumps(numbers)})


def drawn_in(path: Path) -> Any:
    """The numbers that a picture shows; nothing where it does not say."""
    from PIL import Image

    with Image.open(path) as picture:
        text = picture.info.get(KEY)
    return None if text is None else json.loads(text)
