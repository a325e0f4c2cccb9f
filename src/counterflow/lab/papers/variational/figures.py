"""The paper's table and figure with our numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from counterflow.lab.papers.variational import plan
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.report.exhibit import Cell
from counterflow.lab.trials import ClaimResult, Profile, Record

__all__ = ["exhibits"]

LABELS = {
    "none": "no dropout",
    "binary": "binary dropout",
    "gaussian a": "Gaussian A",
    "gaussian b": "Gaussian B",
    "variational a": "variational A",
    "variational a2": "variational A2",
    "variational b": "variational B",
}
# A color a kind of noise: what learns is drawn through, its fixed counterpart dashed.
STYLES = {
    "none": (1, "dot"),
    "binary": (2, "dot"),
    "gaussian a": (3, "dash"),
    "gaussian b": (4, "dash"),
    "variational a": (3, "solid"),
    "variational a2": (5, "solid"),
    "variational b": (4, "solid"),
}
ROWS = {
    "local": "local reparameterization",
    "per_datum": "weight sample per data point",
    "per_minibatch": "weight sample per minibatch",
    "none": "no dropout noise",
}
COLUMNS = ("top10", "top100", "bottom10", "bottom100")


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    found = [
        _table(claims),
        *(_errors(profile, records, data, name) for data, name in (("mnist", "1a"), ("cifar10", "1b"))),
        _rates(profile, records),
        _table_of_errors(profile, records),
    ]
    return [exhibit for exhibit in found if exhibit is not None]


def _table(claims: Sequence[ClaimResult]) -> TableExhibit | None:
    results = {claim.id: claim for claim in claims}
    rows: list[list[Cell]] = []
    for estimator, name in ROWS.items():
        row: list[Cell] = [name]
        for column in COLUMNS:
            result = results.get(f"t1.{estimator}.{column}")
            row += [
                None if result is None else result.published,
                None if result is None or result.measured is None else float(f"{result.measured:.3g}"),
            ]
        rows.append(row)
    if all(cell is None for row in rows for cell in row[2::2]):
        return None
    head = ["gradient estimator"]
    for column in ("top, 10 epochs", "top, 100 epochs", "bottom, 10 epochs", "bottom, 100 epochs"):
        head += [f"{column}: published", "measured"]
    return TableExhibit(
        "Table 1: variance of the gradients of minibatches",
        "Of 1000 examples, around the gradient of the whole training set, the mean over a layer's weights.",
        head,
        rows,
    )


def _errors(profile: Profile, records: Sequence[Record], data: str, name: str) -> Figure | None:
    lines = []
    sizes = plan.HALVES[data][profile].sizes
    alone = len(sizes) == 1  # then there is no line over sizes, but a place for each method
    for method in plan.METHODS:
        points = []
        for size in sizes:
            runs = plan.runs_of(profile, records, data, method, size)
            if runs:
                errors = plan.test_errors(runs)
                points.append((size, float(np.mean(errors)), float(np.std(errors, ddof=1)) if len(errors) > 1 else 0.0))
        if points:
            x, y, spread = zip(*points, strict=True)
            number, dash = STYLES[method]
            color = f"var(--series-{number})"
            lines.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": LABELS[method],
                    "x": [LABELS[method]] if alone else list(x),
                    "y": list(y),
                    "error_y": {"type": "data", "array": list(spread), "color": color},
                    "line": {"color": color, "dash": dash},
                    "marker": {"color": color, "symbol": "circle-open" if dash == "dash" else "circle"},
                }
            )
    if not lines:
        return None
    where = "MNIST, three hidden layers" if data == "mnist" else "CIFAR-10, two convolutions and two layers"
    title = {"text": "hidden units" if data == "mnist" else "k"}
    axis = (
        {"title": {"text": f"k = {sizes[0]}"}, "type": "category", "dtick": 1}
        if alone
        else {"title": title, **_over(sizes)}
    )
    return Figure(
        f"Figure {name}: test error on {where}",
        "At the epoch that the validation error chose; mean and standard deviation over runs.",
        {
            "data": lines,
            "layout": {
                "xaxis": axis,
                "yaxis": {"title": {"text": "test error (%)"}},
                "height": 430,
                "showlegend": not alone,
                "legend": {"orientation": "h", "y": -0.25},
            },
        },
        "One point a kind of dropout." if alone else "One line a kind of dropout over the size of the net.",
    )


def _over(sizes: Sequence[int]) -> dict[str, Any]:
    """A logarithmic axis that names the sizes that there are."""
    return {"type": "log", "tickvals": list(sizes), "ticktext": [str(size) for size in sizes]}


def _rates(profile: Profile, records: Sequence[Record]) -> Figure | None:
    lines = []
    for method in ("variational a", "variational a2", "variational b"):
        points = []
        for size in plan.MNIST[profile].sizes:
            runs = plan.runs_of(profile, records, "mnist", method, size)
            if runs:
                points.append((size, float(np.mean(plan.rate_of(runs)))))
        if points:
            x, y = zip(*points, strict=True)
            line = {"color": f"var(--series-{STYLES[method][0]})"}
            marks = {"type": "scatter", "mode": "lines+markers", "name": LABELS[method], "line": line}
            lines.append({**marks, "x": list(x), "y": list(y)})
    if not lines:
        return None
    return Figure(
        "Learned dropout rates over the size of the net",
        "p = alpha / (1 + alpha), the mean over the layers but the first; all begin at .5, the bound. MNIST.",
        {
            "data": lines,
            "layout": {
                "xaxis": {"title": {"text": "hidden units"}, **_over(plan.MNIST[profile].sizes)},
                "yaxis": {"title": {"text": "mean dropout rate"}, "rangemode": "tozero"},
                "height": 380,
                "legend": {"orientation": "h", "y": -0.25},
            },
        },
        "Three lines over the size of the net.",
    )


def _table_of_errors(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    rows: list[list[Cell]] = []
    for data, half in plan.HALVES.items():
        for size in half[profile].sizes:
            for method in plan.METHODS:
                runs = plan.runs_of(profile, records, data, method, size)
                if runs:
                    errors = plan.test_errors(runs)
                    spread = f" ± {np.std(errors, ddof=1):.2g}" if len(errors) > 1 else ""
                    epochs = np.mean([plan.best_epoch(run) for run in runs])
                    error = f"{np.mean(errors):.3g}{spread}"
                    rows.append([data, size, LABELS[method], error, len(runs), float(f"{epochs:.3g}")])
    if not rows:
        return None
    return TableExhibit(
        "Figure 1 in numbers",
        "The paper draws them only.",
        ["data", "size", "method", "test error (%)", "runs", "epoch chosen"],
        rows,
    )
