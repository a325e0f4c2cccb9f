"""A paper of known truth, whose trials take a moment and leave a trace, for tests of the runner and the cli.

Its folder is `papers/toy`; `install` puts it beside the real papers. Every trial appends ``start <name>`` and
``end <name>`` to the file that ``TOY_TRACE`` names, so that a test can count what ran, and when.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import counterflow.lab.papers
from counterflow.exceptions import DataNotFoundError
from counterflow.lab.report import Figure, TableExhibit
from counterflow.lab.trials import (
    ClaimResult,
    Context,
    Group,
    Measurement,
    Outcome,
    Paper,
    Profile,
    Record,
    Trial,
)

HERE = Path(__file__).parent
SIZES: Mapping[Profile, int] = {"smoke": 3, "laptop": 6, "paper": 12}
TRUTH = {"slow": 100.0, "quick": 20.0}
SEEDS = 4


def install() -> None:
    """Put the toy beside the real papers, in this process."""
    folder = str(HERE / "papers")
    if folder not in counterflow.lab.papers.__path__:
        counterflow.lab.papers.__path__.append(folder)


def trace(word: str, trial: Trial) -> None:
    with open(os.environ["TOY_TRACE"], "a", encoding="utf-8") as stream:
        stream.write(f"{word} {name(trial)} {os.getpid()}\n")


def name(trial: Trial | Record) -> str:
    return f"{trial.treatment}/{trial.settings.get('part', '-')}"


def trials(profile: Profile, records: Sequence[Record]) -> Sequence[Trial]:
    seconds = float(os.environ.get("TOY_SECONDS", "0"))
    first = [
        Trial(
            "toy",
            treatment,
            seeds=tuple(range(SEEDS * part, SEEDS * (part + 1))),
            settings={"part": part, "seconds": seconds},
            expected_seconds=1.0 + part,
        )
        for treatment in TRUTH
        for part in range(SIZES[profile])
    ]
    extra = [Trial("toy", word, seeds=(0,)) for word in os.environ.get("TOY_EXTRA", "").split()]
    if len([record for record in records if record.treatment in TRUTH]) < len(first):
        return [*first, *extra]
    # The second stage follows from what the first one found.
    best = min(TRUTH, key=lambda treatment: sum(samples(records, treatment)))
    return [*first, *extra, Trial("toy", "timed", seeds=(0,), settings={"best": best}, exclusive=True)]


def run(trial: Trial, context: Context) -> Outcome:
    trace("start", trial)
    seconds = float(trial.settings.get("seconds", 0.0))  # type: ignore[arg-type]
    for step in range(10):
        time.sleep(seconds / 10)
        context.progress(step / 10, f"step {step}")
    if trial.treatment == "fails":
        raise ValueError("the toy is broken\nin two lines")
    if trial.treatment == "lacks":
        raise DataNotFoundError("the set speech is not on this machine: buy it")
    if trial.treatment == "diverges":
        return Outcome({"epochs": [float("nan")]})
    if trial.treatment == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if trial.treatment == "dies-once" and not (context.folder / "checkpoint").exists():
        (context.folder / "checkpoint").write_text("here")
        os.kill(os.getpid(), signal.SIGKILL)
    truth = TRUTH.get(trial.treatment, 1.0)
    values = [truth * random.Random(seed).lognormvariate(0.0, 0.2) for seed in trial.seeds]
    trace("end", trial)
    return Outcome({"epochs": values}, {"loss": [1.0, 0.5, float("inf")]})


def samples(records: Sequence[Record], treatment: str) -> tuple[float, ...]:
    return tuple(
        value
        for record in records
        if record.treatment == treatment
        for value in record.metrics["epochs"]
        if value is not None
    )


def measure(profile: Profile, records: Sequence[Record]) -> Mapping[str, Measurement]:
    slow, quick = samples(records, "slow"), samples(records, "quick")
    if not slow or not quick:
        return {}
    setting = "same" if profile == "paper" else "smaller"
    ratio = Measurement((Group(slow), Group(quick, power=-1.0)), setting, "fewer seeds")
    return {
        "slow": Measurement((Group(slow),), setting, "fewer seeds", seconds=1.0),
        "speedup": ratio,
        "order": ratio,
        "wrong": Measurement((Group(quick),), setting, "fewer seeds"),
    }


def exhibits(
    profile: Profile, records: Sequence[Record], results: Sequence[ClaimResult]
) -> Sequence[Figure | TableExhibit]:
    return [TableExhibit("Epochs", "A toy.", ["treatment"], [[treatment] for treatment in TRUTH])]


PAPER = Paper(
    key="toy",
    revision=1,
    trials=trials,
    run=run,
    measure=measure,
    exhibits=exhibits,
)
