"""The curve of slowdown against memory: as a picture, and in letters for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

from counterflow.bptt.budget import format_bytes
from counterflow.pictures import require_picture, write_picture

__all__ = ["draw", "letters"]

_INK, _SOFT, _GRID, _MARK = "#1b1f24", "#6a737d", "#e4e7eb", "#c4441c"
_TOP = 4.0  # what is slower than this would press the rest of the curve flat


def draw(path: str | PathLike[str], points: Sequence[tuple[int, float]], title: str, chosen: int | None = None) -> None:
    """Draw and write the picture, to a temporary name first.

    Args:
        path: Its suffix says what kind of picture.
        points: Bytes and slowdown of each budget.
        title: Stands above it.
        chosen: Which of them is marked as the budget that was asked for; it is shown however slow it is.

    Raises:
        InputError: If no such file can be written.
        MissingExtraError: If matplotlib is not installed.
    """
    target = require_picture(path, "drawing the curve")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), layout="constrained", facecolor="white")
    axes: Any = figure.add_subplot()
    shown = _shown(points, chosen)
    memory, slowdown = zip(*shown, strict=True)
    axes.plot(memory, slowdown, color=_INK, linewidth=1.4, marker="o", markersize=5)
    axes.axhline(1.0, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "plain backpropagation through time", (0.0, 1.0), xycoords=("axes fraction", "data"), xytext=(4, 4),
        textcoords="offset points", fontsize=8.5, color=_SOFT,  # on the left, where the curve is high
    )  # fmt: skip
    if chosen is not None:
        own = points[chosen]
        axes.plot(*own, marker="o", markersize=10, color=_MARK, zorder=3)
        right = own[0] ** 3 > min(memory) * max(memory) ** 2  # in the last third, where words would leave the chart
        axes.annotate(
            f"your budget: {own[1]:.2f}", own, xytext=(-10 if right else 10, 12),
            textcoords="offset points", ha="right" if right else "left", fontsize=8.5, color=_MARK,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda size, _: format_bytes(max(1, round(size))))
    axes.set_xlabel(f"memory kept for going back{_beyond(len(points) - len(shown))}", color=_SOFT)
    axes.set_ylabel("time of an iteration, plain = 1", color=_SOFT)
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=_SOFT)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=_INK)
    write_picture(figure, target, 144)


def letters(
    points: Sequence[tuple[int, float]], chosen: int | None = None, width: int = 64, height: int = 12
) -> list[str]:
    """The same curve in letters: memory to the right on a log axis, slowdown upward.

    Args:
        points: Bytes and slowdown of each budget.
        chosen: Which of them is marked by ``@``.
        width: Letters across.
        height: Lines.

    Example:
        >>> for line in letters([(2**20, 2.0), (2**22, 1.5), (2**24, 1.0)], chosen=1, width=24, height=3):
        ...     print(line)
         2.00 |*
         1.50 |            @
         1.00 |                       *
               1MiB               16MiB
    """
    shown = _shown(points, chosen)
    marked = None if chosen is None else points[chosen]
    left, right = (math.log(end(memory for memory, _ in shown)) for end in (min, max))
    bottom, top = 1.0, max(1.0 + 1e-9, *(slowdown for _, slowdown in shown))
    grid = [[" "] * width for _ in range(height)]
    for memory, slowdown in sorted(shown, key=lambda point: point == marked):  # the marked one last, on top
        column = round((math.log(memory) - left) / (right - left) * (width - 1)) if right > left else 0
        line = round((top - slowdown) / (top - bottom) * (height - 1))
        grid[line][column] = "@" if (memory, slowdown) == marked else "*"
    lines = []
    for number, cells in enumerate(grid):
        value = top - (top - bottom) * number / (height - 1)
        lines.append(f"{value:5.2f} |{''.join(cells)}".rstrip())
    ends = format_bytes(min(memory for memory, _ in shown)), format_bytes(max(memory for memory, _ in shown))
    lines.append(f"{'':7}{ends[0]}{ends[1]:>{width - len(ends[0])}}")
    return lines


def _shown(points: Sequence[tuple[int, float]], chosen: int | None) -> Sequence[tuple[int, float]]:
    """The points that a curve can show beside each other, the chosen one among them; all, if there are no such."""
    own = None if chosen is None else points[chosen]
    top = _TOP if own is None else max(_TOP, own[1])
    return [point for point in points if point[1] <= top] or points


def _beyond(left: int) -> str:
    """What is said of the points that are not shown."""
    if not left:
        return ""
    return f"; {left} smaller budget{'s are' if left > 1 else ' is'} off the chart, slower than {_TOP:g} times"
