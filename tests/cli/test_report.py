"""``counterflow report`` as a function; what it reads is tested in tests/lab/report/test_gather.py."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import pytest
import tyro

from counterflow.cli import main, report
from counterflow.exceptions import InputError
from counterflow.lab.report import Section

SECTION = Section("toy", "A toy", "Nobody, 1995.", "counterflow reproduce toy --profile laptop", claims=())


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(webbrowser, "open", seen.append)
    monkeypatch.setattr(report.sys, "platform", "linux")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    return seen


@pytest.fixture
def asked(monkeypatch) -> list[tuple[Path, str | None]]:
    calls: list[tuple[Path, str | None]] = []

    def read(folder, profile):
        calls.append((folder, profile))
        return [SECTION], "laptop", ["x.json is damaged: truncated"]

    monkeypatch.setattr(report, "read_sections", read)
    return calls


def _call(*arguments: str) -> int:
    return tyro.cli(report.report_command, args=list(arguments))


def test_it_writes_the_page_says_where_and_opens_it(tmp_path, opened, asked, capsys):
    assert _call(str(tmp_path)) == 0
    page = tmp_path / "report.html"
    assert "A toy" in page.read_text("utf-8")
    assert asked == [(tmp_path, None)]
    output = capsys.readouterr()
    assert output.out == f"Report: {page}\n"
    assert output.err == "counterflow report: left out: x.json is damaged: truncated\n"
    assert opened == [page.as_uri()]


def test_the_folder_is_where_reproduce_writes_unless_named(tmp_path, opened, asked, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _call("--profile", "smoke") == 0
    assert asked == [(Path("counterflow-runs"), "smoke")]
    assert opened == [(tmp_path / "counterflow-runs" / "report.html").as_uri()]


@pytest.mark.parametrize("reason", ["asked not to", "no screen", "CI"])
def test_no_browser_where_there_is_none_or_none_is_wanted(tmp_path, opened, asked, monkeypatch, reason):
    if reason == "no screen":
        monkeypatch.delenv("DISPLAY")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    elif reason == "CI":
        monkeypatch.setenv("CI", "true")
    _call(str(tmp_path), *(["--no-open"] if reason == "asked not to" else []))
    assert opened == []


def test_markdown_is_written_instead(tmp_path, opened, asked, capsys):
    summary = tmp_path / "REPRODUCTION.md"
    assert _call(str(tmp_path), "--markdown", str(summary)) == 0
    assert "## A toy" in summary.read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["REPRODUCTION.md"]
    assert capsys.readouterr().out == f"Summary: {summary}\n"
    assert opened == []


def test_json_is_what_reproduce_writes_beside_the_page_or_the_markdown(tmp_path, opened, asked, capsys):
    wanted = {"profile": "laptop", "papers": [{"paper": "toy", "claims": []}]}
    assert _call(str(tmp_path), "--json", "-") == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == wanted
    assert f"Report: {tmp_path / 'report.html'}" in output.err
    target = tmp_path / "claims.json"
    assert _call(str(tmp_path), "--json", str(target), "--markdown", str(tmp_path / "R.md")) == 0
    assert json.loads(target.read_text()) == wanted
    with pytest.raises(InputError, match="--markdown and --json both name"):
        _call(str(tmp_path), "--json", str(target), "--markdown", str(target))
    page = tmp_path / "report.html"
    before = page.read_bytes()
    with pytest.raises(InputError, match=r"--json .*report\.html: the page is written there"):
        _call(str(tmp_path), "--json", str(page))
    assert page.read_bytes() == before


@pytest.mark.parametrize("option", ["--json", "--markdown"])
@pytest.mark.parametrize("name", ["laptop.jsonl.gz", "record.json"])
def test_what_is_written_does_not_take_the_place_of_a_record(tmp_path, opened, asked, option, name):
    (tmp_path / "toy").mkdir()
    record = tmp_path / "toy" / name
    record.write_text("{}")
    with pytest.raises(InputError, match=f"{option} .*{name}: this is what is read; name another file"):
        _call(str(tmp_path), option, str(record))
    assert record.read_text() == "{}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["."], "no records of a paper here"),
        ([".", "--profile", "huge"], "huge"),
        ([".", "--loud"], "--loud"),
    ],
)
def test_what_cannot_be_used_ends_in_one_line(tmp_path, opened, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert says in output.err
    assert list(tmp_path.iterdir()) == []
