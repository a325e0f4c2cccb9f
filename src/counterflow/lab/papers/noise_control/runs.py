"""One controller at all signal-to-distortion ratios."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from counterflow.exceptions import DivergenceError
from counterflow.lab.data import noise
from counterflow.lab.papers.noise_control.plan import key
from counterflow.lab.trials import Context, Outcome
from counterflow.noise_control import CONTROLLERS, Design, Scene, choose_step, noise_reduction
from counterflow.seeding import numpy_generator

__all__ = ["line", "part", "recording"]

TUNING_SEED = 1_000_003  # of no run that is judged


@functools.lru_cache(maxsize=8)
def recording(name: str, rate: int) -> NDArray[np.float64]:
    """A noise at a rate, as it was found but for its level, which `Scene` takes out."""
    clips = noise()
    [clip] = [each for each in range(len(clips.clips)) if clips.clips[each].id == name]
    samples: NDArray[np.float64] = clips[clip].astype(np.float64)
    if rate != clips.rate:
        common = int(np.gcd(rate, clips.rate))
        samples = scipy.signal.resample_poly(samples, rate // common, clips.rate // common)
    return samples


def part(samples: NDArray[np.float64], rate: int, seconds: float, seed: int | None) -> NDArray[np.float64]:
    """The first seconds, for tuning, where there is no seed; with one, seconds of what comes after them.

    Noises are 25 s or longer, so several seeds' parts of 8 s overlap; weights and additive noise are each one's own.
    """
    length = round(seconds * rate)
    if seed is None:
        return samples[:length]
    first = int(numpy_generator(seed, "part of the noise").integers(length, len(samples) - length + 1))
    return samples[first : first + length]


def scene_of(arm: str, settings: Mapping[str, Any], ratio: float, seed: int) -> Scene:
    """The acoustics of one run."""
    quantized = arm.removeprefix("8-bit ") if arm.startswith("8-bit ") else "none"
    return Scene(
        settings["channel"],
        distortion_db=ratio,
        sign=settings["sign"],
        place=settings["place"],
        level_db=settings["level"],
        quantized=cast(Any, quantized),
        used=settings["used"],
        seed=seed,
    )


def controller_of(arm: str) -> str:
    """The controller's name; converters are no part of it."""
    return "perceptron" if arm.startswith("8-bit ") else arm


def line(arm: str, seeds: Sequence[int], settings: Mapping[str, Any], context: Context) -> Outcome:
    """Noise reductions of one controller, in positive decibels, over the last half of each run.

    Args:
        arm: One of the plan's.
        seeds: One run each: of the part of the noise, the additive noise and the initial weights.
        settings: Those of `counterflow.lab.papers.noise_control.plan.figure_trial`.
        context: The trial's.

    Returns:
        By ratio, one reduction a seed, None where it diverged; curves ``step`` and ``interior``, one value a ratio.
    """
    rate, seconds = settings["rate"], settings["seconds"]
    samples = recording(settings["noise"], rate)
    name = controller_of(arm)
    metrics: dict[str, list[float | None]] = {}
    steps: list[float | None] = []
    interior: list[float | None] = []
    for number, ratio in enumerate(settings["ratios"]):
        source = part(samples, rate, seconds, None)
        acoustics = scene_of(arm, settings, ratio, TUNING_SEED).measure([source])
        heard = acoustics.run(source)
        try:
            design = Design(seed=TUNING_SEED, rate=rate, loop=acoustics.loop)
            tuned = choose_step(name, design, heard, acoustics.power, settings["budget"])
        except DivergenceError:
            metrics[key(ratio)] = [None] * len(seeds)
            steps.append(None)
            interior.append(None)
            continue
        steps.append(tuned.best)
        interior.append(float(tuned.interior))
        metrics[key(ratio)] = [_reduction(name, arm, tuned.best, seed, settings, ratio) for seed in seeds]
        context.progress((number + 1) / len(settings["ratios"]), f"{ratio:g} dB")
    return Outcome(metrics, {"step": steps, "interior": interior})


def _reduction(name: str, arm: str, step: float, seed: int, settings: Mapping[str, Any], ratio: float) -> float | None:
    rate = settings["rate"]
    source = part(recording(settings["noise"], rate), rate, settings["seconds"], seed)
    acoustics = scene_of(arm, settings, ratio, seed).measure([source])
    heard = acoustics.run(source)
    controller = CONTROLLERS[name].make(step, Design(seed=seed, rate=rate, loop=acoustics.loop))
    try:
        output, _ = controller.run(heard.reference, heard.target)
    except DivergenceError:
        return None
    half = len(source) // 2
    return noise_reduction(heard.noise[half:], heard.noise[half:] - output[half:])
