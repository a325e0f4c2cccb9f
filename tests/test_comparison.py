"""What the examples' comparisons say of scores."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.comparison import Comparison, compare, error_path


def test_the_answer_is_that_of_the_paired_interval():
    base = [10.0, 20.0, 30.0, 40.0]
    ways = {"plain": base, "less": [x - 5 + 0.1 * (i % 2) for i, x in enumerate(base)], "same": base}
    ways["unsure"] = [x + (-1) ** i for i, x in enumerate(base)]
    asked = [("less", "plain"), ("plain", "less"), ("same", "plain"), ("unsure", "plain")]
    found = Comparison("errors", ways, asked).answers()
    verdicts = [line.split(": ")[1].split(" (")[0] for line in found]
    assert verdicts == ["better", "worse", "the same", "no difference found"]
    # t of three degrees of freedom is 3.182, and the four differences have a deviation of 0.0577.
    assert "-4.95, 95% interval -5.04 to -4.86" in found[0]


def test_one_seed_says_nothing():
    found = Comparison("errors", {"plain": [2.0], "other": [1.0]})
    assert found.asked == [("other", "plain")]
    assert "no difference found" in found.answers()[0]


def test_an_edge_is_explained_and_said_where_one_way_is_called_better():
    ways = {"plain": [10.0, 11.0, 12.0], "less": [5.0, 6.1, 7.0], "unsure": [9.0, 12.0, 12.0]}
    asked = [("less", "plain"), ("unsure", "plain")]
    inside, edge = {"rate": "0.1"}, {"rate": "0.3 (edge)"}
    found = Comparison("errors", ways, asked, {"plain": inside, "less": edge, "unsure": edge})
    better, unsure = found.answers()
    assert better.startswith("less, compared with plain: better (")
    assert better.endswith("; at a rate at the edge: less")
    assert unsure.startswith("unsure, compared with plain: no difference found")
    assert "edge" not in unsure
    assert "(edge): the best rate was the least or the largest of those tried" in str(found)
    found = Comparison("errors", ways, asked, {"plain": inside, "less": inside})
    assert found.legend() == ""
    assert "edge" not in str(found)


def test_each_way_gets_its_best_rate_from_seeds_that_it_is_not_judged_by():
    seen: dict[str, set[tuple[float, int]]] = {"low": set(), "high": set(), "fixed": set()}

    def score(way: str, rate: float, seed: int) -> float:
        seen[way].add((rate, seed))
        return math.nan if rate == 0.1 else abs(rate - {"low": 1.0, "high": 3.0, "fixed": 0.0}[way]) + seed / 1e4

    rates = {"low": (0.1, 1.0, 2.0), "high": (0.1, 2.0, 3.0), "fixed": (5.0,)}
    found = compare("errors", list(rates), rates, score, 3)
    assert {way: note["rate"] for way, note in found.notes.items()} == {"low": "1", "high": "3 (edge)"}
    assert found.scores["low"] == pytest.approx([0.0, 1e-4, 2e-4])
    for way, kept in seen.items():
        judged = {(rate, seed) for rate, seed in kept if seed < 1000}
        assert len({rate for rate, _ in judged}) == 1
        assert {seed for _, seed in kept - judged} == (set() if way == "fixed" else {1000, 1001})


def test_the_path_leads_from_the_output_to_the_input(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    path = error_path(model, lambda: model(torch.randn(5, 3)).sum().backward())
    assert list(path) == ["2", "0"]
    assert path["2"] == pytest.approx(1.0)
    found = Comparison("errors", {"plain": [2.0, 1.0]}, [("plain", "plain")], paths={"before": path}, heading="It")
    for theme in ("light", "dark"):
        found.draw(tmp_path / f"{theme}.png", theme, transparent=True)
    assert (tmp_path / "light.png").read_bytes() != (tmp_path / "dark.png").read_bytes()


def test_the_pictures_axis_has_a_name_several_labels_and_layers_that_speak(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (drawn.append(figure), Path(path).touch()))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    layers = {"2": "output", "0": "hidden layer"}
    path = error_path(model, lambda: model(torch.randn(5, 3)).sum().backward(), layers)
    assert list(path) == ["output", "hidden layer"]
    for sizes in ((0.36, 0.12), (0.004, 0.0036), (0.4, 1e-4)):
        paths = {"before": dict(zip(path, sizes, strict=True))}
        Comparison("errors", {"plain": [2.0, 1.0]}, [("plain", "plain")], paths=paths).draw(tmp_path / "it.png")
        [axes] = drawn.pop().axes
        low, high = axes.get_ylim()
        labels = [axes.yaxis.get_major_formatter()(at, 0) for at in axes.get_yticks() if low <= at <= high]
        assert len(labels) >= 3, labels
        assert all(float(label) > 0 for label in labels)
        assert axes.get_ylabel() == "RMS of the error"
        assert [each.get_text() for each in axes.get_xticklabels()] == [*layers.values()]
