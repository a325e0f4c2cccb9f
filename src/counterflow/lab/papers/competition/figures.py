"""The paper's tables and figure 3 with our numbers in them, and the whole grid behind table 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from counterflow.lab.papers.competition import plan
from counterflow.lab.papers.competition.digits import PAIRS
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.report.exhibit import Cell
from counterflow.lab.trials import ClaimResult, Profile, Record, available, find

__all__ = ["exhibits"]

LAYERS = ("first layer", "second layer", "last layer")
NAMES = {
    "sigmoid": "sigmoid",
    "relu": "ReLU",
    "dropout": "ReLU + dropout in hidden layers",
    "dropout input": "ReLU + dropout in hidden and input layers",
    "lwta": "LWTA-2",
}


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    found = [
        _table_2(profile, records, claims),
        _tried(profile, records),
        _table_3(profile, records),
        _sentiment(profile, records, claims),
        _text_rates(profile, records),
        _table_4(profile, records, claims),
        *(_matrix(profile, records, layer) for layer in range(3)),
        _pairs(profile, records),
        _curves(profile, records),
    ]
    return [exhibit for exhibit in found if exhibit is not None]


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"


def _published(claims: Sequence[ClaimResult]) -> dict[str, float | None]:
    return {claim.id: claim.published for claim in claims}


def _tests(runs: Sequence[Record]) -> list[float]:
    return [run.metrics["test"][0] for run in runs if run.metrics["test"][0] is not None]


def _table_2(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> TableExhibit | None:
    published = _published(claims)
    rows: list[list[Cell]] = []
    shown = [(method, name, plan.judged(profile, method, records)) for method, name in NAMES.items()]
    shown.append(("lwta", "LWTA-2, to the last epoch", available(records, plan.whole_trials(profile, records))))
    for method, name, runs in shown:
        if runs:
            units = " x ".join(str(u) for u in plan.PERCEPTRONS[profile].units[method])
            epochs = float(np.mean([plan.number(run, "epochs") for run in runs]))
            row: list[Cell] = [name, units, published.get(f"t2.{method.replace(' ', '_')}"), _spread(_tests(runs))]
            rows.append([*row, len(runs), str(runs[0].settings["rate"]), round(epochs, 1)])
    if not rows:
        return None
    return TableExhibit(
        "Table 2: permutation-invariant MNIST",
        "All but LWTA-2 are cited by the paper; here each is run again at the size of its source. Mean and standard "
        "deviation over runs; the rate was chosen on the last 10,000 training pictures. A run ends once its mean "
        f"training error is below {plan.CONVERGED:g}, but for those to the last epoch, which judge no claim.",
        ["activation", "hidden units", "published (%)", "test error (%)", "runs", "rate", "epochs"],
        rows,
    )


def _tried(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    rows: list[list[Cell]] = []
    for method, name in NAMES.items():
        for rate, trial in plan.rate_trials(profile, method).items():
            for run in find(records, [trial]):
                rows.append([name, str(rate), run.metrics["held"][0]])
    for (reading, rate), trial in plan.setting_trials(profile).items():
        for run in find(records, [trial]):
            rows.append([f"convolutional, decay {plan.READINGS[reading]:g}", str(rate), run.metrics["held"][0]])
    if not rows:
        return None
    return TableExhibit(
        "What chose rates and weight decay",
        "Short runs on all but the last 10,000 training pictures, and the error on those.",
        ["net", "rate", "error on pictures held out (%)"],
        rows,
    )


def _table_3(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    rows: list[list[Cell]] = []
    best = plan.best_setting(profile, records)
    if best is None:
        return None
    chosen, rate = best
    for reading in (chosen, "none"):
        runs = available(records, plan.conv_trials(profile, reading, rate))
        if runs:
            rows.append([f"{plan.READINGS[reading]:g}", str(rate), _spread(_tests(runs)), len(runs)])
    if not rows:
        return None
    return TableExhibit(
        "Table 3: two rectified convolutions, two layers of LWTA-2",
        "With the rate and weight decay that the held-out pictures chose, and without decay. Published is 0.57%.",
        ["weight decay", "rate", "test error (%)", "runs"],
        rows,
    )


def _sentiment(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> TableExhibit | None:
    published = _published(claims)
    rows: list[list[Cell]] = []
    size = plan.TEXTS[profile]
    for titles in size.titles:
        for domain in size.domains:
            for run in find(records, plan.text_trials(profile, domain, titles, records)):
                kind = "title" if titles else "text"
                names = ("lwta all", "logistic all", "lwta unique", "logistic unique")
                means = [f"{np.mean(plan.accuracies(run, name)):.2f}" for name in names]
                repeated = int(sum(v or 0 for v in run.metrics["repeated"]))
                row: list[Cell] = [
                    domain,
                    "title and text" if titles else "text",
                    published.get(f"s.{domain}.{kind}.all"),
                    str(run.settings["rate"]),
                ]
                rows.append([*row, *means, repeated])
    if not rows:
        return None
    head = ["domain", "read", "published (%)", "rate", "LWTA-2 (%)", "logistic (%)"]
    return TableExhibit(
        "Sentiment: accuracy over ten folds",
        "The last columns leave out reviews whose text stands in another fold too. The logistic regression has the "
        "same words, and chooses its penalty inside the folds that it learns from; the net's rate is the one that is "
        "best for the other domains.",
        [*head, "LWTA-2, unique", "logistic, unique", "left out"],
        rows,
    )


def _text_rates(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    rows: list[list[Cell]] = []
    size = plan.TEXTS[profile]
    for titles in size.titles:
        for domain in size.domains:
            found = plan.text_rates(profile, domain, titles, records)
            best = max(found, key=lambda rate: found[rate], default=None)
            for rate, mean in found.items():
                what = "title and text" if titles else "text"
                rows.append([domain, what, str(rate), f"{mean:.2f}", "chosen" if rate == best else ""])
    if not rows:
        return None
    return TableExhibit(
        "What chose the rates of sentiment nets",
        f"Mean accuracy on {len(size.choosing[1])} of ten folds of each other domain; none has a say in its own rate.",
        ["domain", "read", "rate", "accuracy on the others (%)", "choice"],
        rows,
    )


def _table_4(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> TableExhibit | None:
    published = _published(claims)
    rows: list[list[Cell]] = []
    for cell in plan.CELLS:
        for activation in plan.ACTIVATIONS:
            runs = available(records, plan.forgetting_trials(profile, activation, cell))
            if runs:
                values = {m: [plan.number(run, m) for run in runs] for m in runs[0].metrics}
                epochs = " and ".join(f"{np.mean(values[f'epochs {task}']):.1f}" for task in ("first", "second"))
                row: list[Cell] = [f"rate {cell[0]:g}, momentum {cell[1]:g}", NAMES[activation]]
                for claim, metric in (("after1", "before"), ("after2", "after")):
                    row += [published.get(f"t4.{claim}.{activation}"), _spread(values[metric])]
                rows.append([*row, _spread(values["second"]), epochs, len(runs), int(sum(values["reached"]))])
    if not rows:
        return None
    head = ["setting", "activation", "after P1: published", "measured (%)", "after P2: published", "measured (%)"]
    return TableExhibit(
        "Table 4: test error on P1 before and after learning P2",
        "Mean and standard deviation over initializations. Rate and momentum are not in the paper; all that were tried "
        "are here. The last columns: the error on P2, the epochs that both tasks took, runs, and how many of them came "
        "down to the goal.",
        [*head, "on P2 (%)", "epochs", "runs", "reached"],
        rows,
    )


def _mean_overlap(profile: Profile, records: Sequence[Record], name: str) -> list[float]:
    runs = plan.judged(profile, "lwta", records)
    return np.mean([np.array(run.curves[name], float) for run in runs], axis=0).tolist() if runs else []


def _matrix(profile: Profile, records: Sequence[Record], layer: int) -> Figure | None:
    shares = _mean_overlap(profile, records, f"trained {layer}")
    if not shares:
        return None
    z: list[list[float]] = [[0.0] * 10 for _ in range(10)]
    for (first, second), share in zip(PAIRS, shares, strict=True):
        z[first][second] = z[second][first] = share
    return Figure(
        f"Figure 3a: units in common, {LAYERS[layer]}",
        "Of the representative subnetworks of each pair of digits, over the units active for one input; mean of runs.",
        {
            "data": [{"type": "heatmap", "z": z, "zmin": 0, "colorscale": "Viridis"}],
            "layout": {
                "xaxis": {"title": {"text": "digit"}, "dtick": 1},
                "yaxis": {"title": {"text": "digit"}, "dtick": 1, "autorange": "reversed"},
                "height": 420,
            },
        },
        "A matrix of ten by ten digits.",
    )


def _pairs(profile: Profile, records: Sequence[Record]) -> Figure | None:
    lines: list[dict[str, Any]] = []
    for layer, name in enumerate(LAYERS):
        for when in ("untrained", "trained"):
            shares = _mean_overlap(profile, records, f"{when} {layer}")
            if shares:
                color = {"color": f"var(--series-{layer + 1})"}
                mark = {**color, "symbol": "circle" if when == "trained" else "circle-open"}
                point = {"type": "scatter", "mode": "markers", "name": f"{when}, {name}", "marker": mark}
                lines.append({**point, "y": shares, "text": [f"{a} and {b}" for a, b in PAIRS]})
    if not lines:
        return None
    return Figure(
        "Figure 3b: units in common of the 55 pairs of digits, before and after training",
        "Each digit with itself too. The mean over runs.",
        {
            "data": lines,
            "layout": {
                "xaxis": {"title": {"text": "pairs of digits"}},
                "yaxis": {"title": {"text": "fraction of units in common"}, "rangemode": "tozero"},
                "height": 430,
                "legend": {"orientation": "h", "y": -0.25},
            },
        },
        "Points over 55 pairs, three layers before and after training.",
    )


def _curves(profile: Profile, records: Sequence[Record]) -> Figure | None:
    lines = []
    for number, (method, name) in enumerate(NAMES.items(), 1):
        for place, run in enumerate(plan.judged(profile, method, records)):
            line = {"color": f"var(--series-{number})"}
            trace = {"type": "scatter", "mode": "lines", "name": name, "legendgroup": method, "line": line}
            lines.append({**trace, "y": list(run.curves["test"])[1:], "x0": 1, "showlegend": place == 0})
    if not lines:
        return None
    return Figure(
        "Test error over epochs",
        "Permutation-invariant MNIST, one line a run. A run ends where its training error has converged.",
        {
            "data": lines,
            "layout": {
                "xaxis": {"title": {"text": "epoch"}},
                "yaxis": {"title": {"text": "test error (%)"}, "type": "log"},
                "height": 430,
                "legend": {"orientation": "h", "y": -0.25},
            },
        },
        "Lines that fall over the epochs.",
    )
