"""The paper's figures and table with our numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from counterflow.lab.papers.choice import plan
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.report.exhibit import Cell
from counterflow.lab.trials import ClaimResult, Profile, Record, available, claims_of

__all__ = ["exhibits"]

LABELS = {
    "smcl": "sMCL",
    "mcl": "MCL",
    "dey": "Dey and others",
    "independent": "independent",
    "mcl restarts": "MCL, started anew",
    "annealed": "sMCL, annealed",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STREET = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    found = [
        _sizes(_accuracies(profile, records), "Figure 4a: oracle accuracy on CIFAR-10", "oracle accuracy (%)"),
        _oracle_loss(profile, records),
        *(_matrix(profile, records, k) for k in (1, 2, 3, 4)),
        _members(profile, records),
        _sizes(_ious(profile, records), "Figure 5a: oracle mean IoU on street scenes", "oracle mean IoU (%)"),
        _scenes(profile, records),
        _table(profile, records),
    ]
    return [exhibit for exhibit in found if exhibit is not None]


def _values(records: Sequence[Record], name: str) -> list[float]:
    return [float(v) for record in records for v in record.metrics.get(name, ()) if v is not None]


Points = dict[str, list[tuple[int, list[float]]]]


def _accuracies(profile: Profile, records: Sequence[Record]) -> Points:
    sizes = plan.CIFAR[profile]

    def of(method: str, size: int = 0) -> list[Record]:
        return available(records, plan.classification_trials(profile, method, size))

    every = range(1, max(sizes.sizes) + 1)
    return {
        "smcl": [(size, _values(of("smcl", size), f"accuracy {size}")) for size in sizes.sizes],
        "mcl": [(size, _values(of("mcl", size), f"accuracy {size}")) for size in sizes.alternated],
        "dey": [(size, _values(of("dey"), f"accuracy {size}")) for size in every],
        "independent": [(size, _values(of("independent"), f"accuracy {size}")) for size in every],
        "mcl restarts": [(4, _values(of("mcl restarts", 4), "accuracy 4"))],
    }


def _ious(profile: Profile, records: Sequence[Record]) -> Points:
    sizes = plan.SCENES[profile].sizes
    warm, dey, mcl = (available(records, plan.scene_trials(profile, method)) for method in ("warm", "dey", "mcl"))
    every = range(1, sizes[-1] + 1)
    return {
        "smcl": [(size, _values(warm, f"smcl {size}")) for size in sizes],
        "mcl": [(sizes[-1], _values(mcl, f"mcl {sizes[-1]}"))],
        "dey": [(size, _values(dey, f"dey {size}")) for size in every],
        "independent": [(size, _values(warm, f"independent {size}")) for size in every],
    }


def _sizes(found: Points, title: str, axis: str) -> Figure | None:
    lines = []
    for number, (method, points) in enumerate(found.items(), 1):
        there = [(size, values) for size, values in points if values]
        if there:
            color = f"var(--series-{number})"
            spread = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for _, values in there]
            lines.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": LABELS[method],
                    "x": [size for size, _ in there],
                    "y": [float(np.mean(values)) for _, values in there],
                    "error_y": {"type": "data", "array": spread, "color": color},
                    "line": {"color": color},
                }
            )
    if not lines:
        return None
    plot: dict[str, Any] = {
        "data": lines,
        "layout": {
            "xaxis": {"title": {"text": "ensemble size M"}, "dtick": 1},
            "yaxis": {"title": {"text": axis}},
            "height": 420,
            "legend": {"orientation": "h", "y": -0.25},
        },
    }
    return Figure(title, "Mean and standard deviation over seeds.", plot, "One line a method over the ensemble's size.")


def _oracle_loss(profile: Profile, records: Sequence[Record]) -> Figure | None:
    lines = []
    four = 4 if 4 in plan.CIFAR[profile].sizes else plan.CIFAR[profile].sizes[0]
    for number, (method, size) in enumerate((("smcl", four), ("independent", 0)), 1):
        color = f"var(--series-{1 if method == 'smcl' else 4})"
        for place, record in enumerate(available(records, plan.classification_trials(profile, method, size))):
            lines.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": LABELS[method],
                    "legendgroup": method,
                    "showlegend": place == 0,
                    "x": list(record.curves["update"]),
                    "y": list(record.curves["error"]),
                    "line": {"color": color, "dash": "solid" if number == 1 else "dot"},
                }
            )
    if not lines:
        return None
    plot: dict[str, Any] = {
        "data": lines,
        "layout": {
            "xaxis": {"title": {"text": "updates"}},
            "yaxis": {"title": {"text": "oracle loss"}, "rangemode": "tozero"},
            "height": 380,
            "legend": {"orientation": "h", "y": -0.25},
        },
    }
    caption = "Four members, on a few training pictures that are looked at again and again; one line a seed."
    return Figure("Figure 4b: oracle loss during training", caption, plot, "Lines that fall; sMCL's lie lower.")


def _matrix(profile: Profile, records: Sequence[Record], k: int) -> Figure | None:
    if k not in (1, 4, *plan.CIFAR[profile].ks):
        return None
    method = "independent" if k == 4 else "smcl"
    runs = available(records, plan.classification_trials(profile, method, 4, k))
    if not runs:
        return None
    rows = [list(runs[0].curves[f"class {c}"]) for c in range(10)]
    letter = "cdef"[k - 1]
    return _heat(f"Figure 4{letter}: who wins which class, k = {k}", "Of the first seed; in percent.", CLASSES, rows)


def _heat(title: str, caption: str, names: Sequence[str], rows: Sequence[Sequence[float | None]]) -> Figure:
    plot: dict[str, Any] = {
        "data": [
            {
                "type": "heatmap",
                "z": [list(row) for row in rows],
                "x": [f"member {m}" for m in range(len(rows[0]))],
                "y": list(names),
                "zmin": 0,
                "zmax": 100,
                "colorscale": "Viridis",
                "texttemplate": "%{z:.1f}",
            }
        ],
        "layout": {"yaxis": {"autorange": "reversed"}, "height": 420},
    }
    return Figure(title, caption, plot, "A cell a class and member: the share of the class's pictures that it wins.")


def _members(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    """How Dey's method starves its later members, and what MCL's forms come to."""
    rows: list[list[Cell]] = []
    for domain, trials in (
        ("CIFAR-10", plan.classification_trials(profile, "dey")),
        ("street scenes", plan.scene_trials(profile, "dey")),
        ("captions", plan.caption_trials(profile, "dey")),
    ):
        runs = available(records, trials)
        if runs:
            for name, words in (("mean weight", "mean weight of an example"), ("gradient", "last mean gradient norm")):
                values = np.array([list(run.curves[name]) for run in runs], float).mean(0)
                rows.append([domain, words, *(float(f"{v:.3g}") for v in values)])
    if not rows:
        return None
    width = max(len(row) for row in rows)
    head = ["domain", "of each member", *(str(m + 1) for m in range(width - 2))]
    filled = [[*row, *[None] * (width - len(row))] for row in rows]
    return TableExhibit(
        "Training in turn: what is left for later members",
        "Dey and others weigh an example by 1 less the best metric so far. Means over seeds.",
        head,
        filled,
    )


def _scenes(profile: Profile, records: Sequence[Record]) -> Figure | None:
    size = plan.SCENES[profile].sizes[-1]
    runs = available(records, plan.scene_trials(profile, "warm"))
    if not runs:
        return None
    rows = [list(runs[0].curves[f"class {c} of {size}"]) for c in range(len(STREET))]
    caption = (
        "Of the scenes that hold a class, who segments them best, in percent; first seed. Nearly every scene holds "
        "nearly every class, so that the rows cannot differ much here."
    )
    return _heat("Figure 5b: who wins which class in segmentation", caption, STREET, rows)


def _table(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    published = {claim.id: claim.value for claim in claims_of(plan.KEY)}
    main, dey, mcl, cooled = (
        available(records, plan.caption_trials(profile, method)) for method in ("main", "dey", "mcl", "annealed")
    )
    of = {
        "smcl": main,
        "annealed": cooled,
        "mcl": mcl,
        "dey": dey,
        "independent": main,
        "smcl tuned": main,
        "independent tuned": main,
        "beam": main,
    }
    columns = [*(str(m) for m in range(1, 6)), *(f"grams {n}" for n in range(1, 5)), "length", "same"]
    rows: list[list[Cell]] = []
    for method, runs in of.items():
        name = LABELS.get(method.removesuffix(" tuned"), "beam search")
        name += ", fine-tuned" if method.endswith("tuned") else ""
        key = method.replace(" ", "_")
        theirs = [published.get(f"t1.{key}.{column.replace('grams ', 'grams')}") for column in columns]
        if any(value is not None for value in theirs):
            rows.append([name, "published, MSCOCO", *theirs])
        if runs:
            ours = [_values(runs, f"{method} {column}") for column in columns]
            rows.append([name, "here", *(float(f"{np.mean(v):.4g}") if v else None for v in ours)])
    if not (main or dey or mcl or cooled):
        return None
    head = [
        "method",
        "data",
        *(f"M = {m}" for m in range(1, 6)),
        *(f"{n}-grams" for n in range(1, 5)),
        "words",
        "same (%)",
    ]
    return TableExhibit(
        "Table 1: oracle CIDEr-D, distinct n-grams and length of captions",
        "Sentences that stand for pictures are read here, so that sizes cannot be compared with the published ones, "
        "only orders; means over seeds. The last column: pictures for which two members or more say the same.",
        head,
        rows,
    )
