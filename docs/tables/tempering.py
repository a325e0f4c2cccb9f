"""Tempering beside optimizers."""

from __future__ import annotations

from .markup import plain, record, table


def benchmark_of_tempering() -> str:
    """What ``benchmarks/tempering.py`` found when its committed results were made."""
    found = record("tempering")["tasks"]
    parts = []
    for name, task in found.items():
        title = task["title"][0].upper() + task["title"][1:]
        rows = []
        for treatment, row in task["treatments"].items():
            if "train" not in row:
                rows.append((plain(treatment), f"{row['rate']:.3g}", f"diverged on {row['diverged']} seeds", "", ""))
                continue
            error = f"{row['error']['median']:.2%}" if "error" in row else ""
            spread = f"{row['train']['median']:.4f} ({row['train']['low']:.4f} to {row['train']['high']:.4f})"
            rate = f"{row['rate']:.3g}" + ("" if row["interior"] else " (edge)")
            rows.append((plain(treatment), rate, spread, f"{row['test']['median']:.4f}", error))
        head = ("treatment", "best rate", "final training loss", "test loss", "test error")
        ratios = []
        for treatment, peers in task["ratios"].items():
            for peer, row in peers.items():
                over = f"{plain(treatment)} / {peer}"
                if row is None:
                    ratios.append((over, "", "", "", "", "not compared: missing or diverged"))
                    continue
                steps = "not reached" if row["steps"] is None else f"{row['steps']:.2f}"
                numbers = (f"{row['train']:.2f}", f"{row['test']:.2f}", steps, f"{row['time']:.2f}")
                ratios.append((over, *numbers, row["says"]))
        heads = ("ratio", "training loss", "test loss", "steps to its loss", "time a step", "tempering it")
        picture = "\n".join(
            f".. figure:: images/tempering-{name}-{word}.png\n   :alt: {alt}\n\n   {alt}\n"
            for word, alt in (
                ("plain", f"{title}: the error's path in the untrained net, plain."),
                ("tempered", f"{title}: the same net, tempered."),
            )
        )
        line = "-" * len(title)
        trivial = f"The trivial loss is {task['trivial']:.4f}: whoever is not below it has learned nothing."
        parts.append(f"{title}\n{line}\n\n{trivial}\n\n{table(head, rows)}\n\n{table(heads, ratios)}\n\n{picture}")
    return "\n\n".join(parts)
