"""The cells of table 2, and how the records of their trials are read."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from counterflow.lab.trials import Profile, Record

__all__ = [
    "CELLS",
    "DBD",
    "PUBLISHED",
    "Cell",
    "Found",
    "Tried",
    "best_of",
    "best_rate",
    "by_rate",
    "epochs_of",
    "judged",
    "nearest",
    "neighbors",
    "of_stage",
    "rate_key",
    "rates_to_try",
    "searched",
]

Tried = tuple[float, tuple[float, ...], Record]


@dataclass(frozen=True)
class Cell:
    """A cell of table 2.

    Args:
        epochs: The published mean number of epochs.
        rate: The published best global rate.
        bracket: The rates that the laptop profile tries, the published one among them.
        max_epochs: When a restart is given up.
        seconds: What ten restarts cost, of one thread.
    """

    epochs: float
    rate: float
    bracket: tuple[float, float, float]
    max_epochs: int
    seconds: float


def _published() -> dict[str, dict[str, Any]]:
    table = tomllib.loads(Path(__file__).with_name("published.toml").read_text("utf-8"))
    return {claim["id"]: claim for claim in table["claim"]}


PUBLISHED = _published()


def _cell(name: str, bracket: tuple[float, float, float], max_epochs: int, seconds: float) -> Cell:
    epochs, rate = PUBLISHED[f"t2.{name}"]["value"], PUBLISHED[f"t2.{name}.rate"]["value"]
    return Cell(epochs, rate, bracket, max_epochs, seconds)


CELLS: Mapping[str, Cell] = {
    "mom.conventional": _cell("mom.conventional", (2e-3, 3e-3, 5e-3), 8000, 20),
    "mom.tempered": _cell("mom.tempered", (5e-3, 1e-2, 2e-2), 1500, 4),
    "mom.shunted": _cell("mom.shunted", (2e-2, 4e-2, 6e-2), 800, 3),
    "dbd.conventional": _cell("dbd.conventional", (1e-4, 3e-4, 6e-4), 4000, 10),
    "dbd.tempered": _cell("dbd.tempered", (1e-2, 3e-2, 5e-2), 600, 3),
    "dbd.shunted": _cell("dbd.shunted", (6e-2, 9e-2, 2e-1), 400, 3),
}


def of_stage(records: Iterable[Record], stage: str, cell: str | None = None) -> list[Record]:
    """The records of a stage, and of a cell where one is named."""
    return [r for r in records if r.settings.get("stage") == stage and cell in (None, r.treatment)]


def epochs_of(record: Record) -> tuple[float, ...]:
    """Epochs a restart; those that never learned count as the limit at which they were given up."""
    limit = float(record.settings["max_epochs"])
    return tuple(limit if epochs is None else float(epochs) for epochs in record.metrics["epochs"])


def by_rate(name: str, records: Iterable[Record]) -> list[Tried]:
    """Stage 1 of a cell: (rate, epochs, record), in the order of rates."""
    return sorted(((r.settings["rate"], epochs_of(r), r) for r in of_stage(records, "rates", name)), key=lambda x: x[0])


def best_of(tried: Sequence[Tried]) -> float:
    """The rate with the least mean plus standard deviation (section 6)."""
    return min(tried, key=lambda x: np.mean(x[1]) + np.std(x[1], ddof=1))[0]


def best_rate(profile: Profile, name: str, records: Sequence[Record]) -> float | None:
    """A cell's best rate, once all its rates have been tried."""
    tried = by_rate(name, records)
    complete = {rate for rate, *_ in tried} >= set(rates_to_try(profile, name, records))
    return best_of(tried) if complete and tried else None


def rates_to_try(profile: Profile, name: str, records: Sequence[Record]) -> tuple[float, ...]:
    """The rates to try: the bracket; in the paper's profile on to the best one-digit rate between worse ones."""
    bracket = CELLS[name].bracket
    if profile != "paper":
        return bracket
    known = set(bracket)
    tried = {rate for rate, *_ in by_rate(name, records)}
    while known <= tried:
        # Among the rates known so far: whatever else has a record must not decide what is asked for.
        best = best_of([item for item in by_rate(name, records) if item[0] in known])
        following = {neighbor for neighbor in neighbors(best) if neighbor not in known}
        if not following:
            break
        known |= following
    return tuple(sorted(known))


