"""Simulated papers whose truth is known: how often is *reproduced* said of a claim that is false?

The stated shares, which `docs/verdicts.rst` explains. They hold at the worst truth, which is the edge of the margin
(the bound itself, or no difference between groups); a truth further off is called reproduced more seldom.

- value, ratio, equivalence, bound: at most 2.5% a side for samples that are symmetric, normal or with heavy tails
  (Student's t with 3 degrees of freedom), with whatever number of seeds.
- The same for skewed samples (log-normal, coefficients of variation up to 0.8), or where the published number is
  itself a mean of few restarts: at most 5% a side; for skewed samples on the linear scale, 10%.
- order and effect of two groups of one shape, by each test: at most 5%, skewed or not.

Assumed: the seeds are independent, and a group's shape is one of these. What no seed has shown cannot be known: for
failures that are rare and large no such share holds, and the last test here says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from counterflow.lab.trials import Claim, Group, Measurement, judge

PAPERS = 300  # of each number of seeds
SEEDS = (3, 10, 30)
MARGIN = 1.5

Draw = Callable[[np.random.Generator, int], np.ndarray]


def log_normal(cv: float) -> Draw:
    sigma = math.sqrt(math.log1p(cv**2))
    return lambda rng, n: rng.lognormal(-(sigma**2) / 2, sigma, n)


# Each has mean 1.
SHAPES: dict[str, tuple[Draw, bool]] = {
    "normal, cv 0.4": (lambda rng, n: rng.normal(1.0, 0.4, n), False),
    "heavy tails, cv 0.25": (lambda rng, n: 1.0 + 0.25 / math.sqrt(3) * rng.standard_t(3, n), False),
    "log-normal, cv 0.4": (log_normal(0.4), True),
    "log-normal, cv 0.8": (log_normal(0.8), True),
}


def share_is_at_most(share: float, wrong: int, tried: int) -> bool:
    """Whether ``wrong`` of ``tried`` is no evidence, at one in 100 000, that the share is larger."""
    return wrong <= int(binom.isf(1e-5, tried, share))


def reproduced(claim: Claim, *groups: np.ndarray) -> bool:
    measured = tuple(Group(tuple(group.tolist()), -1.0 if index else 1.0) for index, group in enumerate(groups))
    (result,) = judge([claim], {claim.id: Measurement(measured)})
    return result.verdict == "reproduced"


VALUE = Claim(id="c", claim="It takes 100 epochs.", kind="value", value=100.0)
NEAR = Claim(id="c", claim="It takes 100, give or take 20.", kind="value", value=100.0, scale="linear", margin=20.0)
RATIO = Claim(id="c", claim="It is four times as fast.", kind="ratio", value=4.0)
SAME = Claim(id="c", claim="Both cost the same.", kind="equivalence", margin=MARGIN)
BELOW = Claim(id="c", claim="It takes at most 100 epochs.", kind="bound", value=100.0, direction="less")
ABOVE = Claim(id="c", claim="It takes at least 100 epochs.", kind="bound", value=100.0, direction="greater")

# The claim, and the true mean of each group: at the edge, so that the claim is (just) false.
AT_THE_EDGE: dict[str, tuple[Claim, tuple[float, ...]]] = {
    "value, truth at the upper edge": (VALUE, (100.0 * MARGIN,)),
    "value, truth at the lower edge": (VALUE, (100.0 / MARGIN,)),
    "value on the linear scale": (NEAR, (120.0,)),
    "ratio, truth at the upper edge": (RATIO, (4.0 * MARGIN, 1.0)),
    "ratio, truth at the lower edge": (RATIO, (4.0 / MARGIN, 1.0)),
    "equivalence": (SAME, (MARGIN, 1.0)),
    "bound from above": (BELOW, (100.0,)),
    "bound from below": (ABOVE, (100.0,)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", AT_THE_EDGE)
def test_a_false_size_is_seldom_reproduced(kind: str, shape: str) -> None:
    rng = np.random.default_rng(7)
    claim, means = AT_THE_EDGE[kind]
    draw, skewed = SHAPES[shape]
    wrong = sum(
        reproduced(claim, *(mean * draw(rng, n) for mean in means)) for n in SEEDS for _ in range(PAPERS // len(means))
    )
    # On the linear scale the t interval has no help from the logarithm against a tail to the right.
    stated = 0.025 if not skewed else 0.1 if claim.scale == "linear" else 0.05
    assert share_is_at_most(stated, wrong, len(SEEDS) * (PAPERS // len(means)))


@pytest.mark.parametrize("shape", ["normal, cv 0.4", "log-normal, cv 0.4"])
@pytest.mark.parametrize("side", [MARGIN, 1 / MARGIN])
def test_a_published_mean_of_few_restarts_counts_as_uncertain(side: float, shape: str) -> None:
    rng = np.random.default_rng(8)
    draw, _ = SHAPES[shape]
    wrong = 0
    for _ in range(3 * PAPERS):
        published = 100.0 * draw(rng, 10)
        spread = float(published.std(ddof=1))
        claim = Claim(id="c", claim="It was so.", kind="value", value=float(published.mean()), spread=spread, n=10)
        wrong += reproduced(claim, side * 100.0 * draw(rng, 30))
    assert share_is_at_most(0.05, wrong, 3 * PAPERS)


@pytest.mark.parametrize(
    ("test", "shape"),
    [
        *((test, shape) for test in ("contrast", "paired_t") for shape in SHAPES),
        ("mann_whitney", "log-normal, cv 0.8"),  # ranks are the same for every shape
    ],
)
def test_an_order_that_is_not_there_is_seldom_reproduced(test: str, shape: str) -> None:
    rng = np.random.default_rng(9)
    draw, _ = SHAPES[shape]
    claim = Claim(id="c", claim="A is faster than B.", kind="order", test=test, direction="less")  # type: ignore[arg-type]
    tried = [reproduced(claim, abs(draw(rng, n)), abs(draw(rng, n))) for n in SEEDS for _ in range(PAPERS // 3)]
    assert share_is_at_most(0.05, sum(tried), len(tried))


@pytest.mark.parametrize("shape", ["normal, cv 0.4", "heavy tails, cv 0.25"])
def test_an_effect_that_is_not_there_is_seldom_reproduced(shape: str) -> None:
    rng = np.random.default_rng(10)
    draw, _ = SHAPES[shape]
    claim = Claim(id="c", claim="It falls.", kind="effect", scale="linear", direction="less")
    tried = [reproduced(claim, draw(rng, n) - 1.0) for n in SEEDS for _ in range(PAPERS // 2)]
    assert share_is_at_most(0.05, sum(tried), len(tried))


def test_true_claims_are_reproduced_with_enough_seeds() -> None:
    """A judge that never says reproduced would pass all of the above."""
    rng = np.random.default_rng(11)
    for draw in (SHAPES["normal, cv 0.4"][0], SHAPES["log-normal, cv 0.4"][0], SHAPES["heavy tails, cv 0.25"][0]):
        assert sum(reproduced(VALUE, 100.0 * draw(rng, 60)) for _ in range(50)) >= 47
        assert sum(reproduced(RATIO, 4.0 * draw(rng, 60), draw(rng, 60)) for _ in range(50)) >= 45
        faster = Claim(id="c", claim="A is faster.", kind="order", test="mann_whitney", direction="less")
        assert sum(reproduced(faster, draw(rng, 30), 2.0 * draw(rng, 30)) for _ in range(50)) >= 48


def test_what_no_seed_has_shown_is_not_known() -> None:
    """A limit of all of this: one seed in ten runs into the cap, and three seeds of four papers do not show it."""
    rng = np.random.default_rng(12)

    def capped(n: int) -> np.ndarray:  # of mean 150, most seeds about 100
        return np.where(rng.random(n) < 0.1, 600.0, rng.normal(100.0, 5.0, n))

    shares = {n: sum(reproduced(VALUE, capped(n)) for _ in range(200)) / 200 for n in (3, 60)}
    assert shares[3] > 0.5
    assert shares[60] < 0.1
