"""Records of trials that nobody ran, for tests of what is made of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from counterflow.lab.trials import Record, Trial

Values = Mapping[str, Sequence[float | None]]


def finished(trial: Trial, profile: Any, metrics: Values, curves: Values | None = None) -> Record:
    """The record of a trial with these results."""
    return Record(
        format_version=1,
        key="0" * 20,
        paper=trial.paper,
        treatment=trial.treatment,
        seeds=trial.seeds,
        settings=dict(trial.settings),
        data={},
        revision=1,
        profile=profile,
        commit=None,
        environment="",
        status="done",
        reason="",
        seconds=1.0,
        metrics={name: tuple(values) for name, values in metrics.items()},
        curves={name: tuple(values) for name, values in (curves or {}).items()},
    )