def neighbors(rate: float) -> tuple[float, float]:
    """The one-digit rates beside a one-digit rate."""
    exponent = math.floor(math.log10(rate) + 1e-9)
    digit = round(rate / 10**exponent)
    below = (9, exponent - 1) if digit == 1 else (digit - 1, exponent)
    above = (1, exponent + 1) if digit == 9 else (digit + 1, exponent)
    return float(f"{below[0]}e{below[1]}"), float(f"{above[0]}e{above[1]}")


def judged(profile: Profile, name: str, records: Sequence[Record]) -> Record | None:
    """The record that a cell's claims are judged on: fresh restarts at its best rate; in smoke, the published rate."""
    smoke = profile == "smoke"
    rate = CELLS[name].rate if smoke else best_rate(profile, name, records)
    stage = "rates" if smoke else "fresh"
    found = [r for r in of_stage(records, stage, name) if r.settings["rate"] == rate]
    return found[0] if found else None


# The search for delta-bar-delta

DBD = ("dbd.conventional", "dbd.tempered", "dbd.shunted")
NEAREST = 30  # combinations that are tried at other rates too


def rate_key(name: str, rate: float) -> str:
    """The metric of a search trial that holds a cell's epochs at a rate; the published one goes without saying."""
    return name if rate == CELLS[name].rate else f"{name}@{rate:g}"


@dataclass(frozen=True)
class Found:
    """What a combination of details gave.

    Args:
        gains: The details.
        cells: By cell, the epochs at every rate that was tried, those that never learned counted as the limit.
        complete: Whether other rates than the published were tried too.
    """

    gains: Mapping[str, Any]
    cells: Mapping[str, Mapping[float, tuple[float, ...]]]
    complete: bool

    def best(self, name: str) -> float:
        """The cell's best rate, by mean plus standard deviation."""
        tried = self.cells[name]
        return min(tried, key=lambda rate: float(np.mean(tried[rate]) + np.std(tried[rate], ddof=1)))

    @property
    def distance(self) -> float:
        """The sum over the cells of |log(mean at the best rate / published)|; infinite where a cell is missing."""
        if any(name not in self.cells for name in DBD):
            return math.inf
        means = {name: float(np.mean(self.cells[name][self.best(name)])) for name in DBD}
        return sum(abs(math.log(mean / CELLS[name].epochs)) for name, mean in means.items())

    @property
    def rates_missed(self) -> int:
        """In how many cells another rate than the published is the best."""
        return sum(name not in self.cells or self.best(name) != CELLS[name].rate for name in DBD)


def _found(record: Record, more: Record | None) -> Found:
    cells: dict[str, dict[float, tuple[float, ...]]] = {}
    for source in (record, more):
        for key, values in source.metrics.items() if source else ():
            name, _, rate = key.partition("@")
            limit = float(record.settings["max_epochs"][name])
            epochs = tuple(limit if value is None else float(value) for value in values)
            cells.setdefault(name, {})[float(rate) if rate else CELLS[name].rate] = epochs
    return Found(record.settings["changes"]["gains"], cells, more is not None)


def searched(records: Iterable[Record]) -> list[Found]:
    """What every combination of the search gave, the nearest to table 2 first.

    Those that were tried at all rates lead. Of these the best rates come first, since table 2 says which they are, and
    then the means.
    """
    records = list(records)
    more = {str(r.settings["changes"]): r for r in of_stage(records, "search rates")}
    found = [_found(r, more.get(str(r.settings["changes"]))) for r in of_stage(records, "search")]
    return sorted(found, key=lambda item: (not item.complete, item.rates_missed, item.distance, len(str(item.gains))))


def nearest(records: Iterable[Record], combinations: int) -> list[Record]:
    """The search's records nearest to table 2 at the published rates, once all combinations have been tried."""
    tried = of_stage(records, "search")
    if len(tried) < combinations:
        return []
    return sorted(tried, key=lambda r: (_found(r, None).distance, r.key))[:NEAREST]
