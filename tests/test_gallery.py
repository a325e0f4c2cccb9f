"""The gallery shows every example, as the code that is here has made it, and says what its records say."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "gallery.py"))
RECORDS = {path.stem: json.loads(path.read_text("utf-8")) for path in (ROOT / "evidence" / "examples").glob("*.json")}
COMPARED = sorted(name for name, record in RECORDS.items() if record["comparison"])
LARGEST = 300_000  # bytes of a picture

pytestmark = pytest.mark.skipif(not (ROOT / "evidence").is_dir(), reason="records are no part of a source archive")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``docs/gallery.py``; its name is also that of the script."""
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("the documentation's tools are an extra")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    spec = importlib.util.spec_from_file_location("gallery_page", ROOT / "docs" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_been_run_and_comparisons_compare() -> None:
    compare = [name for name in SCRIPT["names"]() if "import Comparison" in source_of(name)]
    assert compare == COMPARED
    assert set(RECORDS) == set(SCRIPT["names"]())


def source_of(name: str) -> str:
    return (ROOT / "examples" / f"{name}.py").read_text("utf-8")


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_a_record_is_of_the_present_code(name: str) -> None:
    assert RECORDS[name]["code"] == SCRIPT["code_sha256"](name), f"run `python scripts/gallery.py {name}`"


def test_words_alone_change_no_code(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "gallery.py"))
    script["code_sha256"].__globals__["EXAMPLES"] = tmp_path
    found = []
    for text in ('"""Some\n\nwords."""\n\nx = 1\n', '"""Others."""\n\nx = 1\n', '"""Others."""\n\nx = 2\n'):
        (tmp_path / "example.py").write_text(text)
        found.append(script["code_sha256"]("example"))
    assert found[0] == found[1] != found[2]


def test_every_picture_is_there_and_light_and_shown() -> None:
    shown = {name for record in RECORDS.values() for name in record["pictures"]}
    there = {path.name: path.stat().st_size for path in (ROOT / "docs" / "gallery").glob("*.png")}
    assert set(there) == shown
    assert {name for name, size in there.items() if size > LARGEST} == set()
    assert {f"{name}-{theme}.png" for name in COMPARED for theme in ("light", "dark")} <= shown


@pytest.mark.parametrize("name", COMPARED)
def test_the_page_says_what_was_printed_and_measured(name: str, page: ModuleType) -> None:
    record: dict[str, Any] = RECORDS[name]
    found = page.compared(record)
    assert str(found) in record["output"]  # the numbers are those of the run that printed
    text = page.entry(name)
    for row in found.rows():
        assert all(page.plain(cell) in text for cell in row.values()), row
    for line in found.answers():
        assert page.plain(line) in text
    assert len(next(iter(found.scores.values()))) >= 5, "several seeds"


def test_the_page_has_every_examples_text_source_and_pictures(page: ModuleType) -> None:
    text = page.gallery()
    for name in SCRIPT["names"]():
        assert f".. _example-{name.replace('_', '-')}:" in text
        assert f"<../examples/{name}.py>" in text
    for record in RECORDS.values():
        assert all(f"gallery/{picture}" in text for picture in record["pictures"])
        if record["comparison"] is None:
            assert record["output"].splitlines()[0] in text
    linked = (ROOT / "docs" / "combinations.rst").read_text("utf-8")
    assert [name for name in COMPARED if f"example-{name.replace('_', '-')}" not in linked] == []


def test_words_and_pictures_made_again_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    script = runpy.run_path(str(ROOT / "scripts" / "gallery.py"))
    held = script["redraw"].__globals__
    monkeypatch.setitem(held, "RECORDS", tmp_path)
    monkeypatch.setitem(held, "PICTURES", tmp_path)
    for name in COMPARED:
        text = (ROOT / "evidence" / "examples" / f"{name}.json").read_text("utf-8")
        (tmp_path / f"{name}.json").write_text(text, "utf-8")
        script["redraw"](name)
        assert (tmp_path / f"{name}.json").read_text("utf-8") == text, f"python scripts/gallery.py --redraw {name}"
        assert (tmp_path / f"{name}-dark.png").stat().st_size > 5_000
