"""The lab's papers, claims and data sets."""

from __future__ import annotations

import re

from counterflow.lab import data
from counterflow.lab.trials import claims_of, digest_of, paper_keys

from .markup import DOCS, plain, table


def papers_table() -> str:
    """The papers of the lab."""
    rows = []
    for key in paper_keys():
        rows.append((f"``{key}``", plain(digest_of(key).citation), str(len(claims_of(key)))))
    return table(("key", "paper", "claims"), rows)


def claims_table(key: str) -> str:
    """The claims of one paper, as ``published.toml`` has them."""
    rows = []
    for claim in claims_of(key):
        number = "" if claim.value is None else f"{claim.value:g}"
        number += "" if claim.spread is None else f" ± {claim.spread:g}"
        rows.append((f"``{claim.id}``", plain(claim.claim), claim.kind, number, plain(claim.at)))
    return table(("id", "claim", "kind", "published", "where"), rows)


def failed_table(key: str) -> str:
    """What did not come out as one paper has it, as ``REPRODUCTION.md`` says; that is written from the records."""
    title = digest_of(key).title
    _, _, part = (DOCS.parent / "REPRODUCTION.md").read_text("utf-8").partition(f"\n## {title}\n")
    rows = []
    for line in part.partition("\n## ")[0].splitlines():
        cells = [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        verdict = cells[-1].replace("**", "") if cells else ""  # with the p of its test, where there is one
        if verdict.partition(" (")[0] in ("not reproduced", "direction only"):
            claim, published, measured = cells[0].partition("` ")[2], cells[1], cells[2]
            unit = "" if cells[4] == "–" else f" {cells[4]}"
            rows.append((plain(claim), plain(published + unit), plain(measured + unit), plain(verdict)))
    if not rows:
        return "No claim that was run came out otherwise than published,\nas far as the intervals can say."
    return table(("what the paper says", "published", "measured", "verdict"), rows)


def datasets_table() -> str:
    """The catalog of data sets."""
    rows = []
    for entry in data.CATALOG.values():
        title = f"`{entry.title} <{entry.publisher}>`__" if entry.publisher else entry.title
        splits = ", ".join(f"{size} {name}" for name, size in entry.splits.items())
        differs = next((f" Here: {form.differs}." for form in entry.forms if form.differs), "")
        what = f"{title}: {entry.description} ({splits}).{differs}"
        rows.append((f"``{entry.name}``", what, entry.provided, plain(entry.license), plain(entry.citation)))
    return table(("name", "what it is", "provided as", "license", "cite"), rows)
