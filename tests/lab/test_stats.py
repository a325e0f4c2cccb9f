from __future__ import annotations

import math
from statistics import fmean, stdev

import numpy as np
import pytest
from scipy import stats as scipy_stats

from counterflow.exceptions import InputError
from counterflow.lab import stats

SAMPLES = [3.1, 4.7, 4.0, 5.5, 3.9]
OTHERS = [5.1, 6.2, 4.9, 7.4, 6.6]


def test_one_group_has_the_t_interval() -> None:
    estimate, low, high = stats.contrast([stats.sample_term(SAMPLES, scale="linear")])
    expected = scipy_stats.t.interval(0.95, 4, fmean(SAMPLES), stdev(SAMPLES) / math.sqrt(5))
    assert estimate == pytest.approx(fmean(SAMPLES))
    assert (low, high) == pytest.approx(expected)


def test_a_mean_on_the_log_scale_has_the_t_intervals_lower_end_and_as_much_above() -> None:
    estimate, low, high = stats.contrast([stats.sample_term(SAMPLES)])
    linear_low, _ = scipy_stats.t.interval(0.95, 4, fmean(SAMPLES), stdev(SAMPLES) / math.sqrt(5))
    assert low == pytest.approx(math.log(linear_low))
    assert high - estimate == pytest.approx(estimate - low)
    # The t interval of [1, 9, 2] reaches below zero, where there is no logarithm.
    assert stats.contrast([stats.sample_term([1.0, 9.0, 2.0])])[1:] == (-math.inf, math.inf)


def test_one_group_has_the_t_tests_p() -> None:
    less, greater = stats.contrast_p([stats.sample_term(SAMPLES, scale="linear")], null=3.0)
    assert greater == pytest.approx(scipy_stats.ttest_1samp(SAMPLES, 3.0, alternative="greater").pvalue)
    assert less == pytest.approx(1 - greater)


def test_two_groups_have_the_conservative_interval_when_n_is_equal() -> None:
    terms = [
        stats.sample_term(SAMPLES, scale="linear"),
        stats.sample_term(OTHERS, scale="linear", coefficient=-1.0),
    ]
    error = math.hypot(stdev(SAMPLES), stdev(OTHERS)) / math.sqrt(5)
    _, low, high = stats.contrast(terms)
    assert (high - low) / 2 == pytest.approx(scipy_stats.t.ppf(0.975, 4) * error)


def test_p_and_interval_agree_at_the_edge() -> None:
    terms = [stats.sample_term(SAMPLES), stats.sample_term(OTHERS[:3], coefficient=-1.0)]
    _, low, high = stats.contrast(terms, confidence=0.9)
    assert stats.contrast_p(terms, null=low)[1] == pytest.approx(0.05)
    assert stats.contrast_p(terms, null=high)[0] == pytest.approx(0.05)


@pytest.mark.parametrize("statistic", ["mean", "sd", "cv"])
@pytest.mark.parametrize("scale", ["log", "linear"])
def test_the_delta_method_meets_simulation(statistic: stats.Statistic, scale: stats.Scale) -> None:
    draws = np.random.default_rng(0).normal(10.0, 2.0, size=(4000, 40))
    terms = [stats.sample_term(row.tolist(), statistic, scale) for row in draws]
    spread = float(np.std([term.estimate for term in terms]))
    # The larger of two errors that are both right is a little too large.
    assert 0.95 * spread < fmean(term.error for term in terms) < (1.05 if statistic == "mean" else 1.12) * spread


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        first, second = generator.normal(5.0, 1.0, 4), generator.normal(3.0, 3.0, 12)
        _, low, high = stats.contrast(
            [
                stats.sample_term(first.tolist(), scale="linear"),
                stats.sample_term(second.tolist(), scale="linear", coefficient=-1.0),
            ]
        )
        covered += low <= 2.0 <= high
    assert 940 <= covered <= 990


def test_one_sample_says_nothing_and_a_computed_number_everything() -> None:
    assert stats.contrast([stats.sample_term([3.0])])[1:] == (-math.inf, math.inf)
    assert stats.contrast_p([stats.sample_term([3.0])]) == (1.0, 1.0)
    exact = stats.sample_term([3.0], deterministic=True)
    assert stats.contrast([exact])[1:] == (math.log(3.0), math.log(3.0))
    assert stats.contrast_p([exact]) == (1.0, 0.0)


