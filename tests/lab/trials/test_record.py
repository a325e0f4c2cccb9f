from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.exceptions import InputError, RecordError
from counterflow.lab.trials import Outcome, Record, Trial, pack, read_environments, read_record, unpack
from counterflow.lab.trials.record import (
    FORMAT_VERSION,
    environment,
    environment_key,
    remove_leftovers,
    settle,
    temporary_name,
    trial_key,
    write_record,
    write_whole,
)

TRIAL = Trial("toy", "quick", seeds=(0, 1), settings={"rate": 0.1, "sizes": [6, 12], "deep": {"a": None}})
PINNED = "2a34553a6bd113a2c702"


def record(trial: Trial = TRIAL, **fields: Any) -> Record:
    checksums = fields.pop("data", {})
    return Record(
        **{
            "format_version": FORMAT_VERSION,
            "key": trial_key(trial, 1, checksums),
            "paper": trial.paper,
            "treatment": trial.treatment,
            "seeds": trial.seeds,
            "settings": dict(trial.settings),
            "data": checksums,
            "revision": 1,
            "profile": "smoke",
            "commit": None,
            "environment": environment_key(environment()),
            "status": "done",
            "reason": "",
            "seconds": 1.5,
            "metrics": {"epochs": (12.0, None)},
            "curves": {"loss": (1.0, 0.5)},
            **fields,
        }
    )


def test_the_key_is_the_same_in_every_process_and_order() -> None:
    shuffled = Trial("toy", "quick", seeds=(0, 1), settings={"deep": {"a": None}, "sizes": (6, 12), "rate": 0.1})
    assert trial_key(TRIAL, 1, {}) == trial_key(shuffled, 1, {}) == PINNED
    code = (
        "from counterflow.lab.trials import Trial; from counterflow.lab.trials.record import trial_key;"
        "t = Trial('toy', 'quick', seeds=(0, 1),"
        "          settings={'sizes': [6, 12], 'rate': 0.1, 'deep': {'a': None}});"
        "print(trial_key(t, 1, {}))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout.strip() == PINNED


def test_the_key_changes_with_what_changes_the_result_and_nothing_else() -> None:
    import dataclasses

    key = trial_key(TRIAL, 1, {"mnist": "aa"})
    same = dataclasses.replace(TRIAL, expected_seconds=99.0)
    assert trial_key(same, 1, {"mnist": "aa"}) == key
    others = [
        trial_key(TRIAL, 2, {"mnist": "aa"}),
        trial_key(TRIAL, 1, {"mnist": "bb"}),
        trial_key(TRIAL, 1, {"digits": "aa"}),
        *(
            trial_key(dataclasses.replace(TRIAL, **change), 1, {"mnist": "aa"})
            for change in (
                {"paper": "other"},
                {"treatment": "slow"},
                {"seeds": (1, 0)},
                {"settings": {**TRIAL.settings, "rate": 0.2}},
            )
        ),
    ]
    assert len({key, *others}) == 1 + len(others)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text("xyz"), json_values, max_size=3))
def test_a_record_survives_its_file(values: dict[str, Any]) -> None:
    written = record(Trial("toy", "quick", seeds=(0, 1), settings=values))
    again = msgspec.json.decode(msgspec.json.encode(written), type=Record)
    assert again == written
    assert trial_key(Trial("toy", "quick", seeds=(0, 1), settings=again.settings), 1, {}) == written.key


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": ()}, "seeds are one or more integers"),
        ({"seeds": (1.5,)}, "seeds are one or more integers"),
        ({"settings": {"rate": float("nan")}}, r"settings\['rate'\] is nan"),
        ({"settings": {"sizes": [1, {2: 3}]}}, r"settings\['sizes'\]\[1\] has the key 2"),
        ({"settings": {"where": Path("/")}}, "use numbers, strings, lists and mappings"),
        ({"expected_seconds": 0.0}, "has to be positive"),
    ],
)
def test_a_trial_that_json_cannot_hold_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trial(**{"paper": "toy", "treatment": "quick", "seeds": (0,), **fields})


def test_an_outcome_becomes_plain_numbers() -> None:
    outcome = Outcome({"epochs": np.array([3, 4], np.int64)}, {"loss": np.array([1.0, np.inf], np.float32)})  # type: ignore[dict-item]
    metrics, curves = settle(TRIAL, outcome)
    assert (metrics, curves) == ({"epochs": (3.0, 4.0)}, {"loss": (1.0, None)})
    assert type(metrics["epochs"][0]) is float
    for bad, message in [
        (Outcome({"epochs": [1.0]}), "1 values for 2 seeds"),
        (Outcome({"epochs": [1.0, float("inf")]}), "holds inf"),
        ({"epochs": [1.0, 2.0]}, "returned a dict"),
    ]:
        with pytest.raises(InputError, match=message):
            settle(TRIAL, bad)


