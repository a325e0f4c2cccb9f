"""Figure 3 as box plots, the error at the models, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from counterflow.lab.papers.density import nets, plan
from counterflow.lab.papers.density.peers import PEERS
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.report.exhibit import Cell
from counterflow.lab.trials import ClaimResult, Profile, Record

__all__ = ["exhibits"]

LABELS = {"rdn": "RDN", "alphanet": "Alphanet", "mixture": "MoGnet", "cdn": "CDN", "cdn1": "CDN-1"}
PEER_LABELS = {
    "linear": "linear classifier on the mean spectrum",
    "gru": "gated recurrent net of as many parameters",
    "hmmlearn": "hmmlearn, one HMM a speaker",
}
WHERE = {"fig3": "emodb, the paper's ratios", "models": "emodb, the paper's numbers", "an4": "an4, cepstra"}


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    there = plan.index(records)
    panels = {
        prefix: {name: plan.of_net(there, wanted) for name, wanted in runs.items()}
        for prefix, runs in plan.panel_trials(profile).items()
    }
    reasons = {name: plan.of_net(there, wanted) for name, wanted in plan.reason_trials(profile).items()}
    found: list[Exhibit | None] = [_boxes(prefix, runs) for prefix, runs in panels.items()]
    found += [_cells(panels), _numbers(panels), _errors(reasons["errors"]), _mends(profile, there, reasons)]
    return [exhibit for exhibit in found if exhibit is not None]


def _values(runs: Mapping[int, Record], metric: str = "test") -> list[float]:
    return [float(runs[seed].metrics[metric][0] or 0.0) for seed in sorted(runs)]


def _place(prefix: str) -> tuple[str, str]:
    """Where a panel's numbers are from, and the panel."""
    kind = next(each for each in WHERE if prefix.startswith(each))
    rest = prefix.removeprefix(kind).lstrip(".")
    letter = rest if kind == "fig3" else next(p for p, models in plan.PANELS.items() if str(models) == rest)
    return WHERE[kind], letter


def _boxes(prefix: str, runs: Mapping[str, Mapping[int, Record]]) -> Figure | None:
    where, letter = _place(prefix)
    traces = []
    for number, way in enumerate(("averaged", "whole"), 1):
        x, y = [], []
        for net, label in LABELS.items():
            values = _values(runs.get(f"{net} {way}", {}))
            x += [label] * len(values)
            y += values
        if y:
            color = f"var(--series-{number})"
            name = "averaged over time" if way == "averaged" else "not averaged"
            trace = {"type": "box", "name": name, "x": x, "y": y, "boxpoints": "all", "jitter": 0.4, "pointpos": 0}
            traces.append({**trace, "marker": {"color": color, "size": 4}, "line": {"color": color}})
    if not traces:
        return None
    models = next((r.settings["models"] for each in runs.values() for r in each.values()), "")
    return Figure(
        f"Figure 3{letter}: share of test recordings identified, {where}, {models} HMMs",
        f"A box a net over random splits, every split a point; the paper has {plan.PANELS[letter]} HMMs for 12 "
        "speakers.",
        {
            "data": traces,
            "layout": {
                "boxmode": "group",
                "xaxis": {"title": {"text": "architecture"}},
                "yaxis": {"title": {"text": "identified"}},
                "height": 400,
                "legend": {"orientation": "h", "y": -0.25},
            },
        },
        "Box plots of five nets, with log-likelihoods averaged over time and not.",
    )


def _cells(panels: Mapping[str, Mapping[str, Mapping[int, Record]]]) -> TableExhibit | None:
    """All four readings of what is averaged, with both tests."""
    rows: list[list[Cell]] = []
    for prefix, runs in panels.items():
        where, letter = _place(prefix)
        for rdn in ("averaged", "whole"):
            for alphanet in ("averaged", "whole"):
                ours, theirs = plan.paired(runs[f"rdn {rdn}"], runs[f"alphanet {alphanet}"])
                if len(ours) < 2:
                    continue
                a, b = plan.samples(ours), plan.samples(theirs)
                both = zip(plan.p_values(ours, theirs), plan.p_values(theirs, ours), strict=True)
                plain, corrected = (min(pair) for pair in both)  # whichever is ahead
                means = [float(f"{np.mean(each):.3g}") for each in (a, b)]
                difference = float(f"{np.mean(a) - np.mean(b):.2g}")
                name = f"{letter}, {where}: RDN {rdn}, Alphanet {alphanet}"
                rows.append([name, *means, difference, float(f"{plain:.2g}"), float(f"{corrected:.2g}"), len(a)])
    if not rows:
        return None
    head = ["panel and reading", "RDN", "Alphanet", "difference", "p, paired t", "p, corrected resampled t", "splits"]
    return TableExhibit(
        "RDN against Alphanet, all readings of what is averaged over time",
        "The paper: p < 0.01 in each panel, by a paired t test. Random splits overlap, which that test does not know; "
        "the corrected one does (Nadeau and Bengio). Two-sided.",
        head,
        rows,
    )


