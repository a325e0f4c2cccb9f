"""The paper's tables and its figure 3 with our numbers in them, and the controls that it does not have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from counterflow.lab.papers.separation import plan
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.report.exhibit import Cell
from counterflow.lab.trials import ClaimResult, Profile, Record

__all__ = ["exhibits"]

LABELS = {
    "mlp": "MLP",
    "ica": "ICA",
    "att": "attention",
    "gamma0": "as many passes with gamma = 0",
    "inverse": "attention by the inverse map",
    "oracle": "attention told the true words",
    "half": "adapted on one half, scored on the other",
}
NAMES = {"engine": "noise of an engine (the paper: F-16)", "babble": "babble"}
LEVELS = {"clean": "clean", "15": "15 dB", "10": "10 dB", "5": "5 dB"}


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    found: list[Exhibit] = []
    for table, noise in plan.NOISES.items():
        of = plan.runs_of(profile, records, noise)
        if of:
            found += [_table(claims, table, noise), _controls(of, noise), _pairs(of, noise)]
    of = plan.runs_of(profile, records, plan.NOISES["t1"])
    if of:
        found.append(_figure(of, "gamma", plan.GAMMAS, "for three weights of attention"))
    rates, by_rate = plan.rates_of(profile, records)
    if by_rate and len(rates) > 1:
        found.append(_figure(by_rate, "rate", rates, "for learning rates of so many times that of ICA"))
    for kind, title, caption in (
        (
            "speakers",
            "Speakers held out",
            "Two speakers whom the classifier has never heard: its targets are wrong before there is any noise.",
        ),
        (
            "microphones",
            "Microphones that saturate",
            "tanh(2 x / rms) at each microphone, section 2.2's h: what is heard is no linear mixture. Ours.",
        ),
    ):
        for noise in plan.NOISES.values():
            of = plan.runs_of(profile, records, noise, kind)
            if of:
                found.append(_rates(of, f"{title}: {NAMES[noise]}", caption))
    return found


def _table(claims: Sequence[ClaimResult], table: str, noise: str) -> TableExhibit:
    results = {claim.id: claim for claim in claims}
    rows: list[list[Cell]] = []
    for method in ("mlp", "ica", "att"):
        for split in plan.SPLITS:
            row: list[Cell] = [f"{LABELS[method]}, {'training' if split == 'train' else 'test'} data"]
            for level in plan.SNRS:
                result = results.get(f"{table}.{method}.{split}.{level}")
                row.append(None if result is None else result.published)
                row.append(None if result is None or result.measured is None else float(f"{result.measured:.3g}"))
            rows.append(row)
    head = ["recognized (%)"]
    for name in LEVELS.values():
        head += [f"{name}: published", "measured"]
    return TableExhibit(f"Table {table[1]}: {NAMES[noise]}", "Spoken digits stand for the paper's words.", head, rows)


def _controls(of: Sequence[Record], noise: str) -> TableExhibit:
    return _rates(
        of,
        f"Controls: {NAMES[noise]}",
        "Attention has to do better than as many passes without it; the true words as targets show what wrong targets "
        "cost; matrices adapted on one half of the words and scored on the other, whether it learns the words.",
    )


def _rates(of: Sequence[Record], title: str, caption: str) -> TableExhibit:
    names = [f"{split} {level}" for split in plan.SPLITS for level in LEVELS if f"{split} {level} mlp" in of[0].curves]
    rows: list[list[Cell]] = [
        [LABELS[method], *(float(f"{plan.wrong(of, f'{name} {method}').mean():.3g}") for name in names)]
        for method in plan.METHODS
    ]
    words = {"train": "training data", "test": "test data"}
    head = [f"{words[split]}, {LEVELS[level]}" for split, level in map(str.split, names)]
    return TableExhibit(title, caption, ["not recognized (%)", *head], rows)


def _pairs(of: Sequence[Record], noise: str) -> TableExhibit:
    """McNemar's exact test, word by word and room by room."""
    rows: list[list[Cell]] = []
    for split in plan.SPLITS:
        for level, name in LEVELS.items():
            for other in ("ica", "gamma0"):
                att, against = (
                    np.concatenate([np.array(record.curves[f"{split} {level} {m}"], float) for record in of])
                    for m in ("att", other)
                )
                mended, broken = int(((against == 1) & (att == 0)).sum()), int(((against == 0) & (att == 1)).sum())
                p = float(binomtest(broken, mended + broken).pvalue) if mended + broken else 1.0
                what = f"{'training' if split == 'train' else 'test'} data, {name}"
                rows.append([what, f"attention / {LABELS[other]}", mended, broken, float(f"{p:.2g}")])
    return TableExhibit(
        f"Words that attention mended and broke: {NAMES[noise]}",
        "Over all rooms; p is McNemar's, exact and two-sided, as if rooms shared no words.",
        ["words", "pair", "mended", "broken", "p"],
        rows,
    )


def _figure(of: Sequence[Record], kind: str, values: Sequence[float], what: str) -> Figure:
    lines, layout = [], {}
    for panel, (level, name) in enumerate(LEVELS.items(), 1):
        for number, value in enumerate(values, 1):
            rates = np.mean([np.array(record.curves[f"{kind} {level} {value:g}"], float) for record in of], 0)
            lines.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{kind} = {value:g}",
                    "legendgroup": f"{value:g}",
                    "showlegend": panel == 1,
                    "x": list(range(len(rates))),
                    "y": rates.tolist(),
                    "xaxis": f"x{panel}",
                    "yaxis": f"y{panel}",
                    "line": {"color": f"var(--series-{number})"},
                }
            )
        layout[f"xaxis{panel}"] = {"title": {"text": f"pass, {name}"}, "anchor": f"y{panel}"}
        layout[f"yaxis{panel}"] = {"title": {"text": "not recognized (%)"}, "anchor": f"x{panel}"}
    grid = {"rows": 2, "columns": 2, "pattern": "independent"}
    return Figure(
        f"Figure 3: false recognition rates by pass, by {kind}",
        f"Training data, noise of an engine, the mean over rooms, {what}.",
        {"data": lines, "layout": {**layout, "grid": grid, "height": 620, "legend": {"orientation": "h", "y": -0.15}}},
        "Four panels, clean speech and three levels of noise, with three lines each over the passes.",
    )