def test_an_environment_names_no_machine_and_nobody(tmp_path: Path) -> None:
    description = environment()
    path = tmp_path / "environments" / f"{environment_key(description)}.json"
    write_record(tmp_path, record(), description)
    text = path.read_text()
    assert json.loads(text) == description
    private = {socket.gethostname(), getpass.getuser(), Path.home().name, Path.cwd().name}
    assert not private & {str(value) for value in description.values()}
    for fragment in (socket.gethostname(), str(Path.home()), str(Path.cwd()), str(tmp_path), sys.prefix):
        assert fragment not in text
    assert {"python", "torch", "numpy", "numba", "counterflow", "machine", "processor", "threads"} <= {*description}
    assert read_environments(tmp_path) == {path.stem: description}
    path.write_text(text.replace("python", "pithon"))
    assert read_environments(tmp_path) == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"rate":0.1', '"rate":0.2'),
        lambda text: text.replace('"revision":1', '"revision":2'),
        lambda text: text.replace('"revision"', '"revison"'),
        lambda text: text.replace('"format_version":1', '"format_version":2'),
        lambda text: text.replace("[12.0,null]", "[12.0]"),
        lambda text: text.replace("[12.0,null]", '["many",null]'),
        lambda text: text.replace('"done"', '"maybe"'),
        lambda text: "[]",
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_record_is_never_used(tmp_path: Path, damage: Any) -> None:
    path = write_record(tmp_path, record(), environment())
    assert read_record(path) == record()
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(RecordError, match="is damaged"):
        read_record(path)


def test_a_record_under_another_name_is_not_used(tmp_path: Path) -> None:
    path = write_record(tmp_path, record(), environment())
    moved = path.rename(path.with_stem("0" * 20))
    with pytest.raises(RecordError, match="does not match its name"):
        read_record(moved)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"a\.json cannot be written: No space left on device"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_the_leftovers_of_the_dead_are_removed(tmp_path: Path) -> None:
    dead, alive, other = (temporary_name(tmp_path / name) for name in ("a.json", "b.json", "c.json"))
    mine = tmp_path / ".notes.tmp"
    for path in (dead, alive, other, mine):
        path.touch()
    folder = temporary_name(tmp_path / "c.part")
    folder.mkdir()
    (folder / "state").touch()
    with alive.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        remove_leftovers(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([alive, mine])
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]


def test_a_file_that_is_being_written_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronize = os.fsync

    def meddle(descriptor: int) -> None:
        remove_leftovers(tmp_path)
        synchronize(descriptor)

    monkeypatch.setattr(os, "fsync", meddle)
    write_whole(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_a_damaged_environment_is_mended(tmp_path: Path) -> None:
    description = environment()
    path = tmp_path / "environments" / f"{environment_key(description)}.json"
    for content in (b"", b"{}", b"\x00" * 50, b"[" * 100_000):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        assert read_environments(tmp_path) == {}
        write_record(tmp_path, record(), description)
        assert read_environments(tmp_path) == {path.stem: description}


def test_evidence_is_packed_the_same_way_every_time(tmp_path: Path) -> None:
    second = record(Trial("toy", "slow", seeds=(5,)), metrics={"epochs": (1.0,)})
    environments = {environment_key(environment()): environment()}
    path = pack([record(), second], environments, tmp_path / "evidence" / "smoke.jsonl.gz")
    content = path.read_bytes()
    pack([second, record()], environments, path)
    assert path.read_bytes() == content
    records, described = unpack(path)
    assert sorted(records, key=lambda r: r.treatment) == [record(), second]
    assert [r.key for r in records] == sorted(r.key for r in records)
    assert described == environments
    with pytest.raises(RecordError, match=r"environment .* of a record is missing"):
        pack([record()], {}, path)


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_damaged_evidence_is_refused(tmp_path: Path, cut: float) -> None:
    path = pack([record()], {environment_key(environment()): environment()}, tmp_path / "e.jsonl.gz")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(RecordError, match=r"e\.jsonl\.gz, line \d, is damaged"):
        unpack(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(RecordError, match="is damaged"):
        unpack(path)
