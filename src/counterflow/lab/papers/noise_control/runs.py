"""One controller at all signal-to-distortion ratios."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from counterflow.analog import DeviceModel
from counterflow.exceptions import DivergenceError
from counterflow.lab.data import noise
from counterflow.lab.papers.noise_control.plan import TUNING_PARTS, key
from counterflow.lab.trials import Context, Outcome
from counterflow.noise_control import CONTROLLERS, Design, Scene, Tuned, choose_step, noise_reduction
from counterflow.seeding import numpy_generator

__all__ = ["best_step", "first_of_part", "line", "part", "recording", "reduction", "tuning_parts"]

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


def tuning_parts(samples: NDArray[np.float64], rate: int, seconds: float) -> list[NDArray[np.float64]]:
    """Parts of the first half of a noise, on which steps are chosen and no run is judged."""
    length = round(seconds * rate)
    last = max(0, len(samples) // 2 - length)
    return [samples[first : first + length] for first in np.linspace(0, last, TUNING_PARTS).astype(int)]


def first_of_part(count: int, rate: int, seconds: float, seed: int) -> int:
    """Where a seed's part begins in a noise of so many samples: in its second half."""
    length = round(seconds * rate)
    return int(numpy_generator(seed, "part of the noise").integers(count // 2, count - length + 1))


def part(samples: NDArray[np.float64], rate: int, seconds: float, seed: int) -> NDArray[np.float64]:
    """A seed's part of the second half of a noise.

    Noises are 25 s or longer, so several seeds' parts of 8 s overlap, which the claims say; weights and additive noise
    are each one's own.
    """
    first = first_of_part(len(samples), rate, seconds, seed)
    return samples[first : first + round(seconds * rate)]


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


def best_step(arm: str, settings: Mapping[str, Any], ratio: float, device: DeviceModel | None = None) -> Tuned:
    """The best of the budget by its mean reduction over the parts for tuning.

    Args:
        arm: One of the plan's.
        settings: Those of `line`.
        ratio: Of signal to distortion.
        device: A chip's, if not the paper's.

    Raises:
        DivergenceError: If every step diverges on some part.
    """
    rate = settings["rate"]
    scenes = []
    for source in tuning_parts(recording(settings["noise"], rate), rate, settings["seconds"]):
        acoustics = scene_of(arm, settings, ratio, TUNING_SEED).measure([source])
        scenes.append((acoustics, acoustics.run(source)))
    power = float(np.mean([acoustics.power for acoustics, _ in scenes]))
    found = []
    for acoustics, heard in scenes:
        design = Design(seed=TUNING_SEED, device=device, rate=rate, loop=acoustics.loop)
        found.append(choose_step(controller_of(arm), design, heard, power, settings["budget"]))
    tried = found[0].tried
    reductions = np.mean([each.reductions_db for each in found], axis=0).tolist()
    best = int(np.argmax(reductions))
    if reductions[best] == -np.inf:
        raise DivergenceError(
            f"steps are from {min(tried):g} to {max(tried):g}: each diverges on some part of {settings['noise']}"
        )
    return Tuned(tried[best], tried, tuple(reductions))


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
    metrics: dict[str, list[float | None]] = {}
    steps: list[float | None] = []
    interior: list[float | None] = []
    for number, ratio in enumerate(settings["ratios"]):
        try:
            tuned = best_step(arm, settings, ratio)
        except DivergenceError:
            metrics[key(ratio)] = [None] * len(seeds)
            steps.append(None)
            interior.append(None)
            continue
        steps.append(tuned.best)
        interior.append(float(tuned.interior))
        metrics[key(ratio)] = [reduction(arm, tuned.best, seed, settings, ratio) for seed in seeds]
        context.progress((number + 1) / len(settings["ratios"]), f"{ratio:g} dB")
    return Outcome(metrics, {"step": steps, "interior": interior})


def reduction(
    arm: str, step: float, seed: int, settings: Mapping[str, Any], ratio: float, device: DeviceModel | None = None
) -> float | None:
    """Of one run, over its last half; None if it diverged. The arguments are those of `best_step`."""
    rate = settings["rate"]
    source = part(recording(settings["noise"], rate), rate, settings["seconds"], seed)
    acoustics = scene_of(arm, settings, ratio, seed).measure([source])
    heard = acoustics.run(source)
    design = Design(seed=seed, device=device, rate=rate, loop=acoustics.loop)
    controller = CONTROLLERS[controller_of(arm)].make(step, design)
    try:
        output, _ = controller.run(heard.reference, heard.target)
    except DivergenceError:
        return None
    half = len(source) // 2
    return noise_reduction(heard.noise[half:], heard.noise[half:] - output[half:])
