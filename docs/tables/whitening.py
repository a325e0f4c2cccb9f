"""Whitening beside optimizers."""

from __future__ import annotations

from .markup import MET, record, table


def benchmark_of_whitening() -> str:
    """What ``benchmarks/whitening.py`` found when its committed results were made."""
    found = record("whitening")
    step = found["step"]
    row = (
        f"{step['ratio']:.2f} ({min(step['periods']):.2f} to {max(step['periods']):.2f})",
        f"{step['floor']:.2f}",
        f"{step['share of projections']:.1%}",
        f"{step['share of statistics']:.1%}",
        f"{step['plain milliseconds']:.3g}",
        MET[step["pass"]],
    )
    head = ("over plain SGD", "the floor in products", "share of projections", "of statistics", "plain, ms", "target")
    parts = [f"**A step on the auto-encoder, whitening included (at most 1.5)**\n\n{table(head, [row])}"]
    for task in found["tasks"].values():
        title = task["title"][0].upper() + task["title"][1:]
        rows = []
        for method, each in task["methods"].items():
            last = sorted(curve[-1] for curve in each["curves"])
            other = next(key for key in each if key in ("epsilon", "momentum", "beta1", "damping"))
            loss = f"{last[len(last) // 2]:.4f} ({last[0]:.4f} to {last[-1]:.4f})" if last else "diverged"
            rate = f"{each['rate']:.3g}" + ("" if each["interior"] else " (edge)")
            took = f"{1e3 * task['seconds'][method]:.1f}" if method in task["seconds"] else ""
            rows.append((method, rate, f"{other} {each[other]:g}", loss, took))
        against = [
            (f"{form} / {method}", "diverged", row["updates"], "", row["time"], "")
            if row["loss"] is None
            else (
                f"{form} / {method}",
                f"{row['loss']:.2f}",
                row["updates"],
                f"{row['loss in time']:.2f}",
                row["time"],
                f"{row['seconds']:.2f}",
            )
            for form, others in task["compared"].items()
            for method, row in others.items()
        ]
        behind = ", ".join(task["behind on time"])
        ahead = "yes" if task["ahead of all on updates"] else "no"
        verdict = f"PRONG as in the paper, ahead of all after equally many updates: {ahead}. " + (
            f"Behind in equal time: {behind}." if behind else "Ahead or level in equal time: with all."
        )
        heads = ("ratio", "loss, equal updates", "PRONG is", "loss, equal time", "PRONG is", "time an update")
        names = ("method", "best rate", "other parameter", "final training loss", "ms an update")
        parts.append(f"**{title}**\n\n{verdict}\n\n{table(names, rows)}\n\n{table(heads, against)}")
    return "\n\n".join(parts)
