from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from counterflow.lab.trials import Context, Outcome, Trial, worker
from counterflow.lab.trials.lock import discard, let_go, take

TRIAL = Trial("simple", "a", (0,))


def test_a_lock_is_one_holders_until_it_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "a.part"
    lock = take(folder, ".run")
    assert lock is not None
    assert take(folder, ".run") is None
    other = take(folder, ".worker")
    assert other is not None
    let_go(lock)
    lock = take(folder, ".run")
    assert lock is not None
    let_go(lock)
    let_go(other)


def test_a_discarded_folder_takes_its_locks_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "a.part"
    old = take(folder, ".run")
    assert old is not None
    (folder / "state").touch()
    discard(folder)
    assert list(tmp_path.iterdir()) == []
    new = take(folder, ".run")
    assert new is not None  # another file, though the old one is still locked
    let_go(old)
    assert take(folder, ".run") is None
    let_go(new)
    discard(folder)
    discard(folder)  # gone already


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from counterflow.lab.trials.lock import take\n"
        "take(Path(sys.argv[1]), '.run'); print('mine', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.part")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"mine\n"
        assert take(tmp_path / "a.part", ".run") is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        lock = take(tmp_path / "a.part", ".run")
        assert lock is not None
        let_go(lock)


def test_a_worker_leaves_the_checkpoint_to_one_that_outlived_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ORPHAN_SECONDS", 0.05)
    seen: list[Path] = []

    def run(trial: Trial, context: Context) -> Outcome:
        (context.folder / "state").write_text("new")
        seen.append(context.folder)
        return Outcome({"x": [1.0]})

    folder = tmp_path / "a.part"
    orphan = take(folder, ".worker")
    assert orphan is not None
    (folder / "state").write_text("old")
    assert worker.execute(run, TRIAL, {}, folder, os.getpid()).status == "done"
    assert (folder / "state").read_text() == "old"
    let_go(orphan)
    assert worker.execute(run, TRIAL, {}, folder, os.getpid()).status == "done"
    assert (folder / "state").read_text() == "new"
    assert worker.execute(run, TRIAL, {}, tmp_path / "elsewhere" / "a.part", os.getpid()).status == "done"
    assert [place == folder for place in seen] == [False, True, False]
    assert [place.exists() for place in seen] == [False, True, False]


def test_the_time_of_an_attempt_that_was_killed_counts(tmp_path: Path) -> None:
    def killed(trial: Trial, context: Context) -> Outcome:
        time.sleep(0.2)
        context.progress(0.5)
        raise KeyboardInterrupt

    def finished(trial: Trial, context: Context) -> Outcome:
        return Outcome({"x": [1.0]})

    folder = tmp_path / "a.part"
    folder.mkdir()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            worker.execute(killed, TRIAL, {}, folder, os.getpid())
    assert worker.execute(finished, TRIAL, {}, folder, os.getpid()).seconds >= 0.4


def test_a_worker_that_started_too_late_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def is_alive(self) -> bool:
            return False

    def leave(status: int) -> None:
        raise SystemExit(status)

    def run(trial: Trial, context: Context) -> Outcome:
        pytest.fail("its run is over")

    monkeypatch.setattr(worker, "_use_one_thread", lambda: None)
    monkeypatch.setattr(worker.multiprocessing, "parent_process", Gone)
    monkeypatch.setattr(worker.os, "_exit", leave)
    with pytest.raises(SystemExit):
        worker.execute(run, TRIAL, {}, tmp_path / "a.part", os.getpid() + 1)
