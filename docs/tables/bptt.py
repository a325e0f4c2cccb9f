"""Backpropagation through time within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .markup import MET, plain, record, size_text, table


def benchmark_of_budgets() -> str:
    """What ``benchmarks/bptt.py`` found when its committed results were made."""
    found = record("bptt")
    rows = found["parts"]
    net = f"LSTM cell of width {found['width']}, batch {found['batch']}, {found['steps']} steps"
    machine = f"{found['threads']} thread, torch {found['torch']}"
    sections = [f"{net}; {machine}. Ratios are medians within one run, with their quartiles."]

    def show(title: str, part: str, head: Sequence[str], cells: Callable[[dict[str, Any]], tuple[str, ...]]) -> None:
        if part not in rows:
            return
        lines = [(*cells(row), MET[row.get("pass")]) for row in rows[part] if "missing" not in row]
        sections.append(f"**{title}**\n\n{table((*head, 'target'), lines)}")

    def spread(row: dict[str, Any]) -> str:
        return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"

    show(
        "The promise: forward operations as planned, and never more bytes than the budget",
        "promise",
        ("budget", "strategy", "forwards planned", "executed", "kept for autograd", "resident memory grew by"),
        lambda row: (
            size_text(row["budget"]),
            row["strategy"],
            f"{row['planned']:,}",
            f"{row['executed']:,}",
            size_text(row["kept"]),
            size_text(row["resident"]),
        ),
    )
    show(
        "An iteration over the plan's cost in measured step times (at most 1.10)",
        "overhead",
        (
            "strategy",
            "slots or budget",
            "forwards",
            "over the plan's cost",
            "over it, forward and backward in turn",
            "over plain",
        ),
        lambda row: (
            row["strategy"],
            row["memory"],
            f"{row['forwards']:,}",
            spread(row),
            f"{row['over steps in turn']:.2f}",
            f"{row['over plain']:.2f}",
        ),
    )
    show(
        "Beside torch.utils.checkpoint on sqrt(t) segments (at equal memory at most 1.00)",
        "peer",
        ("budget", "our forwards", "their forwards", "their memory", "our time over theirs"),
        lambda row: (
            size_text(row["budget"]),
            f"{row['calls']:,}",
            f"{row['segments call']:,}",
            size_text(row["segments keep"]),
            spread(row),
        ),
    )
    show(
        "Fused chunks within a tenth of the memory of one call of nn.LSTM, over that call (at most 1.4)",
        "chunks",
        ("budget", "chunk", "forwards a step", "our time over one call's"),
        lambda row: (size_text(row["budget"]), str(row["chunk"]), f"{row['forwards a step']:.2f}", spread(row)),
    )
    cold = any("missing" not in row and "warm" not in row for row in rows.get("solvers", ()))  # records of old
    show(
        "Making a plan and listing its actions, each once" + (", loading its modules included" if cold else ""),
        "solvers",
        ("solver", "steps", "slots", "forwards", "seconds"),
        lambda row: (
            plain(row["solver"]),
            f"{row['steps']:,}",
            str(row["slots"]),
            f"{row['forwards']:,}",
            f"{row['seconds']:.3g}",
        ),
    )
    show(
        "The mixed strategy's table (at most 5 s)",
        "table",
        ("steps", "slots", "cost of an internal state", "forwards", "seconds"),
        lambda row: (
            f"{row['steps']:,}",
            f"{row['slots']:,}",
            f"{row['internal cost']:g}",
            f"{row['forwards']:,}",
            f"{row['seconds']:.2f}",
        ),
    )
    show(
        "What plain backpropagation through time cannot do here: inputs streamed from disk",
        "long",
        ("steps", "budget", "plain would keep", "resident memory grew by", "seconds", "over the floor", "prefix error"),
        lambda row: (
            f"{row['steps']:,}",
            size_text(row["budget"]),
            size_text(row["plain would keep"]),
            size_text(row["resident"]),
            f"{row['seconds']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['prefix error']:.1g}",
        ),
    )
    return "\n\n".join(sections)
