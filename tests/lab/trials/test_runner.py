"""Running trials in this process (quick), and in processes that are really killed (as few as will do)."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from counterflow.exceptions import CounterflowError, InputError, RecordError
from counterflow.lab import data
from counterflow.lab.trials import Outcome, Paper, Record, Trial, load_paper, outstanding, read_record, run
from counterflow.lab.trials.events import Damaged, Event, Finished, Lost, Planned, Started
from counterflow.lab.trials.record import temporary_name


def go(out: Path, paper: Paper, executor: Executor | None = None, **options: Any) -> tuple[list[Record], list[Event]]:
    events: list[Event] = []
    with ThreadPoolExecutor(1) as threads:
        records = run([paper], "smoke", out, executor=executor or threads, on_event=events.append, **options)
    return records[paper.key], events


def started(trace: Path) -> Counter[str]:
    return Counter(line.split()[1] for line in trace.read_text().splitlines() if line.startswith("start"))


def leftovers(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.suffix not in (".json", ".html") and path.is_file()] + [
        *out.rglob("*.part")
    ]


def simple(**fields: Any) -> Paper:
    """A paper of two trials, run in this process."""
    defaults: dict[str, Any] = {
        "key": "simple",
        "revision": 1,
        "trials": lambda profile, records: [
            Trial("simple", name, seeds=(0,), settings={"x": 1}, data=("family_relations",)) for name in "ab"
        ],
        "run": lambda trial, context: Outcome({"epochs": [1.0]}),
        "measure": lambda profile, records: {},
        "exhibits": lambda profile, records, results: [],
    }
    return Paper(**{**defaults, **fields})


def test_a_second_run_repeats_nothing(tmp_path: Path, trace: Path) -> None:
    records, _ = go(tmp_path / "out", load_paper("toy"))
    assert len(records) == 7
    assert all(record.status == "done" for record in records)
    assert records[-1].settings == {"best": "quick"}  # of the second stage
    before = trace.read_text()
    again, events = go(tmp_path / "out", load_paper("toy"))
    assert again == records
    assert trace.read_text() == before
    assert all(event.reused for event in events if isinstance(event, Finished))
    assert leftovers(tmp_path / "out") == []
    for record in records:
        assert read_record(tmp_path / "out" / "toy" / f"{record.key}.json") == record


def test_longest_first_and_exclusive_last_and_alone(tmp_path: Path) -> None:
    active: set[str] = set()
    company: dict[str, set[str]] = {}

    def watch(trial: Trial, context: object) -> Outcome:
        active.add(trial.treatment)
        time.sleep(0.02)
        company[trial.treatment] = {*active}
        active.remove(trial.treatment)
        return Outcome({"epochs": [1.0]})

    trials = [
        Trial("simple", f"t{seconds}", (0,), expected_seconds=seconds, exclusive=seconds % 2 == 1)
        for seconds in (1, 2, 4, 9, 7, 6, 8)
    ]
    with ThreadPoolExecutor(4) as threads:
        _, events = go(tmp_path, simple(trials=lambda profile, records: trials, run=watch), threads, jobs=4)
    order = [event.trial.treatment for event in events if isinstance(event, Started)]
    assert order == ["t8", "t6", "t4", "t2", "t9", "t7", "t1"]
    for name in ("t9", "t7", "t1"):
        assert company[name] == {name}


def test_no_more_than_jobs_run_at_once(tmp_path: Path) -> None:
    flying = most = 0

    def count(event: Event) -> None:
        nonlocal flying, most
        flying += isinstance(event, Started) - isinstance(event, Finished)
        most = max(most, flying)

    trials = [Trial("simple", str(number), (0,)) for number in range(9)]
    with ThreadPoolExecutor(8) as threads:
        run([simple(trials=lambda p, r: trials)], "smoke", tmp_path, executor=threads, jobs=3, on_event=count)
    assert most == 3


def test_a_cluster_that_grows_is_used(tmp_path: Path) -> None:
    flying = 0
    grown: list[int] = []

    def count(event: Event) -> None:
        nonlocal flying
        flying += isinstance(event, Started) - isinstance(event, Finished)
        grown.append(flying)

    def size() -> int:
        return 0 if not grown else min(len(grown), 4)

    trials = [Trial("simple", str(number), (0,)) for number in range(12)]
    with ThreadPoolExecutor(8) as threads:
        run([simple(trials=lambda p, r: trials)], "smoke", tmp_path, executor=threads, jobs=size, on_event=count)
    assert max(grown) == 4
    with pytest.raises(InputError, match="jobs is a function"):
        run([simple()], "smoke", tmp_path, jobs=size)


def test_faults_stop_no_other_and_are_tried_again(tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_EXTRA", "fails lacks diverges")
    records, _ = go(tmp_path, load_paper("toy"))
    by_treatment = {record.treatment: record for record in records}
    assert Counter(record.status for record in records) == {"done": 7, "failed": 2, "not run": 1}
    assert by_treatment["fails"].reason == "ValueError: the toy is broken in two lines"
    assert by_treatment["lacks"].reason == "the set speech is not on this machine: buy it"
    assert "metric 'epochs' holds nan" in by_treatment["diverges"].reason
    log = tmp_path / "toy" / f"{by_treatment['fails'].key}.log"
    assert 'raise ValueError("the toy is broken' in log.read_text()
    assert read_record(log.with_suffix(".json")).status == "failed"
    go(tmp_path, load_paper("toy"))
    counts = started(trace)
    assert {name: counts[f"{name}/-"] for name in ("fails", "lacks", "diverges", "timed")} == {
        "fails": 2,
        "lacks": 2,
        "diverges": 2,
        "timed": 1,
    }


def test_a_fault_that_is_mended_leaves_no_log(tmp_path: Path) -> None:
    def broken(trial: Trial, context: object) -> Outcome:
        raise ValueError("not yet")

    (first, _), _ = go(tmp_path, simple(run=broken))
    assert (tmp_path / "simple" / f"{first.key}.log").exists()
    (first, _), _ = go(tmp_path, simple())
    assert first.status == "done"
    assert leftovers(tmp_path) == []


def test_a_damaged_record_is_set_aside_and_its_trial_runs_again(tmp_path: Path, trace: Path) -> None:
    records, _ = go(tmp_path, load_paper("toy"))
    path = tmp_path / "toy" / f"{records[0].key}.json"
    path.write_text(path.read_text()[:-40])
    again, events = go(tmp_path, load_paper("toy"))
    (damaged,) = (event for event in events if isinstance(event, Damaged))
    assert f"{path} is damaged" in damaged.message
    assert "\n" not in damaged.message
    assert path.with_suffix(".damaged").exists()
    assert read_record(path).metrics == again[0].metrics == records[0].metrics
    assert started(trace)["slow/0"] == 2
    assert started(trace)["slow/1"] == 1


@pytest.mark.parametrize("change", ["revision", "checksum", "settings"])
def test_what_changes_the_result_is_run_again(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = go(tmp_path, simple())
    paper = simple()
    if change == "revision":
        paper = simple(revision=2)
    elif change == "checksum":
        monkeypatch.setattr(data, "checksum", lambda name: "another")
    else:
        paper = simple(trials=lambda profile, records: [Trial("simple", "a", (0,), {"x": 2})])
    _, events = go(tmp_path, paper)
    assert not any(event.reused for event in events if isinstance(event, Finished))
    again, events = go(tmp_path, paper)
    assert all(event.reused for event in events if isinstance(event, Finished))
    assert not {record.key for record in first} & {record.key for record in again}


def test_what_does_not_change_the_result_is_not_run_again(tmp_path: Path) -> None:
    go(tmp_path, simple())
    plain = simple().trials

    def slower(profile: Any, records: Any) -> list[Trial]:
        return [dataclasses.replace(trial, expected_seconds=50.0) for trial in plain(profile, records)]

    _, events = go(tmp_path, simple(trials=slower))
    assert all(event.reused for event in events if isinstance(event, Finished))


def test_data_whose_checksum_is_unknown_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise data.DataNotFoundError("nobody has it")

    monkeypatch.setattr(data, "checksum", unknown)
    records, _ = go(tmp_path, simple())
    assert [(record.status, record.reason) for record in records] == [("not run", "nobody has it")] * 2
    assert not list(tmp_path.glob("simple/*.json"))


def test_a_worker_with_other_data_than_the_record_names_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> str:
        return "1234" if threading.current_thread() is threading.main_thread() else "5678"

    def load(trial: Trial, context: object) -> Outcome:
        pytest.fail("it would read what its record does not name")

    monkeypatch.setattr(data, "checksum", found)
    records, _ = go(tmp_path, simple(run=load))
    assert [record.status for record in records] == ["not run"] * 2
    for record in records:
        assert record.data == {"family_relations": "1234"}
        assert "family_relations of this worker has the checksum 5678, and the run's has 1234" in record.reason


def test_the_checkpoint_folder_is_there_and_goes(tmp_path: Path) -> None:
    seen = []

    def check(trial: Trial, context: Any) -> Outcome:
        (context.folder / "state").write_text("half")
        context.progress(0.5, "half")
        seen.append(context.folder)
        return Outcome({"epochs": [1.0]})

    go(tmp_path, simple(run=check))
    assert all(folder.parent == tmp_path / "simple" for folder in seen)
    assert leftovers(tmp_path) == []


def test_a_paper_is_asked_again_only_when_all_its_trials_have_records(tmp_path: Path) -> None:
    asked = []

    def trials(profile: Any, records: list[Record]) -> list[Trial]:
        asked.append(len(records))
        stage = len(records) // 2
        return [Trial("simple", f"{level}{name}", (0,)) for level in range(min(stage, 2) + 1) for name in "ab"]

    records, events = go(tmp_path, simple(trials=trials))
    assert asked == [0, 2, 4, 6]
    assert len(records) == 6
    assert [len(event.trials) for event in events if isinstance(event, Planned)] == [2, 4, 6]


def test_a_paper_that_is_done_is_not_asked_again_while_another_runs(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def named(key: str, count: int) -> Paper:
        def trials(profile: Any, records: list[Record]) -> list[Trial]:
            asked[key] += 1
            return [Trial(key, str(number), (0,), expected_seconds=1 + number) for number in range(count)]

        return simple(key=key, trials=trials)

    with ThreadPoolExecutor(1) as threads:
        run([named("short", 1), named("long", 20)], "smoke", tmp_path, executor=threads, jobs=1)
        again = run([named("short", 1), named("long", 20)], "smoke", tmp_path, executor=threads, jobs=1)
    assert [len(records) for records in again.values()] == [1, 20]
    assert asked == {"short": 4, "long": 4}  # in either run at first, and when all its trials had records


def test_jobs_and_papers_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jobs is 0"):
        run([simple()], "smoke", tmp_path, jobs=0)
    strange = simple(trials=lambda profile, records: [Trial("other", "a", (0,))])
    with pytest.raises(InputError, match=r"trial other/a was named by the paper 'simple'"):
        go(tmp_path, strange)


@pytest.mark.parametrize("place", ["file/below", "/proc/counterflow"])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    ran = []
    paper = simple(run=lambda trial, context: ran.append(trial))
    with pytest.raises(RecordError, match="cannot be written"):
        go(tmp_path / place, paper)
    assert not ran


def test_an_executor_that_takes_no_trials_is_one_line(tmp_path: Path) -> None:
    threads = ThreadPoolExecutor(1)
    threads.shutdown()
    with pytest.raises(CounterflowError, match="the executor takes no more trials"):
        run([simple()], "smoke", tmp_path, executor=threads)


def test_a_worker_that_dies_is_replaced(tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial kills its worker once, one always; the others all finish, and nothing finished is repeated."""
    monkeypatch.setenv("TOY_EXTRA", "dies-once dies")
    monkeypatch.setenv("TOY_SECONDS", "0.05")
    events: list[Event] = []
    records = run([load_paper("toy")], "smoke", tmp_path / "out", jobs=2, on_event=events.append)["toy"]
    by_treatment = {record.treatment: record for record in records}
    assert by_treatment["dies-once"].status == "done"
    assert by_treatment["dies"].status == "failed"
    assert by_treatment["dies"].reason == "its worker died 4 times (killed, or out of memory)"
    assert Counter(record.status for record in records) == {"done": 8, "failed": 1}
    assert 2 <= started(trace)["dies/-"] <= 4  # the other may die before this one has begun
    assert any(isinstance(event, Lost) for event in events)
    finished = [event.record.key for event in events if isinstance(event, Finished)]
    assert len(finished) == len(set(finished)) == 9
    assert leftovers(tmp_path / "out") == []


