"""What the benchmarks that compare training methods share: equal tuning budgets, curves, and runs that are kept."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from counterflow.exceptions import RecordError

from .records import read_record, write_record

RATIO = math.sqrt(10)
RATES, MORE = 5, 2


def next_rate(tried: Mapping[float, float], middle: float) -> float | None:
    """The rate to try next: the grid around the middle, then beyond its edge while the best lies there.

    Args:
        tried: The validation loss by rate, infinite where training diverged.
        middle: The middle of the first five.
    """
    for place in (0, 1, -1, 2, -2):
        rate = float(f"{middle * RATIO**place:.4g}")
        if rate not in tried:
            return rate
    best = min(tried, key=lambda rate: tried[rate])
    if len(tried) >= RATES + MORE or best not in (min(tried), max(tried)):
        return None
    return float(f"{best * (RATIO if best == max(tried) else 1 / RATIO):.4g}")


def averages(losses: Sequence[float], window: int) -> list[float]:
    """The mean over each window of steps, or over all where there are fewer, in five digits."""
    size = min(window, len(losses))
    whole = len(losses) // size * size
    return [float(f"{value:.5g}") for value in np.asarray(losses[:whole]).reshape(-1, size).mean(1)]


class Kept:
    """Finished runs, in a file that is replaced whole after each.

    Raises:
        RecordError: The file is no record, or its runs are of another torch.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.content: dict[str, Any] = {"runs": {}, "tasks": {}, **read_record(path)}
        versions = {each.get("torch") for each in (self.content, *self.content["tasks"].values())}
        others = sorted(versions - {None, torch.__version__})
        if others:
            raise RecordError(
                f"{path} holds runs of torch {others[0]}, and this is {torch.__version__}: their times cannot be "
                "compared; name a new file"
            )
        self.content["torch"] = torch.__version__

    def run(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The kept run of that name, or what is made now."""
        runs = self.content["runs"]
        if key not in runs:
            runs[key] = make()
            print(f"  {key}: {runs[key].get('validation', 'diverged')}", file=sys.stderr, flush=True)
            self.write()
        kept: dict[str, Any] = runs[key]
        return kept

    def write(self) -> None:
        """Replace the file."""
        write_record(self.path, self.content, indent=None)
