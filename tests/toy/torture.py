"""Kills a running reproduction with -9 at random moments, and starts it again each time.

``python torture.py FOLDER KILLS SEED`` prints what came of it as JSON, and fails at the first thing that is wrong.

What takes a reproduction long to start is importing, so one process imports everything once, and each reproduction is
a fork of it: a process of its own, killed as a whole. It runs its trials in two threads; every twentieth has a pool of
processes as users have it, and longer to live.

A folder's trials are finished after some kills; then it is inspected, and the next folder begins.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import counterflow.lab.data  # noqa: F401  a run imports it when it needs it, which is slow
from counterflow.lab.trials import Context, Outcome, Paper, Profile, Record, Trial, read_record, run
from counterflow.lab.trials.record import commit

FIRST, SECOND = 24, 8


def trials(profile: Profile, records: Sequence[Record]) -> Sequence[Trial]:
    first = [Trial("torture", "first", (i,), expected_seconds=1.0 + i) for i in range(FIRST)]
    if sum(record.treatment == "first" for record in records) < FIRST:
        return first
    second = [Trial("torture", "second", (i,), exclusive=i % 4 == 0) for i in range(SECOND)]
    return [*first, *second]


def one(trial: Trial, context: Context) -> Outcome:
    """Count to ten, a line a step in the checkpoint, and go on from there after a kill."""
    name = f"{trial.treatment}{trial.seeds[0]}"
    trace("start", name)
    checkpoint = context.folder / "steps"
    steps = len(checkpoint.read_text().split()) if checkpoint.exists() else 0
    while steps < 10:
        time.sleep(0.003)
        context.progress(steps / 10)
        with checkpoint.open("a") as stream:
            stream.write(f"{steps} ")
        steps += 1
    # Two who write one checkpoint would repeat steps in it.
    if checkpoint.read_text().split() != [str(step) for step in range(10)]:
        trace("shared", name)
        raise ValueError(f"the checkpoint says {checkpoint.read_text()}")
    return Outcome({"value": [float(trial.seeds[0])]})


def trace(word: str, name: str) -> None:
    with open(os.environ["TORTURE_TRACE"], "a") as stream:
        stream.write(f"{word} {name}\n")


PAPER = Paper(
    key="torture",
    revision=1,
    trials=trials,
    run=one,
    measure=lambda profile, records: {},
    exhibits=lambda profile, records, results: [],
)


def reproduce(out: Path, processes: bool) -> None:
    if processes:
        run([PAPER], "smoke", out, jobs=2)
    else:
        with ThreadPoolExecutor(2) as threads:
            run([PAPER], "smoke", out, executor=threads, jobs=2)


def start(out: Path, processes: bool) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            reproduce(out, processes)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def started(word: str = "start") -> Counter[str]:
    lines = [line.split() for line in Path(os.environ["TORTURE_TRACE"]).read_text().splitlines()]
    return Counter(name for said, name in lines if said == word)


def name(record: Record) -> str:
    return f"{record.treatment}{record.seeds[0]}"


def torture(folder: Path, kills: int, seed: int) -> dict[str, float]:
    """Kill so often, and say how it went; AssertionError where something is wrong."""
    moments = random.Random(seed)
    commit()  # asked once a process; here, so that no fork has to
    begun = time.monotonic()
    total: Counter[str] = Counter(kills=0, records=0, expected=0, repeated=0, interrupted=0, folders=0)
    while total["kills"] < kills:
        out = folder / f"out{total['folders']}"
        os.environ["TORTURE_TRACE"] = str(folder / f"trace{total['folders']}")
        Path(os.environ["TORTURE_TRACE"]).touch()
        settled: dict[str, int] = {}  # finished trials, and how often each had been started by then
        running = True
        while running and total["kills"] < kills:
            processes = total["kills"] % 20 == 19
            child = start(out, processes)
            time.sleep(moments.uniform(0.5, 1.5) if processes else moments.uniform(0.0, 0.4))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            running = status == signal.SIGKILL
            assert running or status == 0, f"exit status {status}"
            total["kills"] += running
            # A record that can be seen is whole.
            records = {name(record) for record in map(read_record, out.glob("torture/*.json"))}
            assert settled.keys() <= records, f"lost: {settled.keys() - records}"
            counts = started()
            settled |= {trial: counts[trial] for trial in records - settled.keys()}
        _, status = os.waitpid(start(out, processes=False), 0)
        assert status == 0, f"exit status {status}"
        inspect(out)
        counts = started()
        total["repeated"] += sum(counts[trial] != count for trial, count in settled.items())
        total["interrupted"] += sum(counts.values()) - FIRST - SECOND
        total["records"] += len(list(out.glob("torture/*.json")))
        total["folders"] += 1
        total["expected"] += FIRST + SECOND
        assert not started("shared"), f"checkpoints that two wrote: {started('shared')}"
    return {**total, "seconds": round(time.monotonic() - begun, 1)}


def inspect(out: Path) -> None:
    """Every record is there once, and nothing else is."""
    records = [read_record(path) for path in out.glob("torture/*.json")]
    assert all(record.status == "done" for record in records)
    assert all(record.metrics == {"value": (float(record.seeds[0]),)} for record in records)
    assert Counter(map(name, records)) == Counter(map(name, trials("smoke", records)))  # type: ignore[arg-type]
    there = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    named = {f"torture/{record.key}.json" for record in records}
    named |= {f"environments/{record.environment}.json" for record in records}
    assert there == named | {"torture", "environments"}, f"stray: {there ^ named}"


if __name__ == "__main__":
    print(json.dumps(torture(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
