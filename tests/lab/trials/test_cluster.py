"""A real dask scheduler and two real workers on the loopback address."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import counterflow.lab.papers
from counterflow.cli import main
from counterflow.lab.trials import Record, load_paper, read_record, run

TOY = Path(__file__).parents[2] / "toy"


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclass
class Cluster:
    folder: Path
    address: str = ""
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        # A worker that runs a trial is given no second one to wait behind it: the order is then the scheduler's.
        environment = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0"}
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "dask", *words]
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, env=environment)

    def __enter__(self) -> Cluster:
        self.folder.mkdir()
        told = self.folder / "scheduler.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        self.scheduler = self.start("scheduler", *options, "--scheduler-file", str(told))
        wait_until(lambda: told.exists() and told.read_text().strip().endswith("}"))
        self.address = json.loads(told.read_text())["address"]
        # Without a nanny, which would start a killed one again.
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self.folder)]
        self.workers = [self.start("worker", self.address, *options) for _ in range(2)]
        return self

    def __exit__(self, *error: object) -> None:
        assert self.scheduler is not None
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path, trace: Path) -> Iterator[Cluster]:
    if not os.environ.get("CI"):
        pytest.importorskip("distributed")
    with Cluster(tmp_path / "cluster") as started:
        yield started


def lines(trace: Path) -> list[list[str]]:
    return [line.split() for line in trace.read_text().splitlines(keepends=True) if line.endswith("\n")]


def starts(trace: Path) -> Counter[str]:
    return Counter(line[1] for line in lines(trace) if line[0] == "start")


def read(out: Path) -> dict[str, Record]:
    return {path.stem: read_record(path) for path in out.glob("toy/*.json")}


def result(record: Record) -> dict[str, Any]:
    """All of a record that has to be the same wherever it was run."""
    names = set(record.__struct_fields__) - {"seconds", "environment", "commit"}
    return {name: getattr(record, name) for name in names}


@pytest.mark.distributed
def test_a_killed_worker_costs_nothing_but_its_trial(
    tmp_path: Path, trace: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SECONDS", "0.2")
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    arguments = ["reproduce", "toy", "--profile", "laptop", "--out", str(out), "--cluster", cluster.address]
    code = "import toy_paper; toy_paper.install()\nimport sys; from counterflow.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments, "--no-report"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    victim = cluster.workers[0]

    def half_way() -> bool:
        assert child.poll() is None, child.communicate()[0]
        mine = [line for line in lines(trace) if line[2] == str(victim.pid)]
        return len(read(out)) >= 4 and len(mine) >= 3 and mine[-1][0] == "start"

    wait_until(half_way)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    time.sleep(0.05)
    finished = read(out)
    before = starts(trace)
    said = child.communicate(timeout=90)[0]
    assert child.returncode == 0, said
    assert 4 <= len(finished) < 12

    def name(record: Record) -> str:
        return f"{record.treatment}/{record.settings.get('part', '-')}"

    after, there = starts(trace), read(out)
    assert {key: there[key] for key in finished} == finished  # none was written again
    assert {name(record): after[name(record)] for record in finished.values()} == {
        name(record): 1 for record in finished.values()
    }
    # The trial that was under way on the killed worker, and a result that had not left it.
    assert before.total() < 13 < after.total() <= 13 + 2
    assert len({line[2] for line in lines(trace)}) == 2

    with ThreadPoolExecutor(2) as threads:
        local = run([load_paper("toy")], "laptop", tmp_path / "local", executor=threads, jobs=2)["toy"]
    assert {key: result(record) for key, record in there.items()} == {record.key: result(record) for record in local}
    for folder in (out, tmp_path / "local"):
        assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json"}
        assert not list(folder.rglob("*.part"))


@pytest.mark.distributed
def test_a_killed_scheduler_is_one_line(
    tmp_path: Path, trace: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SECONDS", "0.2")
    out = tmp_path / "out"
    code = "import toy_paper; toy_paper.install()\nimport sys; from counterflow.cli import main; sys.exit(main())"
    arguments = ["reproduce", "toy", "--out", str(out), "--cluster", cluster.address, "--no-report"]
    command = [sys.executable, "-c", code, *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(read(out)) >= 2)
    assert cluster.scheduler is not None
    cluster.scheduler.kill()
    said = child.communicate(timeout=90)
    assert child.returncode == 2, said
    assert said[1] == (
        "counterflow: the executor broke down (it let go of its trials; is the scheduler gone?); "
        "finished trials are recorded, and the same command goes on from there\n"
    )
    assert all(record.status == "done" for record in read(out).values())
    local = subprocess.run([*command[: command.index("--cluster")], "--no-report"], stdout=subprocess.DEVNULL)
    assert local.returncode == 0
    assert len(read(out)) == 7
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json"}


@pytest.fixture
def several(tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Several papers in the real ones' place; their keys."""
    keys: tuple[str, ...] = importlib.import_module("several").KEYS
    for key in keys:
        folder = tmp_path / "papers" / key
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "experiment.py").write_text(f"import several\nPAPER = several.paper({key!r})\n")
        claim = 'id = "a"\nclaim = "It is so."\nkind = "bound"\nvalue = 1.0\ndirection = "less"\n'
        (folder / "published.toml").write_text(f'title = "{key}"\ncitation = "Nobody"\n[[claim]]\n{claim}')
    monkeypatch.setattr(counterflow.lab.papers, "__path__", [str(tmp_path / "papers")])
    yield keys
    for module in [module for module in sys.modules if module.startswith("counterflow.lab.papers.several_")]:
        del sys.modules[module]
    for key in keys:
        with contextlib.suppress(AttributeError):
            delattr(counterflow.lab.papers, key)


def check_order(trace: Path, keys: tuple[str, ...], at_once: int) -> None:
    """Long trials first over all papers together, each stage for itself, and timed ones alone."""
    ran = [(line[0], float(line[1]), line[2], float(line[3]), float(line[4])) for line in lines(trace)]
    assert len({name for name, *_ in ran}) == len(ran) == 5 * (len(keys) + 1)
    for name, _, kind, begun, ended in ran:
        if kind == "timed":
            assert [other for other, _, _, start, end in ran if start < ended and begun < end] == [name]
    for kind in ("ordinary", "timed"):
        first = sorted((begun, length) for name, length, was, begun, _ in ran if was == kind and "/1." in name)
        lengths = [length for _, length in first]
        # Those that start together may be seen in any order.
        for position, length in enumerate(lengths):
            assert max(lengths[position:]) - length < at_once, lengths
    ordinary = [ended for name, _, was, _, ended in ran if was == "ordinary" and "/1." in name]
    assert max(ordinary) <= min(begun for _, _, was, begun, _ in ran if was == "timed")


@pytest.mark.parametrize("jobs", [1, 3])
def test_reproduce_all_runs_long_trials_first_and_timed_ones_alone(
    jobs: int, tmp_path: Path, trace: Path, several: tuple[str, ...]
) -> None:
    command = ["reproduce", "all", "--jobs", str(jobs), "--out", str(tmp_path / "out"), "--no-report"]
    assert main(command) == 0
    check_order(trace, several, at_once=jobs)


@pytest.mark.distributed
def test_reproduce_all_keeps_that_order_on_a_cluster(
    tmp_path: Path, trace: Path, cluster: Cluster, several: tuple[str, ...]
) -> None:
    command = ["reproduce", "all", "--cluster", cluster.address, "--out", str(tmp_path / "out"), "--no-report"]
    assert main(command) == 0
    check_order(trace, several, at_once=3)
    assert len({line[5] for line in lines(trace)}) == 2