RUN = (
    "import toy_paper; toy_paper.install()\n"
    "from pathlib import Path\n"
    "from counterflow.lab.trials import load_paper, run\n"
    "import sys\n"
    "run([load_paper('toy')], 'laptop', Path(sys.argv[1]), jobs=2)\n"
)


def wait_until(true: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_kill_9_at_any_moment_loses_nothing_and_repeats_nothing(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SECONDS", "0.5")  # long beside the moments below: a slow machine must not finish all 13
    out = tmp_path / "out"
    moments = random.Random(5)
    finished: set[str] = set()
    for _ in range(3):
        before = len(trace.read_text().splitlines())
        child = subprocess.Popen([sys.executable, "-c", RUN, str(out)])
        wait_until(lambda before=before: len(trace.read_text().splitlines()) > before)
        wait_until(lambda: any(out.glob("toy/*.json")))  # else nothing could be lost
        time.sleep(moments.uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.wait()
        workers = {int(line.split()[2]) for line in trace.read_text().splitlines()[before:]}
        wait_until(lambda workers=workers: not any(alive(worker) for worker in workers), 20.0)
        records = [json.loads(path.read_bytes()) for path in out.glob("toy/*.json")]  # all valid
        now = {f"{record['treatment']}/{record['settings'].get('part', '-')}" for record in records}
        assert finished <= now
        finished = now
        kept = {name: started(trace)[name] for name in finished}
    assert 0 < len(finished) < 13  # else the moments above prove nothing
    temporary_name(out / "toy" / "a.json").touch()  # as if it had died while writing
    subprocess.run([sys.executable, "-c", RUN, str(out)], check=True)
    assert {name: started(trace)[name] for name in kept} == kept
    records = [read_record(path) for path in out.glob("toy/*.json")]
    assert all(record.status == "done" for record in records)
    names = Counter(f"{record.treatment}/{record.settings.get('part', '-')}" for record in records)
    expected = {f"{treatment}/{part}" for treatment in ("slow", "quick") for part in range(6)} | {"timed/-"}
    assert names == dict.fromkeys(expected, 1)
    assert leftovers(out) == []


@pytest.mark.distributed
def test_a_dask_cluster_is_an_executor_too(tmp_path: Path, trace: Path) -> None:
    distributed = pytest.importorskip("distributed") if not os.environ.get("CI") else __import__("distributed")
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        records, _ = go(tmp_path, load_paper("toy"), client.get_executor())
    assert [record.status for record in records] == ["done"] * 7


def test_what_is_outstanding_is_what_a_run_would_compute(tmp_path: Path) -> None:
    def staged(profile: object, records: Any) -> list[Trial]:
        first = [Trial("simple", name, seeds=(0,), settings={"x": 1}) for name in "ab"]
        follows = [Trial("simple", "c", seeds=(0,), settings={"x": 2}, expected_seconds=7.0)]
        return first + (follows if len(records) >= 2 else [])

    paper = simple(trials=staged)
    assert [trial.treatment for trial in outstanding(paper, "smoke", tmp_path)] == ["a", "b"]
    records, _ = go(tmp_path, simple(trials=lambda profile, records: staged(profile, [])))
    assert [trial.treatment for trial in outstanding(paper, "smoke", tmp_path)] == ["c"]
    (tmp_path / "simple" / f"{records[0].key}.json").write_text("no record")
    assert [trial.treatment for trial in outstanding(paper, "smoke", tmp_path)] == ["a"]
    go(tmp_path, paper)
    assert outstanding(paper, "smoke", tmp_path) == []
