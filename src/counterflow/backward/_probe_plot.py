"""The picture that a probe draws: the error's path from the output to the input, and its size over the steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from counterflow.exceptions import InputError
from counterflow.pictures import require_picture, write_picture

__all__ = ["draw"]

_History = Mapping[str, npt.NDArray[np.float64]]

_INK, _SOFT, _GRID = "#1b1f24", "#6a737d", "#e4e7eb"
_NAMES = 50  # names that fit below each other; of more layers, some are named


def draw(path: str | PathLike[str], layers: Mapping[str, _History], title: str) -> None:
    """Draw and write the picture, to a temporary name first.

    Args:
        path: Its suffix says what kind of picture.
        layers: The history of each layer, from the output to the input.
        title: Stands above the picture.

    Raises:
        InputError: If there is nothing to draw, or no such file can be written.
        MissingExtraError: If matplotlib is not installed.
    """
    target = require_picture(path, "drawing the error")
    if not layers:
        raise InputError("nothing to draw: no error has been seen; call backward() while the probe is attached")
    figure = _figure(layers, title)
    write_picture(figure, target, 144)


def _figure(layers: Mapping[str, _History], title: str) -> Any:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    looked = max(len(history["step"]) for history in layers.values())
    tall = float(np.clip(0.27 * len(layers), 2.4, 13.5))
    below = 2.9 if looked > 1 else 0.0
    figure = Figure(figsize=(12.0, 1.5 + tall + below), layout="constrained", facecolor="white")
    rows, ratios = (2, [tall, below]) if looked > 1 else (1, [tall])
    grid = figure.add_gridspec(rows, 5, width_ratios=[2.6, 1, 1, 1, 1], height_ratios=ratios)
    # From yellow-green at the output to violet at the input, one color a layer in all panels.
    colors = colormaps["viridis"](np.linspace(0.85, 0.0, len(layers)))
    first: Any = None
    panels = (
        ("rms", "size (RMS)"),
        ("mean share", "mean share"),
        ("signal/noise", "signal / noise"),
        ("drift", "drift: cosine to\nthe step before"),
        ("sparsity", "exact zeros"),
    )
    for column, (name, heading) in enumerate(panels):
        axes = figure.add_subplot(grid[0, column], sharey=first)
        _path(axes, layers, name, colors)
        axes.set_title(heading, loc="left", fontsize=10, color=_INK, fontweight="bold" if column == 0 else "normal")
        if first is None:
            first = axes
            _name_layers(axes, list(layers))
        else:
            axes.tick_params(labelleft=False)
    if looked > 1:
        _over_steps(figure.add_subplot(grid[1, :]), layers, colors)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=_INK)
    return figure


def _path(axes: Any, layers: Mapping[str, _History], name: str, colors: Any) -> None:
    """One statistic over the layers: the median over the steps, and the middle 80% of them."""
    _tidy(axes, "x")
    places = np.arange(len(layers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a layer of which nothing is known
        low, middle, high = np.array(
            [np.nanquantile(_finite(history[name]), (0.1, 0.5, 0.9)) for history in layers.values()]
        ).T
    logarithmic = name in ("rms", "signal/noise")
    if logarithmic:
        low, middle, high = (np.where(values > 0, values, np.nan) for values in (low, middle, high))
    if name == "signal/noise":
        axes.axvline(1.0, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "noise alone", (1.0, 0.0), xycoords=("data", "axes fraction"), xytext=(3, 3),
            textcoords="offset points", fontsize=7.5, color=_SOFT,
        )  # fmt: skip
    if name == "drift":
        axes.axvline(0.0, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)))
    axes.hlines(places, low, high, color=colors, linewidth=6, alpha=0.28, capstyle="round")
    axes.plot(middle, places, color=_SOFT, linewidth=1, alpha=0.7)
    axes.scatter(middle, places, c=colors, s=34, zorder=3, edgecolors="white", linewidths=0.8)
    if not np.isfinite(middle).any():
        axes.annotate(
            "needs two steps" if name == "drift" else "undefined", (0.5, 0.5), xycoords="axes fraction",
            fontsize=8.5, color=_SOFT, ha="center", backgroundcolor="white",
        )  # fmt: skip
    elif logarithmic:
        axes.set_xscale("log")
        noise_alone = [1.0] if name == "signal/noise" else []
        _log_range(axes, "x", np.append(low, noise_alone), np.append(high, noise_alone))
    if name in ("mean share", "sparsity"):
        axes.set_xlim(-0.05, 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    if name == "drift":
        axes.set_xlim(-1.1, 1.1)
        axes.set_xticks([-1, 0, 1])


def _over_steps(axes: Any, layers: Mapping[str, _History], colors: Any) -> None:
    _tidy(axes, "both")
    for history, color in zip(layers.values(), colors, strict=True):
        size = _finite(history["rms"])
        axes.plot(history["step"] + 1, np.where(size > 0, size, np.nan), color=color, linewidth=1.3)
    axes.set_yscale("log")
    sizes = np.concatenate([history["rms"] for history in layers.values()])
    _log_range(axes, "y", sizes, sizes)
    axes.margins(x=0.01)
    axes.set_title("size (RMS) over the steps", loc="left", fontsize=10, color=_INK, fontweight="bold")
    axes.set_xlabel("step", fontsize=9, color=_SOFT)


def _name_layers(axes: Any, names: list[str]) -> None:
    stride = -(-len(names) // _NAMES)
    shown = range(0, len(names), stride)
    labels = [_short(names[index]) or "(the model)" for index in shown]
    axes.set_yticks(list(shown), labels, fontsize=8.5, color=_INK)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _short(name: str) -> str:
    return name if len(name) <= 36 else "…" + name[-35:]


def _log_range(axes: Any, which: Literal["x", "y"], low: Any, high: Any) -> None:
    """Ticks that can be read, and a decade at least, so that a flat path looks flat."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = low[np.isfinite(low) & (low > 0)], high[np.isfinite(high) & (high > 0)]
    if not low.size:
        return
    bottom, top = np.log10(low.min()), np.log10(high.max())
    spare = max(0.0, 1.0 - (top - bottom)) / 2 + 0.05 * max(1.0, top - bottom)
    limits = (10 ** (bottom - spare), 10 ** (top + spare))
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(limits)
    few = top - bottom + 2 * spare < 2.2
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=7))
    axis.set_minor_locator(NullLocator())
    if few and bottom > -4 and top < 4:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif few:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))


def _finite(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.nan)


def _tidy(axes: Any, grid: str) -> None:
    axes.grid(True, axis=grid, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=_SOFT)
