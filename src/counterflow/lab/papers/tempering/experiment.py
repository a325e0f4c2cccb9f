"""The trials behind table 2 and figure 1 of the tempering paper, and what is measured from them.

Stages of a run:

1. *rates*: every cell of table 2 at several global rates, ten restarts each; the best is the one with the least mean
   plus standard deviation of epochs, as in the paper (section 6).
2. *fresh*: every cell at its best rate again, on restarts that had no part in choosing it. The claims are judged on
   these.
3. *readings*: other readings of what the paper leaves open, at the published rates.
4. *search* (profile paper): every combination of delta-bar-delta's details in `SEARCH` at the published rates, on
   restarts of its own; then the nearest of them at the other rates of the brackets too, since a reading is the paper's
   only if the published rates are its best.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from counterflow.lab.papers.tempering.cells import (
    CELLS,
    DBD,
    best_rate,
    by_rate,
    epochs_of,
    judged,
    nearest,
    rate_key,
    rates_to_try,
)
from counterflow.lab.papers.tempering.figures import exhibits
from counterflow.lab.papers.tempering.task import CONDITIONS, GAINS, TRAINING_SET, Reading, effective_rates, learn
from counterflow.lab.trials import Context, Group, Json, Measurement, Outcome, Paper, Profile, Record, Trial

__all__ = ["PAPER"]

KEY = "tempering"
DATA = ("family_relations",)


SELECTION = tuple(range(10))
FRESH = tuple(range(10, 40))
SMOKE = tuple(range(4))
SEARCH_SEEDS = tuple(range(1000, 1010))

READINGS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "full error outside the radius": {"zero_error": "full"},
    "biases start within .3": {"bias_start": 0.3},
    "rates over the power, not its root": {"root": False},
    "attenuated below the output too": {"attenuate_below_output": True},
    "bias step with the global rate": {"bias_rate": "global"},
    "velocity not cut where the sign turned": {"gains": {**GAINS, "turned": 1.0}},
    "gains on the gradient, not on the step": {"gains": {**GAINS, "gain_on": "gradient"}},
    "increments multiplied, not added": {"gains": {**GAINS, "growth": "multiplicative"}},
    "compared with the last gradient alone": {"gains": {**GAINS, "trace_decay": 0.0}},
    "Jacobs' rule with momentum": {"gains": {"trace_decay": 0.7}},
    "Jacobs' rule without momentum": {"gains": {"trace_decay": 0.7, "momentum": 0.0}},
}

SEARCH: Mapping[str, Sequence[Any]] = {
    "growth": ("additive", "multiplicative"),
    "compare": ("trace 0", "trace .7", "step"),
    "gain_on": ("gradient", "step"),
    "momentum": (0.9, 0.0),
    "turned": (1.0, 0.7, 0.5, 0.3, 0.0),
    "max_gain": (None, 100.0, 30.0, 10.0),
}
SEARCH_EPOCHS = {"dbd.tempered": 300, "dbd.shunted": 250, "dbd.conventional": 2000}
SEARCH_BEYOND = 2.0  # a combination is given up at the first cell whose mean is this many times the published one


def trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All trials that are known now; stage 2 follows from the records of stage 1."""
    known = [Trial(KEY, "figure 1", seeds=(0,), settings={}, data=DATA)]
    if profile == "smoke":
        return known + [_cell_trial(name, CELLS[name].rate, SMOKE, "rates") for name in CELLS]
    for name, cell in CELLS.items():
        known += [_cell_trial(name, rate, SELECTION, "rates") for rate in rates_to_try(profile, name, records)]
        best = best_rate(profile, name, records)
        if best is not None:
            known += [_cell_trial(name, rate, FRESH, "fresh") for rate in dict.fromkeys((best, cell.rate))]
    for reading, changes in READINGS.items():
        for name, cell in CELLS.items():
            if _concerned(name, changes):
                known.append(_cell_trial(name, cell.rate, SELECTION, "readings", reading))
    if profile == "paper":
        combinations = _combinations()
        known += [_search_trial(combination) for combination in combinations]
        known += [_rates_trial(record) for record in nearest(records, len(combinations))]
    return known


def _concerned(name: str, changes: Mapping[str, Any]) -> bool:
    """Whether a reading makes a difference to a cell, and is cheap enough to be tried on it."""
    algorithm, condition = name.split(".")
    if "gains" in changes:
        return algorithm == "dbd"
    if condition == "conventional" or (algorithm == "dbd" and "gains" not in changes and changes):
        return False
    return "bias_rate" not in changes or condition == "shunted"


def _cell_trial(name: str, rate: float, seeds: tuple[int, ...], stage: str, reading: str = "default") -> Trial:
    cell = CELLS[name]
    settings: dict[str, Json] = {
        "rate": rate,
        "max_epochs": cell.max_epochs,
        "stage": stage,
        "reading": reading,
        "changes": asdict(Reading(**READINGS[reading])),  # all of it, so that a new default means a new record
    }
    seconds = cell.seconds * (0.6 + 0.04 * len(seeds))
    return Trial(KEY, name, seeds, settings, DATA, expected_seconds=seconds)


