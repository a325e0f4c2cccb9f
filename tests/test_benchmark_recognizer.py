"""The benchmark of the recognizer: who learns, chooses and judges, and what the bars decide, on made-up voices."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from counterflow.lab.papers.speech.corpora import FOLDS, Corpus
from counterflow.speech import Lexicon

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "recognizer.py"
WORDS = {"SEZ": [("S", "EH", "Z")], "MOW": [("M", "OW")], "OWZ": [("OW", "Z")], "THE": [("EH",)]}


def voices(count: int = 20) -> tuple[Corpus, Corpus]:
    """Speakers who learn, choose or judge, and the same in folds."""
    draw = torch.Generator().manual_seed(0)
    lexicon = Lexicon(WORDS)
    points = {phone: 3 * torch.randn(4, generator=draw) for phone in lexicon.phones}
    features, texts = [], []
    for number in range(count):
        text = [[*WORDS][(number // 4 + place) % 4] for place in range(2)]
        phones = ["SIL", *(phone for word in text for phone in WORDS[word][0]), "SIL"]
        frames = torch.cat([points[phone].expand(8, 4) for phone in phones])
        features.append(frames + 0.3 * torch.randn(frames.shape, generator=draw))
        texts.append(tuple(text))
    roles = tuple(("train", "train", "choose", "test")[number % 4] for number in range(count))
    folds = tuple(str(number % FOLDS) for number in range(count))
    known = tuple(features), tuple(texts)
    return Corpus(*known, roles, roles, lexicon), Corpus(*known, folds, ("",) * count, lexicon)


@pytest.fixture
def bench(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = script(SCRIPT)
    an4, prompts = voices()
    monkeypatch.setattr(module, "load", lambda name, count: prompts if name == "prompts" else an4)
    monkeypatch.setitem(module.GRIDS, "gaussians", [(1.0, 400.0), (1.0, 4.0)])
    return module


def test_what_was_chosen_judges_and_is_kept_beside_others(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    target = tmp_path / "found.json"
    target.write_text(json.dumps({"other": 1}))
    for corpus in ("an4", "an4-all", "prompts"):
        arguments = ["recognizer.py", corpus, "--kind", "gaussians", "--json", str(target)]
        monkeypatch.setattr(sys, "argv", arguments)
        assert bench.main() == 0
    found = json.loads(target.read_text())
    assert found["other"] == 1
    an4, whole, prompts = (found[f"{name} gaussians"] for name in ("an4", "an4-all", "prompts"))
    # A penalty of 400 for each word hears too few.
    assert an4["pairs"] == whole["pairs"] == prompts["pairs"] == {"loop": [1.0, 4.0], "bigram": [1.0, 4.0]}
    assert an4["tried"]["loop"][0][2] > an4["chosen at"]["loop"] == 0.0
    assert an4["errors"] == whole["errors"] == {"loop": 0.0, "bigram": 0.0}
    assert an4["pass"] == {"loop": True, "bigram": True, "seconds": True}
    assert len(prompts["seconds"]) == len(prompts["folds"]["bigram"]) == FOLDS
    assert (an4["attempt"], prompts["bars"]["bigram"]) == (1, 17.0)


def test_the_bars_decide_and_a_pair_comes_first(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    target = tmp_path / "found.json"
    monkeypatch.setattr(bench, "errors_of", lambda said, heard: type("Errors", (), {"accuracy": 84.0}))
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(sys, "argv", ["recognizer.py", "an4-all", "--kind", "gaussians", "--json", str(target)])
    with pytest.raises(SystemExit):
        bench.main()
    target.write_text(json.dumps({"an4 gaussians": {"pairs": {"loop": [1, 4], "bigram": [1, 4]}}}))
    assert bench.main() == 0
    found = json.loads(target.read_text())["an4-all gaussians"]
    assert found["errors"] == {"loop": 16.0, "bigram": 16.0}
    assert found["pass"] == {"loop": False, "bigram": False, "seconds": False}
