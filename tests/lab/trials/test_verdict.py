"""What a verdict may and may not do, whatever the numbers are."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from counterflow.exceptions import InputError
from counterflow.lab.trials import Claim, ClaimResult, Group, Measurement, Verdict, judge

DEFAULTS: dict[str, dict[str, Any]] = {
    "value": {"value": 100.0, "direction": "less"},
    "ratio": {"value": 4.0},
    "exact": {"value": 100.0, "tolerance": 0.01},
    "order": {"direction": "less"},
    "effect": {"direction": "greater"},
    "equivalence": {"margin": 1.5},
    "bound": {"value": 100.0, "direction": "less"},
}


def claim(kind: str, **fields: Any) -> Claim:
    return Claim(**{"id": "c", "claim": "It is so.", "kind": kind, **DEFAULTS[kind], **fields})


def one(published: Claim, *groups: Group, **fields: Any) -> ClaimResult:
    (result,) = judge([published], {published.id: Measurement(groups, **fields)})
    return result


def spread(mean: float, deviation: float, n: int) -> tuple[float, ...]:
    """Give n samples of exactly this mean and standard deviation."""
    if n == 1 or deviation == 0:
        return (mean,) * n
    shape = np.linspace(-1.0, 1.0, n)
    shape /= shape.std(ddof=1)
    return tuple((mean + deviation * shape).tolist())


means = st.floats(1.0, 1000.0)
coefficients = st.floats(0.0, 1.5)
counts = st.integers(1, 60)


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[Claim, list[tuple[float, float, int, int]], tuple[float, float, int]]:
    """A claim, its groups as (mean, sd, fewer seeds, more seeds), and what a value is measured against."""
    kind = draw(st.sampled_from(["value", "ratio", "order", "effect", "equivalence", "bound"]))
    fields: dict[str, Any] = {"scale": draw(st.sampled_from(["log", "linear"]))}
    if kind in ("value", "ratio", "equivalence"):
        fields["margin"] = draw(st.floats(1.05, 5.0) if fields["scale"] == "log" else st.floats(0.1, 500.0))
    if kind in ("value", "bound", "ratio"):
        fields["value"] = draw(means)
    if kind != "equivalence":
        fields["direction"] = draw(st.sampled_from(["less", "greater"]))
    if kind in ("value", "ratio") and draw(st.booleans()):
        fields |= {"spread": draw(means), "n": draw(st.integers(2, 20))}
    elif kind in ("order", "value"):
        fields["statistic"] = draw(st.sampled_from(["mean", "cv", "sd"]))
        fields["n"] = draw(st.integers(1, 20))
    size = 1 if kind in ("value", "bound") else draw(st.integers(2, 4))
    groups = []
    for _ in range(size):
        mean = draw(means)
        few = draw(counts)
        groups.append((mean, mean * draw(coefficients), few, few + draw(st.integers(0, 60))))
    reference = draw(means)
    return claim(kind, **fields), groups, (reference, reference * draw(coefficients), draw(counts))


# From the verdict with more seeds to those that fewer may give: never up.
ALLOWED: dict[Verdict, set[Verdict]] = {
    "reproduced": {"reproduced", "inconclusive"},
    "direction only": {"direction only", "not reproduced", "inconclusive"},
    "not reproduced": {"not reproduced", "inconclusive"},
    "inconclusive": {"inconclusive"},
}


@settings(max_examples=400, deadline=None)
@given(scenarios())
def test_fewer_seeds_never_make_a_better_verdict(
    scenario: tuple[Claim, list[tuple[float, float, int, int]], tuple[float, float, int]],
) -> None:
    published, groups, reference = scenario
    against = (Group(spread(*reference)),)

    def verdict(position: int) -> Verdict:
        measured = [
            Group(spread(group[0], group[1], group[position]), 1.0 if index % 2 == 0 else -1.0)
            for index, group in enumerate(groups)
        ]
        return one(published, *measured, reference=against).verdict

    assert verdict(2) in ALLOWED[verdict(3)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(1.0, 100.0), min_size=2, max_size=8, unique=True),
    st.lists(st.floats(1.0, 100.0), min_size=2, max_size=8, unique=True),
    st.integers(2, 4),
)
def test_fewer_seeds_never_help_a_rank_test(first: list[float], second: list[float], times: int) -> None:
    published = claim("order", test="mann_whitney")
    few = one(published, Group(tuple(first)), Group(tuple(second), -1.0)).verdict
    many = one(published, Group(tuple(first) * times), Group(tuple(second) * times, -1.0)).verdict
    assert few in ALLOWED[many]


FLIPPED: dict[Verdict, Verdict] = {
    "reproduced": "not reproduced",
    "not reproduced": "reproduced",
    "inconclusive": "inconclusive",
}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["contrast", "mann_whitney", "paired_t"]),
    st.sampled_from(["log", "linear"]),
    st.lists(st.tuples(st.floats(1.0, 100.0), st.floats(1.0, 100.0)), min_size=1, max_size=12),
)
def test_swapping_treatments_flips_an_order(test: str, scale: str, pairs: list[tuple[float, float]]) -> None:
    published = claim("order", test=test, scale=scale)
    first, second = (tuple(column) for column in zip(*pairs, strict=True))
    forth = one(published, Group(first), Group(second, -1.0)).verdict
    back = one(published, Group(second), Group(first, -1.0)).verdict
    assert back == FLIPPED[forth]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["log", "linear"]), means, coefficients, st.integers(2, 30), st.floats(1.05, 3.0))
def test_an_interval_across_the_margin_is_inconclusive(
    scale: str, mean: float, deviation: float, n: int, margin: float
) -> None:
    published = claim("value", scale=scale, margin=margin if scale == "log" else 100 * (margin - 1))
    reference = (Group(spread(1e6, 1.0, 30)),)  # whose direction is beyond doubt
    result = one(published, Group(spread(mean, mean * deviation, n)), reference=reference)
    low, high = (1 / margin, margin) if scale == "log" else (-100 * (margin - 1), 100 * (margin - 1))
    assert (result.relative_low is None) == (result.relative_high is None)
    start = -math.inf if result.relative_low is None else result.relative_low
    end = math.inf if result.relative_high is None else result.relative_high
    inside = [low <= start <= high, low <= end <= high]
    across = inside[0] != inside[1] or (start < low and end > high)
    assert (result.verdict == "inconclusive") == across
    assert (result.verdict == "reproduced") == all(inside)


TIGHT = 0.02


@pytest.mark.parametrize(
    ("published", "groups", "fields", "verdict"),
    [
        (claim("value"), [(101.0, TIGHT, 10)], {}, "reproduced"),
        (claim("value"), [(300.0, TIGHT, 10)], {}, "not reproduced"),
        (claim("value"), [(300.0, TIGHT, 10)], {"reference": (900.0, TIGHT, 10)}, "direction only"),
        (claim("value"), [(300.0, TIGHT, 10)], {"reference": (200.0, TIGHT, 10)}, "not reproduced"),
        (claim("value"), [(150.0, 0.5, 10)], {"reference": (900.0, TIGHT, 10)}, "inconclusive"),
        (
            claim("value", direction=None),
            [(300.0, TIGHT, 9)],
            {"reference": (9e9, TIGHT, 9)},
            "not reproduced",
        ),
        (claim("value", spread=200.0, n=10), [(101.0, TIGHT, 10)], {}, "inconclusive"),
        (claim("value", scale="linear", margin=10.0), [(105.0, 0.01, 10)], {}, "reproduced"),
        (claim("value", scale="linear", margin=10.0), [(115.0, 0.01, 10)], {}, "not reproduced"),
        (claim("ratio"), [(40.0, TIGHT, 10), (10.0, TIGHT, 10)], {}, "reproduced"),
        (claim("ratio"), [(20.0, TIGHT, 10), (10.0, TIGHT, 10)], {}, "direction only"),
        (claim("ratio", value=0.5), [(10.0, TIGHT, 10), (100.0, TIGHT, 10)], {}, "direction only"),
        (
            claim("ratio", value=0.5, scale="linear", margin=0.1),
            [(12.0, TIGHT, 10), (10.0, TIGHT, 10)],
            {},
            "direction only",
        ),
        (claim("ratio"), [(10.0, TIGHT, 10), (10.0, TIGHT, 10)], {}, "not reproduced"),
        (claim("ratio"), [(10.0, TIGHT, 10), (40.0, TIGHT, 10)], {}, "not reproduced"),
        (claim("ratio"), [(60.0, 0.5, 10), (10.0, 0.5, 10)], {}, "inconclusive"),
        (claim("exact"), [(100.5, 0.0, 1)], {}, "reproduced"),
        (claim("exact"), [(102.0, 0.0, 1)], {}, "not reproduced"),
        (claim("order"), [(10.0, TIGHT, 5), (20.0, TIGHT, 5)], {}, "reproduced"),
        (claim("order"), [(20.0, TIGHT, 5), (10.0, TIGHT, 5)], {}, "not reproduced"),
        (claim("order"), [(10.0, TIGHT, 5), (10.0, TIGHT, 5)], {}, "inconclusive"),
        (claim("order", statistic="cv"), [(10.0, 0.1, 30), (10.0, 0.4, 30)], {}, "reproduced"),
        (claim("effect", scale="linear"), [(0.5, TIGHT, 5)], {}, "reproduced"),
        (claim("effect", scale="linear"), [(-0.5, -TIGHT, 5)], {}, "not reproduced"),
        (claim("effect", scale="linear"), [(0.5, 3.0, 5)], {}, "inconclusive"),
        (claim("equivalence"), [(10.0, TIGHT, 5), (10.5, TIGHT, 5)], {}, "reproduced"),
        (claim("equivalence"), [(10.0, TIGHT, 5), (20.0, TIGHT, 5)], {}, "not reproduced"),
        (claim("equivalence"), [(10.0, TIGHT, 5), (15.0, TIGHT, 5)], {}, "inconclusive"),
        (claim("bound"), [(90.0, TIGHT, 5)], {}, "reproduced"),
        (claim("bound"), [(110.0, TIGHT, 5)], {}, "not reproduced"),
        (claim("bound"), [(100.0, TIGHT, 5)], {}, "inconclusive"),
        (claim("bound", direction="greater"), [(110.0, TIGHT, 5)], {}, "reproduced"),
        (claim("bound", direction="greater"), [(90.0, TIGHT, 5)], {}, "not reproduced"),
        (claim("bound", direction="greater"), [(100.0, TIGHT, 5)], {}, "inconclusive"),
        (claim("bound"), [(90.0, 0.0, 1)], {}, "inconclusive"),
        *((claim(kind), [], {}, "not run") for kind in DEFAULTS),
    ],
)
def test_every_kind_gives_every_verdict_that_it_should(
    published: Claim,
    groups: list[tuple[float, float, int]],
    fields: dict[str, tuple[float, float, int]],
    verdict: Verdict,
) -> None:
    measured = [
        Group(spread(mean, mean * cv, n), 1.0 if index == 0 else -1.0) for index, (mean, cv, n) in enumerate(groups)
    ]
    reference = {key: (Group(spread(mean, mean * cv, n)),) for key, (mean, cv, n) in fields.items()}
    assert one(published, *measured, **reference).verdict == verdict


def test_one_computed_number_settles_a_bound() -> None:
    assert one(claim("bound"), Group((90.0,), deterministic=True)).verdict == "reproduced"
    assert one(claim("bound"), Group((110.0,), deterministic=True)).verdict == "not reproduced"


@pytest.mark.parametrize(("measured", "published"), [(0.06, 0.09), (0.6, 0.9), (6.0, 9.0), (0.9, 0.6), (90.0, 60.0)])
def test_a_number_on_the_edge_of_its_margin_is_inside_however_it_is_rounded(measured: float, published: float) -> None:
    assert one(claim("value", value=published), Group((measured,), deterministic=True)).verdict == "reproduced"
    twin = Group((measured,), deterministic=True), Group((published,), -1.0, deterministic=True)
    assert one(claim("equivalence"), *twin).verdict == "reproduced"


@pytest.mark.parametrize("value", [0.05, 1.1, 1.8, 3.0])
@pytest.mark.parametrize("direction", ["less", "greater"])
def test_a_bound_that_is_just_kept_is_kept_however_it_is_rounded(value: float, direction: str) -> None:
    published = claim("bound", value=value, direction=direction)
    assert one(published, Group((value,), deterministic=True)).verdict == "reproduced"


def test_a_published_ratio_is_as_uncertain_as_its_spread_says() -> None:
    groups = Group((10.0, 14.0), deterministic=True), Group((8.0, 8.0), -1.0, deterministic=True)
    published = claim("ratio", value=4.5, spread=1.5, n=9, scale="linear", margin=1.0)
    result = one(published, *groups)
    half = scipy_stats.t.isf(0.025, 8) * 1.5 / math.sqrt(9)
    assert (result.relative_low, result.relative_high) == pytest.approx((4.0 - 4.5 - half, 4.0 - 4.5 + half))
    # How many restarts are behind a ratio of deviations says nothing of its error: that would be of one deviation.
    groups = Group((10.0, 14.0), deterministic=True), Group((8.0, 9.0), -1.0, deterministic=True)
    result = one(claim("ratio", value=4.0, n=9, statistic="sd"), *groups)
    assert (result.relative_low, result.relative_high) == pytest.approx((1.0, 1.0))


def test_an_exact_number_is_shown_as_it_is() -> None:
    assert fmean([0.1] * 3) != 0.1  # what would be shown if it were averaged
    result = one(claim("exact", value=0.1, tolerance=0.0), Group((0.1,) * 3))
    assert (result.verdict, result.measured, result.low, result.high) == ("reproduced", 0.1, 0.1, 0.1)


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_a_paired_test_and_its_interval_are_of_the_same_differences(scale: str) -> None:
    # Seeds differ far more than treatments: without the pairs, there is nothing to see.
    first, second = (1.0, 10.0, 100.0, 40.0), (1.2, 11.5, 114.0, 44.0)
    result = one(claim("order", test="paired_t", scale=scale), Group(first), Group(second, -1.0))
    differences = np.log(first) - np.log(second) if scale == "log" else np.subtract(first, second)
    end = scipy_stats.t.interval(0.95, 3, differences.mean(), scipy_stats.sem(differences))
    number = np.exp if scale == "log" else np.asarray
    assert result.measured == pytest.approx(float(number(differences.mean())))
    assert (result.low, result.high) == pytest.approx(tuple(number(end)))
    assert result.p == pytest.approx(scipy_stats.ttest_1samp(differences, 0.0, alternative="less").pvalue)
    # A difference is of splits that overlap as soon as one side's do.
    shared = one(claim("order", test="paired_t", scale="linear"), Group(first, overlap=0.5), Group(second, -1.0))
    half = scipy_stats.t.isf(0.025, 3) * scipy_stats.sem(np.subtract(first, second)) * math.sqrt(1 + 4 * 0.5)
    assert shared.high == pytest.approx(np.subtract(first, second).mean() + half)


@pytest.mark.parametrize(("p", "verdict"), [(0.0495, "reproduced"), (0.0505, "inconclusive")])
def test_a_direction_is_significant_at_one_in_twenty(p: float, verdict: Verdict) -> None:
    # n samples whose t test against the null has this p.
    samples = spread(scipy_stats.t.isf(p, 7) / math.sqrt(8), 1.0, 8)
    assert scipy_stats.ttest_1samp(samples, 0.0, alternative="greater").pvalue == pytest.approx(p)
    null = Group((0.0,), -1.0, deterministic=True)
    assert one(claim("effect", scale="linear"), Group(samples), null).verdict == verdict
    # Three seeds each, all apart, have a rank test's p of 1 in 20 to the bit, which is not below it.
    apart = Group((1.0, 2.0, 3.0)), Group((4.0, 5.0, 6.0), -1.0)
    ranked = one(claim("order", test="mann_whitney"), *apart)
    assert (ranked.p, ranked.verdict) == (0.05, "inconclusive")
    # The size is wrong either way; its direction counts at the same level.
    far = claim("value", value=-9.0, margin=1.0, direction="greater", scale="linear")
    wanted = "direction only" if verdict == "reproduced" else "not reproduced"
    assert one(far, Group(samples), reference=(Group((0.0,), deterministic=True),)).verdict == wanted


@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize(("number", "same"), [(0.3, 0.1 + 0.2), (1.0, 1 - 1e-16), (0.7, 0.1 * 7)])
def test_rounding_has_no_direction(scale: str, number: float, same: float) -> None:
    for direction in ("less", "greater"):
        published = claim("order", scale=scale, direction=direction)
        computed = Group((number,), deterministic=True), Group((same,), -1.0, deterministic=True)
        assert one(published, *computed).verdict == "inconclusive"
        constant = Group((number,) * 3), Group((same,) * 3, -1.0)
        assert one(published, *constant).verdict == "inconclusive"
        paired = claim("order", scale=scale, direction=direction, test="paired_t")
        assert one(paired, *constant).verdict == "inconclusive"


@pytest.mark.parametrize("kind", DEFAULTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_no_number_is_refused(kind: str, bad: float) -> None:
    groups = [Group((100.0, bad))] if kind != "order" else [Group((1.0, 2.0)), Group((1.0, bad), -1.0)]
    with pytest.raises(InputError, match=r"claim c: a sample is -?(nan|inf)"):
        one(claim(kind), *groups)


def test_samples_without_the_statistic_are_inconclusive_not_a_crash() -> None:
    result = one(claim("value", statistic="cv"), Group((5.0,)), reason="one seed")
    assert (result.verdict, result.measured, result.n) == ("inconclusive", None, 1)
    assert result.reason == "one seed; the cv needs two samples or more, not 1"
    assert one(claim("value"), Group((0.0, 0.0))).verdict == "inconclusive"


def test_a_result_says_what_was_measured() -> None:
    published = claim("ratio", value=4.0, unit="times", at="Table 2")
    result = one(
        published,
        Group((40.0, 44.0, 36.0)),
        Group((10.0, 11.0, 9.0, 10.0), -1.0),
        setting="smaller",
        differs="3 seeds",
        reason="one was capped",
        seconds=12.0,
        command="make it",
    )
    assert result.measured == pytest.approx(4.0)
    assert result.low is not None
    assert result.low < 4.0 < (result.high or 0.0)
    assert result.relative == pytest.approx(1.0)
    assert (result.n, result.unit, result.at, result.published) == (3, "times", "Table 2", 4.0)
    assert (result.setting, result.differs, result.reason) == ("smaller", "3 seeds", "one was capped")
    assert (result.seconds, result.command, result.margin) == (12.0, "make it", 1.5)
    lonely = one(published, Group((40.0,)), Group((10.0, 11.0), -1.0))
    assert (lonely.measured, lonely.low, lonely.high, lonely.n) == (
        pytest.approx(3.81, abs=0.01),
        None,
        None,
        1,
    )


def test_every_claim_has_a_result_and_every_measurement_a_claim() -> None:
    claims = [claim("order"), replace_id(claim("bound"), "d")]
    results = judge(claims, {"d": Measurement((), reason="no time")}, missing="it failed")
    assert [(result.id, result.verdict, result.reason) for result in results] == [
        ("c", "not run", "it failed"),
        ("d", "not run", "no time"),
    ]
    with pytest.raises(InputError, match="claim e is measured"):
        judge(claims, {"e": Measurement(())})


def replace_id(published: Claim, name: str) -> Claim:
    return Claim(id=name, claim=published.claim, kind="bound", value=1.0, direction="less")


def test_wrong_groups_are_refused() -> None:
    with pytest.raises(InputError, match="claim c: the test mann_whitney compares two groups"):
        one(claim("order", test="mann_whitney"), Group((1.0, 2.0)))
    with pytest.raises(InputError, match="claim c: an exact number is one group"):
        one(claim("exact"), Group((1.0,)), Group((1.0,), -1.0))
    with pytest.raises(InputError, match="claim c: a paired test"):
        one(claim("order", test="paired_t"), Group((1.0, 2.0)), Group((1.0,), -1.0))
    for test in ("paired_t", "mann_whitney"):
        with pytest.raises(InputError, match=f"claim c: the test {test} is of samples that were drawn"):
            one(claim("order", test=test), Group((1.0,)), Group((2.0,), -1.0, deterministic=True))
    with pytest.raises(InputError, match="claim c: the test mann_whitney cannot be corrected for splits that overlap"):
        one(claim("order", test="mann_whitney"), Group((1.0, 2.0), overlap=0.5), Group((3.0, 4.0), -1.0))


def test_verdicts_on_simulated_papers_are_right_as_often_as_they_say() -> None:
    """True claims are rarely refused; false ones are never confirmed; more seeds settle what is open."""
    generator = np.random.default_rng(3)

    def simulate(truth: float, n: int) -> Verdict:
        samples = truth * generator.lognormal(-0.5 * 0.4**2, 0.4, n)  # of mean truth
        return one(claim("value", spread=40.0, n=10), Group(tuple(samples.tolist()))).verdict

    true_few = [simulate(100.0, 4) for _ in range(200)]
    true_many = [simulate(100.0, 40) for _ in range(200)]
    false_many = [simulate(300.0, 40) for _ in range(200)]
    assert true_few.count("not reproduced") <= 6
    assert true_few.count("reproduced") < true_many.count("reproduced")
    assert true_many.count("reproduced") >= 140
    assert true_many.count("not reproduced") == 0
    assert false_many.count("reproduced") == 0
    assert false_many.count("not reproduced") >= 190
