"""What the paper could not measure: which imperfection of the chip costs how much, and how precise a chip has to be.

Each imperfection has a severity: 0 is off, 1 what the paper's chip is taken to have, 2 twice that. A deviation, a
resolution or a rate is multiplied by it, a range divided, and of a converter the steps are multiplied, to the nearest
whole number of bits. The min-select circuit is there from a severity of one half on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from counterflow.analog import DeviceModel
from counterflow.exceptions import DivergenceError
from counterflow.lab.papers.noise_control.runs import best_step, reduction
from counterflow.lab.trials import Context, Outcome

__all__ = ["attribution", "device_with", "one_at_a_time", "precision"]

RANGES = ("saturation", "weight_range", "signal_range")
BITS = ("output_bits", "input_bits")


def device_with(severities: Mapping[str, float], rate: int) -> DeviceModel:
    """The paper's chip with other severities; those that are not named are off.

    Args:
        severities: By the imperfection's name, 0 or more.
        rate: Samples a second.

    Example:
        >>> device_with({"saturation": 0.5, "leakage": 2.0, "output_bits": 4.0}, 16000)
        DeviceModel(saturation=3.0, leakage=0.1, output_bits=6, converter_used=0.25)
    """
    paper = DeviceModel.paper()
    changed: dict[str, Any] = {"sample_rate": float(rate)}
    for name, severity in severities.items():
        value = getattr(paper, name)
        if name in RANGES:
            changed[name] = value / severity if severity else math.inf
        elif name in BITS:
            bits = round(value - math.log2(severity)) if severity else 33
            changed[name] = None if bits > 32 else max(1, bits)
        elif name == "min_select":
            changed[name] = severity >= 0.5
        else:
            changed[name] = value * severity
    return replace(paper.only(), **changed)


def _step(device: DeviceModel, settings: Mapping[str, Any]) -> float | None:
    """The best of the budget, on the parts of the noise that no run is judged on."""
    try:
        return best_step("chip", settings, settings["ratio"], device).best
    except DivergenceError:
        return None


def _reduction(device: DeviceModel, step: float, seed: int, settings: Mapping[str, Any]) -> float | None:
    return reduction("chip", step, seed, settings, settings["ratio"], device)


def _runs(device: DeviceModel, seeds: Sequence[int], settings: Mapping[str, Any]) -> list[float | None]:
    step = _step(device, settings)
    return [None if step is None else _reduction(device, step, seed, settings) for seed in seeds]


def one_at_a_time(seeds: Sequence[int], settings: Mapping[str, Any], context: Context) -> Outcome:
    """Each imperfection alone, and each taken out of the whole.

    Args:
        seeds: One run each.
        settings: ``noise``, ``rate``, ``channel``, ``place``, ``sign``, ``level``, ``ratio``, ``seconds``, ``budget``,
            ``used``.
        context: The trial's.

    Returns:
        Reductions in decibels: ``ideal``, ``paper``, and by imperfection ``only NAME`` and ``without NAME``.
    """
    names = DeviceModel.names()
    cases = {"ideal": {}, "paper": dict.fromkeys(names, 1.0)}
    cases |= {f"only {name}": {name: 1.0} for name in names}
    cases |= {f"without {name}": dict.fromkeys((each for each in names if each != name), 1.0) for name in names}
    metrics = {}
    for number, (case, severities) in enumerate(cases.items()):
        metrics[case] = _runs(device_with(severities, settings["rate"]), seeds, settings)
        context.progress((number + 1) / len(cases), case)
    return Outcome(metrics)


def precision(seeds: Sequence[int], settings: Mapping[str, Any], context: Context) -> Outcome:
    """All imperfections together at several severities, which are ``scales`` among the settings.

    Returns:
        Reductions in decibels, ``all at SCALE``.
    """
    metrics = {}
    for number, scale in enumerate(settings["scales"]):
        device = device_with(dict.fromkeys(DeviceModel.names(), scale), settings["rate"])
        metrics[f"all at {scale:g}"] = _runs(device, seeds, settings)
        context.progress((number + 1) / len(settings["scales"]), f"scale {scale:g}")
    return Outcome(metrics)


def attribution(seeds: Sequence[int], settings: Mapping[str, Any], context: Context) -> Outcome:
    """Sobol's shares of the variance of the reduction, severities being uniform between 0 and 2.

    The step is the one that is best for the paper's chip; a run that diverges has reduced nothing.

    Args:
        seeds: One estimate each: of the severities, and of the run.
        settings: Those of `one_at_a_time`, and ``points``, a power of two.
        context: The trial's.

    Returns:
        By imperfection ``first NAME``, its share alone, and ``total NAME``, its share with all that it interacts in;
        ``mean`` and ``deviation`` of the reductions.

    References:
        A. Saltelli and others, "Variance based sensitivity analysis of model output", Computer Physics Communications
        181 (2010).
    """
    names = DeviceModel.names()
    step = _step(device_with(dict.fromkeys(names, 1.0), settings["rate"]), settings)
    metrics: dict[str, list[float | None]] = {}
    total = settings["points"] * (len(names) + 2) * len(seeds)
    done = 0
    for seed in seeds:
        seen: list[float] = []

        def reductions(severities: NDArray[np.float64], seed: int = seed, seen: list[float] = seen) -> Any:
            nonlocal done
            found = []
            for column in severities.T:
                device = device_with(dict(zip(names, column.tolist(), strict=True)), settings["rate"])
                found.append((_reduction(device, step, seed, settings) if step else None) or 0.0)
                done += 1
                context.progress(done / total, f"run {done}")
            seen.extend(found)
            return np.array(found)

        indices = scipy.stats.sobol_indices(
            func=reductions,
            n=settings["points"],
            dists=[scipy.stats.uniform(0.0, 2.0)] * len(names),
            random_state=np.random.default_rng(seed),
        )
        for place, name in enumerate(names):
            metrics.setdefault(f"first {name}", []).append(float(indices.first_order[place]))
            metrics.setdefault(f"total {name}", []).append(float(indices.total_order[place]))
        metrics.setdefault("mean", []).append(float(np.mean(seen)))
        metrics.setdefault("deviation", []).append(float(np.std(seen)))
    return Outcome(metrics)
