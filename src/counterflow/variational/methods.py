"""Variational dropout as entries of the registry."""

from __future__ import annotations

from typing import Any

from counterflow.registry import Contract, Method, Waiver, attention_example, cnn_example, mlp_example, register
from counterflow.variational.conversion import make_variational

__all__: list[str] = []

_PAPER = "Kingma, Salimans, Welling, Variational Dropout and the Local Reparameterization Trick, NIPS 2015"
_EXAMPLES = (mlp_example(), cnn_example())
_WAIVERS: dict[Contract, Waiver] = {
    "parameters": Waiver(
        reason="It exchanges layers for layers with noise, which are of another type and add rates; parameters stay.",
        error=AssertionError,
        match="names of parameters change",
    )
}


def _entry(key: str, summary: str, **options: Any) -> None:
    register(
        Method(
            key=key,
            summary=summary,
            paper=_PAPER,
            site="source",
            attach=lambda model, inputs: make_variational(model, **options),
            examples=(*_EXAMPLES, attention_example()),
            keeps_forward=False,
            random=True,
            adds_buffers=True,
            waivers=_WAIVERS,
        )
    )


_entry("variational", "Learn a dropout rate for every weight, with noise on the pre-activations.", rates="weight")
_entry("variational-inputs", "Learn a dropout rate for every input unit, with noise on it.", noise="A", rates="unit")
_entry("variational-gaussian", "Give every weight a Gaussian posterior, and draw pre-activations.", prior="gaussian")
