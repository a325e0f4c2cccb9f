"""Every registered method, on each of its examples, against every contract. Nobody keeps a list of methods here."""

from __future__ import annotations

import pytest

import counterflow  # noqa: F401 - enters the methods in the registry
from counterflow.registry import Contract, Example, Method, methods

from .checks import CHECKS, CONTRACTS, hold

CASES = [
    pytest.param(method, example, id=f"{method.key}-{example.name}")
    for method in methods().values()
    for example in method.examples
]


@pytest.mark.parametrize("contract", CHECKS)
@pytest.mark.parametrize(("method", "example"), CASES)
def test_contract(method: Method, example: Example, contract: Contract, request: pytest.FixtureRequest) -> None:
    if contract == "amp":
        request.getfixturevalue("bfloat16")
    hold(method, contract, example)


def test_every_contract_is_checked() -> None:
    assert {*CHECKS, "ddp"} == set(CONTRACTS)
