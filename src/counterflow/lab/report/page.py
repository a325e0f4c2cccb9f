"""The report: one self-contained HTML file.

Nothing is fetched: styles, scripts (plotly's among them, once) and data are inside, and the page's content
security policy makes the browser refuse anything else. All text goes through jinja2's autoescaping, data for
the plots through JSON in which ``<``, ``>`` and ``&`` are escaped.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from counterflow.exceptions import InputError, MissingExtraError
from counterflow.lab.report.exhibit import Exhibit, Figure, Section
from counterflow.lab.report.numbers import format_computing, format_interval, format_number, format_p, format_seconds
from counterflow.lab.report.strip import Axis, Mark, axis_for, mark_for
from counterflow.lab.trials import ClaimResult, Setting, Verdict
from counterflow.lab.trials.record import write_whole

__all__ = ["SETTINGS", "VERDICTS", "differences", "summary", "write_report"]

VERDICTS: tuple[str, ...] = get_args(Verdict)
SETTINGS: tuple[str, ...] = get_args(Setting)
TEST_NAMES = {
    "contrast": "t test of the contrast",
    "mann_whitney": "Mann-Whitney test",
    "paired_t": "paired t test",
}


@dataclass(frozen=True)
class _ClaimView:
    claim: ClaimResult
    anchor: str
    mark: Mark | None
    without_mark: str
    spread: str
    interval: str
    how: str
    p: str


@dataclass(frozen=True)
class Difference:
    """What differs from the paper or must be known, and the claims (id and anchor) that it is about."""

    heading: str
    differs: str
    reason: str
    claims: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _FigureView:
    id: str
    title: str
    caption: str
    alt: str
    plot: object  # markupsafe.Markup: JSON that may stand in a script element


@dataclass(frozen=True)
class _TableView:
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    numeric: Sequence[bool]


@dataclass(frozen=True)
class _PaperView:
    section: Section
    summary: str
    counts: Mapping[str, int]
    claims: Sequence[_ClaimView]
    headline: Sequence[_ClaimView]
    differences: Sequence[Difference]
    exhibits: Sequence[_FigureView | _TableView]
    environment_rows: Sequence[tuple[str, Sequence[str]]]


def write_report(sections: Sequence[Section], path: Path | str, *, profile: str) -> Path:
    """Write the report.

    Args:
        sections: One a paper, in the order of reading.
        path: The HTML file. Its folder is made if it is missing, and the file appears whole or not at all.
        profile: What the head of the page calls the profile, such as ``"laptop"``.

    Returns:
        The file.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
        InputError: A figure holds something that is not JSON, or a table's row has the wrong length.
        RecordError: The file cannot be written.
    """
    try:
        import jinja2
        import markupsafe
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("lab", "writing the report") from error

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("counterflow.lab.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "seconds": format_seconds, "computing": format_computing}
    environment.filters |= {"slug": _slug}
    templates = importlib.resources.files("counterflow.lab.report") / "templates"
    claims = [claim for section in sections for claim in section.claims]
    axis = axis_for([claim for section in sections for claim in _headline(section)])
    html = environment.get_template("page.html.jinja").render(
        profile=profile,
        papers=[_paper_view(section, axis, markupsafe.Markup) for section in sections],
        axis=axis,
        total=len(claims),
        verdicts=_count(VERDICTS, (claim.verdict for claim in claims)),
        settings={name: n for name, n in _count(SETTINGS, (claim.setting for claim in claims)).items() if n},
        style=markupsafe.Markup((templates / "style.css").read_text("utf-8")),
        script=markupsafe.Markup((templates / "page.js").read_text("utf-8")),
        plotly=markupsafe.Markup(get_plotlyjs()),
        version=importlib.metadata.version("counterflow"),
    )
    path = Path(path)
    write_whole(path, html.encode())
    return path


def _slug(text: str) -> str:
    """A verdict, key or id as it may stand in an attribute."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def _count(names: Iterable[str], found: Iterable[str]) -> dict[str, int]:
    counts = dict.fromkeys(names, 0)
    for name in found:
        counts[name] += 1
    return counts


def summary(claims: Sequence[ClaimResult]) -> str:
    """How many claims have which verdict, in a sentence.

    Example:
        >>> summary([])
        'No claims.'
    """
    if not claims:
        return "No claims."
    counts = _count(VERDICTS, (claim.verdict for claim in claims))
    parts = [f"{count} {verdict}" for verdict, count in counts.items() if count]
    return f"{len(claims)} claim{'s' if len(claims) != 1 else ''}: {', '.join(parts)}."


def _headline(section: Section) -> list[ClaimResult]:
    """The claims that the overview shows."""
    return [claim for claim in section.claims if not section.headline or claim.id in section.headline]


