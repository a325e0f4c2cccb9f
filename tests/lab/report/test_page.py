"""The page as text: whole, escaped, with every claim; `test_browser` opens it."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from counterflow.exceptions import InputError, MissingExtraError, RecordError
from counterflow.lab.report import Figure, Section, TableExhibit, write_report
from counterflow.lab.report.numbers import format_seconds
from counterflow.lab.report.page import VERDICTS, summary


@pytest.fixture(scope="module")
def html(sections, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "deeper" / "report.html"
    assert write_report(sections, path, profile="laptop") == path
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def tags(html) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(html)
    return parser.tags


def _plots(html: str) -> list[dict]:
    found = re.findall(r'<script type="application/json" data-plot="[^"]*">(.*?)</script>', html, flags=re.DOTALL)
    return [json.loads(text, parse_constant=pytest.fail) for text in found]


def test_one_file_below_eight_megabytes_with_one_plotly(html):
    assert len(html.encode()) < 8_000_000
    assert html.count("plotly.js v") == 1


def test_nothing_is_fetched(tags):
    for tag, attributes in tags:
        assert "src" not in attributes, tag
        href = attributes.get("href") or ""
        assert href == "data:," or href.startswith("#") or not href, (tag, href)
    [policy] = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_hostile_text_stays_text(tags):
    assert [a for tag, a in tags if tag == "img"] == []
    assert len([tag for tag, _ in tags if tag == "script"]) == 4  # plotly, ours, and two plots


def test_every_claim_is_there_with_its_verdict(tags, sections):
    rows = {a["data-claim"]: a for tag, a in tags if tag == "tr" and "data-claim" in a}
    lines = {a["data-claim"]: a for tag, a in tags if tag == "li" and "data-claim" in a}
    claims = [claim for section in sections for claim in section.claims]
    assert set(rows) == set(lines) == {claim.id for claim in claims}
    for claim in claims:
        for found in (rows[claim.id], lines[claim.id]):
            assert (found["data-verdict"], found["data-setting"]) == (claim.verdict, claim.setting)
    identities = [a["id"] for _, a in tags if "id" in a]
    assert len(identities) == len(set(identities))
    links = {a["href"] for tag, a in tags if tag == "a"}
    assert links <= {f"#{identity}" for identity in identities}


def test_the_overview_shows_what_a_paper_says_and_the_claims_that_carry_it(sections, tmp_path):
    shown = [claim.id for claim in sections[0].claims[:2]]
    short = replace(sections[0], says="Learning gets <faster>.", headline=shown)
    html = write_report([short, *sections[1:]], tmp_path / "r.html", profile="laptop").read_text("utf-8")
    [article] = re.findall(rf'<article data-paper="{short.key}">.*?</article>', html, flags=re.DOTALL)
    assert "Learning gets &lt;faster&gt;." in article
    assert re.findall(r'data-claim="([^"]*)"', article) == shown
    # All of them stand in the paper's own section.
    assert len(re.findall(rf'<tr [^>]*data-paper="{short.key}" data-claim=', html)) == len(short.claims)


def test_the_axis_is_that_of_the_claims_in_the_overview(sections, tmp_path):
    def ticks(section: Section) -> list[str]:
        html = write_report([section], tmp_path / "r.html", profile="laptop").read_text("utf-8")
        return re.findall(r'<text x="[^"]*" y="11">([^<]*)</text>', html)

    near = replace(sections[0], headline=["t2.mom.conventional"])
    assert ticks(near) == ["0.33", "0.5", "0.67", "1", "1.5", "2", "3"]
    assert ticks(sections[0])[-1] == "10"  # for a claim that is further away


def test_claims_are_counted_by_verdict_for_all_papers_and_for_each(html, sections):
    claims = [claim for section in sections for claim in section.claims]
    assert f"<p>{len(claims)} claims from {len(sections)} papers, " in html
    for verdict in VERDICTS:
        count = sum(claim.verdict == verdict for claim in claims)
        assert re.findall(rf"</svg>{verdict} <b>(\d+)</b>", html) == [str(count)]
    for section in sections:
        [article] = re.findall(rf'<article data-paper="{section.key}">.*?</article>', html, flags=re.DOTALL)
        found = dict(re.findall(r'<i class="v-([^"]*)" style="--n: (\d+)">', article))
        every = [claim.verdict.replace(" ", "-") for claim in section.claims]
        assert found == {verdict: str(every.count(verdict)) for verdict in every}
    assert summary(claims[:1]) == "1 claim: 1 reproduced."
    assert summary(claims[:2]) == "2 claims: 2 reproduced."


def test_papers_can_be_chosen_where_there_are_several(tags, sections, tmp_path):
    assert [a["value"] for tag, a in tags if tag == "option"] == ["", *(section.key for section in sections)]
    alone = write_report(sections[:1], tmp_path / "r.html", profile="laptop").read_text("utf-8")
    assert "<select" not in alone
    # A setting that no claim has is no choice.
    assert re.findall(r'name="setting" value="([^"]*)"', alone) == ["same", "smaller"]


def test_every_number_has_its_command_and_cost(html, sections):
    for section in sections:
        for claim in section.claims:
            [row] = re.findall(rf'<tr [^>]*data-claim="{re.escape(claim.id)}".*?</tr>', html, flags=re.DOTALL)
            cells = dict(re.findall(r'<td [^>]*data-head="(\w+)">(.*?)</td>', row, flags=re.DOTALL))
            assert cells["Command"] == (f"<code>{claim.command}</code>" if claim.command else "–")
            assert cells["Time"] == (format_seconds(claim.seconds) if claim.seconds else "–")


def test_what_was_not_run_says_why(html):
    assert "the paper profile runs it; this is the laptop profile" in html


def test_numbers_are_readable(html):
    assert ">2438<" in html
    assert ">0.113<" in html
    assert "[2224, 3068]" in html
    assert "nan" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL).lower()


def _cells(html: str, claim: str) -> dict[str, str]:
    [row] = re.findall(rf'<tr [^>]*data-claim="{re.escape(claim)}".*?</tr>', html, flags=re.DOTALL)
    return dict(re.findall(r'<td [^>]*data-head="(\w+)">(.*?)</td>', row, flags=re.DOTALL))


def test_a_number_stands_with_its_spread_its_test_and_its_interval(html):
    published, measured = (_cells(html, "t2.mom.conventional")[head] for head in ("Published", "Measured"))
    assert published == '2438<span class="under">± 1153, n = 10</span>'
    assert measured == '2612<span class="under">[2224, 3068]</span>'
    assert '<span class="under">Table 2 · value · t test of the contrast</span>' in html
    # One seed has none, and what is computed needs none.
    assert _cells(html, "one.seed")["Measured"] == '2.2<span class="under">no finite interval</span>'
    assert _cells(html, "fig1.hidden")["Measured"] == "0.113"


def test_what_is_computed_has_no_p(sections, tmp_path):
    [claim] = [claim for claim in sections[0].claims if claim.id == "speed.tempering"]
    computed = replace(sections[0], claims=[replace(claim, low=2.0, high=2.0, p=0.0)])
    html = write_report([computed], tmp_path / "r.html", profile="laptop").read_text("utf-8")
    assert "under" not in _cells(html, claim.id)["Verdict"]


def test_a_test_says_its_p_beside_the_verdict_and_the_foot_why_an_interval_may_differ(html):
    cells = re.findall(r'data-head="Verdict">(.*?)</td>', html)
    under = [found[1] for cell in cells if (found := re.search(r'<span class="under">(.*?)</span>', cell))]
    assert under == ["p &lt; 0.001", "p = 0.04"]
    foot = html.partition("<footer>")[2]
    assert "Intervals are two-sided at 95%, tests of orders and effects one-sided at .05" in foot


def test_plots_are_json_without_nan_and_without_plotlys_template(html):
    curves, bars = _plots(html)
    assert curves["data"][0]["y"][-1] is None
    assert curves["data"][0]["x"][:2] == [0, 4]
    assert "template" not in bars["layout"]
    assert len(str(curves["data"][0]["y"][3])) <= 8


def test_a_plot_has_six_digits_of_a_number(tmp_path):
    figure = Figure("Thirds", "", {"data": [{"y": [1 / 3, 2e6 / 3]}]}, "none")
    text = write_report([_section(figure)], tmp_path / "r.html", profile="smoke").read_text("utf-8")
    assert _plots(text)[0]["data"] == [{"y": [0.333333, 666667.0]}]


def test_an_environment_says_zero_and_leaves_out_what_it_does_not_know(tmp_path):
    section = replace(_section(), environments=[{"cards": 0, "commit": None}, {"commit": "abc"}])
    text = write_report([section], tmp_path / "r.html", profile="smoke").read_text("utf-8")
    rows = re.findall(r'<tr><th scope="row">(\w+)</th>(.*?)</tr>', text)
    assert rows == [("cards", "<td>0</td><td></td>"), ("commit", "<td></td><td>abc</td>")]


def test_tables_and_figures_can_be_read_without_seeing_them(tags, html):
    assert html.count("<caption>") == html.count("<table")
    assert all("scope" in a for tag, a in tags if tag == "th")
    # What a plot shows is said before it: it is no image to a screen reader, since it has buttons in it.
    assert len(re.findall(r'<p class="unseen">[^<]+</p>\s*<div class="plot" id="[^"]+">', html)) == 2
    [levels] = [[int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]]
    assert all(after <= before + 1 for before, after in itertools.pairwise([0, *levels]))
    scrolling = [a for _, a in tags if a.get("class") == "wide"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)


def _section(*exhibits: object) -> Section:
    return Section("toy", "A toy", "Nobody, 1995.", "true", claims=(), exhibits=exhibits)  # type: ignore[arg-type]


def test_a_section_without_anything_is_written(tmp_path):
    text = write_report([_section()], tmp_path / "r.html", profile="smoke").read_text("utf-8")
    assert "No claims." in text
    assert "Environment" not in text
    write_report([], tmp_path / "r.html", profile="smoke")


@pytest.mark.parametrize(
    ("exhibit", "says"),
    [
        (Figure("Curves", "", {"data": [{"x": {1, 2}}]}, "none"), "toy: 'Curves': holds a set"),
        (
            Figure("Curves", "", {"data": [], "layout": 3}, "none"),
            "toy: 'Curves': the plot's layout is a int",
        ),
        (TableExhibit("Readings", "", ["a", "b"], [[1]]), "toy: 'Readings': a row has 1 cells"),
    ],
)
def test_a_malformed_exhibit_is_named(tmp_path, exhibit, says):
    with pytest.raises(InputError, match=re.escape(says)):
        write_report([_section(exhibit)], tmp_path / "report.html", profile="smoke")
    assert list(tmp_path.iterdir()) == []


def test_numpy_scalars_and_arrays_are_taken(tmp_path):
    figure = Figure("Curves", "", {"data": [{"y": np.float32([1.5, np.inf]), "x0": np.int64(3)}]}, "none")
    table = TableExhibit("Table", "", ["a"], [[np.float64(2438.2)]])
    text = write_report([_section(figure, table)], tmp_path / "r.html", profile="smoke").read_text("utf-8")
    assert _plots(text)[0]["data"] == [{"y": [1.5, None], "x0": 3}]
    assert ">2438<" in text


def test_the_first_column_names_the_rows_where_it_holds_numbers_too(tmp_path):
    table = TableExhibit("Slots", "", ["slots", "cost"], [[10, 4.636], [None, None], ["<b>", 1]])
    text = write_report([_section(table)], tmp_path / "r.html", profile="smoke").read_text("utf-8")
    [body] = re.findall(r"<tbody>(.*?)</tbody>", text, flags=re.DOTALL)
    assert re.findall(r"<tr>(.*?)</tr>", body) == [
        '<th scope="row" class="number">10</th><td class="number">4.64</td>',
        '<th scope="row"></th><td></td>',
        '<th scope="row">&lt;b&gt;</th><td class="number">1</td>',
    ]


def test_a_column_of_yes_and_no_is_no_column_of_numbers(tmp_path):
    table = TableExhibit("Runs", "", ["run", "whole", "epochs"], [["a", True, 3], ["b", False, None]])
    text = write_report([_section(table)], tmp_path / "r.html", profile="smoke").read_text("utf-8")
    heads = re.findall(r'<th scope="col"([^>]*)>(run|whole|epochs)</th>', text)
    assert heads == [("", "run"), ("", "whole"), (' class="number"', "epochs")]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, sections, monkeypatch):
    path = write_report([], tmp_path / "report.html", profile="smoke")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RecordError, match="No space left on device"):
        write_report(sections, path, profile="smoke")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_same_sections_give_the_same_page(tmp_path, sections):
    pages = [write_report(sections, tmp_path / name, profile="smoke").read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("package", ["jinja2", "plotly.offline"])
def test_a_missing_extra_is_one_line(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'counterflow[lab]'")):
        write_report([], tmp_path / "report.html", profile="smoke")


def test_an_attribute_cannot_be_broken_out_of(tmp_path, sections):
    hostile = '"><b id="broken">'
    claim = replace(sections[0].claims[0], id=hostile, unit=hostile, reason=hostile, command=hostile)
    section = Section(hostile, hostile, hostile, hostile, claims=[claim], environments=[{hostile: hostile}])
    parser = _Tags()
    parser.feed(write_report([section], tmp_path / "r.html", profile=hostile).read_text("utf-8"))
    assert [a for tag, a in parser.tags if a.get("id") == "broken"] == []
