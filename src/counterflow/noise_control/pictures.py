"""The paper's figure 6, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np

from counterflow.adaptive import Signal
from counterflow.noise_control.measures import Measures
from counterflow.pictures import require_picture, write_picture

__all__ = ["draw"]


def draw(
    path: str | PathLike[str],
    signals: Sequence[Signal],
    start: float,
    rate: float,
    curves: Mapping[str, Measures],
    of: str,
    unit: str = "",
) -> None:
    """Draw figure 6 (noise, negated speaker signal, residual) over learning curves.

    Args:
        path: The picture; its suffix says which kind.
        signals: The three.
        start: Seconds at their first sample.
        rate: Samples a second.
        curves: What was measured, by name.
        of: The controller whose signals they are.
        unit: Of the signals; nothing where they have none.

    Raises:
        InputError: If it cannot be written.
        MissingExtraError: If matplotlib is not installed.
    """
    target = require_picture(path, "drawing a cancellation")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots(4, 1, height_ratios=(1, 1, 1, 1.6))
    top = max(float(np.abs(each).max(initial=0.0)) for each in signals) or 1.0
    seconds = start + np.arange(len(signals[0])) / rate
    # The speaker's signal arrives with the other sign: what is drawn is what it is subtracted as.
    titles = ("noise", f"negated speaker signal of {of}", f"residual of {of}")
    for row, samples, title in zip(axes, signals, titles, strict=False):
        row.plot(seconds, samples, linewidth=0.8)
        row.set_ylim(-1.05 * top, 1.05 * top)
        row.set_title(title, loc="left", fontsize="small")
        row.set_ylabel(f"amplitude ({unit})" if unit else "amplitude", fontsize="small")
    axes[2].set_xlabel("seconds")
    for name, measures in curves.items():
        time, decibels = measures.curve
        axes[3].plot(time, np.where(np.isfinite(decibels), decibels, np.nan), label=name, linewidth=1)
    axes[3].axhline(0.0, color="gray", linewidth=0.5)
    axes[3].set_xlabel("seconds")
    axes[3].set_ylabel("noise reduction (dB)")
    figure.legend(loc="outside lower center", ncols=4)
    write_picture(figure, target, 150)
