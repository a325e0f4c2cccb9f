"""Disks that are full or cannot be written, records that somebody damaged, two runs in one folder."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from counterflow.cli import main
from counterflow.exceptions import RecordError
from counterflow.lab.trials import Context, Outcome, Paper, Record, Trial, read_record, run
from counterflow.lab.trials.events import Damaged, Elsewhere, Event

NAMES = "abcdef"


def paper(one: Callable[[Trial, Context], Outcome]) -> Paper:
    return Paper(
        key="simple",
        revision=1,
        trials=lambda profile, records: [Trial("simple", name, (0,)) for name in NAMES],
        run=one,
        measure=lambda profile, records: {},
        exhibits=lambda profile, records, results: [],
    )


def quick(trial: Trial, context: Context) -> Outcome:
    return Outcome({"epochs": [float(ord(trial.treatment))]})


def go(out: Path, one: Callable[[Trial, Context], Outcome] = quick) -> tuple[list[Record], list[Event]]:
    events: list[Event] = []
    with ThreadPoolExecutor(1) as threads:
        return run([paper(one)], "smoke", out, executor=threads, jobs=1, on_event=events.append)["simple"], events


def require_complete(out: Path) -> None:
    records = [read_record(path) for path in out.glob("simple/*.json")]
    assert sorted(record.treatment for record in records) == list(NAMES)
    assert all(record.metrics == {"epochs": (float(ord(record.treatment)),)} for record in records)
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json"}
    assert {path.name for path in out.rglob("*") if path.is_dir()} == {"simple", "environments"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "counterflow-test", str(place)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("ab", buffering=0) as stream:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(size))
    return filler


def test_a_full_disk_is_one_line_and_loses_nothing(disk: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filler = fill(disk)
    assert main(["reproduce", "toy", "--out", str(disk / "out"), "--no-report"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"counterflow: {disk / 'out'} cannot be written: No space left on device")
    assert said.count("\n") == 1
    assert not trace.read_text()  # found before the work
    filler.unlink()

    def fills(trial: Trial, context: Context) -> Outcome:
        if trial.treatment == "c":
            fill(disk)
        return quick(trial, context)

    with pytest.raises(RecordError, match=r"cannot be written: No space left on device$"):
        go(disk / "out", fills)
    assert len(list((disk / "out").glob("simple/*.json"))) == 2
    filler.unlink()
    ran: list[str] = []

    def notes(trial: Trial, context: Context) -> Outcome:
        ran.append(trial.treatment)
        return quick(trial, context)

    go(disk / "out", notes)
    assert ran == list(NAMES[2:])
    require_complete(disk / "out")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_on_the_way_leaves_whole_records(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(os, call), iter(range(100))

    def fails(*arguments: object) -> object:
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(RecordError, match=r"cannot be written: No space left on device$"):
        go(tmp_path)
    assert 0 < len([read_record(path) for path in tmp_path.glob("simple/*.json")]) < len(NAMES)
    go(tmp_path)
    require_complete(tmp_path)


def test_a_read_only_folder_is_one_line(disk: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(disk / "out")

    def lock(state: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{state}", str(disk)], check=True)

    lock("ro")
    try:
        for out in (disk / "out", disk / "new"):
            assert main(["reproduce", "toy", "--out", str(out), "--no-report"]) == 2
            said = capsys.readouterr().err
            assert said == f"counterflow: {out} cannot be written: Read-only file system\n"
        json = disk / "claims.json"
        assert main(["reproduce", "toy", "--out", str(trace.parent / "out"), "--json", str(json)]) == 2
        said = capsys.readouterr().err
        assert said == f"counterflow: --json {json}: {disk} cannot be written: Read-only file system\n"
        assert not trace.read_text()
    finally:
        lock("rw")
    require_complete(disk / "out")


@pytest.mark.parametrize("name", ["simple", "environments"])
def test_a_file_in_a_folders_place_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(RecordError, match=rf"{name}\S* cannot be written: (File exists|Not a directory)$"):
        go(tmp_path)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "folder":
        path.unlink()
        path.mkdir()
        (path / "inside").touch()
        return
    other = next(other for other in sorted(path.parent.glob("*.json")) if other != path)
    path.write_bytes(
        {
            "truncated": content[:-40],
            "empty": b"",
            "zeros": bytes(len(content)),
            "text": b"nothing of the kind\n",
            "a list": b"[]",
            "wrong fields": b'{"key": "a", "epochs": 3}',
            "a string for a number": content.replace(b'"seconds":', b'"seconds":"1" ,"x":'),
            "another's": other.read_bytes(),
            "another seed": content.replace(b'"seeds":[0]', b'"seeds":[1]'),
            "a value too many": content.replace(b'"epochs":[', b'"epochs":[1.0,'),
            "NaN": content.replace(b'"epochs":[', b'"epochs":[NaN]' + b', "x":['),
            "deep": b"[" * 100_000,
            "another format": content.replace(b'"format_version":1', b'"format_version":2'),
        }[how]
    )
    assert path.read_bytes() != content


@pytest.mark.parametrize(
    "how",
    [
        *("truncated", "empty", "zeros", "text", "a list", "wrong fields", "a string for a number", "another's"),
        *("another seed", "a value too many", "NaN", "deep", "another format", "folder"),
    ],
)
def test_a_damaged_record_is_kept_aside_and_its_trial_runs_again(how: str, tmp_path: Path) -> None:
    records, _ = go(tmp_path)
    path = tmp_path / "simple" / f"{records[2].key}.json"
    for number in ("", "2"):
        damage(path, how)
        ran: list[str] = []

        def notes(trial: Trial, context: Context, ran: list[str] = ran) -> Outcome:
            ran.append(trial.treatment)
            return quick(trial, context)

        again, events = go(tmp_path, notes)
        assert ran == [records[2].treatment]
        assert [record.metrics for record in again] == [record.metrics for record in records]
        (told,) = (event.message for event in events if isinstance(event, Damaged))
        assert told.startswith(f"{path} is damaged: ")
        assert told.endswith(f"; kept as {path.stem}.damaged{number}, and its trial runs again")
        assert "\n" not in told
        aside = path.with_suffix(f".damaged{number}")
        assert aside.exists()
    for number in ("", "2"):
        aside = path.with_suffix(f".damaged{number}")
        if aside.is_dir():
            (aside / "inside").unlink()
            aside.rmdir()
        else:
            aside.unlink()
    require_complete(tmp_path)


def test_a_record_that_cannot_be_read_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path)
    read = Path.read_bytes

    def fails(path: Path) -> bytes:
        if path.parent.name == "simple":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        with pytest.raises(RecordError, match=r"\.json cannot be read: Input/output error$"):
            go(tmp_path)
    require_complete(tmp_path)


def test_two_runs_at_once_share_the_work(tmp_path: Path) -> None:
    ran: list[str] = []

    def slow(trial: Trial, context: Context) -> Outcome:
        ran.append(trial.treatment)
        assert not (context.folder / "state").exists()
        (context.folder / "state").touch()
        time.sleep(0.1)
        return quick(trial, context)

    with ThreadPoolExecutor(2) as both:
        results = [future.result() for future in [both.submit(go, tmp_path, slow) for _ in range(2)]]
    assert sorted(ran) == list(NAMES)
    assert results[0][0] == results[1][0]
    require_complete(tmp_path)


def test_the_second_run_waits_for_what_the_first_is_at_work_on(tmp_path: Path) -> None:
    begun, told = threading.Event(), threading.Event()
    ran: list[str] = []

    def slow(trial: Trial, context: Context) -> Outcome:
        ran.append(trial.treatment)
        if trial.treatment == "f":
            begun.set()
            assert told.wait(30)
        return quick(trial, context)

    def tell(event: Event) -> None:
        if isinstance(event, Elsewhere):
            assert [trial.treatment for trial in event.trials] == ["f"]
            told.set()

    with ThreadPoolExecutor(1) as both:
        first = both.submit(go, tmp_path, slow)
        assert begun.wait(30)
        with ThreadPoolExecutor(1) as threads:
            second = run([paper(slow)], "smoke", tmp_path, executor=threads, jobs=1, on_event=tell)
        assert second["simple"] == first.result()[0]
    assert ran == list(NAMES)
    require_complete(tmp_path)


RUN = (
    "import toy_paper; toy_paper.install()\n"
    "from pathlib import Path\n"
    "import msgspec, sys\n"
    "from counterflow.lab.trials import load_paper, run\n"
    "records = run([load_paper('toy')], 'smoke', Path(sys.argv[1]), jobs=1)\n"
    "print(msgspec.json.encode(records).decode())\n"
)


def test_two_processes_share_the_work_though_a_third_is_killed(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SECONDS", "0.2")
    out = tmp_path / "out"
    command = [sys.executable, "-c", RUN, str(out)]
    three = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    deadline = time.monotonic() + 60
    while len(trace.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    three[0].send_signal(signal.SIGKILL)
    killed, first, second = (child.communicate(timeout=60)[0] for child in three)
    assert [child.returncode for child in three] == [-signal.SIGKILL, 0, 0]
    assert killed == ""
    assert first == second
    records = [read_record(path) for path in out.glob("toy/*.json")]
    assert Counter(record.status for record in records) == {"done": 7}
    starts = Counter(line.split()[1] for line in trace.read_text().splitlines() if line.startswith("start"))
    assert len(starts) == 7
    assert starts.total() <= 8  # what the killed one was at may have been started again
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json"}
    assert not list(out.rglob("*.part"))
