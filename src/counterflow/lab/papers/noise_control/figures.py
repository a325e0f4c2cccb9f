"""Figure 5 redrawn in every reading, the map of who wins, and the sweep of the converters' range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from counterflow.analog import DeviceModel
from counterflow.lab.papers.noise_control import plan
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.report.exhibit import Cell
from counterflow.lab.trials import ClaimResult, Profile, Record

__all__ = ["exhibits", "reading"]

LABELS = {
    "lms": "LMS",
    "nlms": "normalized LMS",
    "volterra": "cubic Volterra filter",
    "perceptron": "perceptron",
    "8-bit both": "perceptron, 8-bit input and target",
    "chip": "chip",
}
COLORS = {arm: f"var(--series-{number})" for number, arm in enumerate(LABELS, 1)}
MAPPED = ("lms", "nlms", "volterra", "perceptron")
NEAR = 0.5  # decibels within which two controllers are said to do equally well


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    found: list[Exhibit | None] = []
    for figure, channel in plan.CHANNELS.items():
        found.append(_figure_5(profile, records, f"Figure 5{figure}", channel, *plan.PAPERS))
    found += [_fractions(profile, records), _map(profile, records), _imperfections(profile, records)]
    found.append(_precision(profile, records))
    for condition in plan.PLANS[profile].conditions:
        for placement in plan.PLANS[profile].placements:
            if (condition, placement) != plan.PAPERS:
                for figure, channel in plan.CHANNELS.items():
                    title = f"Figure 5{figure} in another reading"
                    found.append(_figure_5(profile, records, title, channel, condition, placement))
    return [exhibit for exhibit in found if exhibit is not None]


def reading(condition: tuple[str, int], placement: tuple[str, str]) -> str:
    """A reading of the paper, for people."""
    where = "on the target's path" if placement[0] == "target" else "in the loudspeaker in the loop"
    return f"{condition[0]} noise at {condition[1] / 1000:g} kHz, {placement[1]} distortion {where}"


def _values(record: Record, ratio: float) -> list[float]:
    """A run that diverged has reduced nothing."""
    return [float(value or 0.0) for value in record.metrics[plan.key(ratio)]]


def _figure_5(
    profile: Profile,
    records: Sequence[Record],
    title: str,
    channel: str,
    condition: tuple[str, int],
    placement: tuple[str, str],
) -> Figure | None:
    lines: list[dict[str, Any]] = []
    for arm, label in LABELS.items():
        record = plan.record_of(records, plan.figure_trial(profile, arm, channel, condition, placement))
        if record is None:
            continue
        values = [_values(record, ratio) for ratio in record.settings["ratios"]]
        spread = [float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in values]
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label,
                "x": list(record.settings["ratios"]),
                "y": [-float(np.mean(each)) for each in values],
                "error_y": {"type": "data", "array": spread, "color": COLORS[arm]},
                "line": {"color": COLORS[arm]},
            }
        )
    if not lines:
        return None
    return Figure(
        f"{title}: channel {channel}, {reading(condition, placement)}",
        "As the paper draws it, less is better. Mean and standard deviation over seeds; additive noise at -20 dB "
        "bounds what can be reached, and a run that diverged counts as 0 dB.",
        {
            "data": lines,
            "layout": {
                "xaxis": {"title": {"text": "signal-to-distortion ratio (dB)"}},
                "yaxis": {"title": {"text": "noise reduction ratio (dB)"}},
                "height": 430,
                "legend": {"orientation": "h", "y": -0.25},
            },
        },
        f"One line a controller over the signal-to-distortion ratio, channel {channel}.",
    )


def _fractions(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    rows: list[list[Cell]] = []
    for channel in plan.CHANNELS.values():
        plain = plan.record_of(records, plan.figure_trial(profile, "perceptron", channel, *plan.PAPERS))
        for arm in plan.ARMS:
            if not arm.startswith("8-bit") or plain is None:
                continue
            for fraction in plan.PLANS[profile].fractions:
                record = plan.record_of(records, plan.fraction_trial(profile, arm, channel, fraction))
                if record is None:
                    continue
                cells: list[Cell] = [channel, arm, fraction, float(f"{8 + np.log2(fraction):.3g}")]
                for ratio in record.settings["ratios"]:
                    lost = np.subtract(_values(plain, ratio), _values(record, ratio))
                    cells.append(float(f"{np.mean(lost):.3g}"))
                rows.append(cells)
    if not rows:
        return None
    ends = plan.PLANS[profile].ratios[0], plan.PLANS[profile].ratios[-1]
    return TableExhibit(
        "What 8 bits cost the perceptron, by how much of the converter's range is in use",
        "Decibels of reduction that are lost against floating point. The paper does not say how much was in use.",
        ["channel", "converter", "used fraction", "effective bits", *(f"lost at {ratio:g} dB" for ratio in ends)],
        rows,
    )


def _map(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    """Who wins, for a designer: by noise, rate, channel, place and sign, at some of the ratios."""
    ratios = plan.PLANS[profile].ratios
    chosen = [ratio for ratio in (0.0, 5.0, 10.0, 25.0) if ratio in ratios]
    rows: list[list[Cell]] = []
    for condition in plan.PLANS[profile].conditions:
        for placement in plan.PLANS[profile].placements:
            for channel in plan.CHANNELS.values():
                found = {
                    arm: plan.record_of(records, plan.figure_trial(profile, arm, channel, condition, placement))
                    for arm in MAPPED
                }
                if any(record is None for record in found.values()):
                    continue
                cells: list[Cell] = [f"{condition[0]}, {condition[1] / 1000:g} kHz", channel, " ".join(placement[::-1])]
                for ratio in chosen:
                    means = {arm: float(np.mean(_values(record, ratio))) for arm, record in found.items() if record}
                    best = max(means.values())
                    near = [LABELS[arm] for arm, mean in means.items() if mean >= best - NEAR]
                    cells.append(f"{', '.join(near)} ({best:.1f})")
                rows.append(cells)
    if not rows:
        return None
    return TableExhibit(
        "Which controller to take",
        f"The one with the largest mean reduction, in decibels, and all within {NEAR} dB of it, by "
        "signal-to-distortion ratio; each with the same budget of steps, and 0 dB for a run that diverged.",
        ["noise", "channel", "distortion", *(f"{ratio:g} dB" for ratio in chosen)],
        rows,
    )


def _study(profile: Profile, records: Sequence[Record], study: str) -> dict[str, Record]:
    """A study's records by channel."""
    found = {c: plan.record_of(records, plan.study_trial(profile, study, c)) for c in plan.CHANNELS.values()}
    return {channel: record for channel, record in found.items() if record}


