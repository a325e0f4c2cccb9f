"""Multiple choice learning."""

from __future__ import annotations

from .markup import MET, record, size_text, table


def benchmark_of_choice() -> str:
    """What ``benchmarks/choice.py`` found when its committed results were made."""
    found = record("choice")
    rows = [
        (
            str(row["members"]),
            str(row["batch"]),
            row["format"],
            f"{row['naive ms']:.0f} ms",
            f"{row['again']:.2f}",
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            f"{row['floor']:.2f}",
            f"{row['bar']:g}",
            f"{size_text(row['bytes'])} of {size_text(row['naive bytes'])}",
            MET[row["pass"]],
        )
        for row in found["rows"]
    ]
    head = (
        "members",
        "batch",
        "memory format",
        "naive step",
        "naive again",
        "ours over it",
        "floor",
        "at most",
        "peak memory",
        "target",
    )
    beside = found["peer"]
    told = beside.get("missing") or f"{beside['ratio']:.2f} ({beside['low']:.2f} to {beside['high']:.2f})"
    epoch = (
        f"An epoch of a plain ensemble of {beside['members']} in a loop of one's own, over {beside['peer']}: {told}."
    )
    machine = (
        f"Medians and quartiles of the ratios turn by turn; within one run, {found['threads']} thread, torch "
        f"{found['torch']}."
    )
    return f"{machine}\n\n{table(head, rows)}\n\n{epoch}"
