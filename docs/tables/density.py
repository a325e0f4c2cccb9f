"""Banks of hidden Markov models."""

from __future__ import annotations

from typing import Any

from .markup import MET, record, table


def benchmark_of_density() -> str:
    """What ``benchmarks/density.py`` found when its committed results were made."""
    found = record("density")
    heads = ("beside", "theirs, ms", "ours, ms", "times faster", "on the wall", "at least", "target")
    rows, missing = [], set()

    def add(name: str, theirs: float, ours: float, row: dict[str, Any]) -> None:
        spread = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        cells = (f"{theirs:.2f}", f"{ours:.2f}", spread, f"{row['wall']:.2f}", f"{row['bar']:g}", MET[row["pass"]])
        rows.append((name, *cells))

    for size in found["one"]:
        for peer, row in size["faster than"].items():
            times = size["milliseconds"]
            add(f"S = {size['states']}: {peer}", times[peer], times["ours"], row)
        missing |= set(size["missing"])
    for pair, row in found["paper"]["faster than"].items():
        ours, _, peer = pair.partition(" / ")
        times = found["paper"]["milliseconds"]
        add(f"the paper's size, {ours}: {peer}", times[peer], times[ours], row)
    floors = ", ".join(f"{size['estimated floor']:g} (S = {size['states']})" for size in found["one"])
    cost, cold = found["cost"], found["cold"]
    powers = ", ".join(f"{what} {power:.2f}" for what, power in cost["powers"].items())
    lines = [
        f"Medians and quartiles within one run of the least of a few calls, {found['threads']} thread, torch "
        f"{found['torch']}. {found['machine']}",
        table(heads, rows),
        f"Estimated floor of products and exponentials alone, in ms: {floors}.",
        f"Time grows with the power of: {powers}.",
        f"Kept for going back: at most {cost['kept at most']:.2f} of the posteriors (at most {cost['bar']:g}: "
        f"{MET[cost['pass']]}).",
        f"The first call with cached kernels: {cold['seconds']:.2f} s (at most {cold['bar']:g}: "
        f"{MET[cold['pass']]}), of which numba loads for {cold['numba loads']:.2f} s, once in a process; imports "
        f"before it take {cold['imports']:.2f} s.",
    ]
    if "dynamax" in cold:
        theirs = cold["dynamax"]
        lines.append(
            f"The first call of dynamax, measured in the same way: {theirs['seconds']:.2f} s, nearly all of it "
            f"compiling, and again for every new shape; imports before it take {theirs['imports']:.2f} s."
        )
    if missing:
        lines.append(f"Not installed when this was measured: {', '.join(sorted(missing))}.")
    return "\n\n".join(lines)
