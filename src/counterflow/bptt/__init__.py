"""Backpropagation through time under a memory budget.

Source: Gruslys, Munos, Danihelka, Lanctot, Graves, "Memory-Efficient Backpropagation Through Time", NIPS 2016.
"""

from counterflow.bptt import methods as _methods  # noqa: F401 - enters it in the registry
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
from counterflow.bptt.budget import Sizes, format_bytes, measure, parse_bytes
from counterflow.bptt.explanation import Explanation, Option, StepTimes, explain
from counterflow.bptt.limiting import limit
from counterflow.bptt.plans import Plan, plan
from counterflow.bptt.unrolling import unroll

__all__ = [
    "Action",
    "Advance",
    "Backward",
    "Explanation",
    "Forward",
    "Option",
    "Plan",
    "Release",
    "Restore",
    "Sizes",
    "StepTimes",
    "StoreHidden",
    "StoreInternal",
    "explain",
    "format_bytes",
    "limit",
    "measure",
    "parse_bytes",
    "plan",
    "unroll",
]
