"""What the examples of combinations share: ways of training beside each other, and the error's path through a model.

A way has one score a seed, and all ways have the same seeds: data, order and first weights. So differences are paired.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

import counterflow as cf
from counterflow.lab.stats import contrast, sample_term

__all__ = ["THEMES", "Comparison", "compare", "error_path"]

EDGE = "(edge)"  # beside a rate; what it means stands below the table

THEMES = {
    "light": {"ink": "#1f2328", "soft": "#636c76", "grid": "#d8dee4", "one": "#0969da", "two": "#bc4c00"},
    "dark": {"ink": "#e6edf3", "soft": "#9198a1", "grid": "#30363d", "one": "#58a6ff", "two": "#f0883e"},
}


def error_path(
    model: nn.Module, step: Callable[[], Any], layers: str | Sequence[str] | Mapping[str, str] | None = None
) -> dict[str, float]:
    """The error's RMS at each layer, from the output to the input, in one call of ``step``, which goes backward.

    A mapping has what layers are called in a picture, where their names say nothing.
    """
    called = layers if isinstance(layers, Mapping) else {}
    with cf.probe(model, list(layers) if isinstance(layers, Mapping) else layers, every=1) as seen:
        step()
    rows = [row for row in seen.table() if row.values.get("rms") is not None]
    return {called.get(row.layer, row.layer): float(row.values["rms"] or 0.0) for row in reversed(rows)}


def compare(
    measure: str,
    ways: Sequence[str],
    rates: Sequence[float] | Mapping[str, Sequence[float]],
    score: Callable[[str, float, int], float],
    seeds: int,
    asked: Sequence[tuple[str, str]] = (),
    tuning: int = 2,
) -> Comparison:
    """Give each way the best of the same rates, chosen on seeds that it is not judged by, and judge it.

    Args:
        measure: What a score is; less is better.
        ways: Their names.
        rates: Learning rates, the same for all; or of each way.
        score: From a way, a rate and a seed to a score; infinite or not a number where training diverged.
        seeds: How many each way is judged by.
        asked: As `Comparison`.
        tuning: On how many seeds a rate is chosen; on no more than it is judged by.
    """
    found = Comparison(measure, {way: [] for way in ways}, list(asked))
    for way in ways:
        tried = rates[way] if isinstance(rates, Mapping) else rates
        best = tried[0]
        if len(tried) > 1:
            kept = range(1000, 1000 + min(seeds, tuning))
            tuned = {rate: fmean(_worst(score(way, rate, seed)) for seed in kept) for rate in tried}
            best = min(tried, key=tuned.__getitem__)
            found.notes[way] = {"rate": f"{best:g}{f' {EDGE}' if best in (min(tried), max(tried)) else ''}"}
        found.rates[way] = best
        found.scores[way] = [score(way, best, seed) for seed in range(seeds)]
    return found


def _worst(score: float) -> float:
    return score if math.isfinite(score) else math.inf


@dataclass
class Comparison:
    """Scores of several ways over the same seeds.

    Args:
        measure: What a score is; less is better.
        scores: Of each way, one a seed. The last way is the combination, unless ``asked`` says otherwise.
        asked: Pairs of ways: does the first do better than the second?
        notes: Of a way, further words for its row, by heading.
        paths: Of each state of a model, the error's size at each layer, from the output to the input.
        heading: Of the picture of the paths.
        rates: The rate that was chosen for each way.
    """

    measure: str
    scores: dict[str, list[float]]
    asked: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    paths: dict[str, dict[str, float]] = field(default_factory=dict)
    heading: str = ""
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.asked:
            *others, last = self.scores
            self.asked = [(last, other) for other in others]

    def rows(self) -> list[dict[str, str]]:
        """The table, a dictionary a way."""
        found = []
        for way, scores in self.scores.items():
            mean, low, high = _interval(scores)
            row = {"way": way, "mean": _short(mean), "95% interval": f"{_short(low)} to {_short(high)}"}
            found.append(row | self.notes.get(way, {}))
        return found

    def answers(self) -> list[str]:
        """What the scores say to each pair that is asked about: the paired difference, and what follows from it."""
        lines = []
        for one, other in self.asked:
            differences = [a - b for a, b in zip(self.scores[one], self.scores[other], strict=True)]
            mean, low, high = _interval(differences)
            if high < 0:
                verdict = "better"
            elif low > 0:
                verdict = "worse"
            elif low == high == 0:
                verdict = "the same"
            else:
                verdict = "no difference found"
            sizes = f"{mean:+.3g}, 95% interval {low:+.3g} to {high:+.3g}"
            ends = [way for way in (one, other) if verdict in ("better", "worse") and self._at_edge(way)]
            but = f"; at a rate at the edge: {' and '.join(ends)}" if ends else ""
            lines.append(f"{one}, compared with {other}: {verdict} ({sizes}){but}")
        return lines

    def legend(self) -> str:
        """What the marks in the table mean; nothing where there are none."""
        if not any(map(self._at_edge, self.scores)):
            return ""
        return f"{EDGE}: the best rate was the least or the largest of those tried, and one beyond may do better."

    def _at_edge(self, way: str) -> bool:
        return EDGE in self.notes.get(way, {}).get("rate", "")

    def __str__(self) -> str:
        rows = self.rows()
        head = list(dict.fromkeys(name for row in rows for name in row))
        cells = [head, *([row.get(name, "") for name in head] for row in rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
        title = f"{self.measure}; {len(next(iter(self.scores.values())))} seeds, less is better"
        legend = ["", self.legend()] if self.legend() else []
        return "\n".join([title, "", *(line.rstrip() for line in lines), *legend, "", *self.answers()])

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers and words."""
        return {
            "measure": self.measure, "scores": self.scores, "asked": [list(pair) for pair in self.asked],
            "notes": self.notes, "paths": self.paths, "heading": self.heading,
        }  # fmt: skip

    def draw(self, picture: str | os.PathLike[str], theme: str = "light", transparent: bool = False) -> None:
        """Draw the paths, the first as the state before and the last as that after; needs matplotlib."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        color = THEMES[theme]
        names = list(next(iter(self.paths.values())))
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        figure.patch.set_alpha(0.0 if transparent else 1.0)
        axes = figure.subplots()
        axes.patch.set_alpha(0.0)
        lines = [color["soft"], *([color["two"]] if len(self.paths) > 2 else []), color["one"]]
        for (name, path), line in zip(self.paths.items(), lines, strict=False):
            sizes = [value if value > 0 else math.nan for value in path.values()]
            axes.plot(range(len(sizes)), sizes, color=line, linewidth=1.8, marker="o", markersize=4.5, label=name)
        axes.set_yscale("log")
        sizes = [value for path in self.paths.values() for value in path.values() if value > 0]
        # A decade at least, so that a flat path looks flat.
        middle, half = math.log10(min(sizes) * max(sizes)) / 2, max(math.log10(max(sizes) / min(sizes)) / 2, 0.5)
        axes.set_ylim(10 ** (middle - 1.15 * half), 10 ** (middle + 1.15 * half))
        # Powers of ten alone would label a decade or less with one line.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if half < 1 else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("RMS of the error", fontsize=9.5, color=color["soft"])
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("the error's way back, from the output to the input", fontsize=9.5, color=color["soft"])
        axes.set_title(self.heading, loc="left", fontsize=11, fontweight="bold", color=color["ink"])
        axes.tick_params(colors=color["soft"], labelsize=9, length=0)
        axes.grid(True, axis="y", color=color["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        figure.legend(
            loc="outside lower center", ncols=len(self.paths), fontsize=9, frameon=False, labelcolor=color["ink"]
        )
        target = Path(picture)
        scratch = target.with_name(f".{target.stem}-{os.getpid()}{target.suffix}")
        try:
            figure.savefig(scratch, dpi=110)
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)

    def show(self, picture: str = "") -> Comparison:
        """Print the table, and draw the picture if it has a name."""
        print(self)
        if picture:
            self.draw(picture)
            print(f"Picture: {picture}")
        return self


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 95% interval by Student's t; infinite for a single seed."""
    if len(values) < 2:
        return fmean(values), -math.inf, math.inf
    return contrast([sample_term(values, scale="linear")])


def _short(value: float) -> str:
    return f"{value:.3g}"
