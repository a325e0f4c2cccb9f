"""What the benchmarks share: turns, ratios, records that are never half written, and errors in one line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from counterflow.exceptions import DataNotFoundError, RecordError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from common import command, measuring, racing, records


def test_who_comes_first_changes_and_warm_rounds_do_not_count() -> None:
    order: list[str] = []

    def way(name: str) -> Any:
        return lambda: float(len(order.append(name) or order))

    found = measuring.in_turns({name: way(name) for name in "abc"}, rounds=2, warm=1)
    assert "".join(order) == "abcbcacab"
    assert found == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}


def test_a_time_is_that_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((1.0, 4.0))
    monkeypatch.setattr(measuring.time, "process_time", lambda: next(clock))
    called: list[int] = []
    assert measuring.timed(lambda: called.append(1), 6)() == 0.5
    assert len(called) == 6


def test_a_ratio_is_the_median_of_the_turns() -> None:
    # The ratio of the medians would be 1.
    assert measuring.ratio([1.0, 4.0, 2.0], [2.0, 1.0, 4.0]) == {"ratio": 0.5, "low": 0.5, "high": 2.25}


def test_a_record_is_replaced_whole_and_read_again(tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    assert records.read_record(target) == records.read_record(None) == {}
    records.write_record(target, {"rows": [1]})
    assert records.read_record(target) == {"rows": [1]}
    with pytest.raises(TypeError):
        records.write_record(target, {"rows": {1, 2}})
    assert json.loads(target.read_text()) == {"rows": [1]}
    assert [*tmp_path.iterdir()] == [target]
    records.write_record(None, {"rows": [1]})


def test_runs_of_another_torch_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    target = tmp_path / "race.json"
    for content in ({"torch": "2.6.0"}, {"tasks": {"small": {"torch": "2.6.0"}}}):
        records.write_record(target, {"runs": {"SGD 0": {"seconds": 1.0}}, **content})
        with pytest.raises(RecordError, match=r"race.json holds runs of torch 2\.6\.0, .*; name a new file"):
            racing.Kept(target)
    target.unlink()
    racing.Kept(target).run("SGD 0", lambda: {"seconds": 1.0})
    assert racing.Kept(target).run("SGD 0", lambda: pytest.fail("ran again")) == {"seconds": 1.0}


@pytest.mark.parametrize("text", ["{", "[]"])
def test_what_is_no_record_is_named_and_stays(tmp_path: Path, text: str) -> None:
    target = tmp_path / "found.json"
    target.write_text(text)
    with pytest.raises(RecordError, match=r"found.json is no .*another file"):
        records.read_record(target)
    assert target.read_text() == text


def test_options_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    assert command.output(str(tmp_path / "new.json")) == tmp_path / "new.json"
    assert command.folder(str(tmp_path)) == tmp_path
    assert command.positive("3") == 3
    assert command.duration("0.5") == 0.5
    for parse, text, said in (
        (command.output, str(tmp_path / "none" / "new.json"), "there is no folder"),
        (command.output, str(tmp_path), "is a folder"),
        (command.output, "-", "name a file"),
        (command.folder, str(tmp_path / "none"), "there is no folder"),
        (command.positive, "0", "at least 1, got 0"),
        (command.positive, "few", "at least 1, got few"),
        (command.duration, "-1", "at least 0, got -1"),
        (command.duration, "nan", "at least 0, got nan"),
        (command.duration, "inf", "at least 0, got inf"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=said):
            parse(text)


def test_what_a_user_can_mend_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise DataNotFoundError("mnist is not here")

    assert command.status_of(main) == 2
    assert capsys.readouterr().err == "error: mnist is not here\n"
    assert command.status_of(lambda: 0) == 0
