"""The benchmark of files: the grammar that pocketsphinx gets is one, and a part that is done stays."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("soxr", reason="soxr is in counterflow[audio]")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speech_files.py"


@pytest.fixture
def bench(script: Any) -> Any:
    return script(SCRIPT)


def test_the_probabilities_of_the_bigram_sum_to_one(bench: Any) -> None:
    text = bench.arpa([["A", "B"], ["A", "A", "C"]], ["A", "B", "C", "D"])
    ones, twos = text.split("\\2-grams:")
    alone, back = {}, {}
    for chance, word, weight in re.findall(r"^(-\S+|0\S*) (\S+) (\S+)$", ones, re.MULTILINE):
        alone[word], back[word] = 10 ** float(chance), 10 ** float(weight)
    pairs = {(a, b): 10 ** float(p) for p, a, b in re.findall(r"^(-?\S+) (\S+) (\S+)$", twos, re.MULTILINE)}
    words = [word for word in alone if word != "<s>"]
    assert sum(alone[word] for word in words) == pytest.approx(1, abs=1e-5)
    for before in ("<s>", "A", "B", "C"):
        chances = [pairs.get((before, word), back[before] * alone[word]) for word in words]
        assert sum(chances) == pytest.approx(1, abs=1e-5), before


def test_a_part_that_is_done_stays_where_the_next_fails(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    target = tmp_path / "files.json"
    target.write_text(json.dumps({"hour": "the last one"}))
    monkeypatch.setattr(bench, "files", lambda rounds: {"rounds": rounds})
    monkeypatch.setattr(bench, "hour", fail)
    monkeypatch.setattr(sys, "argv", ["speech_files.py", "--rounds", "2", "--json", str(target)])
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    found = json.loads(target.read_text())
    assert (found["files"], found["hour"]) == ({"rounds": 2}, "the last one")