def _numbers(panels: Mapping[str, Mapping[str, Mapping[int, Record]]]) -> TableExhibit | None:
    rows: list[list[Cell]] = []
    for prefix, runs in panels.items():
        where, letter = _place(prefix)
        for name, each in runs.items():
            if each:
                values = _values(each)
                net, way = name.split()
                spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
                cells: list[Cell] = [f"{letter}, {where}: {LABELS[net]}, {way}", f"{np.mean(values):.3g}{spread}"]
                cells += [float(f"{np.mean(_values(each, m)):.3g}") for m in ("training", "loss", "evaluations")]
                rows.append([*cells, int(np.mean(_values(each, "parameters"))), len(values)])
    if not rows:
        return None
    return TableExhibit(
        "Figure 3 in numbers",
        "The paper draws them only. An evaluation is one likelihood and gradient of all training recordings.",
        ["panel and net", "test accuracy", "training accuracy", "training loss", "evaluations", "parameters", "splits"],
        rows,
    )


def _errors(runs: Mapping[int, Record]) -> Figure | None:
    if not runs:
        return None
    traces = []
    for number, net in enumerate(("cdn", "cdn1"), 1):
        y = [float(np.mean(_values(runs, f"{net} {scale:g}"))) for scale in plan.SCALES]
        trace = {"type": "scatter", "mode": "lines+markers", "name": LABELS[net], "x": list(plan.SCALES), "y": y}
        traces.append({**trace, "line": {"color": f"var(--series-{number})"}})
    flat = {"rdn": "RDN", "alphanet": "Alphanet", "pairs": "CDN at the pattern of ±1"}
    for number, (name, label) in enumerate(flat.items(), 3):
        level = float(np.mean(_values(runs, name)))
        trace = {"type": "scatter", "mode": "lines", "name": label, "x": [plan.SCALES[0], plan.SCALES[-1]]}
        traces.append({**trace, "y": [level, level], "line": {"color": f"var(--series-{number})", "dash": "dot"}})
    return Figure(
        "The error's RMS at the HMMs before learning, over the scale of the weights behind them",
        "By the probe at the bank's log-likelihoods; the summed cross-entropy of all training recordings. The weights "
        f"that the figures' nets start with are {nets.SCALE:g}; output weights are the same for all.",
        {
            "data": traces,
            "layout": {
                "xaxis": {"title": {"text": "standard deviation of the initial weights"}, "type": "log"},
                "yaxis": {"title": {"text": "RMS of the error"}, "type": "log", "exponentformat": "power"},
                "height": 400,
                "legend": {"orientation": "h", "y": -0.25},
            },
        },
        "Two rising lines over the scale of the weights, and three level ones.",
    )


def _mends(
    profile: Profile, there: Mapping[bytes, Record], reasons: Mapping[str, Mapping[int, Record]]
) -> TableExhibit | None:
    """What becomes of a comparative net when its start, its time or its descent is another, and what others do."""
    models, iterations = plan.SIZES[profile].why, plan.SIZES[profile].iterations
    names = {
        "rdn": "RDN",
        "alphanet": "Alphanet",
        "cdn": f"CDN, initial weights of {nets.SCALE:g}",
        "scale 1": "CDN, initial weights of 1",
        "pairs": "CDN, started at the pattern of ±1 (more hidden units)",
        "longer": f"CDN, {3 * iterations} iterations",
        "untempered": "CDN by gradient descent with momentum",
        "tempered": "CDN by the same, tempered",
        "cosine": "RDN on the cosine transform of log mel",
        "alphanet same": "Alphanet, one sentence",
        "mixture same": "MoGnet, one sentence",
        "alphanet mixed": "Alphanet, as many recordings of any sentence",
        "mixture mixed": "MoGnet, as many recordings of any sentence",
        **{peer: PEER_LABELS[peer] for peer in PEERS},
    }
    rows: list[list[Cell]] = []
    for name, label in names.items():
        known = reasons.get(name)
        runs = (
            known
            if known is not None
            else plan.of_net(there, plan.net_trials(profile, name, models))
            if name in LABELS
            else {}
        )
        if runs:
            values = _values(runs)
            spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
            training = float(f"{np.mean(_values(runs, 'training')):.3g}")
            rows.append([label, f"{np.mean(values):.3g}{spread}", training, len(values)])
    if not rows:
        return None
    return TableExhibit(
        "Why the comparative nets stay behind, other features, and other classifiers",
        f"emodb, {models} HMMs, log-likelihoods averaged over time; {iterations} iterations of conjugate gradients or "
        "steps unless it says otherwise. Rates of gradient descent are chosen on training recordings, of as many each.",
        ["net", "test accuracy", "training accuracy", "splits"],
        rows,
    )
