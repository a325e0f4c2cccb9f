"""The main job, on a paper of known truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from counterflow.cli import main
from counterflow.cli.live import Display
from counterflow.lab.report.claims import JSON_FIELDS
from counterflow.lab.trials import Trial, load_paper
from counterflow.lab.trials.events import Finished, Lost, Planned, Progressed, Started

CLI = (
    "import toy_paper; toy_paper.install()\nimport sys; from counterflow.cli import main; sys.exit(main(sys.argv[1:]))"
)


def test_reproduce_end_to_end_and_again(
    tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, target = tmp_path / "out", tmp_path / "claims.json"
    monkeypatch.setenv("COLUMNS", "120")
    command = ["reproduce", "toy", "--out", str(out), "--jobs", "2"]
    assert main([*command, "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "toy: 7 of 7 trials, timed took" in printed
    assert "102 ± 20 epochs" in printed
    assert "toy: 3 reproduced, 1 not reproduced, 1 not run" in printed
    assert f"Report: {out / 'report.html'}" in printed
    assert "unmeasured" in (out / "report.html").read_text("utf-8")

    document = json.loads(target.read_text(), parse_constant=pytest.fail)
    assert document["profile"] == "smoke"
    (paper,) = document["papers"]
    assert paper["paper"] == "toy"
    assert all(tuple(claim) == JSON_FIELDS for claim in paper["claims"])
    claims = {claim["id"]: claim for claim in paper["claims"]}
    assert {name: claim["verdict"] for name, claim in claims.items()} == {
        "slow": "reproduced",
        "speedup": "reproduced",
        "order": "reproduced",
        "wrong": "not reproduced",
        "unmeasured": "not run",
    }
    assert claims["slow"]["low"] < 100 < claims["slow"]["high"]
    assert claims["speedup"]["measured"] == pytest.approx(5.0)
    assert claims["unmeasured"]["measured"] is None
    assert (claims["slow"]["n"], claims["slow"]["setting"], claims["slow"]["unit"]) == (12, "smaller", "epochs")

    before = trace.read_text()
    (out / "report.html").unlink()
    assert main([*command, "--json", "-", "--no-report"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == document  # and nothing else
    assert "toy: 3 reproduced" in printed.err
    assert trace.read_text() == before
    assert not (out / "report.html").exists()


def test_without_a_terminal_a_claim_is_a_plain_line(
    tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["reproduce", "toy", "--out", str(tmp_path / "out"), "--jobs", "1", "--no-report"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("A toy")
    assert lines[start + 1].split() == ["claim", "published", "measured", "95%", "n", "setting", "verdict"]
    rows = {line.split()[0]: line for line in lines[start + 2 : start + 7]}
    assert list(rows) == ["slow", "speedup", "order", "wrong", "unmeasured"]
    assert "  102 ± 20 epochs  " in rows["slow"]
    assert rows["slow"].endswith("  12  smaller  reproduced")
    assert rows["unmeasured"].endswith("  not run")
    assert lines[start + 7] == "Nobody (1900)"
    assert lines[-2].startswith("toy: 3 reproduced, 1 not reproduced, 1 not run; computing time ")


def test_only_some_treatments_are_run(tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "toy", "--out", str(tmp_path / "out"), "--jobs", "1", "--no-report"]
    assert main([*command, "--only", "sl*"]) == 0
    assert "toy: 5 not run" in capsys.readouterr().out
    started = [line.split()[1] for line in trace.read_text().splitlines() if line.startswith("start")]
    assert sorted(started) == ["slow/0", "slow/1", "slow/2"]
    assert main(command) == 0  # and are not run again
    assert trace.read_text().count("start slow") == 3

    before = trace.read_text()
    assert main([*command, "--only", "fast"]) == 2
    assert capsys.readouterr().err == "counterflow: no treatment of toy is like 'fast'; there are quick, slow\n"
    assert main(["reproduce", "all", "--only", "slow", "--out", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "counterflow: --only slow: treatments are those of one paper; name it instead of all"
    assert not (tmp_path / "none").exists()
    assert trace.read_text() == before


def test_the_claims_do_not_take_the_place_of_the_page(
    tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out", tmp_path / "report.html"
    for folder, target, complaint in (
        (tmp_path, page, f"--json and --out both name {page}"),
        (out, out, f"--json {out}: --out makes a folder of that name; name a file"),
    ):
        assert main(["reproduce", "toy", "--out", str(folder), "--json", str(target)]) == 2
        assert complaint in capsys.readouterr().err
        assert not target.exists()
    assert trace.read_text() == ""


@pytest.mark.parametrize("folder", ["toy", "speech", "environments"])
def test_the_claims_do_not_take_the_place_of_a_record(
    folder: str, tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / folder).mkdir()
    record = tmp_path / folder / "record.json"
    record.write_text("{}")
    assert main(["reproduce", "toy", "--out", str(tmp_path), "--json", str(record)]) == 2
    complaint = f"counterflow: --json {record}: this is what is read; name another file\n"
    assert capsys.readouterr().err == complaint
    assert record.read_text() == "{}"
    assert trace.read_text() == ""


def test_a_failed_trial_is_status_1_and_one_line(
    tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_EXTRA", "fails lacks")
    assert main(["reproduce", "toy", "--out", str(tmp_path / "out"), "--jobs", "1", "--no-report"]) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("counterflow: trial toy/fails failed: ValueError: the toy is broken in two lines (")
    assert Path(line.rpartition("(")[2].rstrip(")")).exists()
    assert "toy: lacks not run: the set speech is not on this machine: buy it" in printed.out


def _with_ctrl_c() -> None:
    """A shell lets what it starts in the background ignore SIGINT, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_a_resumable_state(tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SECONDS", "0.4")
    command = [sys.executable, "-c", CLI, "reproduce", "toy", "--out", str(tmp_path / "out"), "--jobs", "2"]
    child = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_with_ctrl_c,
    )
    _wait_until(lambda: list((tmp_path / "out").glob("toy/*.json")))
    before = trace.read_text().count("start")
    _wait_until(lambda: trace.read_text().count("start") > before)  # a trial has just begun
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    _, complaint = child.communicate(timeout=60)
    assert child.returncode == 130
    assert complaint == (
        f"counterflow: stopped; finished trials are recorded in {tmp_path / 'out'}, "
        "and the same command goes on from there\n"
    )
    assert trace.read_text().count("start") > trace.read_text().count("end")  # none was waited for
    finished = {
        f"{record['treatment']}/{record['settings']['part']}"
        for record in (json.loads(path.read_bytes()) for path in (tmp_path / "out").glob("toy/*.json"))
    }
    assert 1 <= len(finished) < 7
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    starts = Counter(line.split()[1] for line in trace.read_text().splitlines() if line.startswith("start"))
    assert {name: starts[name] for name in finished} == dict.fromkeys(finished, 1)
    assert len(starts) == 7
    assert not list((tmp_path / "out").rglob("*.part"))


