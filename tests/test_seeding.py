"""Seeds: equal where seed and purpose are equal, unrelated otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterflow.exceptions import InputError
from counterflow.seeding import numpy_generator, seed_of, torch_generator


def test_seeds_never_change() -> None:
    """Records of experiments are named by their seeds: what a seed means must not change from release to release."""
    assert seed_of(0) == 3456079177858693020
    assert seed_of(7, "weights", 3) == 9178895007819568116


@given(st.integers(0, 2**80), st.lists(st.text() | st.integers(), max_size=3))
def test_a_seed_fits_both_libraries(seed: int, purpose: list[str | int]) -> None:
    value = seed_of(seed, *purpose)
    assert 0 <= value < 2**63
    assert value == seed_of(seed, *purpose)
    torch.Generator().manual_seed(value)
    np.random.default_rng(value)


def test_purposes_are_unrelated() -> None:
    values = {seed_of(seed, *purpose) for seed in range(20) for purpose in ((), ("a",), ("b",), ("a", "b"), ("ab",))}
    assert len(values) == 100


def test_generators() -> None:
    one, same, other = (torch.randn(4, generator=torch_generator(*args)) for args in ((1, "a"), (1, "a"), (1, "b")))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    draws = [numpy_generator(*args).standard_normal(4) for args in ((1, "a"), (1, "a"), (2, "a"))]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_whatever_ran_before_makes_no_difference() -> None:
    torch.randn(3)
    first = torch.randn(2, generator=torch_generator(5))
    torch.manual_seed(9)
    assert torch.equal(first, torch.randn(2, generator=torch_generator(5)))


def test_numpys_whole_numbers_are_seeds_too() -> None:
    assert seed_of(np.int64(3), "a") == seed_of(3, "a")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1.0, True, "1", None, np.int64(-2)])
def test_what_is_no_seed(seed: Any) -> None:
    with pytest.raises(InputError, match="seed must be a whole number >= 0, got"):
        seed_of(seed)
