"""Separation of sources."""

from __future__ import annotations

from .markup import MET, plain, record, table


def benchmark_of_separation() -> str:
    """What ``benchmarks/separation.py`` found when its committed results were made."""
    found = record("separation")
    bars = [(plain(bar["target"]), f"{bar['value']:.3g}", MET[bar["pass"]]) for bar in found["bars"]]
    rooms = [
        (
            f"{row['condition']}, {row['reverberation']:g} s",
            name,
            str(each["rooms"]),
            f"{each['median']:.2f}",
            f"{each['worst']:.2f}",
            f"{each['iterations']:.3f}",
            f"{each['real-time factor']:.4f}",
        )
        for row in found["rows"]
        for name, each in row["methods"].items()
    ]
    head = (
        "against, reverberation",
        "method",
        "rooms",
        "median SDR improvement, dB",
        "worst",
        "iterations, s",
        "real-time factor",
    )
    return "\n\n".join(
        [
            f"Processor time of {found['threads']} thread, torch {found['torch']}, while other work went on beside it. "
            "Slow methods were run in fewer rooms, and are compared with the default in those.",
            table(("target", "measured", ""), bars),
            table(head, rooms),
        ]
    )
