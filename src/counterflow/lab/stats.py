"""Intervals and tests that papers share: pure functions on numbers.

Every claim is a contrast of groups of samples, ``sum_i c_i T_i``, where ``T_i`` is a statistic of group i
(its mean, standard deviation or coefficient of variation) or the statistic's logarithm. Each ``T_i`` has a
standard error by the delta method and ``n_i - 1`` degrees of freedom, and the contrast's interval adds the
half-widths of the groups' own intervals in squares (the method of variance estimates recovery, Zou & Donner
2008)::

    half width = sqrt( sum_i (c_i h_i)^2 ),    h_i = t[1 - alpha/2, n_i - 1] se_i

For the logarithm of our samples' mean, ``h_i = -log(1 - t se_i)``, and infinite where ``t se_i`` reaches 1. Its
lower end is then the logarithm of the lower end of the mean's own t interval, which is right for normal samples,
where ``t se_i`` alone is too narrow by the curvature of the logarithm; the upper end is as far away, which
samples with a tail to the right need. ``docs/verdicts.rst`` shows how often that errs. A published mean keeps
``t se_i``: no seeds can be added to it, and an interval of it that is too wide would leave its claim open for ever.

Welch and Satterthwaite's one number of degrees of freedom would give nearly the same width, but adding seeds
to *one* group can lower it, and so widen the interval; here each term can only shrink, so that fewer seeds
never make a better verdict. With equal n it is the interval of the conservative degrees of freedom, the
smallest ``n_i - 1``.

References:
    G. Y. Zou, A. Donner, "Construction of confidence limits about effect measures: a general approach",
    Statistics in Medicine 27 (2008). B. L. Welch, "The generalization of Student's problem when several
    different population variances are involved", Biometrika 34 (1947).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from counterflow.exceptions import InputError

__all__ = [
    "NoStatisticError",
    "Term",
    "contrast",
    "contrast_p",
    "linearized",
    "mann_whitney_p",
    "paired_term",
    "published_term",
    "sample_term",
]

Scale = Literal["log", "linear"]
Statistic = Literal["mean", "cv", "sd"]

SMALLEST_TAIL = 1e-100  # any smaller p counts as 0
ROUNDING = 1e-12  # relative: two numbers that are nearer to each other count as equal


class NoStatisticError(InputError):
    """These samples do not have the statistic: too few of them, or no logarithm of it."""


@dataclass(frozen=True)
class Term:
    """One term of a contrast: a coefficient times an estimate with an error.

    Args:
        estimate: The statistic, or its logarithm.
        error: Its standard error; 0 for a number that was computed rather than drawn, infinite for a single
            sample.
        freedom: Degrees of freedom of the error.
        coefficient: What it is multiplied by.
        log_mean: The estimate is the logarithm of the mean of samples.
    """

    estimate: float
    error: float
    freedom: float
    coefficient: float
    log_mean: bool = False


def sample_term(
    samples: Sequence[float],
    statistic: Statistic = "mean",
    scale: Scale = "log",
    coefficient: float = 1.0,
    deterministic: bool = False,
    overlap: float = 0.0,
) -> Term:
    r"""The term of a group of samples.

    On the log scale the errors are: mean, ``sd / (mean sqrt(n))``; sd, ``sqrt(1 / 2(n-1))``; cv,
    ``sqrt(1 / 2(n-1) + cv^2 / n)``. On the linear scale each is multiplied by its statistic. Those of sd and cv are
    right for normal samples; where the jackknife's error is larger, as with one sample far from the others, it counts.

    Splits of one data set share most of what is learned from, so that they vary less than new data would. The error is
    then larger by :math:`\sqrt{1 + n\,n_{test} / n_{train}}` (Nadeau and Bengio's corrected resampled t test).

    Args:
        samples: One number a seed, finite.
        statistic: What is taken of them; sd is the sample's (n - 1), cv is sd over mean.
        scale: Whether the logarithm is taken.
        coefficient: What the term is multiplied by.
        deterministic: The samples were computed, not drawn: there is no error.
        overlap: Where the samples are splits of one data set, test examples over training examples.

    Raises:
        InputError: A sample is not finite, there are none, or the overlap is negative.
        NoStatisticError: There are too few samples for the statistic, or the log scale meets a statistic
            that is not positive.

    References:
        C. Nadeau, Y. Bengio, "Inference for the generalization error", Machine Learning 52, 2003.

    Example:
        >>> term = sample_term([90.0, 100.0, 110.0])
        >>> round(math.exp(term.estimate), 6), round(term.error, 4), term.freedom
        (100.0, 0.0577, 2)
    """
    n = len(samples)
    if n == 0:
        raise InputError("a group has no samples")
    for sample in samples:
        if not math.isfinite(sample):
            raise InputError(f"a sample is {sample}; samples have to be finite")
    if not 0 <= overlap < math.inf:
        raise InputError(f"overlap is {overlap:g}; it is test examples over training examples")
    if statistic != "mean" and n < 2:
        raise NoStatisticError(f"the {statistic} needs two samples or more, not {n}")
    mean = fmean(samples)
    deviation = _deviation(samples, mean)
    if statistic == "cv" and not mean > 0:
        raise NoStatisticError(f"the coefficient of variation needs a positive mean, not {mean:g}")
    value = {"mean": mean, "sd": deviation, "cv": deviation / mean if statistic == "cv" else math.nan}[statistic]
    if deterministic:
        error = 0.0
    elif n == 1:
        error = math.inf
    elif statistic == "mean":
        error = deviation / math.sqrt(n)
    else:
        error = value * max(_relative_error(value, n, statistic), _jackknife(samples, statistic))
    error *= math.sqrt(1 + n * overlap)
    if scale == "linear":
        return Term(value, error, n - 1, coefficient)
    if not value > 0:
        raise NoStatisticError(f"the log scale needs a positive {statistic}, not {value:g}; use the linear scale")
    return Term(math.log(value), error / value, n - 1, coefficient, log_mean=statistic == "mean")


def _deviation(samples: Sequence[float], mean: float) -> float:
    if len(samples) < 2 or all(sample == samples[0] for sample in samples):
        return 0.0  # exactly, where rounding in the mean would leave a trace
    return math.sqrt(math.fsum((sample - mean) ** 2 for sample in samples) / (len(samples) - 1))


def _relative_error(value: float, n: int, statistic: Statistic) -> float:
    """Relative standard error of a sd, or of a coefficient of variation, of normal samples."""
    return math.sqrt(1 / (2 * (n - 1)) + (value**2 / n if statistic == "cv" else 0.0))


def _jackknife(samples: Sequence[float], statistic: Statistic) -> float:
    """Standard error of the logarithm of a sd or cv, leaving each sample out in turn; 0 where that leaves nothing."""
    n = len(samples)
    if n < 3:
        return 0.0
    mean = fmean(samples)
    squares = [(sample - mean) ** 2 for sample in samples]
    whole, least = math.fsum(squares), ROUNDING * mean**2
    found = []
    for sample, square in zip(samples, squares, strict=True):
        variance = (whole - square * n / (n - 1)) / (n - 2)
        rest = (n * mean - sample) / (n - 1) if statistic == "cv" else 1.0
        if variance <= least or rest <= 0:
            return 0.0
        found.append(math.log(variance) / 2 - math.log(rest))
    return _deviation(found, fmean(found)) * (n - 1) / math.sqrt(n)


def linearized(*groups: tuple[Sequence[float], float]) -> tuple[float, ...]:
    r"""Samples of a product of powers of means, where the groups are of the same seeds.

    .. math::  r_i = R \left(1 + \sum_k p_k (x_{ki} / \bar x_k - 1)\right), \qquad R = \prod_k \bar x_k^{p_k}

    Their mean is R, and their spread that of R by the delta method, so that what the groups have in common cancels: a
    ratio of two treatments of the same seeds is known far better than either.

    Args:
        groups: Samples, one a seed, all in the same order, and the power of each.

    Raises:
        InputError: The groups differ in length.
        NoStatisticError: A mean is not positive.

    Example:
        >>> [round(ratio, 3) for ratio in linearized(([2.0, 3.0, 4.0], 1.0), ([20.0, 30.0, 40.0], -1.0))]
        [0.1, 0.1, 0.1]
    """
    if len({len(samples) for samples, _ in groups}) != 1:
        raise InputError("groups of the same seeds need as many samples each")
    means = [fmean(samples) for samples, _ in groups]
    if not min(means) > 0:
        raise NoStatisticError(f"a product of powers needs positive means, not {min(means):g}")
    whole = math.prod(mean**power for mean, (_, power) in zip(means, groups, strict=True))
    return tuple(
        whole
        * (1 + math.fsum(power * (samples[i] / mean - 1) for mean, (samples, power) in zip(means, groups, strict=True)))
        for i in range(len(groups[0][0]))
    )


def published_term(
    value: float,
    spread: float | None,
    n: int | None,
    statistic: Statistic = "mean",
    scale: Scale = "log",
) -> Term:
    """The term that is taken away to compare with a published number, with that number's own uncertainty.

    Args:
        value: The published number; positive on the log scale.
        spread: Its standard deviation over ``n`` (means only).
        n: How many restarts are behind it. Without it the published number counts as certain.
        statistic: What the number is. The error of a published sd or cv follows from ``n``.
        scale: Whether the logarithm is taken.

    Example:
        >>> term = published_term(339.0, spread=95.0, n=10)
        >>> round(term.error, 4), term.freedom, term.coefficient
        (0.0886, 9, -1.0)
    """
    error = 0.0
    if n is not None and n > 1:
        if statistic != "mean":
            error = abs(value) * _relative_error(value, n, statistic)
        elif spread is not None:
            error = spread / math.sqrt(n)
    freedom = (n or 1) - 1
    if scale == "linear":
        return Term(value, error, freedom, -1.0)
    return Term(math.log(value), error / value, freedom, -1.0)


def contrast(terms: Sequence[Term], confidence: float = 0.95) -> tuple[float, float, float]:
    """The contrast's estimate and its two-sided interval.

    Args:
        terms: The terms; on the log scale the results are logarithms.
        confidence: Coverage of the interval.

    Returns:
        Estimate, low end, high end; the ends are infinite if a term's error is.

    Example:
        >>> estimate, low, high = contrast([sample_term([4.0, 5.0, 6.0], scale="linear")])
        >>> round(estimate, 3), round(low, 3), round(high, 3)   # 5 +- 4.303 / sqrt(3)
        (5.0, 2.516, 7.484)
    """
    estimate = math.fsum(term.coefficient * term.estimate for term in terms)
    half = _half_width(terms, (1 - confidence) / 2)
    return estimate, estimate - half, estimate + half


def _half_width(terms: Sequence[Term], tail: float) -> float:
    from scipy.special import stdtrit  # slow to import, and the command line's help does not need it

    uncertain = [term for term in terms if term.error > 0 and term.coefficient != 0]
    if any(math.isinf(term.error) for term in uncertain):
        return math.inf
    halves = []
    for term in uncertain:
        half = -float(stdtrit(term.freedom, tail)) * term.error
        if term.log_mean:
            half = -math.log1p(-half) if half < 1 else math.inf
        halves.append(term.coefficient * half)
    return math.hypot(*halves)


def contrast_p(terms: Sequence[Term], null: float = 0.0) -> tuple[float, float]:
    """One-sided p values of a contrast: for less than the null value, and for greater.

    The p value is the tail at which the end of the one-sided interval meets the null value, so that a test
    and an interval never disagree. With one term of the linear scale it is the t test's.

    Args:
        terms: The terms.
        null: What the contrast would be if there were no effect, on the scale of the terms.

    Returns:
        p for "less" and p for "greater"; both are 1 where a single sample says nothing.

    Example:
        >>> less, greater = contrast_p([sample_term([4.0, 5.0, 6.0], scale="linear")], null=0.0)
        >>> round(less, 4), round(greater, 4)
        (0.9935, 0.0065)
    """
    distance = math.fsum(term.coefficient * term.estimate for term in terms) - null
    if any(math.isinf(term.error) for term in terms):
        return 1.0, 1.0
    # A logarithm near 0 has the absolute error of a number near 1.
    sizes = (abs(term.coefficient) * max(abs(term.estimate), float(term.log_mean)) for term in terms)
    if abs(distance) <= ROUNDING * (math.fsum(sizes) + abs(null)):
        tail = 0.5
    elif _half_width(terms, SMALLEST_TAIL) <= abs(distance):
        tail = 0.0
    else:
        low, high = math.log(SMALLEST_TAIL), math.log(0.5)
        for _ in range(80):  # the half width falls as the tail grows: halve the bracket
            middle = (low + high) / 2
            if _half_width(terms, math.exp(middle)) > abs(distance):
                low = middle
            else:
                high = middle
        tail = math.exp((low + high) / 2)
    return (tail, 1 - tail) if distance < 0 else (1 - tail, tail)


def mann_whitney_p(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """One-sided p values of the Mann-Whitney test: the first tends to be less, or greater, than the second.

    Exact for small samples without ties, else normal with the continuity correction.

    Example:
        >>> less, greater = mann_whitney_p([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
        >>> round(less, 3), greater
        (0.05, 1.0)
    """
    from scipy.stats import mannwhitneyu

    if len({*first, *second}) == 1:
        return 1.0, 1.0  # all tied: the normal form would divide by nothing
    less = mannwhitneyu(first, second, alternative="less").pvalue
    greater = mannwhitneyu(first, second, alternative="greater").pvalue
    return float(less), float(greater)


def paired_term(first: Sequence[float], second: Sequence[float], scale: Scale = "log", overlap: float = 0.0) -> Term:
    """The term of a paired t test, for `contrast_p`: the mean of its differences, on the log scale of the logarithms'.

    Args:
        first: One number a seed.
        second: One number for each of the same seeds.
        scale: Whether differences or ratios are averaged.
        overlap: As `sample_term`.

    Raises:
        InputError: The groups differ in length, or as `sample_term`.
        NoStatisticError: The log scale meets a sample that is not positive.

    Example:
        >>> term = paired_term([1.0, 2.0, 3.0], [2.0, 3.1, 4.2], scale="linear")
        >>> round(term.estimate, 6), round(term.error, 4), term.freedom
        (-1.1, 0.0577, 2)
        >>> less, greater = contrast_p([term])
        >>> round(less, 4), round(greater, 4)
        (0.0014, 0.9986)
    """
    return sample_term(_differences(first, second, scale), scale="linear", overlap=overlap)


def _differences(first: Sequence[float], second: Sequence[float], scale: Scale) -> list[float]:
    """Differences of pairs; 0 where the two are equal but for rounding."""
    if len(first) != len(second):
        raise InputError(f"a paired test needs as many samples of each, not {len(first)} and {len(second)}")
    if scale == "log" and min(*first, *second) <= 0:
        raise NoStatisticError("the log scale needs positive samples; use the linear scale")
    differences = []
    for a, b in zip(first, second, strict=True):
        if abs(a - b) <= ROUNDING * (abs(a) + abs(b)):
            differences.append(0.0)
        else:
            differences.append(math.log(a) - math.log(b) if scale == "log" else a - b)
    return differences
