"""The benchmarks' pictures in the documentation are of the records that are committed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SHOWN = {"density": "density-cost.png", "speech": "speech-growth.png"}

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")
pytestmark = pytest.mark.skipif(not (ROOT / "evidence").is_dir(), reason="records are no part of a source archive")


@pytest.mark.parametrize("name", SHOWN)
def test_a_picture_is_of_the_present_record(
    name: str, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, again = ROOT / "evidence" / "benchmarks" / f"{name}.json", tmp_path / "again.png"
    bench = script(ROOT / "benchmarks" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--redraw", "--json", str(record), "--plot", str(again)])
    before = record.read_bytes()
    assert bench.main() == 0
    assert record.read_bytes() == before
    from common.pictures import drawn_in

    shown = ROOT / "docs" / "images" / SHOWN[name]
    assert drawn_in(shown) == drawn_in(again), f"draw it again: python benchmarks/{name}.py --redraw, as its head says"
    found = json.loads(before)
    held = found["cost"]["curves"] if name == "density" else bench.curves(found["parts"]["recognition"])
    assert drawn_in(again) == json.loads(json.dumps(held))  # which knows no tuples


@pytest.mark.parametrize("name", SHOWN)
def test_nothing_is_drawn_of_no_record(
    name: str, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = script(ROOT / "benchmarks" / f"{name}.py")
    for options in (["--plot", str(tmp_path / "a.png")], ["--json", str(tmp_path / "none.json")]):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--redraw", *options])
        with pytest.raises(SystemExit) as stop:
            bench.main()
        assert stop.value.code == 2
        assert "--redraw needs --plot" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