def _mean(record: Record, metric: str) -> float:
    return float(np.mean([float(value or 0.0) for value in record.metrics[metric]]))


def _imperfections(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    alone, shares = _study(profile, records, "one at a time"), _study(profile, records, "attribution")
    channels = [channel for channel in alone if channel in shares]
    if not channels:
        return None
    rows: list[list[Cell]] = []
    for name in DeviceModel.names():
        cells: list[Cell] = [name]
        for channel in channels:
            one, sobol = alone[channel], shares[channel]
            cells += [
                float(f"{_mean(one, 'ideal') - _mean(one, f'only {name}'):.2f}"),
                float(f"{_mean(one, f'without {name}') - _mean(one, 'paper'):.2f}"),
                float(f"{_mean(sobol, f'first {name}'):.2f}"),
                float(f"{_mean(sobol, f'total {name}'):.2f}"),
            ]
        rows.append(cells)
    heads = ("dB lost if alone", "dB won without it", "Sobol, first", "Sobol, total")
    reached = ", ".join(
        f"{channel}: ideal {_mean(alone[channel], 'ideal'):.1f} dB, paper's {_mean(alone[channel], 'paper'):.1f} dB"
        for channel in channels
    )
    return TableExhibit(
        "What each imperfection of the chip costs",
        f"At the mildest distortion. Reductions: {reached}. Sobol's are shares of the variance of the reduction when "
        "each severity is uniform between none and twice the paper's; the total counts interactions.",
        ["imperfection", *(f"{channel}: {head}" for channel in channels for head in heads)],
        rows,
    )


def _precision(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    found = _study(profile, records, "precision")
    if not found:
        return None
    rows: list[list[Cell]] = []
    for channel, record in found.items():
        reductions = [_mean(record, f"all at {scale:g}") for scale in plan.SCALES]
        rows.append([channel, *(float(f"{each:.3g}") for each in reductions), needed(plan.SCALES, reductions)])
    return TableExhibit(
        "How precise a chip has to be",
        "Reduction in decibels with all imperfections at a multiple of the paper's, and the multiple at which 15 dB are"
        " reached, by interpolation.",
        ["channel", *(f"x {scale:g}" for scale in plan.SCALES), "needed for 15 dB"],
        rows,
    )


def needed(scales: Sequence[float], reductions: Sequence[float], goal: float = 15.0) -> str:
    """The largest multiple of the imperfections with which a goal is reached, between the scales that were run."""
    if reductions[0] < goal:
        return "not reached without any"
    for (small, above), (large, below) in zip(
        zip(scales, reductions, strict=True), list(zip(scales, reductions, strict=True))[1:], strict=False
    ):
        if below < goal <= above:
            return f"{small + (large - small) * (above - goal) / (above - below):.2g}"
    return f"more than {scales[-1]:g}"
