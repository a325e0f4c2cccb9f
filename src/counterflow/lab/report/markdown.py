"""The committed summary, ``REPRODUCTION.md``: the same claims as the page has, as Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from counterflow.lab.report.exhibit import Section
from counterflow.lab.report.numbers import format_computing, format_interval, format_number, format_p
from counterflow.lab.report.page import VERDICTS, differences, summary
from counterflow.lab.trials import ClaimResult

__all__ = ["reproduction_markdown"]

HEAD = """\
<!-- Generated from the committed records: counterflow report evidence --markdown REPRODUCTION.md -->
# Reproduction

Each published number beside the one that counterflow measured, with its 95% interval. Verdicts are computed
from the records in `evidence/` by rules that each claim names before any result is known, or it says below what was
changed since, why, and what it would be as before; for figures and what else was tried, `counterflow report evidence`
writes a page. Intervals are two-sided at 95%, tests of orders and effects one-sided at .05 and some of them of ranks,
so that such a claim may be decided although the interval beside it includes no effect; p stands beside its verdict.
"""


def reproduction_markdown(sections: Sequence[Section]) -> str:
    """Write the summary of all claims.

    Args:
        sections: One a paper, in the order of reading.

    Returns:
        Markdown text. The same sections give the same text.

    Example:
        >>> section = Section("toy", "A toy", "Nobody, 1995.", "counterflow reproduce toy", claims=())
        >>> [line for line in reproduction_markdown([section]).splitlines() if line.startswith("| A toy")]
        ['| A toy | 0 | 0 | 0 | 0 | 0 |']
    """
    lines = [HEAD, _row(["paper", *VERDICTS]), _row(["---", *["---:"] * len(VERDICTS)])]
    for section in sections:
        counts = [sum(claim.verdict == verdict for claim in section.claims) for verdict in VERDICTS]
        lines.append(_row([_text(section.title), *map(str, counts)]))
    for section in sections:
        lines += ["", *_paper(section)]
    return "\n".join(lines) + "\n"


def _paper(section: Section) -> list[str]:
    spent = format_computing(section.seconds, section.card_seconds)
    cost = f" Computing time: {spent}." if section.seconds else ""
    lines = [
        f"## {_text(section.title)}",
        "",
        _text(section.citation),
        "",
        f"{summary(section.claims)}{cost} Run again by `{section.command}`.",
        "",
        _row(["claim", "published", "measured", "n", "unit", "setting", "verdict"]),
        _row(["---", "---:", "---:", "---:", "---", "---", "---"]),
        *(_claim(claim) for claim in section.claims),
    ]
    remarks = differences(section)
    if remarks:
        lines += ["", "What differs from the paper, and why:", ""]
    for remark in remarks:
        names = ", ".join(f"`{name}`" for name, _ in remark.claims)
        says = "; ".join(_text(part) for part in (remark.differs, remark.reason) if part)
        lines.append(f"- {names}: **{remark.heading.lower()}**{f': {says}' if says else ''}")
    for note in section.notes:
        lines += ["", _text(note)]
    return lines


def _claim(claim: ClaimResult) -> str:
    published = format_number(claim.published)
    if claim.published_spread is not None:
        published += f" ± {format_number(claim.published_spread)}"
    interval = format_interval(claim.low, claim.high)
    measured = f"{format_number(claim.measured)} {'' if claim.low == claim.high else interval}".rstrip()
    p = format_p(claim.p) if claim.low != claim.high else ""
    where = f" ({_text(claim.at)})" if claim.at else ""
    return _row(
        [
            f"`{claim.id}` {_text(claim.claim)}{where}",
            published,
            measured,
            "–" if claim.n is None else str(claim.n),
            _text(claim.unit) or "–",
            claim.setting,
            f"**{claim.verdict}**{f' ({_text(p)})' if p else ''}",
        ]
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """Text that neither ends a table's cell nor turns into markup."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))
