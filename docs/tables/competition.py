"""Competing units."""

from __future__ import annotations

from .markup import MET, record, table


def benchmark_of_competition() -> str:
    """What ``benchmarks/competition.py`` found when its committed results were made."""
    found = record("competition")
    rows = [
        (
            row["net"] + (", compiled" if row["compiled"] else ""),
            str(row["batch"]),
            f"{row['relu ms']:.1f} ms",
            *(f"{row[kind]:.3f}" for kind in ("again", "2", "4")),
            MET[row["pass"]],
        )
        for row in found["rows"]
    ]
    head = ("net", "batch", "ReLU's step", "ReLU again", "blocks of two", "blocks of four", "target")
    machine = f"Medians within one run, {found['threads']} thread, torch {found['torch']}."
    floor = f"The elementwise passes alone move {found['floor']:g} of the bytes that ReLU's do."
    return f"{machine}\n\n{table(head, rows)}\n\n{floor}"
