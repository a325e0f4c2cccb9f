"""The paper's figures 2, 3, 5, 6 and 7 redrawn, and tables of what they say at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from counterflow.bptt.costs import hidden_cost
from counterflow.lab.papers.bptt.costs import ALPHAS, FIGURES_6, MEMORIES
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.report.exhibit import Cell
from counterflow.lab.trials import ClaimResult, Profile, Record

__all__ = ["exhibits", "longest"]

SERIES = {m: f"var(--series-{number})" for number, m in enumerate(MEMORIES, 1)}
MUTED = "var(--muted)"


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    by_treatment = {record.treatment: record for record in records}
    found: list[Exhibit | None] = []
    if "plans" in by_treatment:
        curves = by_treatment["plans"].curves
        found += [
            _memories(curves, "fig2a", "Figure 2a: hidden states", "hidden states"),
            _memories(curves, "fig5a", "Figure 5a: internal states", "internal states"),
            _memories(curves, "fig5b", "Figure 5b: mixed states, alpha = 5", "internal states' worth of memory"),
            _trace(curves, "fig3a", 4),
            _trace(curves, "fig3b", 10),
        ]
    found.append(_times(records))
    found.append(_relative(records))
    if "strategies" in by_treatment:
        found += [_strategies(by_treatment["strategies"], figure) for figure in FIGURES_6]
    if "chen" in by_treatment:
        found += [*_chen(by_treatment["chen"]), _where_it_does_not_win(by_treatment["chen"])]
    if "bounds" in by_treatment:
        found.append(_bounds(by_treatment["bounds"]))
    if "budgets" in by_treatment:
        found.append(_kept(by_treatment["budgets"]))
    return [exhibit for exhibit in found if exhibit is not None]


def longest(records: Sequence[Record]) -> Record | None:
    """The record of figure 2b with the longest sequence."""
    found = [record for record in records if record.treatment == "figure 2b"]
    return max(found, key=lambda record: int(record.settings["steps"]), default=None)


def _line(x: Sequence[Any], y: Sequence[Any], name: str, color: str, **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": {"color": color}, **more}


def _layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": x}, **more.pop("xaxis", {})},
        "yaxis": {"title": {"text": y}, **more.pop("yaxis", {})},
        "height": 420,
        "legend": {"orientation": "h", "y": -0.25},
        **more,
    }


def _memories(curves: Mapping[str, Sequence[Any]], figure: str, title: str, what: str) -> Figure:
    steps = list(curves["steps"])
    data = [_line(steps, list(curves[f"{figure}.m{m}"]), f"{m}", SERIES[m]) for m in MEMORIES]
    caption = f"Forward operations a step over the length of the sequence, within {what} as the legend says."
    if figure == "fig5b":
        caption += " No line lies above its neighbor in figure 5a."
    return Figure(
        title,
        caption,
        {"data": data, "layout": _layout("time steps", "forward operations a step", yaxis={"rangemode": "tozero"})},
        "Five lines that rise with the length of the sequence, lower for more memory.",
    )


def _trace(curves: Mapping[str, Sequence[Any]], figure: str, steps: int) -> Figure:
    part = {name: list(curves[f"{figure}.{name}"]) for name in ("step", "kind", "stored", "from", "to")}
    data = []
    for kind, name, symbol, color in (
        (0, "forward", "square", "var(--series-1)"),
        (1, "backward", "triangle-left", "var(--series-2)"),
    ):
        places = [number for number, value in enumerate(part["kind"]) if value == kind]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [part["step"][place] for place in places],
                "y": places,
                "marker": {"symbol": symbol, "size": 10, "color": color},
            }
        )
    held_x: list[float | None] = []
    held_y: list[float | None] = []
    for position, since, until in zip(part["stored"], part["from"], part["to"], strict=True):
        held_x += [position + 0.5, position + 0.5, None]
        held_y += [since - 0.5, until - 0.5, None]
    data.append(_line(held_x, held_y, "hidden state in memory", MUTED))
    label = "a" if steps == 4 else "b"
    return Figure(
        f"Figure 3{label}: {steps} steps with four hidden states",
        "Every operation in the order of execution, from top to bottom. A hidden state is in memory, behind the step "
        "that it comes from, for as long as its line is; the initial state, the fourth, is always there.",
        {
            "data": data,
            "layout": _layout(
                "time step", "order of execution", yaxis={"autorange": "reversed"}, height=300 + 10 * len(part["step"])
            ),
        },
        "Squares and triangles that zigzag from the top left to the bottom, with vertical lines of stored states.",
    )


def _measured(records: Sequence[Record]) -> list[Record]:
    found = [record for record in records if record.treatment == "figure 2b"]
    return sorted(found, key=lambda record: int(record.settings["steps"]))


def _mean(record: Record, name: str) -> float:
    return float(np.mean([value for value in record.metrics[name] if value is not None]))


def _times(records: Sequence[Record]) -> Figure | None:
    found = _measured(records)
    if not found:
        return None
    steps = [record.settings["steps"] for record in found]
    data = [
        _line(steps, [1e3 * _mean(record, f"m{m}") for record in found], f"{m}", SERIES[m], mode="lines+markers")
        for m in MEMORIES
    ]
    data.append(_line(steps, [1e3 * _mean(r, "plain") for r in found], "standard BPTT", MUTED, mode="lines+markers"))
    net = found[0].settings
    return Figure(
        "Figure 2b: measured time",
        f"Milliseconds a step of one iteration, one thread, LSTM from {net['width']} to {net['width']}, batches of "
        f"{net['batch']}, mean over {len(found[0].seeds)} repeats, within hidden states as the legend says.",
        {"data": data, "layout": _layout("time steps", "milliseconds a step", yaxis={"rangemode": "tozero"})},
        "Lines of milliseconds a step over the length of the sequence, standard BPTT lowest.",
    )


def _relative(records: Sequence[Record]) -> TableExhibit | None:
    record = longest(records)
    if record is None:
        return None
    steps, rows = int(record.settings["steps"]), []
    for m in MEMORIES:
        cost = hidden_cost(steps, min(m, steps)) / steps
        measured = _mean(record, f"m{m}") / _mean(record, "plain")
        rows.append([m, cost, (cost + 2) / 3, measured, 1e3 * _mean(record, f"m{m}")])
    return TableExhibit(
        f"The loss against standard BPTT at {steps} steps",
        "In forward operations, where standard BPTT takes one a step; with a backward operation counted as two; and "
        "measured. The constant cost of going back makes the loss smaller than the first of them.",
        ["hidden states", "forward operations a step", "with backward as two", "measured", "ms a step"],
        rows,
    )


def _strategies(record: Record, figure: str) -> Figure:
    internal, hidden = FIGURES_6[figure]
    steps = list(record.curves["steps"])
    names = {"hidden": "var(--series-1)", "internal": "var(--series-2)", "mixed": "var(--series-3)"}
    crossed = record.metrics[f"{figure}.crossed at"][0]
    data = [_line(steps, list(record.curves[f"{figure}.{name}"]), name, color) for name, color in names.items()]
    return Figure(
        f"Figure {figure[3:]}: three strategies in the memory of {internal} internal or {hidden} hidden states",
        f"Forward operations a step, alpha = 5. From {crossed:.0f} steps on, hidden states take fewer than internal.",
        {"data": data, "layout": _layout("time steps", "forward operations a step", xaxis={"type": "log"})},
        "Three rising lines; hidden and internal cross once, mixed is below both.",
    )


def _chen(record: Record) -> list[Figure]:
    steps = list(record.curves["steps"])

    def lines(curve: str) -> list[dict[str, Any]]:
        return [
            _line(steps, list(record.curves[f"{curve}.alpha{alpha}"]), f"alpha = {alpha}", f"var(--series-{number})")
            for number, alpha in enumerate(ALPHAS, 1)
        ]

    axis = {"type": "log"}
    return [
        Figure(
            "Figure 7, left: memory at two forward operations a step",
            "Slots over sqrt(t) (1 + beta), what Chen's algorithm takes, where beta = alpha - 1 is an internal state "
            "without its input.",
            {
                "data": lines("fig7l"),
                "layout": _layout("time steps", "memory / Chen's", xaxis=axis, yaxis={"rangemode": "tozero"}),
            },
            "Three lines that rise and level off below one.",
        ),
        Figure(
            "Figure 7, right: forward operations at Chen's memory",
            "With sqrt(t) (1 + beta) slots; Chen's algorithm takes about two forward operations a step.",
            {"data": lines("fig7r"), "layout": _layout("time steps", "forward operations a step", xaxis=axis)},
            "Three lines that rise towards two.",
        ),
        Figure(
            "Where it does not win: memory at the cost of Chen's algorithm",
            "Slots that mixed states need to take no more forward operations than Chen's algorithm really takes, "
            "t - sqrt(t) more than standard BPTT at square t, over the slots that it really takes. Most of the "
            "saving of figure 7 is bought with the difference between that and two a step.",
            {
                "data": lines("own"),
                "layout": _layout("time steps", "memory / Chen's", xaxis=axis, yaxis={"rangemode": "tozero"}),
            },
            "Three jagged lines below one, with peaks close to one where t is a square.",
        ),
    ]


def _where_it_does_not_win(record: Record) -> TableExhibit:
    steps = np.array(record.curves["steps"], dtype=float)
    rows: list[list[Cell]] = []
    for alpha in ALPHAS:
        own = np.array(record.curves[f"own.alpha{alpha}"], dtype=float)
        cost = np.array(record.curves[f"fig7r.alpha{alpha}"], dtype=float)
        late = steps >= 100
        squares = late & (np.sqrt(steps) % 1 == 0)
        rows.append(
            [
                f"alpha = {alpha}",
                float(own[late].max()),
                int(steps[late][own[late].argmax()]),
                float(np.median(own[squares])),
                float(np.median(own[late & ~squares])),
                float(1 - ((cost[late] + 2) / 4).max()),
            ]
        )
    return TableExhibit(
        "Where mixed states do not win over Chen's algorithm",
        "At no more forward operations than Chen's algorithm takes itself: the memory over its memory, from 100 steps "
        "on. At square lengths, where its segments fit, next to nothing is saved. And at its memory, how much shorter "
        "an iteration is at least than with two forward operations a step, a backward operation counted as two.",
        ["", "memory, at most", "at steps", "median at squares", "median elsewhere", "time saved, at least"],
        rows,
    )


def _bounds(record: Record) -> Figure:
    slots = list(record.curves["slots"])
    most, steps, at = (record.metrics[f"bound3{part}"][0] or 0.0 for part in ("", ".steps", ".slots"))
    names = {
        "bound2": "with the first pass, below 4",
        "bound3": "without the first pass, below 3",
    }
    data = [
        _line(slots, list(record.curves[name]), label, f"var(--series-{number})")
        for number, (name, label) in enumerate(names.items(), 1)
    ]
    data += [_line([slots[0], slots[-1]], [limit] * 2, f"the bound {limit}", MUTED) for limit in (4, 3)]
    return Figure(
        "Section 3.5: the two numerical bounds",
        "The largest C(t, m) / t^(1 + 1/m) over all t < 100,000, by slots m. "
        f"Without the first pass it reaches {most:.4g} at t = {steps:.0f}, m = {at:.0f}.",
        {"data": data, "layout": _layout("slots m", "factor", xaxis={"type": "log"})},
        "Two lines over the slots; the upper one stays below 4, the lower one passes 3 slightly.",
    )


def _kept(record: Record) -> Figure:
    budgets, kept = list(record.curves["budget"]), list(record.curves["kept"])
    data = [
        _line(budgets, kept, "kept at most", "var(--accent)", mode="lines+markers"),
        _line([budgets[0], budgets[-1]], [budgets[0], budgets[-1]], "the budget", MUTED),
    ]
    axis = {"type": "log"}
    return Figure(
        "Bytes kept within a budget",
        "What an LSTM's iteration really keeps at most, storage by storage, against the budget that it was given.",
        {"data": data, "layout": _layout("budget in bytes", "bytes kept", xaxis=axis, yaxis=axis)},
        "Points on or below the diagonal, until all states fit.",
    )
