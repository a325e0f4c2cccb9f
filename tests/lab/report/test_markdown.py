"""The committed summary."""

from __future__ import annotations

from dataclasses import replace

from counterflow.lab.report import reproduction_markdown


def test_counts_then_every_claim_on_a_line_of_its_own(sections):
    text = reproduction_markdown(sections)
    lines = text.splitlines()
    assert "| Tempering backpropagation networks | 5 | 1 | 1 | 2 | 1 |" in lines
    for section in sections:
        for claim in section.claims:
            [row] = [line for line in lines if line.startswith(f"| `{claim.id}`")]
            assert f"| {claim.setting} | **{claim.verdict}**" in row
            assert row.endswith("** |" if claim.p is None else ") |")
            assert row.replace(r"\|", "").count("|") == 8
    [row] = [line for line in lines if line.startswith("| `t2.mom.conventional`")]
    assert "| 2438 ± 1153 | 2612 [2224, 3068] | 30 | epochs |" in row
    [row] = [line for line in lines if line.startswith("| `fig1.hidden`")]
    assert "| 0.113 | 0.113 | 1 |" in row
    assert text.endswith("\n")
    assert "nan" not in text


def test_what_is_not_known_is_a_dash_or_nothing(sections):
    one, two = (reproduction_markdown([section]) for section in sections)
    assert "Computing time: 6 min 52 s." in one
    assert "Computing time" not in two
    [row] = [line for line in one.splitlines() if line.startswith("| `hinton`")]
    assert "| 1500 | – | – | epochs |" in row


def test_a_test_says_its_p_beside_the_verdict_and_the_head_why_an_interval_may_differ(sections):
    text = reproduction_markdown(sections)
    assert "| **inconclusive** (p = 0.04) |" in text  # cv.difference, whose interval includes zero
    assert r"| **reproduced** (p \< 0.001) |" in text
    head = " ".join(text.partition("| paper |")[0].split())
    assert "Intervals are two-sided at 95%, tests of orders and effects one-sided at .05" in head


def test_what_is_computed_has_no_p(sections):
    claims = [replace(claim, low=2.0, high=2.0, p=0.0) for claim in sections[0].claims if claim.p is not None]
    assert "(p " not in reproduction_markdown([replace(sections[0], claims=tuple(claims))])


def test_hostile_text_is_no_markup(sections):
    text = reproduction_markdown(sections)
    assert "<script>" not in text.replace("\\<script", "")


def test_what_differs_is_said_once_for_claims_that_share_it(sections):
    text = reproduction_markdown(sections)
    assert text.count("ten rates of forty searched") == 1
    assert "- `t2.dbd.tempered`, `t2.dbd.shunted`: **smaller**: ten rates of forty searched; No reading" in text
    assert "- `hinton`: **not run**: the paper profile runs it; this is the laptop profile" in text


def test_it_is_deterministic(sections):
    assert reproduction_markdown(sections) == reproduction_markdown(sections)
