"""The lab's papers, claims and data sets."""

from __future__ import annotations

from counterflow.lab import data
from counterflow.lab.trials import claims_of, load_paper, paper_keys

from .markup import plain, table


def papers_table() -> str:
    """The papers of the lab."""
    rows = []
    for key in paper_keys():
        paper = load_paper(key)
        rows.append((f"``{key}``", plain(paper.citation), str(len(claims_of(key)))))
    return table(("key", "paper", "claims"), rows)


def claims_table(key: str) -> str:
    """The claims of one paper, as ``published.toml`` has them."""
    rows = []
    for claim in claims_of(key):
        number = "" if claim.value is None else f"{claim.value:g}"
        number += "" if claim.spread is None else f" ± {claim.spread:g}"
        rows.append((f"``{claim.id}``", plain(claim.claim), claim.kind, number, plain(claim.at)))
    return table(("id", "claim", "kind", "published", "where"), rows)


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
