"""What a paper hands to the report: figures, tables, and the section that holds them.

All of it is plain data. A paper never writes HTML, and the report never asks which paper it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterflow.lab.trials import ClaimResult

__all__ = ["Cell", "Exhibit", "Figure", "Section", "TableExhibit"]

Cell = str | float | int | None


@dataclass(frozen=True)
class Figure:
    """A figure, redrawn by plotly in the reader's browser.

    The page brings fonts, grid, background and a sequence of colors for light and for dark, so leave these
    out. Where a color has a meaning, name one of the page's by its CSS variable and it follows the color
    scheme: ``{"color": "var(--muted)"}`` (also ``--ink``, ``--accent``, ``--line``, ``--reproduced``,
    ``--not-reproduced``, and ``--series-1`` to ``--series-6``). NaN and infinity become gaps. The page may
    not compile code, so WebGL traces (``scattergl``, ``scatter3d``) cannot be drawn.

    Args:
        title: One line above the plot; leave plotly's own title out.
        caption: What is seen, in a sentence or two below the plot.
        plot: A plotly figure as mappings and sequences, ``{"data": [...], "layout": {...}}``; NumPy arrays
            are fine, so ``go.Figure.to_plotly_json()`` is too.
        alt: What the plot shows, for who cannot see it.

    Example:
        >>> Figure(
        ...     title="Epochs to learn",
        ...     caption="Ten restarts a cell.",
        ...     plot={"data": [{"type": "bar", "x": ["plain", "tempered"], "y": [2438, 339]}]},
        ...     alt="Two bars: 2438 epochs plain, 339 tempered.",
        ... ).title
        'Epochs to learn'
    """

    title: str
    caption: str
    plot: Mapping[str, object]
    alt: str


@dataclass(frozen=True)
class TableExhibit:
    """A table. Its first column names the rows; numbers are shown with three significant digits.

    Args:
        title: One line above the table.
        caption: What is seen, in a sentence or two.
        columns: The columns' heads.
        rows: One sequence a row, as long as ``columns``; None is an empty cell.

    Example:
        >>> rows = [["target moved", 373.2], ["no root", None]]
        >>> table = TableExhibit("Readings", "What each reading gave.", ["reading", "epochs"], rows)
        >>> len(table.rows)
        2
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


Exhibit = Figure | TableExhibit


@dataclass(frozen=True)
class Section:
    """One paper in the report.

    Args:
        key: The paper's key.
        title: Its short title.
        citation: One line.
        command: What made these numbers, ready to be pasted into a shell.
        claims: Every claim of the paper's ``published.toml``, those that were not run too.
        exhibits: Figures and tables, in the order of reading.
        environments: What the trials ran on, one mapping for each different one.
        seconds: Computing time of all its trials together.
        card_seconds: Of these, that of trials on a graphics card.
        notes: Remarks for the reader, a paragraph each.
        says: What the paper claims, in a sentence or two.
        headline: The ids of the claims that the overview shows; all of them if there are none.
    """

    key: str
    title: str
    citation: str
    command: str
    claims: Sequence[ClaimResult]
    exhibits: Sequence[Exhibit] = ()
    environments: Sequence[Mapping[str, object]] = ()
    seconds: float = 0.0
    notes: Sequence[str] = ()
    says: str = ""
    headline: Sequence[str] = ()
    card_seconds: float = 0.0
