"""Papers on a real cluster that loses a worker; ``make cluster`` runs it for all of them, or those that it is given."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from counterflow.lab.trials import Record, load_paper, paper_keys, read_record


def papers_of(words: list[str]) -> tuple[str, ...]:
    """The papers that ``counterflow reproduce`` runs for each of these words; ``all`` is all."""
    return paper_keys() if words == ["all"] else tuple(words)


WORDS = os.environ.get("COUNTERFLOW_CLUSTER", "").replace(",", " ").split()
PAPERS = papers_of(WORDS)
README = (Path(__file__).parents[3] / "README.md").read_text("utf-8")

wanted = pytest.mark.skipif(not PAPERS, reason="COUNTERFLOW_CLUSTER names no papers; make cluster does")


def wait_until(true: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def as_the_readme_says(program: str) -> list[str]:
    """The words of its command there, without the address and the number of workers."""
    (line,) = re.findall(rf"^dask {program}\b(.*)$", README, re.M)
    words = re.sub(r"#.*|tcp://\S+|--nworkers \d+", "", line).split()
    return [sys.executable, "-m", "dask", program, *words]


def records(out: Path) -> dict[str, Record]:
    return {path.stem: read_record(path) for key in PAPERS for path in (out / key).glob("*.json")}


def untimed(record: Record) -> dict[str, object]:
    """Its metrics without those in seconds, by which speech tells what its models cost."""
    return {name: values for name, values in record.metrics.items() if "seconds" not in name.split()}


def test_all_papers_are_named_by_one_word() -> None:
    assert papers_of(["all"]) == paper_keys()
    assert papers_of(["density", "tempering"]) == ("density", "tempering")
    makefile = (Path(__file__).parents[3] / "Makefile").read_text("utf-8")
    assert "$${COUNTERFLOW_CLUSTER:-all}" in makefile


@wanted
def test_papers_on_a_cluster_that_loses_a_worker_leave_the_records_of_a_local_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from counterflow.cli import main; sys.exit(main())", "reproduce"]
    quiet = ["--profile", "smoke", "--no-report"]
    for word in WORDS:
        local = [*command, word, *quiet, "--out", str(tmp_path / "local")]
        subprocess.run(local, check=True, stdout=subprocess.DEVNULL)
    log = (tmp_path / "log").open("wb")

    def start(words: list[str]) -> subprocess.Popen[bytes]:
        # In a session of its own, so that a worker can be killed with what it started.
        return subprocess.Popen(words, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)

    def said(pattern: str) -> list[str]:
        return re.findall(pattern, (tmp_path / "log").read_text("utf-8", "replace"))

    started = [start([*as_the_readme_says("scheduler"), "--host", "127.0.0.1", "--port", "0", "--no-dashboard"])]
    try:
        wait_until(lambda: said(r"Scheduler at: +(tcp://\S+)"))
        (address,) = set(said(r"Scheduler at: +(tcp://\S+)"))
        worker = [*as_the_readme_says("worker"), address, "--nworkers", "1", "--no-dashboard"]
        started += [start(worker) for _ in range(2)]
        wait_until(lambda: len(said("Registered to:")) >= 2)
        out = tmp_path / "cluster"
        for word in WORDS:
            child = subprocess.Popen(
                [*command, word, *quiet, "--out", str(out), "--cluster", address],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if word == WORDS[0]:
                while len(records(out)) < 2:
                    assert child.poll() is None, "it was done before a worker could be killed"
                    time.sleep(0.1)
                os.killpg(started[-1].pid, signal.SIGKILL)
            told = child.communicate(timeout=3600)[1]
            assert child.returncode == 0, told
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()
    there, here = records(out), records(tmp_path / "local")
    assert set(there) == set(here)
    timed = {
        (key, trial.treatment)
        for key in PAPERS
        for trial in load_paper(key).trials("smoke", [each for each in here.values() if each.paper == key])
        if trial.exclusive
    }
    for name, record in here.items():
        other = there[name]
        assert (other.status, other.paper, other.treatment) == (record.status, record.paper, record.treatment)
        if (record.paper, record.treatment) not in timed:  # what is timed is never the same twice
            assert untimed(other) == untimed(record), f"{record.paper}/{record.treatment}"
            assert other.curves == record.curves, f"{record.paper}/{record.treatment}"
