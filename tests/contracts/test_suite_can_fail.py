"""The suite rejects methods that break a contract, and passes one that keeps them all."""

from __future__ import annotations

import pytest

from counterflow.backward import attach, scale
from counterflow.exceptions import UnsupportedError
from counterflow.registry import Contract, Method, Waiver

from .broken import METHODS, Refuses, broken, tapped
from .checks import CHECKS, hold


@pytest.mark.parametrize(
    ("method", "contract"),
    [
        pytest.param(method, contract, id=f"{contract}-{method.key}")
        for method, contract in METHODS
        if contract != "ddp"  # that one goes through the pair of processes of test_ranks
    ],
)
def test_a_broken_method_is_rejected(method: Method, contract: Contract) -> None:
    # What breaks a graph or is old-style raises PyTorch's own error; all else is found by an assertion.
    with pytest.raises(RuntimeError if contract in ("compile", "grad") and not method.waivers else AssertionError):
        hold(method, contract, method.examples[0])


def test_there_is_a_broken_method_for_every_contract() -> None:
    assert {contract for _, contract in METHODS} == {*CHECKS, "ddp"}


@pytest.mark.parametrize("contract", CHECKS)
def test_a_sound_method_is_not_rejected(contract: Contract) -> None:
    method = broken("sound", lambda model, inputs: attach(model, {"0": scale(0.5)}))
    hold(method, contract, method.examples[0])


def test_a_waiver_that_is_needed_passes() -> None:
    refuses = broken(
        "refuses",
        tapped(Refuses),
        waivers={"grad": Waiver("It refuses.", UnsupportedError, "not today")},
    )
    hold(refuses, "grad", refuses.examples[0])
