"""The paper's figures redrawn with our numbers in them, and the tables that go with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from counterflow.lab.papers.whitening import deep, fisher, plan, plan_classifiers, vgg
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.report.exhibit import Cell
from counterflow.lab.trials import ClaimResult, Profile, Record, find

__all__ = ["exhibits"]

LABELS = {
    "sgd": "SGD with momentum",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "bn": "batch normalization",
    "prong": "PRONG",
    "prong+": "PRONG+",
}
COLORS = {name: f"var(--series-{number})" for number, name in enumerate(LABELS, 1)}


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    found = [
        *_fisher_matrices(profile, records),
        _condition_numbers(profile, records),
        _epsilons(profile, records),
        _periods(profile, records),
        _updates(profile, records),
        _seconds(profile, records),
        _judged(profile, records),
        _rates(profile, records),
        _costs(profile, records),
        _cifar(profile, records),
        _cifar_table(profile, records),
        _deep(profile, records),
    ]
    return [exhibit for exhibit in found if exhibit is not None]


def _line(x: Sequence[Any], y: Sequence[Any], name: str, color: str, **more: Any) -> dict[str, Any]:
    line = {"color": color, **more.pop("line", {})}
    return {"type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": list(y), "line": line, **more}


def _layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": x}, **more.pop("xaxis", {})},
        "yaxis": {"title": {"text": y}, **more.pop("yaxis", {})},
        "height": 430,
        "legend": {"orientation": "h", "y": -0.25},
        **more,
    }


def _mean_curve(runs: Sequence[Record], name: str) -> list[float | None]:
    """The geometric mean over seeds, point by point, as far as all runs have the curve."""
    points = zip(*(run.curves[name] for run in runs), strict=False)
    return [
        None if None in values else float(np.exp(np.mean(np.log([max(v or 0.0, 1e-12) for v in values]))))
        for values in points
    ]


def _spread(samples: Sequence[float]) -> str:
    """Mean and standard deviation."""
    mean = float(np.mean(samples))
    return f"{mean:.3g} ± {np.std(samples, ddof=1):.1g}" if len(samples) > 1 else f"{mean:.3g}"


# Figure 2


def _figure_2_runs(profile: Profile, records: Sequence[Record]) -> dict[str, list[Record]]:
    planned = plan.figure_2_trials(profile)
    return {
        method: find(records, [trial for trial in planned if trial.treatment == f"figure 2 {method}"])
        for method in fisher.METHODS
    }


def _fisher_matrices(profile: Profile, records: Sequence[Record]) -> list[Figure]:
    runs = _figure_2_runs(profile, records)["prong"]
    if not runs:
        return []
    found = []
    for name, title in (("before", "Figure 2a: before whitening"), ("after", "Figure 2b: after whitening")):
        values = np.array(runs[0].curves[name], dtype=float)
        side = round(len(values) ** 0.5)
        # Entries span decades; the largest is 1 in both pictures, as the condition number takes no notice of scale.
        grid = np.log10(np.maximum(values.reshape(side, side) / values.max(), 1e-4))
        heat = {
            "type": "heatmap",
            "z": np.round(grid, 2).tolist(),
            "zmin": -4,
            "zmax": 0,
            "colorscale": "Viridis",
            "colorbar": {"title": {"text": "log10"}},
        }
        layout = _layout("parameter", "parameter", yaxis={"autorange": "reversed", "scaleanchor": "x"}, height=460)
        found.append(
            Figure(
                title,
                f"Absolute entries of the Fisher matrix, the first {side} weights into the middle hidden layer, over "
                "the largest of them, on a logarithmic scale.",
                {"data": [heat], "layout": layout},
                "A matrix with bright bands everywhere."
                if name == "before"
                else "A matrix whose bright entries lie in blocks' diagonals, and which is darker elsewhere.",
            )
        )
    return found


def _condition_numbers(profile: Profile, records: Sequence[Record]) -> Figure | None:
    runs = {method: of for method, of in _figure_2_runs(profile, records).items() if of}
    if not runs:
        return None
    data = [
        _line(
            of[0].curves["update"], _mean_curve(of, "condition"), LABELS[method], COLORS[method], mode="lines+markers"
        )
        for method, of in runs.items()
    ]
    last = max(float(x or 0.0) for x in next(iter(runs.values()))[0].curves["update"])
    data.append(_line([0, last], [0.05, 0.05], "a reduction of 95%", "var(--muted)", line={"dash": "dot"}))
    return Figure(
        "Figure 2c: condition number of the Fisher matrix",
        "Of the whole matrix, relative to its value before training and before the first reparametrization; the "
        "geometric mean over seeds. Learning rates bring all methods to about the same training error.",
        {"data": data, "layout": _layout("updates", "condition number / initial", yaxis={"type": "log"})},
        "Four curves; PRONG's begins lowest by far.",
    )


# Figure 3a-b


def _epsilons(profile: Profile, records: Sequence[Record]) -> Figure | None:
    data = []
    for number, epsilon in enumerate(plan.epsilons_of(profile), 1):
        grid = plan.rate_trials(profile, "prong", epsilon)
        runs = {rate: find(records, [trial]) for rate, trial in grid.items()}
        if all(runs.values()):
            errors = [plan.final(of[0]) for of in runs.values()]
            color = f"var(--series-{number})"
            data.append(_line([*runs], errors, f"epsilon = {epsilon:g}", color, mode="lines+markers"))
    if not data:
        return None
    axis = {"type": "log"}
    return Figure(
        "Figure 3a: epsilon and the learning rate",
        f"Training error after {plan.SIZE[profile].short:,} updates. A run that diverged, or ended worse than it "
        "began, counts as the untrained net.",
        {"data": data, "layout": _layout("learning rate", "squared error a picture", xaxis=axis, yaxis=axis)},
        "One line an epsilon over the learning rate; those of small epsilons turn up at smaller rates.",
    )


def _periods(profile: Profile, records: Sequence[Record]) -> Figure | None:
    rate = plan.best_rate(profile, "prong", records)
    if rate is None:
        return None
    data = []
    periods = plan.SIZE[profile].periods
    for number, every in enumerate(periods, 1):
        for initial in (True, False):
            runs = find(records, plan.period_runs(profile, rate, every, initial))
            if not runs:
                continue
            name = f"T = {every}" if every < periods[-1] else "no projection later"
            dash = {} if initial else {"line": {"dash": "dash"}}
            name += "" if initial else ", fan-in"
            x, y = runs[0].curves["update"], _mean_curve(runs, "error")
            data.append(_line(x[: len(y)], y, name, f"var(--series-{number})", **dash))
    if not data:
        return None
    return Figure(
        "Figure 3b: the interval T and the initialization",
        f"Training error at rate {rate:g}; full lines begin whitened, dashed lines are first whitened after T "
        "updates. The geometric mean over seeds.",
        {"data": data, "layout": _layout("updates", "squared error a picture", yaxis={"type": "log"})},
        "Falling lines, full and dashed, by T.",
    )


# Figure 3c-d


def _autoencoders(profile: Profile, records: Sequence[Record]) -> dict[str, list[Record]]:
    found = {method: plan.judged(profile, method, records) for method in plan.AUTOENCODER}
    return {method: runs for method, runs in found.items() if runs}


def _cost_of_update(profile: Profile, records: Sequence[Record]) -> dict[str, float]:
    """Seconds an update of each method, as the timed trial has them."""
    timed = find(records, plan.time_trials(profile))
    if not timed:
        return {}
    metrics = timed[0].metrics
    return {m: float(np.mean([v or 0.0 for v in metrics[m]])) * plan.batch_of(m) for m in plan.AUTOENCODER}


def _updates(profile: Profile, records: Sequence[Record]) -> Figure | None:
    runs = _autoencoders(profile, records)
    if not runs:
        return None
    return Figure(
        "Figure 3c: the auto-encoder's error over updates",
        "Training error at each method's best rate, the geometric mean over seeds; batches of 256 with batch "
        "normalization, of 128 otherwise.",
        {
            "data": _error_lines(runs, dict.fromkeys(runs, 1.0)),
            "layout": _layout("updates", "squared error a picture", yaxis={"type": "log"}),
        },
        "Falling curves, one a method.",
    )


def _seconds(profile: Profile, records: Sequence[Record]) -> Figure | None:
    runs, cost = _autoencoders(profile, records), _cost_of_update(profile, records)
    if not runs or not cost:
        return None
    return Figure(
        "Figure 3d: the auto-encoder's error over time",
        "The same over processor time of one thread: an update's, measured side by side for all methods with PRONG's "
        "projections in it, times the number of updates.",
        {
            "data": _error_lines(runs, cost),
            "layout": _layout("seconds", "squared error a picture", yaxis={"type": "log"}),
        },
        "Falling curves, one a method.",
    )


def _error_lines(runs: Mapping[str, Sequence[Record]], cost: Mapping[str, float]) -> list[dict[str, Any]]:
    data = []
    for method, of in runs.items():
        errors = _mean_curve(of, "error")
        x = [cost[method] * float(update or 0.0) for update in of[0].curves["update"]][: len(errors)]
        data.append(_line(x, errors, LABELS[method], COLORS[method]))
    return data


def _judged(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    runs, cost = _autoencoders(profile, records), _cost_of_update(profile, records)
    if not runs:
        return None
    level = float(np.mean([plan.final(run) for run in runs["sgd"]])) if "sgd" in runs else None
    rows: list[list[Cell]] = []
    for method, of in runs.items():
        needed = None if level is None else float(np.mean(plan.all_updates_to(of, level)[0]))
        rows.append(
            [
                LABELS[method],
                float(of[0].settings["rate"]),
                _spread([plan.final(run) for run in of]),
                _spread([plan.final(run, "test") for run in of]),
                sum(run.metrics["error"][0] is None for run in of),
                needed,
                None if needed is None or method not in cost else needed * cost[method],
            ]
        )
    return TableExhibit(
        "The auto-encoder at the end",
        "Squared error a picture at each method's best rate, mean ± standard deviation over seeds; and what it takes "
        "to SGD's mean final error. Runs that never came down to it count as their length. Adam is not in the paper.",
        ["method", "rate", "training", "test", "diverged", "updates to SGD's error", "seconds to it"],
        rows,
    )


def _rates(profile: Profile, records: Sequence[Record]) -> Figure | None:
    data = []
    for method in plan.AUTOENCODER:
        runs = {rate: find(records, [t]) for rate, t in plan.rate_trials(profile, method).items()}
        if all(runs.values()):
            errors = [plan.final(of[0], "validation") for of in runs.values()]
            data.append(_line([*runs], errors, LABELS[method], COLORS[method], mode="lines+markers"))
    if not data:
        return None
    axis = {"type": "log"}
    return Figure(
        "The choice of the rates",
        f"Validation error after {plan.SIZE[profile].short:,} updates of a seed that serves for nothing else. A run "
        "that diverged counts as the untrained net.",
        {"data": data, "layout": _layout("learning rate", "squared error a picture", xaxis=axis, yaxis=axis)},
        "One line a method over the learning rate, most with a minimum inside.",
    )


def _costs(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    timed = find(records, plan.time_trials(profile))
    if not timed:
        return None
    values = {name: np.array(of, dtype=float) for name, of in timed[0].metrics.items()}
    published = {"prong": "3.2", "bn": "2.3", "rmsprop": "9"}
    rows: list[list[Cell]] = [
        [LABELS[m], _spread(list(values[m] / values["sgd"])), published.get(m)] for m in plan.AUTOENCODER
    ]
    shares = {"whitening": "34%", "statistics": "4%"}
    rows += [
        [f"share of {name} in PRONG's", f"{_spread(list(100 * values[name] / values['prong']))}%", text]
        for name, text in shares.items()
    ]
    size = plan.SIZE[profile]
    return TableExhibit(
        "What an epoch costs",
        f"Processor time over that of SGD, T = {size.every}, N_s = {size.samples}; mean ± standard deviation over "
        "repeats, each of which ran all methods. The paper does not tell its T and N_s.",
        ["", "here", "paper"],
        rows,
    )


# Figure 4 and the negative claims


def _cifar_runs(profile: Profile, records: Sequence[Record]) -> dict[str, list[Record]]:
    found = {method: plan_classifiers.cifar_judged(profile, method, records) for method in vgg.METHODS}
    return {method: runs for method, runs in found.items() if runs}


def _cifar(profile: Profile, records: Sequence[Record]) -> Figure | None:
    runs = _cifar_runs(profile, records)
    if not runs:
        return None
    data = []
    for method, of in runs.items():
        x = of[0].curves["update"]
        for name, dash in (("wrong", "solid"), ("validation", "dot")):
            y = _mean_curve(of, name)
            label = LABELS[method] + ("" if dash == "solid" else ", validation")
            data.append(_line(x[: len(y)], y, label, COLORS[method], line={"dash": dash}))
    return Figure(
        "Figure 4a-b: CIFAR-10",
        f"{_cifar_words(profile)} Errors in percent on training pictures (full lines) and validation pictures "
        "(dotted), the geometric mean over seeds.",
        {"data": data, "layout": _layout("updates", "errors in percent", yaxis={"type": "log"})},
        "Falling curves, a full and a dotted one for each of four methods.",
    )


def _cifar_words(profile: Profile) -> str:
    size = plan_classifiers.CIFAR[profile]
    return f"A net of width {size.width}, {size.epochs} epochs of {size.examples:,} JPEG-compressed pictures."


def _cifar_table(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    runs = _cifar_runs(profile, records)
    if not runs:
        return None
    rows: list[list[Cell]] = []
    for method, of in runs.items():
        wrong = [run.metrics["test"][0] for run in of]
        alive = [value for value in wrong if value is not None]
        rows.append(
            [
                LABELS[method],
                float(of[0].settings["rate"]),
                _spread([plan.final(run) for run in of]),
                _spread(alive) if alive else None,
                len(wrong) - len(alive),
                {"prong": "7.32", "bn": "8.22"}.get(method),
            ]
        )
    return TableExhibit(
        "CIFAR-10 at the end",
        f"{_cifar_words(profile)} Mean ± standard deviation over seeds; test errors are of the runs that lived.",
        ["method", "rate", "training cross-entropy", "test error in percent", "diverged", "paper"],
        rows,
    )


def _deep(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    depths = plan_classifiers.DEPTHS[profile]
    rows: list[list[Cell]] = []
    for treatment in deep.TREATMENTS:
        cells: list[Cell] = []
        for depth in depths:
            found = plan_classifiers.deep_records(profile, treatment, depth, records)
            if found:
                rate, errors = plan_classifiers.at_best(found[0])
                cells += [_spread(errors), rate, plan_classifiers.largest_rate(found[0])]
            else:
                cells += [None, None, None]
        damping = deep.damping_of(treatment)
        label = LABELS.get(treatment) or f"two-sided, damping {damping:g}"
        if any(cell is not None for cell in cells):
            rows.append([label, *cells])
    if not rows:
        return None
    columns = [""]
    for depth in depths:
        columns += [f"error, {depth} layers", "at rate", "largest rate"]
    return TableExhibit(
        "Deep nets: plain PRONG, PRONG+, and whitening on both sides",
        "Cross-entropy on training pictures of MNIST at the rate that was best on the validation pictures of a seed "
        "apart, mean ± standard deviation over the other seeds; runs that diverged count as the untrained net. The "
        "largest rate is that at which every seed still ends below the error of chance. The damping of two-sided "
        "whitening is in units of the mean eigenvalue of the errors' second moment.",
        columns,
        rows,
    )