def test_a_published_mean_is_uncertain_too() -> None:
    assert stats.published_term(2438.0, 1153.0, 10).error == pytest.approx(1153 / 2438 / math.sqrt(10))
    assert stats.published_term(2438.0, None, 10).error == 0.0
    cv = stats.published_term(0.473, None, 10, "cv")
    assert cv.error == pytest.approx(math.sqrt(1 / 18 + 0.473**2 / 10))


def test_rank_and_paired_tests_are_scipys() -> None:
    less, greater = stats.mann_whitney_p(SAMPLES, OTHERS)
    assert less == pytest.approx(scipy_stats.mannwhitneyu(SAMPLES, OTHERS, alternative="less").pvalue)
    assert greater > 0.9
    less, greater = stats.contrast_p([stats.paired_term(SAMPLES, OTHERS, "linear")])
    assert less == pytest.approx(scipy_stats.ttest_rel(SAMPLES, OTHERS, alternative="less").pvalue)
    assert stats.mann_whitney_p([2.0, 2.0], [2.0]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("samples", "statistic", "message"),
    [
        ([], "mean", "no samples"),
        ([1.0, math.nan], "mean", "nan"),
        ([1.0, -1.0], "mean", "positive mean"),
        ([1.0], "sd", "two samples"),
        ([2.0, 2.0], "cv", "positive cv"),
        ([-2.0, 2.0], "cv", "positive mean"),
    ],
)
def test_what_has_no_number_is_refused(samples: list[float], statistic: stats.Statistic, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stats.sample_term(samples, statistic)


def test_a_paired_test_needs_pairs() -> None:
    with pytest.raises(InputError, match="2 and 1"):
        stats.paired_term([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="positive samples"):
        stats.paired_term([1.0, 2.0], [1.0, 0.0])


def test_splits_that_overlap_say_less() -> None:
    samples = [0.8, 0.9, 0.85, 0.7, 0.95]
    plain, folds = (stats.contrast([stats.sample_term(samples, scale="linear", overlap=o)]) for o in (0.0, 0.25))
    assert folds[0] == plain[0]
    assert folds[2] - folds[0] == pytest.approx(1.5 * (plain[2] - plain[0]))  # sqrt(1 + 5 / 4)
    with pytest.raises(InputError, match="test examples over training examples"):
        stats.sample_term(samples, overlap=-0.1)


def test_one_restart_at_a_cap_decides_no_coefficient_of_variation() -> None:
    rest = np.random.default_rng(0).normal(130.0, 25.0, 29).tolist()
    normal, capped = (stats.sample_term(each, "cv") for each in ([*rest, 130.0], [*rest, 600.0]))
    n, cv = 30, math.exp(capped.estimate)
    assert normal.error < 1.5 * math.sqrt(1 / (2 * (n - 1)) + math.exp(normal.estimate) ** 2 / n)
    assert capped.error > 3 * math.sqrt(1 / (2 * (n - 1)) + cv**2 / n)


def test_what_treatments_of_the_same_seeds_have_in_common_cancels() -> None:
    rooms = np.random.default_rng(1).uniform(5.0, 60.0, 8)
    halves = 0.5 * rooms
    found = stats.linearized((halves.tolist(), 1.0), (rooms.tolist(), -1.0))
    assert found == pytest.approx([0.5] * 8)
    noisy = halves + np.random.default_rng(2).normal(0, 0.1, 8)
    found = stats.linearized((noisy.tolist(), 1.0), (rooms.tolist(), -1.0))
    assert np.mean(found) == pytest.approx(noisy.mean() / rooms.mean())
    drawn = [(noisy[pick].mean() / rooms[pick].mean()) for pick in np.random.default_rng(3).integers(8, size=(4000, 8))]
    assert np.std(found, ddof=1) / math.sqrt(8) == pytest.approx(np.std(drawn), rel=0.25)
    with pytest.raises(InputError, match="as many samples each"):
        stats.linearized(([1.0], 1.0), ([1.0, 2.0], -1.0))
    with pytest.raises(stats.NoStatisticError, match="positive means"):
        stats.linearized(([0.0, 0.0], 1.0), ([1.0, 2.0], -1.0))


def test_the_jackknife_is_that_of_leaving_out() -> None:
    samples = [*SAMPLES, 30.0]
    for statistic in ("sd", "cv"):
        left = [samples[:i] + samples[i + 1 :] for i in range(6)]
        logs = [math.log(stdev(rest) / (fmean(rest) if statistic == "cv" else 1.0)) for rest in left]
        wanted = math.sqrt(5 / 6 * sum((each - fmean(logs)) ** 2 for each in logs))
        assert stats.sample_term(samples, statistic).error == pytest.approx(wanted)  # which is the larger one here