def _search_trial(gains: Mapping[str, Any]) -> Trial:
    settings: dict[str, Json] = {
        "stage": "search",
        "changes": {"gains": dict(gains)},
        "max_epochs": dict(SEARCH_EPOCHS),
        "beyond": {name: SEARCH_BEYOND * CELLS[name].epochs for name in SEARCH_EPOCHS},
    }
    return Trial(KEY, "search", SEARCH_SEEDS, settings, DATA, expected_seconds=8)


def _rates_trial(record: Record) -> Trial:
    """The other rates of the brackets for a combination that came near at the published ones."""
    settings: dict[str, Json] = {
        "stage": "search rates",
        "changes": record.settings["changes"],
        "max_epochs": record.settings["max_epochs"],
        "rates": {name: [r for r in CELLS[name].bracket if r != CELLS[name].rate] for name in SEARCH_EPOCHS},
    }
    return Trial(KEY, "search", SEARCH_SEEDS, settings, DATA, expected_seconds=25)


def _combinations() -> list[dict[str, Any]]:
    found = []
    for values in itertools.product(*SEARCH.values()):
        gains = dict(zip(SEARCH, values, strict=True))
        if gains["momentum"] == 0.0 and gains["turned"] != 1.0:
            continue  # no velocity outlives a step, so there is none to cut
        compare, _, decay = gains["compare"].partition(" ")
        found.append({**gains, "compare": compare} | ({"trace_decay": float(decay)} if decay else {}))
    return found


def _circular(means: bool = False) -> str:
    """What must be known of a claim that the choice of delta-bar-delta's reading decides; docs: tempering.

    Args:
        means: The claim rests on the means, which decided among the readings with the published best rates.
    """
    which, nearest_means = ("the one", " and whose means are then nearest to table 2") if means else ("one", "")
    return (
        f"the reading of the paper's delta-bar-delta was chosen, out of {len(_combinations())}, as {which} whose best "
        f"rates on other restarts are the published ones{nearest_means}"
    )


