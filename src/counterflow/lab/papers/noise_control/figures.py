"""Figure 5 redrawn in every reading, the map of who wins, and the sweep of the converters' range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from counterflow.lab.papers.noise_control import plan
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.report.exhibit import Cell
from counterflow.lab.trials import ClaimResult, Profile, Record

__all__ = ["exhibits"]

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
    found += [_fractions(profile, records), _map(profile, records)]
    for condition in plan.PLANS[profile].conditions:
        for placement in plan.PLANS[profile].placements:
            if (condition, placement) != plan.PAPERS:
                for figure, channel in plan.CHANNELS.items():
                    title = f"Figure 5{figure} in another reading"
                    found.append(_figure_5(profile, records, title, channel, condition, placement))
    return [exhibit for exhibit in found if exhibit is not None]


def words(condition: tuple[str, int], placement: tuple[str, str]) -> str:
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
        f"{title}: channel {channel}, {words(condition, placement)}",
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
    """Who wins, for a designer: by noise, rate, channel, place and sign, at three ratios."""
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
        f"The one with the largest mean reduction, in decibels, and all within {NEAR} dB of it, at four "
        "signal-to-distortion ratios; each with the same budget of steps.",
        ["noise", "channel", "distortion", *(f"{ratio:g} dB" for ratio in chosen)],
        rows,
    )
