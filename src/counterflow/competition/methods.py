"""Competing units as entries of the registry."""

from __future__ import annotations

from torch import nn

from counterflow.competition.exchange import compete
from counterflow.competition.layers import k_winners
from counterflow.registry import Contract, Method, Waiver, cnn_example, mlp_example, register

__all__: list[str] = []

_PAPER = "Srivastava, Masci, Kazerounian, Gomez, Schmidhuber, Compete to Compute, NIPS 2013"
_EXAMPLES = (mlp_example(), cnn_example())
_WAIVERS: dict[Contract, Waiver] = {
    "parameters": Waiver(
        reason="It exchanges the activation modules, which are then of another type; parameters and keys stay.",
        error=AssertionError,
        match="modules change",
    )
}

register(
    Method(
        key="competition",
        summary="Hand the error to the winner of each block of units alone.",
        paper=_PAPER,
        site="adjoint",
        attach=lambda model, inputs: compete(model, 2),
        examples=_EXAMPLES,
        keeps_forward=False,
        discontinuous=True,
        waivers=_WAIVERS,
    )
)
register(
    Method(
        key="competition-two-of-four",
        summary="Two winners in each block of four, of units with a function of their own.",
        paper=_PAPER,
        site="adjoint",
        attach=lambda model, inputs: compete(model, 4, inputs=inputs, activation=nn.Tanh(), competition=k_winners(2)),
        examples=_EXAMPLES,
        keeps_forward=False,
        discontinuous=True,
        waivers=_WAIVERS,
    )
)