def run(trial: Trial, context: Context) -> Outcome:
    """One trial: figure 1's rates, one cell at one rate, or one combination of the search."""
    settings: Mapping[str, Any] = trial.settings
    if trial.treatment == "figure 1":
        return Outcome({layer: [rate] for layer, rate in effective_rates().items()})
    reading = Reading(**settings["changes"])
    if trial.treatment == "search":
        return _run_search(trial, reading, context)
    algorithm, condition = trial.treatment.split(".")
    limit = settings["max_epochs"]
    result = learn(
        algorithm,
        condition,
        settings["rate"],
        trial.seeds,
        reading,
        limit,
        lambda epoch, left: context.progress(
            max(epoch / limit, 1 - left / len(trial.seeds)), f"epoch {epoch}, {left} left"
        ),
    )
    step = max(1, len(result.losses) // 200)  # a curve is drawn, not measured: 200 points will do
    return Outcome(
        {"epochs": result.epochs}, {"loss": result.losses[::step], "epoch": list(range(0, len(result.losses), step))}
    )


def _run_search(trial: Trial, reading: Reading, context: Context) -> Outcome:
    """The three delta-bar-delta cells, up to the first whose mean is far too large if the trial says what that is."""
    settings: Mapping[str, Any] = trial.settings
    metrics: dict[str, Sequence[float | None]] = {}
    for position, name in enumerate(SEARCH_EPOCHS):
        algorithm, condition = name.split(".")
        limit = settings["max_epochs"][name]
        for rate in settings.get("rates", {}).get(name, [CELLS[name].rate]):
            result = learn(algorithm, condition, rate, trial.seeds, reading, limit)
            metrics[rate_key(name, rate)] = result.epochs
        context.progress((position + 1) / len(SEARCH_EPOCHS), name)
        total = sum(limit if epochs is None else epochs for epochs in result.epochs)
        if "beyond" in settings and total > settings["beyond"][name] * len(trial.seeds):
            break
    return Outcome(metrics)


def measure(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    """A measurement for every claim whose trials are there."""
    cells = {name: judged(profile, name, records) for name in CELLS}
    found: dict[str, Measurement] = {}

    def add(claim: str, groups: Sequence[tuple[str, float]], reference: str = "") -> None:
        sources = [cells[name] for name, _ in groups] + ([cells[reference]] if reference else [])
        present = [source for source in sources if source is not None]
        if len(present) < len(sources):
            return
        # A reading was chosen by its best rates and its means; a coefficient of variation is neither.
        chosen = any(name in DBD for name, _ in groups) and not claim.startswith("cv.")
        found[claim] = Measurement(
            groups=tuple(Group(epochs_of(cells[name]), power) for name, power in groups),  # type: ignore[arg-type]
            reference=(Group(epochs_of(cells[reference])),) if reference else (),  # type: ignore[arg-type]
            reason=_notes(_failures(present), _circular(means=True) if chosen else ""),
            seconds=sum(record.seconds for record in present),
            **_setting(profile),
        )

    for name in CELLS:
        algorithm = name.split(".")[0]
        plain = f"{algorithm}.conventional"
        add(
            f"t2.{name}",
            [(name, 1)],
            "" if name == "mom.conventional" else ("mom.conventional" if name == plain else plain),
        )
        add(f"cv.{name}", [(name, 1)])
        _add_rate(found, profile, name, records)
    for algorithm in ("mom", "dbd"):
        plain, tempered, shunted = (f"{algorithm}.{condition}" for condition in CONDITIONS)
        add(f"cv.{algorithm}.falls", [(tempered, 1), (plain, -1)])
        add(f"cv.{algorithm}.falls_again", [(shunted, 1), (tempered, -1)])
        add(f"speed.{algorithm}.tempering", [(plain, 1), (tempered, -1)])
        add(f"speed.{algorithm}.shunting", [(tempered, 1), (shunted, -1)])
        add(f"speed.{algorithm}.both", [(plain, 1), (shunted, -1)])
        add(f"speed.{algorithm}.order_of_magnitude", [(plain, 1), (shunted, -1)])
        add(f"order.{algorithm}.tempering", [(tempered, 1), (plain, -1)])
        add(f"order.{algorithm}.shunting", [(shunted, 1), (tempered, -1)])
    add("order.mom_vs_dbd", [("dbd.conventional", 1), ("mom.tempered", -1)])
    add("multiply", [("mom.conventional", 1), ("dbd.tempered", 1), ("mom.tempered", -1), ("dbd.conventional", -1)])
    _add_figure_1(found, records)
    _add_ceiling(found, profile, records)
    found["hinton"] = Measurement((), reason="a personal communication, without the setting that gave it")
    return found


def _setting(profile: Profile) -> dict[str, Any]:
    if profile == "smoke":
        return {"setting": "smaller", "differs": f"{len(SMOKE)} restarts in place of ten, at the published rate alone"}
    return {"setting": "same"}


def _notes(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _failures(records: Sequence[Record]) -> str:
    notes = []
    for record in records:
        failed = sum(epochs is None for epochs in record.metrics["epochs"])
        if failed:
            count, limit = len(record.seeds), record.settings["max_epochs"]
            notes.append(
                f"{record.treatment}: {failed} of {count} restarts had not learned after {limit} epochs, "
                f"and count as {limit}"
            )
    return "; ".join(notes)


def _add_rate(found: dict[str, Measurement], profile: Profile, name: str, records: Sequence[Record]) -> None:
    claim = f"t2.{name}.rate"
    best = best_rate(profile, name, records)
    if profile == "smoke":
        found[claim] = Measurement((), reason="the smoke profile tries the published rate alone")
    elif best is not None:
        tried = by_rate(name, records)
        among = ", ".join(f"{rate:g}" for rate, *_ in tried)
        choice = f"the best of {among}, by ten restarts each as in the paper; the choice has no interval"
        found[claim] = Measurement(
            groups=(Group((best,), deterministic=True),),
            reason=_notes(choice, _circular() if name in DBD else ""),
            seconds=sum(record.seconds for *_, record in tried),
        )


def _add_figure_1(found: dict[str, Measurement], records: Sequence[Record]) -> None:
    for record in records:
        if record.treatment == "figure 1":
            rates = {layer: float(values[0] or 0.0) for layer, values in record.metrics.items()}
            for layer, rate in rates.items():
                drawn = math.floor(rate / 0.05 + 1e-9) * 0.05
                found[f"fig1.{layer}"] = Measurement(
                    (Group((drawn,), deterministic=True),), reason=f"{rate:.4g} before rounding", seconds=record.seconds
                )
            order = [rates[layer] for layer in ("answer", "encoding", "association", "input")]
            least = min(above / below for above, below in itertools.pairwise(order))
            found["fig1.falls"] = Measurement(
                (Group((least,), deterministic=True),),
                reason="the least ratio of a layer's rate to that of the layer before it",
                seconds=record.seconds,
            )


def _add_ceiling(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    ceiling = 1 / math.sqrt(TRAINING_SET)
    found["eq18.ceiling"] = Measurement((), reason="it is equation 18 itself, of which no trial measures anything")
    best = {
        name: found[f"t2.{name}.rate"].groups for name in ("mom.shunted", "dbd.shunted") if f"t2.{name}.rate" in found
    }
    rates = {name: groups[0].samples[0] for name, groups in best.items() if groups}
    note = "smoke tries the published rate alone" if profile == "smoke" else ""
    for name in ("mom.shunted", "dbd.shunted"):
        claim = f"eq18.near.{name.split('.')[0]}"
        if name in rates:
            found[claim] = Measurement(
                (Group((rates[name] / ceiling,), deterministic=True),), reason=_circular() if name in DBD else ""
            )
        elif note:
            found[claim] = Measurement((), reason=note)
    if len(rates) == 2:
        found["eq18.holds"] = Measurement(
            (Group((max(rates.values()),), deterministic=True),), reason=_notes("the larger of the two", _circular())
        )
    elif note:
        found["eq18.holds"] = Measurement((), reason=note)


PAPER = Paper(
    key=KEY,
    revision=1,
    trials=trials,
    run=run,
    measure=measure,
    exhibits=exhibits,
)
