"""All ratios of the benchmarks with their targets."""

from __future__ import annotations

import sys

from .markup import DOCS, plain, table

sys.path.insert(0, str(DOCS.parent / "benchmarks"))
from common.ratios import BENCHMARKS, kept, measured, over_best_path

__all__ = ["over_best_path", "ratios_table"]


def ratios_table() -> str:
    """Every benchmark's ratios, as its committed record has them."""
    found = measured()
    met, of = kept([row for each in found.values() for row in each])
    parts = [f"Of {of} targets {met} are met and {of - met} are missed."]
    for name, each in found.items():
        met, of = kept(each)
        said = f"{met} of {of} targets met" if of else "no target, only a comparison"
        parts.append(f"**{BENCHMARKS[name].title}** (``benchmarks/{name}.py``): {said}")
        rows = ((plain(row.what), row.measured, row.target, row.verdict) for row in each)
        parts.append(table(("what", "measured", "target", ""), rows))
    missing = [f"``benchmarks/{name}.py``" for name in BENCHMARKS if name not in found]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts)
