"""The table of all ratios says what the committed records say, and so does the README."""

from __future__ import annotations

import json
import operator
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "table.py"


@pytest.fixture
def table(script: Any) -> Any:
    return script(SCRIPT)


def verdicts(found: Any) -> Iterator[bool]:
    """All that a record says passed or did not, however deep."""
    if isinstance(found, list):
        for each in found:
            yield from verdicts(each)
    elif isinstance(found, dict):
        for key, value in found.items():
            if key == "pass":
                yield from (value.values() if isinstance(value, dict) else [value] if value is not None else [])
            else:
                yield from verdicts(value)


def test_the_readme_is_written_from_the_records(table: Any) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert table.with_block(text, table.readme_block(table.measured())) == text, "write it by `make bench`"


def test_every_benchmark_has_a_record_and_a_place(table: Any) -> None:
    scripts = {path.stem for path in SCRIPT.parent.glob("*.py")} - {"table"}
    assert scripts == set(table.BENCHMARKS)
    found = table.measured()
    assert scripts == set(found)
    del found["probe"]
    assert "no record: benchmarks/probe.py" in table.plain_text(found)
    assert table.plain_text({}).endswith("0 of 0 targets met, 0 missed")


def test_measuring_again_takes_no_run_over_from_a_record() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    races, measured = (
        set(re.search(rf"^{name} := (.*)$", makefile, re.M)[1].split()) for name in ("RACES", "MEASURED")
    )
    scripts = {path.stem: path.read_text("utf-8") for path in SCRIPT.parent.glob("*.py")}
    assert races == {name for name, text in scripts.items() if "Kept(" in text}
    assert races | measured == set(scripts) - {"table", "recognizer"}  # which has a loop of its own
    [recipe] = re.findall(r"^\tfor name in \$\(RACES\).*\n.*$", makefile, re.M)
    assert "--json $(AGAIN)/$$name.json" in recipe
    assert "\tmv $(RACES:%=$(AGAIN)/%.json) evidence/benchmarks\n" in makefile


def test_what_a_record_calls_missed_is_shown_as_missed(table: Any) -> None:
    for name, rows in table.measured().items():
        record = json.loads((ROOT / "evidence" / "benchmarks" / f"{name}.json").read_text("utf-8"))
        said = [*verdicts(record)]
        assert sum(row.met is not None for row in rows) >= len(said), name  # some rows' bars are not in the record
        missed = [row for row in rows if row.met is False]
        assert (False in said) == bool(missed), name
        assert len(missed) >= said.count(False), name
        assert all(row.verdict == "missed" for row in missed)


def test_no_target_is_met_by_a_number_on_its_wrong_side(table: Any) -> None:
    inside = {"at most": operator.le, "below": operator.lt, "at least": operator.ge}
    for rows in table.measured().values():
        assert [row for row in rows if row.met and not inside[row.sign](row.value, row.bar)] == []


def test_the_number_decides_where_the_record_does_not(table: Any) -> None:
    held = sys.modules["common.ratios"].held
    assert held("a step", 1.2, "at most", 1.1).verdict == "missed"
    assert held("a step", 1.1, "below", 1.1).verdict == "missed"
    assert held("times as fast", 12.0, "at least", 12.0).verdict == "met"
    assert held("a step", 1.0, "at most", 1.1, False).verdict == "missed"  # the record may ask for more
    assert held("a step", 1.0, "at most", None, True).verdict == ""


def test_a_public_call_is_held_to_public_calls(table: Any) -> None:
    found = {row.what: row for row in table.measured()["speech"]}
    shown = [what.partition(": ")[2] for what in found if what.startswith("alignment")]
    assert shown[0] == "librosa viterbi over best_path"  # what the README shows
    assert "hmmlearn over our kernel alone" in shown
    assert "hmmlearn over best_path" not in shown
    rows = [
        {"way": "best_path", "microseconds": 2.0},
        {"way": "torch rows", "microseconds": 8.0},
        {"way": "none", "missing": True},
    ]
    over = sys.modules["common.ratios"].over_best_path
    assert over(rows) == {"torch rows": {"ratio": 4.0}}
    turns = {"ratio": 3.5, "low": 3.0, "high": 5.0}
    assert over([rows[0], {**rows[1], "over best_path": turns}]) == {"torch rows": turns}


def test_quartiles_of_turns_do_not_stand_beside_a_ratio_of_medians(table: Any) -> None:
    read = table.BENCHMARKS["choice"].read
    row = {"members": 5, "batch": 128, "format": "channels last", "bar": 0.65, "bytes": 1, "naive bytes": 2}
    row |= {"ratio": 0.4, "low": 0.5, "high": 0.6}
    peer = {"peer": "theirs", "members": 5, "ratio": 1.0, "low": 1.1, "high": 1.2}
    turns = {"ratios": "turn by turn"}
    assert [each.spread for each in read({"rows": [row], "peer": peer})] == [None, None, None]
    spreads = [each.spread for each in read({"rows": [row | turns], "peer": peer | turns})]
    assert spreads == [(0.5, 0.6), None, (1.1, 1.2)]


def test_the_terminals_table_has_every_row_and_the_counts(table: Any) -> None:
    found = table.measured()
    text = table.plain_text(found)
    rows = [row for each in found.values() for row in each]
    assert all(row.what in text for row in rows)
    missed = sum(row.met is False for row in rows)
    assert text.endswith(f"targets met, {missed} missed")


def test_a_file_without_the_marks_is_refused(table: Any) -> None:
    with pytest.raises(ValueError, match="there is no place for the table"):
        table.with_block("# A readme\n", "| a |")


def test_a_file_that_is_not_there_is_named(
    table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["table.py", "--readme", str(tmp_path / "none.md")])
    with pytest.raises(SystemExit) as raised:
        table.main()
    assert raised.value.code == 2
    assert "there is no such file" in capsys.readouterr().err
