"""Counterflow: see, shape and combine the error that flows backward through a PyTorch network.

Names are loaded when they are first used, so that the command line and its worker processes need not wait for
torch where they do not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from counterflow._compiled import require_place as _require_place

if TYPE_CHECKING:
    from counterflow import analog as analog
    from counterflow import backward as backward
    from counterflow import bptt as bptt
    from counterflow import choice as choice
    from counterflow import competition as competition
    from counterflow import density as density
    from counterflow import noise_control as noise_control
    from counterflow import separation as separation
    from counterflow import speech as speech
    from counterflow import tempering as tempering
    from counterflow import variational as variational
    from counterflow import whitening as whitening
    from counterflow.backward import attach as attach
    from counterflow.backward.probe import probe as probe
    from counterflow.choice import MultipleChoice as MultipleChoice
    from counterflow.choice import oracle_loss as oracle_loss
    from counterflow.competition import LocalWinnerTakeAll as LocalWinnerTakeAll
    from counterflow.competition import compete as compete
    from counterflow.optim import DeltaBarDelta as DeltaBarDelta
    from counterflow.tempering import temper as temper
    from counterflow.variational import make_variational as make_variational
    from counterflow.whitening import whiten as whiten

__version__ = "0.1.0.dev0"

_MODULES = (
    "analog",
    "backward",
    "bptt",
    "choice",
    "competition",
    "density",
    "noise_control",
    "separation",
    "speech",
    "tempering",
    "variational",
    "whitening",
)
_HOMES = {
    "DeltaBarDelta": "counterflow.optim",
    "LocalWinnerTakeAll": "counterflow.competition",
    "MultipleChoice": "counterflow.choice",
    "attach": "counterflow.backward",
    "compete": "counterflow.competition",
    "make_variational": "counterflow.variational",
    "oracle_loss": "counterflow.choice",
    "probe": "counterflow.backward.probe",
    "temper": "counterflow.tempering",
    "whiten": "counterflow.whitening",
}
__all__ = [
    "DeltaBarDelta",
    "LocalWinnerTakeAll",
    "MultipleChoice",
    "analog",
    "attach",
    "backward",
    "bptt",
    "choice",
    "compete",
    "competition",
    "density",
    "make_variational",
    "noise_control",
    "oracle_loss",
    "probe",
    "separation",
    "speech",
    "temper",
    "tempering",
    "variational",
    "whiten",
    "whitening",
]

_require_place()  # before any module of the package defines what numba compiles


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"counterflow.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'counterflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
