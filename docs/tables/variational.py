"""Noise on weights: its divergence and its cost."""

from __future__ import annotations

from .markup import MET, plain, record, table


def accuracy_of_divergences() -> str:
    """How far the approximations of the divergence lie from numerical integration of Dawson's function."""
    import numpy as np
    import torch
    from scipy.special import dawsn

    from counterflow.variational import dropout_kl

    at = np.arange(-8, 9, 2)
    rows = []
    for log_alpha in at:
        root = np.sqrt(0.5 * np.exp(-float(log_alpha)))
        cells = [f"{log_alpha}", f"{-root * dawsn(root):.5f}"]
        for kind in ("exact", "sigmoid", "polynomial"):
            if kind == "polynomial" and log_alpha > 0:
                cells.append("refused")
                continue
            rate = torch.tensor(float(log_alpha), dtype=torch.float64, requires_grad=True)
            dropout_kl(rate, kind, 1.0 if kind == "polynomial" else None).backward()
            cells.append(f"{abs(float(rate.grad) + root * dawsn(root)):.0e}")
        rows.append(tuple(cells))
    heads = (
        ":math:`\\log\\alpha`",
        ":math:`d KL / d\\log\\alpha`",
        "exact: off by",
        "sigmoid: off by",
        "polynomial: off by",
    )
    return table(heads, rows)


def benchmark_of_noise() -> str:
    """What ``benchmarks/variational.py`` found when its committed results were made."""
    found = record("variational")
    rows = [
        (
            plain(row["treatment"]),
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            "" if row["bar"] is None else f"{row['bar']:g}",
            MET[row["pass"]],
        )
        for row in found["rows"]
    ]
    head = ("noise and rates, or package", "over the plain net", "at most", "target")
    missing = "".join(f" {text[0].upper()}{text[1:]}." for text in found["missing"])
    blocks = (
        f" Gradients of weights in blocks that stay in the cache take {found['in blocks']:.2f} of whole ones' time."
    )
    memory = " Freed memory is kept by the process." if found["keeps memory"] else ""
    said = f"Medians and quartiles of {found['repeats']} steps, torch {found['torch']}.{memory}{missing}"
    return f"{said}\n\n{table(head, rows)}\n\n{blocks.strip()}"
