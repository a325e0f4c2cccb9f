from __future__ import annotations

from pathlib import Path

import pytest

from counterflow.exceptions import InputError
from counterflow.lab.trials import Digest, claims_of, digest_of, paper_keys, read_claims
from counterflow.lab.trials.claim import read_digest

GOOD = 'id = "a"\nclaim = "It is so."\nkind = "value"\nvalue = 2438.0\n'


def write(folder: Path, *claims: str) -> Path:
    path = folder / "published.toml"
    path.write_text("".join(f"[[claim]]\n{text}\n" for text in claims), "utf-8")
    return path


def test_defaults_follow_the_kind(tmp_path: Path) -> None:
    order = 'id = "b"\nclaim = "Less."\nkind = "order"\ndirection = "less"\n'
    value, ordered = read_claims(write(tmp_path, GOOD, order))
    assert (value.margin, value.test, value.scale, value.statistic) == (1.5, None, "log", "mean")
    assert (ordered.margin, ordered.test) == (None, "contrast")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "colour = 1", "unknown field `colour`"),
        (GOOD.replace("value = 2438.0", 'value = "many"'), "Expected `float"),
        (GOOD.replace('"value"', '"number"'), "Invalid enum value 'number'"),
        (GOOD + 'test = "anova"', "Invalid enum value 'anova'"),
        (GOOD + 'test = "mann_whitney"', "judged by its interval"),
        (GOOD.replace("value = 2438.0", ""), "needs a value"),
        (GOOD.replace("2438.0", "-1.0"), "the log scale needs it positive"),
        (GOOD.replace("2438.0", "nan"), "value is nan"),
        (GOOD + "margin = 0.9", "above 1"),
        (GOOD + 'scale = "linear"', "the linear scale needs a margin"),
        (GOOD + "spread = 3.0", "needs its n"),
        (GOOD + 'spread = 3.0\nn = 5\nstatistic = "cv"', "means only"),
        (GOOD + "tolerance = 0.1", "belongs to the kind exact"),
        (GOOD.replace('"value"', '"exact"'), "belongs to the kind exact"),
        (GOOD.replace('"value"', '"order"'), "needs a direction"),
        (GOOD.replace('"value"', '"equivalence"') + 'direction = "less"', "has no direction"),
        (GOOD.replace('"value"', '"bound"') + 'direction = "less"\nmargin = 2.0', "has no margin"),
        (GOOD.replace('"value"', '"order"') + 'direction = "less"', "kind order has no value"),
        (GOOD.replace('"value"', '"equivalence"'), "kind equivalence has no value"),
        (GOOD.replace('"value"', '"exact"') + 'tolerance = 0.1\nscale = "linear"', "neither a scale"),
        (GOOD.replace('"value"', '"exact"') + 'tolerance = 0.1\nstatistic = "sd"', "nor a statistic"),
        (
            GOOD.replace('"value"', '"order"') + 'direction = "less"\ntest = "paired_t"\nstatistic = "cv"',
            "takes no cv",
        ),
    ],
)
def test_a_malformed_claim_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_claims(path)
    assert str(caught.value).startswith(f"{path}: claim a: ")
    assert message in str(caught.value)


def test_a_claim_without_a_name_is_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"claim number 2: .*missing required field `id`"):
        read_claims(write(tmp_path, GOOD, GOOD.replace('id = "a"', "")))


def test_a_file_that_is_no_list_of_claims_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "published.toml"
    for text, message in [("[[claim", "published.toml"), ("[paper]\nx = 1", "not paper"), ("", "not nothing")]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_claims(path)
    with pytest.raises(InputError, match="No such file"):
        read_claims(tmp_path / "none.toml")
    with pytest.raises(InputError, match="claim a: the id is used twice"):
        read_claims(write(tmp_path, GOOD, GOOD))


@pytest.mark.parametrize("key", paper_keys())
def test_the_claims_of_every_paper_are_well_formed(key: str) -> None:
    assert claims_of(key)


def test_an_unknown_paper_is_refused_with_those_that_are_known(trace: Path) -> None:
    with pytest.raises(InputError, match=r"no paper 'nobody' here; known are .*\btoy\b"):
        claims_of("nobody")


@pytest.mark.parametrize("key", paper_keys())
def test_every_paper_says_what_it_claims_and_which_claims_carry_it(key: str) -> None:
    digest = digest_of(key)
    assert digest.title
    assert digest.citation
    assert digest.says.endswith(".")
    assert 4 <= len(digest.headline) <= 7


def test_a_headline_of_other_claims_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    claims = path.read_text()
    names = 'title = "A toy"\ncitation = "Nobody, 1900"\n'
    path.write_text(names + 'says = "It works."\nheadline = ["a"]\n' + claims)
    assert read_digest(path) == Digest("A toy", "Nobody, 1900", "It works.", ("a",))
    assert len(read_claims(path)) == 1
    for head, message in {'headline = ["b"]': "headline: there is no claim 'b'", "says = 3": "says"}.items():
        path.write_text(names + head + "\n" + claims)
        with pytest.raises(InputError, match=message):
            read_digest(path)
