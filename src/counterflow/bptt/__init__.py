"""Backpropagation through time under a memory budget.

Source: Gruslys, Munos, Danihelka, Lanctot, Graves, "Memory-Efficient Backpropagation Through Time", NIPS 2016.
"""

from counterflow.bptt.actions import (
    Action,
    Advance,
    Backward,
    Forward,
    Release,
    Restore,
    StoreHidden,
    StoreInternal,
)
from counterflow.bptt.plans import Plan, plan

__all__ = [
    "Action",
    "Advance",
    "Backward",
    "Forward",
    "Plan",
    "Release",
    "Restore",
    "StoreHidden",
    "StoreInternal",
    "plan",
]
