"""Noise controllers."""

from __future__ import annotations

from .markup import MET, record, table


def benchmark_of_noise_control() -> str:
    """What ``benchmarks/noise_control.py`` found when its committed results were made."""
    found = record("noise_control")
    bars = found["bars"]
    learned = found["perceptron"]
    targets = [
        (
            "perceptron 25-10-1, connection updates a second",
            f"{learned['updates'] / 1e6:.0f} million",
            f"at least {bars['updates'] / 1e6:.0f} million",
            MET[learned["pass"]["updates"]],
        ),
        (
            "the same over torch's autograd, sample by sample",
            f"{learned['autograd']:.0f} times",
            f"at least {bars['autograd']:.0f}",
            MET[learned["pass"]["autograd"]],
        ),
    ]
    targets += [
        (
            f"{row['filter']}, {row['taps']} taps, over padasip (outputs {row['apart']:.0e} apart)",
            f"{row['ratio']:.0f} times",
            f"at least {row['bar']:.0f}",
            MET[row["pass"]],
        )
        for row in found["filters"]
    ]
    targets += [
        (
            f"chip, {row['device']}, over the perceptron",
            f"{row['ratio']:.1f} times",
            "" if row["bar"] is None else f"at most {row['bar']:g}",
            MET[row["pass"]],
        )
        for row in found["chip"]
    ]
    times = [("perceptron", f"{learned['nanoseconds']:.0f}", f"{learned['real-time factor']:.5f}")]
    times += [
        (row.get("filter") or row["controller"], f"{row['nanoseconds']:.0f}", f"{row['real-time factor']:.5f}")
        for row in (*found["filters"], *found["others"])
    ]
    grown = [
        (
            f"{row['samples']:,}",
            f"{row['connections']:,}",
            f"{row['nanoseconds a sample']:.0f}",
            f"{row['picoseconds a connection']:.0f}",
        )
        for row in found["scaling"]
    ]
    return "\n\n".join(
        [
            f"{found['machine']}, numba {found['numba']}, torch {found['torch']}.",
            table(("what", "measured", "target", ""), targets),
            table(("controller", "nanoseconds a sample", "real-time factor at 16 kHz"), times),
            table(("samples", "connections", "nanoseconds a sample", "picoseconds a connection"), grown),
            *(f"{text[0].upper()}{text[1:]}." for text in found.get("missing", ())),
        ]
    )
