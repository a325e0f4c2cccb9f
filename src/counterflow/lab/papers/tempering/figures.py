"""The paper's table 2 and figure 1 redrawn with our numbers in them, and what was tried besides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from counterflow.lab.papers.tempering.cells import CELLS, DBD, PUBLISHED, by_rate, epochs_of, judged, of_stage, searched
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.trials import ClaimResult, Profile, Record

__all__ = ["exhibits"]

LABELS = {
    "mom.conventional": "momentum",
    "mom.tempered": "momentum, tempered",
    "mom.shunted": "momentum, tempered and shunted",
    "dbd.conventional": "delta-bar-delta",
    "dbd.tempered": "delta-bar-delta, tempered",
    "dbd.shunted": "delta-bar-delta, tempered and shunted",
}
COLORS = {name: f"var(--series-{position})" for position, name in enumerate(LABELS, start=1)}


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    published = PUBLISHED
    found = [
        _table_2(profile, records, published),
        _epochs_figure(profile, records, published),
        _rates_figure(records, published),
        _figure_1(records, published),
        _curves(profile, records),
        _readings(records, published),
        _search(records),
    ]
    return [exhibit for exhibit in found if exhibit is not None]


def _mean_sd(epochs: Sequence[float]) -> str:
    """Mean and standard deviation as the paper prints them."""
    mean, deviation = float(np.mean(epochs)), float(np.std(epochs, ddof=1)) if len(epochs) > 1 else math.nan
    return f"{mean:.3g} ± {deviation:.2g}" if mean < 100 else f"{mean:.0f} ± {deviation:.0f}"


def _table_2(profile: Profile, records: Sequence[Record], published: Mapping[str, Any]) -> TableExhibit:
    rows: list[list[str | float | int | None]] = []
    for name, cell in CELLS.items():
        record = judged(profile, name, records)
        claim = published[f"t2.{name}"]
        at_published = [r for r in of_stage(records, "fresh", name) if r.settings["rate"] == cell.rate]
        rows.append(
            [
                LABELS[name],
                f"{claim['value']:g} ± {claim['spread']:g}",
                cell.rate,
                _mean_sd(epochs_of(record)) if record else None,
                float(record.settings["rate"]) if record else None,
                _mean_sd(epochs_of(at_published[0])) if at_published else None,
                len(record.seeds) if record else None,
            ]
        )
    columns = ["algorithm", "paper", "at rate", "here", "at rate", "here, at the paper's rate", "restarts"]
    caption = (
        "Epochs to learn the family relations, mean ± standard deviation; the paper's are over ten restarts. "
        "Restarts that never learned count as the limit at which they were given up."
    )
    return TableExhibit("Table 2 beside ours", caption, columns, rows)


def _epochs_figure(profile: Profile, records: Sequence[Record], published: Mapping[str, Any]) -> Figure | None:
    measured = {name: record for name in CELLS if (record := judged(profile, name, records)) is not None}
    if not measured:
        return None
    labels = {name: LABELS[name].replace(", ", "<br>").replace(" and ", "<br>and ") for name in CELLS}  # fits a phone
    claims = [published[f"t2.{name}"] for name in CELLS]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "each restart here",
            "x": [value for record in measured.values() for value in epochs_of(record)],
            "y": [labels[name] for name, record in measured.items() for _ in record.seeds],
            "marker": {"size": 5, "color": "var(--muted)", "opacity": 0.5},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "mean here",
            "x": [float(np.mean(epochs_of(record))) for record in measured.values()],
            "y": [labels[name] for name in measured],
            "marker": {"size": 12, "symbol": "diamond", "color": "var(--accent)"},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "published mean ± standard deviation",
            "x": [claim["value"] for claim in claims],
            "y": list(labels.values()),
            "error_x": {"type": "data", "array": [claim["spread"] for claim in claims], "color": "var(--ink)"},
            "marker": {"size": 11, "symbol": "line-ns-open", "color": "var(--ink)"},
        },
    ]
    layout = {
        "xaxis": {"type": "log", "title": {"text": "epochs"}},
        "yaxis": {"autorange": "reversed", "automargin": True},
        "height": 420,
        "legend": {"orientation": "h", "y": -0.25},
    }
    return Figure(
        "Epochs to learn, each restart",
        "The published means with their standard deviations, and every restart here.",
        {"data": data, "layout": layout},
        "For each of the six cells of table 2, the published mean and the restarts measured here, on a log axis.",
    )


def _rates_figure(records: Sequence[Record], published: Mapping[str, Any]) -> Figure | None:
    data: list[dict[str, Any]] = []
    for name in CELLS:
        tried = by_rate(name, records)
        if len(tried) > 1:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": LABELS[name],
                    "x": [rate for rate, *_ in tried],
                    "y": [float(np.mean(epochs) + np.std(epochs, ddof=1)) for _, epochs, _ in tried],
                    "line": {"color": COLORS[name]},
                }
            )
            claim = published[f"t2.{name}"]
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{LABELS[name]}, published",
                    "showlegend": False,
                    "x": [CELLS[name].rate],
                    "y": [claim["value"] + claim["spread"]],
                    "marker": {"symbol": "x", "size": 11, "color": COLORS[name]},
                }
            )
    if not data:
        return None
    layout = {
        "xaxis": {"type": "log", "title": {"text": "global learning rate"}},
        "yaxis": {"type": "log", "title": {"text": "epochs, mean + standard deviation"}},
        "height": 460,
        "legend": {"orientation": "h", "y": -0.25},
    }
    return Figure(
        "The choice of the global rate",
        "What the paper minimizes, at every rate tried; crosses are the published optima. Restarts that never "
        "learned count as the limit at which they were given up, which is where lines turn up steeply.",
        {"data": data, "layout": layout},
        "Lines of epochs against the global learning rate for the six cells, with the published optima as crosses.",
    )


def _figure_1(records: Sequence[Record], published: Mapping[str, Any]) -> Figure | None:
    for record in records:
        if record.treatment == "figure 1":
            layers = ["input", "association", "encoding", "answer"]
            data = [
                {
                    "type": "bar",
                    "name": "computed",
                    "x": layers,
                    "y": [float(record.metrics[layer][0] or 0.0) for layer in layers],
                    "marker": {"color": "var(--accent)"},
                },
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": "as drawn in the paper",
                    "x": layers,
                    "y": [published[f"fig1.{layer}"]["value"] for layer in layers],
                    "marker": {"symbol": "diamond", "size": 13, "color": "var(--not-reproduced)"},
                },
            ]
            layout = {"yaxis": {"type": "log", "title": {"text": "effective rate / global rate"}}, "height": 360}
            return Figure(
                "Figure 1: effective learning rates",
                "Local rate times the attenuations on the way from the output. The paper rounds down to .05, .10, ...",
                {"data": data, "layout": layout},
                "Bars of the effective rates of four layers, rising towards the output, beside the published.",
            )
    return None


def _curves(profile: Profile, records: Sequence[Record]) -> Figure | None:
    data = []
    for name in CELLS:
        record = judged(profile, name, records)
        if record is not None and record.curves.get("loss"):
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": LABELS[name],
                    "x": [1 + (epoch or 0) for epoch in record.curves["epoch"]],
                    "y": list(record.curves["loss"]),
                    "line": {"color": COLORS[name]},
                }
            )
    if not data:
        return None
    layout = {
        "xaxis": {"type": "log", "title": {"text": "epoch"}},
        "yaxis": {"type": "log", "title": {"text": "error of the restarts still learning"}},
        "height": 440,
        "legend": {"orientation": "h", "y": -0.25},
    }
    return Figure(
        "Learning curves",
        "The mean error over the restarts that still learn, so a line ends with the slowest few.",
        {"data": data, "layout": layout},
        "Falling error against epochs for the six cells, the tempered ones far to the left of the conventional ones.",
    )


def _readings(records: Sequence[Record], published: Mapping[str, Any]) -> TableExhibit | None:
    tried: dict[str, dict[str, str]] = {}
    for record in of_stage(records, "readings"):
        failed = sum(epochs is None for epochs in record.metrics["epochs"])
        learned = [float(epochs) for epochs in record.metrics["epochs"] if epochs is not None]
        text = _mean_sd(learned) if len(learned) > 1 else "–"
        if failed:
            text += f" ({failed} of {len(record.seeds)} failed)"
        tried.setdefault(str(record.settings["reading"]), {})[record.treatment] = text
    if not tried:
        return None
    columns = ["reading", *LABELS.values()]
    rows: list[list[str | float | int | None]] = [
        ["published", *(f"{published[f't2.{n}']['value']:g} ± {published[f't2.{n}']['spread']:g}" for n in CELLS)]
    ]
    rows += [[reading, *(cells.get(name) for name in CELLS)] for reading, cells in tried.items()]
    caption = (
        "Epochs at the published rates under other readings of what the paper leaves open, ten restarts each, mean ± "
        "standard deviation of those that learned. Each row changes one thing; empty cells are not concerned."
    )
    return TableExhibit("Readings that were tried", caption, columns, rows)


def _search(records: Sequence[Record]) -> TableExhibit | None:
    found = searched(records)
    if not found:
        return None
    shown: list[list[str | float | int | None]] = []
    for item in found[:20]:
        text = ", ".join(f"{name} {value}" for name, value in sorted(item.gains.items()))
        cells: list[str | float | int | None] = []
        for name in DBD:
            if name not in item.cells:
                cells.append(None)
                continue
            rate = item.best(name)
            cells.append(f"{_mean_sd(item.cells[name][rate])} at {rate:g}")
        shown.append([text, *cells, round(item.distance, 3) if math.isfinite(item.distance) else None])
    near = sum(math.isfinite(item.distance) for item in found)
    complete = sum(item.complete for item in found)
    caption = (
        f"The first 20 of {len(found)} combinations of delta-bar-delta's details, on ten restarts that serve for "
        f"nothing else. All were tried at the published rates, where {near} came within a factor of two on the "
        f"tempered cells; the nearest {complete} of these at two other rates a cell as well. Shown are the epochs at "
        "the best rate; restarts that never learned count as the limit. Those whose best rates are the published ones "
        "lead; distance is the sum of |log(mean / published)| over the cells. The first is the default reading."
    )
    columns = ["details", "conventional", "tempered", "tempered and shunted", "distance"]
    return TableExhibit("The search for delta-bar-delta", caption, columns, shown)