def _paper_view(section: Section, axis: Axis, markup: type[Any]) -> _PaperView:
    claims = [_claim_view(section, claim, axis) for claim in section.claims]
    carrying = {claim.id for claim in _headline(section)}
    return _PaperView(
        section=section,
        summary=summary(section.claims),
        counts=_count(VERDICTS, (claim.verdict for claim in section.claims)),
        claims=claims,
        headline=[view for view in claims if view.claim.id in carrying],
        differences=differences(section),
        exhibits=[_exhibit_view(section, number, exhibit, markup) for number, exhibit in enumerate(section.exhibits)],
        environment_rows=_environment_rows(section.environments),
    )


def _anchor(section: Section, claim: ClaimResult) -> str:
    return f"claim-{_slug(section.key)}-{_slug(claim.id)}"


def _claim_view(section: Section, claim: ClaimResult, axis: Axis) -> _ClaimView:
    interval = "" if claim.measured is None else format_interval(claim.low, claim.high) or "no finite interval"
    if claim.low is not None and claim.low == claim.high:  # computed, not drawn
        interval = ""
    if claim.verdict == "not run":
        without_mark = f"Not run: {claim.reason}" if claim.reason else "Not run"
    elif claim.measured is None:
        without_mark = claim.reason
    else:
        number = f"{format_number(claim.measured)} {interval}".rstrip()
        without_mark = f"measured {number}, which is no ratio"
    how: list[str] = [*filter(None, [claim.at]), claim.kind]
    if claim.test in TEST_NAMES:
        how.append(TEST_NAMES[claim.test])
    if claim.verdict == "not run" and claim.reason:
        how.append(claim.reason)
    spread = []
    if claim.published_spread is not None:
        spread.append(f"± {format_number(claim.published_spread)}")
    if claim.published_n is not None:
        spread.append(f"n = {claim.published_n}")
    return _ClaimView(
        claim=claim,
        anchor=_anchor(section, claim),
        mark=mark_for(claim, axis),
        without_mark=without_mark,
        spread=", ".join(spread),
        interval=interval,
        how=" · ".join(how),
        p=format_p(claim.p) if claim.low != claim.high else "",
    )


def differences(section: Section) -> list[Difference]:
    """Claims whose setting differs, or of which the reader must know something; equal ones share an entry."""
    groups: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for claim in section.claims:
        if claim.setting == "same" and not claim.differs and not claim.reason:
            continue
        heading = {"same": "Note", "smaller": "Smaller", "other data": "Other data"}[claim.setting]
        if claim.verdict == "not run":
            heading = "Not run"
        entry = groups.setdefault((heading, claim.differs, claim.reason), [])
        entry.append((claim.id, _anchor(section, claim)))
    return [Difference(*group, claims=claims) for group, claims in groups.items()]


def _exhibit_view(section: Section, number: int, exhibit: Exhibit, markup: type[Any]) -> _FigureView | _TableView:
    where = f"{section.key}: {exhibit.title!r}"
    if isinstance(exhibit, Figure):
        layout = exhibit.plot.get("layout", {})
        if not isinstance(layout, Mapping):
            raise InputError(f"{where}: the plot's layout is a {type(layout).__name__}, not a mapping")
        # Plotly's own template is several kilobytes a figure, and the page brings another.
        layout = {name: value for name, value in layout.items() if name != "template"}
        plot = {"data": exhibit.plot.get("data", ()), "layout": layout}
        text = json.dumps(_plain(plot, where), allow_nan=False, separators=(",", ":"))
        for character in "<>&\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        identity = f"plot-{_slug(section.key)}-{number}"
        return _FigureView(identity, exhibit.title, exhibit.caption, exhibit.alt, markup(text))
    for row in exhibit.rows:
        if len(row) != len(exhibit.columns):
            raise InputError(f"{where}: a row has {len(row)} cells, and there are {len(exhibit.columns)} columns")
    rows = [[_plain(value, where, digits=None) for value in row] for row in exhibit.rows]
    numeric = [
        any(isinstance(row[column], int | float) and not isinstance(row[column], bool) for row in rows)
        for column in range(len(exhibit.columns))
    ]
    return _TableView(exhibit.title, exhibit.caption, list(exhibit.columns), rows, numeric)


def _plain(value: object, where: str, digits: int | None = 6) -> Any:
    """JSON values only: arrays as lists, null for what is not finite, no more digits than a plot shows."""
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where, digits) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    raise InputError(f"{where}: holds a {type(value).__name__}, which is not JSON")


def _environment_rows(environments: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for environment in environments for name in environment)
    return [
        (
            name,
            ["" if environment.get(name) is None else str(environment[name]) for environment in environments],
        )
        for name in names
    ]