def _wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.distributed
def test_reproduce_on_a_cluster(tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distributed = pytest.importorskip("distributed") if not os.environ.get("CI") else __import__("distributed")
    with distributed.LocalCluster(
        n_workers=1, processes=False, dashboard_address=":0", protocol="tcp", host="127.0.0.1"
    ) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tcp://")
        command = ["reproduce", "toy", "--out", str(tmp_path / "out"), "--cluster", address, "--no-report"]
        assert main(command) == 0
    assert "toy: 3 reproduced" in capsys.readouterr().out


def test_the_live_table_counts_and_foresees(tmp_path: Path, trace: Path) -> None:
    paper = load_paper("toy")
    console = Console(file=StringIO(), width=120, force_terminal=True)
    trials = tuple(Trial("toy", name, (0,), expected_seconds=10.0) for name in "abcd")
    with Display([paper], console, jobs=2) as display:
        display.show(Planned("toy", trials))
        assert display.seconds_left() == pytest.approx(20.0)
        display.show(Started("k", trials[0]))
        display.show(Progressed("k", trials[0], 0.5, "half way"))
        assert display.seconds_left() == pytest.approx(17.5)
        screen = Console(file=StringIO(), width=120)
        screen.print(display.table())
        text = screen.file.getvalue()  # type: ignore[attr-defined]
        assert "0/4" in text
        assert "50% toy a" in text
        assert "half way" in text
        display.show(Lost((trials[0],)))
        assert display.seconds_left() == pytest.approx(20.0)
        for number, trial in enumerate(trials[:2]):
            display.show(Finished(_record(trial, seconds=20.0), trial, reused=number == 1))
        # twice as slow as expected, by the one that ran; two trials are left, side by side
        assert display.seconds_left() == pytest.approx(20.0)
        for trial in trials[2:]:
            display.show(Finished(_record(trial, seconds=20.0), trial, reused=False))
        assert display.seconds_left() == 0.0


def _record(trial: Trial, seconds: float) -> object:
    from counterflow.lab.trials import Record

    return Record(
        format_version=1,
        key=trial.treatment,
        paper=trial.paper,
        treatment=trial.treatment,
        seeds=trial.seeds,
        settings={},
        data={},
        revision=1,
        profile="smoke",
        commit=None,
        environment="",
        status="done",
        reason="",
        seconds=seconds,
        metrics={},
        curves={},
    )
