"""``counterflow cancel``: what controllers leave of a noise."""

from __future__ import annotations

import json as jsonlib
import math
import re
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from counterflow.cli.targets import (
    json_file,
    require_apart,
    require_plot,
    require_seed,
    require_target,
    require_unread,
    write_json,
    write_target,
)
from counterflow.exceptions import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from counterflow.audio import Recording
    from counterflow.noise_control import Acoustics, Design, Measures

__all__ = ["cancel_command"]

Name = Literal["lms", "nlms", "rls", "fxlms", "volterra", "perceptron", "chip"]
SHOWN = 0.1  # seconds of signals in a picture
LONGEST = 4096  # samples of an impulse response


def cancel_command(
    noise: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="NOISE")],
    /,
    *,
    channel: Annotated[str | None, tyro.conf.arg(metavar="H1|H2|FILE")] = None,
    primary: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    secondary: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    room: Annotated[str | None, tyro.conf.arg(metavar="LxWxH")] = None,
    reverberation: Annotated[float | None, tyro.conf.arg(metavar="S")] = None,
    distortion: Annotated[str | None, tyro.conf.arg(metavar="DB")] = None,
    sign: Literal["saturating", "expanding"] | None = None,
    place: Literal["target", "speaker"] | None = None,
    slope: Literal["known", "one"] | None = None,
    level: Annotated[str | None, tyro.conf.arg(metavar="DB")] = None,
    quantized: Literal["none", "input", "target", "both"] = "none",
    bits: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    used: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None,
    controller: Name = "perceptron",
    compare: Annotated[str | None, tyro.conf.arg(metavar="NAME,...")] = None,
    taps: Annotated[int, tyro.conf.arg(metavar="N")] = 25,
    hidden: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    memory: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    block: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    domain: Literal["time", "frequency"] = "time",
    step: Annotated[float | None, tyro.conf.arg(metavar="X")] = None,
    budget: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    out: Annotated[Path | None, tyro.conf.arg(metavar="WAV")] = None,
    anti: Annotated[Path | None, tyro.conf.arg(metavar="WAV")] = None,
    coefficients: Annotated[Path | None, tyro.conf.arg(metavar="JSON")] = None,
    plot: Annotated[Path | None, tyro.conf.arg(metavar="PNG")] = None,
    json: Annotated[str | None, tyro.conf.arg(metavar="PATH|-")] = None,
) -> int:
    """Cancel a noise with an adaptive controller, and say how well it went.

    NOISE is what the reference microphone hears: a WAV, FLAC or other file, of any length, whose channels are averaged.
    The controller learns from each sample to make the loudspeaker cancel it in the quiet zone. Printed is by how many
    decibels the noise is weaker there in the second half of the file: overall, A-weighted and by third octaves;
    positive is good.

    A step that is not given is chosen: --budget of them are tried on at most ten seconds from the file's first half,
    equally many for each controller of --compare.

    For example:

      counterflow cancel noise.wav --channel H2 --distortion 10dB --controller perceptron --out residual.wav
      counterflow cancel noise.wav --distortion 5dB --compare lms,nlms,volterra,perceptron --plot result.png
      counterflow cancel noise.wav --primary p.wav --secondary s.wav --controller fxlms --taps 256
      counterflow cancel noise.wav --room 5x4x2.7 --controller fxlms --taps 256 --domain frequency
      counterflow cancel noise.flac --distortion 10dB --place speaker --sign expanding --json -

    Exit status: 0; 2 for input that cannot be used: audio that cannot be read, is cut off, silent or not finite, a
    step with which the controller diverges.

    Args:
        noise: The noise.
        channel: The path from the reference microphone to the quiet zone, over that of the loudspeaker: one of the
            paper's two, H2 by default, or a file with an impulse response.
        primary: In its place, the impulse response from the reference microphone to the quiet zone;
        secondary: and that from the loudspeaker to the quiet zone.
        room: Or both from a simulated room of so many meters, such as 5x4x2.7: the noise at one end, the loudspeaker
            beside the quiet zone.
        reverberation: Seconds in which sound falls by 60 dB in it; 0.1 by default.
        distortion: The loudspeaker's signal-to-distortion ratio, such as 10dB; none by default.
        sign: Whether its cubic distortion saturates, by default, or expands.
        place: Whether the distortion is on the target's path, as in the paper's experiment and by default, or the
            loudspeaker is in the loop.
        slope: Whether the controller knows the slope of the loudspeaker in the loop, by default, or takes it as one.
        level: Level of additive white noise relative to the noise, such as -20dB; none by default.
        quantized: What converters of few bits are before.
        bits: Of these converters; 8 by default.
        used: Which share of their full scale the largest sample takes; 1 by default.
        controller: What learns; chip is the perceptron on a model of the paper's chips, behind its converters.
        compare: Several controllers, one after another; --out, --anti, --coefficients and the signals of --plot are of
            --controller, which is then the first of them unless it is among them.
        taps: Length of the delay line.
        hidden: Hidden units of the perceptron, or of the chip's; 10 by default.
        memory: Newest samples of which the Volterra filter takes products; 5 by default.
        block: Samples after which fxlms learns; 1 by default, in the frequency domain as many as taps. Sound is not
            delayed by it.
        domain: In which fxlms learns: sample by sample in time, or each frequency by its own power.
        step: The learning rate; for rls the forgetting factor.
        budget: How many steps are tried where none is given; 10 by default.
        seed: Of initial weights, a chip's cells and the additive noise.
        out: Write what is left of the noise into this WAV file, 32-bit floating point.
        anti: Write what the loudspeaker makes arrive in the quiet zone.
        coefficients: Write the controller's weights, those of the oldest sample first, into this file.
        plot: Draw noise, negated speaker signal, residual and learning curves into this file (needs counterflow[plot]).
        json: Write all numbers to this file as JSON; - is standard output.

    Returns:
        The exit status, 0.
    """
    names = _names(controller, compare)
    main = controller if controller in names else names[0]
    distorted, converted = distortion is not None, quantized != "none"
    for option, value, has_effect, needed in (
        ("sign", sign, distorted, "--distortion"),
        ("place", place, distorted, "--distortion"),
        ("slope", slope, distorted and place == "speaker", "--distortion and --place speaker"),
        ("bits", bits, converted, "--quantized"),
        ("used", used, converted, "--quantized"),
        ("hidden", hidden, "perceptron" in names or "chip" in names, "a perceptron or chip"),
        ("memory", memory, "volterra" in names, "volterra"),
        ("budget", budget, step is None, "steps to choose from, and --step names one"),
    ):
        if value is not None and not has_effect:
            raise InputError(f"--{option} does nothing without {needed}; leave it out")
    if memory is not None and memory > taps:
        raise InputError(f"--memory {memory}: it is some of the newest of --taps {taps}; ask for at most as many")
    _require_step(step, names)
    in_loop = "secondary" if secondary is not None else "room" if room is not None else None
    _require_loop(names, in_loop, distorted and place == "speaker", domain == "frequency" and slope != "one")
    require_seed(seed)
    if "fxlms" not in names and (block is not None or domain != "time"):
        raise InputError(
            f"--{'domain' if block is None else 'block'} is of fxlms; leave it out with {', '.join(names)}"
        )
    read = [noise, primary, secondary, None if channel is None else Path(channel)]
    targets: tuple[tuple[str, Path | None, tuple[str, ...] | None], ...] = (
        ("out", out, (".wav",)),
        ("anti", anti, (".wav",)),
        ("coefficients", coefficients, (".json",)),
        ("plot", plot, None),
        ("json", json_file(json), None),
    )
    for option, path, suffixes in targets:
        require_target(option, path, suffixes)
    written = [(option, path) for option, path, _ in targets]
    require_apart(written)
    require_unread(written, filter(None, read))
    require_plot(plot, "drawing a cancellation")

    from counterflow.audio import Recording
    from counterflow.noise_control import Design, Scene
    from counterflow.noise_control.cancellation import check_taps, warnings_of

    recording = Recording.open(noise)
    heard, response, cut = _paths(recording.rate, channel, primary, secondary, room, reverberation)
    settings = _given(sign=sign, place=place, slope=slope, bits=bits, used=used)
    scene = Scene.parse(heard, response, distortion, level, "--", seed=seed, quantized=quantized, **settings)
    stream = sys.stderr if json == "-" else sys.stdout
    clipped = _Clipping(recording)
    acoustics = scene.measure(clipped.watch())
    check_taps(taps, recording.frames, "--taps")
    warnings = [*clipped.warnings(), *cut, *warnings_of(scene)]
    if recording.channels > 1:
        warnings.append(f"{noise} has {recording.channels} channels; their mean is used")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    sizes = _given(hidden=hidden, memory=memory)
    design = Design(taps=taps, seed=seed, rate=recording.rate, loop=acoustics.loop, block=block, domain=domain, **sizes)
    answers: dict[str, dict[str, Any]] = {}
    measures: dict[str, Measures] = {}
    shown: list[NDArray[np.float64]] = []
    # The one that writes files comes last: where another diverges, nothing has been written.
    for name in sorted(names, key=lambda each: each == main):
        chosen, interior = (step, True) if step is not None else _tune(name, design, acoustics, recording, budget)
        files = (out, anti, coefficients) if name == main else (None, None, None)
        measured, last, used_step = _run(name, chosen, design, acoustics, recording, files)
        measures[name], shown = measured, last if name == main or not shown else shown
        answers[name] = _answer(measured, used_step, interior)
    answers, measures = {name: answers[name] for name in names}, {name: measures[name] for name in names}
    print(_table(answers), file=stream)
    for option, path in (("residual", out), ("anti-noise", anti), ("coefficients", coefficients)):
        if path is not None:
            print(f"{option} of {main}: {path}", file=stream)
    if plot is not None:
        from counterflow.noise_control.pictures import draw

        start = (recording.frames - len(shown[0])) / recording.rate
        draw(plot, shown, start, recording.rate, measures, main, "full scale = 1")
        print(f"picture: {plot}", file=stream)
    if json is not None:
        answer = {
            "file": str(noise), "rate": recording.rate, "samples": recording.frames, "warnings": warnings,
            "controllers": answers,
        }  # fmt: skip
        write_json(json, answer)
    return 0


def _given(**options: Any) -> dict[str, Any]:
    """Those that were given; the others have their defaults where they are taken."""
    return {name: value for name, value in options.items() if value is not None}


def _require_step(step: float | None, names: list[str]) -> None:
    if step is None:
        return
    if len(names) > 1:
        raise InputError("--step is of one controller; leave it out with --compare")
    if not (math.isfinite(step) and step > 0):
        raise InputError(f"--step {step:g}: it has to be above 0")
    if "rls" in names and step > 1:
        raise InputError(f"--step {step:g}: for rls it is the forgetting factor, which is at most 1")


def _require_loop(names: list[str], path: str | None, speaker: bool, unfiltered: bool) -> None:
    """Refuse controllers whose loop has no place for what is in it.

    Args:
        names: The controllers.
        path: The option that puts a path into the loop; None if none does.
        speaker: Whether the loudspeaker is in it.
        unfiltered: Whether its slope were to be known in the frequency domain.
    """
    for name in ("rls", "chip"):
        if path and name in names:
            raise InputError(f"--{path}: {name} has no secondary path in its loop; take fxlms in place of {name}")
    if speaker and "chip" in names:
        raise InputError("--place speaker: chip has no loudspeaker in its loop; take --place target")
    if speaker and unfiltered and "fxlms" in names:
        raise InputError("--domain frequency: a loudspeaker's known slope is no filter there; add --slope one")


def _names(controller: str, compare: str | None) -> list[str]:
    """The controllers that run, in order."""
    from typing import get_args

    names = [controller] if compare is None else [name.strip() for name in compare.split(",")]
    for name in names:
        if name not in get_args(Name):
            raise InputError(
                f"--compare {compare}: there is no controller {name!r}; there are {', '.join(get_args(Name))}"
            )
    if len({*names}) < len(names):
        raise InputError(f"--compare {compare}: a controller is there twice")
    return names


def _paths(
    rate: int,
    channel: str | None,
    primary: Path | None,
    secondary: Path | None,
    room: str | None,
    reverberation: float | None,
) -> tuple[str | NDArray[np.float64], NDArray[np.float64] | None, list[str]]:
    """The noise's path, the loudspeaker's, and what a user should know of them."""
    from counterflow.noise_control import CHANNELS, room_paths

    given = [name for name, value in (("channel", channel), ("primary", primary), ("room", room)) if value is not None]
    if len(given) > 1:
        raise InputError(f"--{given[0]} and --{given[1]} both name the noise's path; give one of them")
    if secondary is not None and primary is None:
        raise InputError("--secondary needs --primary, the noise's own path")
    if reverberation is not None and room is None:
        raise InputError("--reverberation needs --room, the room that it is of")
    if room is not None:
        match = re.fullmatch(r"([\d.]+)x([\d.]+)x([\d.]+)", room)
        try:
            length, width, height = (float(each) for each in match.groups()) if match else (0.0, 0.0, 0.0)
        except ValueError:
            length = width = height = 0.0
        if not min(length, width, height) > 0:
            raise InputError(f"--room {room}: give length, width and height in meters, such as 5x4x2.7")
        first, second = room_paths(rate, (length, width, height), 0.1 if reverberation is None else reverberation)
        cut = f"the room's echoes are cut off after {LONGEST} samples, {LONGEST / rate:.3f} s"
        return first[:LONGEST], second[:LONGEST], [cut] * (max(len(first), len(second)) > LONGEST)
    if primary is not None:
        return _response(primary, rate), None if secondary is None else _response(secondary, rate), []
    channel = channel or "H2"
    if channel in CHANNELS:
        return channel, None, []
    if not Path(channel).exists():
        raise InputError(f"--channel {channel}: it is neither {' nor '.join(CHANNELS)} nor a file")
    return _response(Path(channel), rate), None, []


def _response(path: Path, rate: int) -> NDArray[np.float64]:
    from counterflow.audio import Recording

    recording = Recording.open(path)
    if recording.rate != rate:
        raise InputError(f"{path} has {recording.rate} samples a second, and the noise {rate}; resample it")
    if recording.frames > LONGEST:
        raise InputError(f"{path} has {recording.frames} samples; an impulse response of at most {LONGEST} can be used")
    if recording.channels > 1:
        raise InputError(f"{path} has {recording.channels} channels; an impulse response has one: write it by itself")
    response = recording.read()
    if not response.any():
        raise InputError(f"{path} is silent; an impulse response has a sample that is not zero")
    return response


class _Clipping:
    """Counts samples of all channels at either end of an integer format's range, in the first reading of a file."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.count = recording, 0

    def watch(self) -> Iterator[NDArray[np.float64]]:
        """The recording's blocks, counted as they pass, before the mean of channels hides what is clipped in one."""
        import numpy as np

        recording = self.recording
        for block in _progress(recording.blocks_apart(), recording, "reading"):
            if recording.integer:
                self.count += int(np.count_nonzero((block >= 1 - recording.step) | (block <= -1 + recording.step / 2)))
            yield block.mean(1)

    def warnings(self) -> list[str]:
        """What a user should know, once all has passed."""
        if self.count < 2:
            return []
        return [f"{self.recording.path}: {self.count} samples are at full scale: the recording is clipped"]


def _progress(blocks: Iterator[NDArray[np.float64]], recording: Recording, title: str) -> Iterator[NDArray[np.float64]]:
    """Blocks, with a bar on standard error if that is a terminal."""
    from rich.progress import Progress

    from counterflow.cli.console import Console

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=recording.frames)
        for block in blocks:
            yield block
            bar.advance(task, len(block))


def _tune(
    name: str, design: Design, acoustics: Acoustics, recording: Recording, budget: int | None
) -> tuple[float, bool]:
    """The best step on the beginning of the file, and whether steps on both sides of it were worse."""
    import numpy as np

    from counterflow.noise_control import choose_step
    from counterflow.noise_control.cancellation import tuned_samples

    wanted = tuned_samples(recording.frames, recording.rate)
    parts, found = [], 0
    for block in recording.blocks():
        parts.append(block)
        found += len(block)
        if found >= wanted:
            break
    heard = acoustics.again().run(np.concatenate(parts)[:wanted])
    tuned = choose_step(name, design, heard, acoustics.power, **_given(budget=budget))
    return tuned.best, tuned.interior


def _run(
    name: str,
    step: float,
    design: Design,
    acoustics: Acoustics,
    recording: Recording,
    targets: tuple[Path | None, Path | None, Path | None],
) -> tuple[Measures, list[NDArray[np.float64]], float]:
    """The whole file through a fresh controller: what was measured, the last moment of the signals, and its own step.

    A chip has no step below its smallest.
    """
    from contextlib import ExitStack

    import numpy as np

    from counterflow.audio import Writer
    from counterflow.noise_control import CONTROLLERS, Stream

    controller = CONTROLLERS[name].make(step, design)
    step = float(getattr(controller, "step", step))
    stream = Stream(acoustics.again(), controller, recording.rate)
    wanted, kept, held = max(1, round(SHOWN * recording.rate)), deque[Any](), 0
    out, anti, coefficients = targets
    with ExitStack() as stack:
        writers = [stack.enter_context(Writer(path, recording.rate)) if path else None for path in (anti, out)]
        for block in stream.run(_progress(recording.blocks(16384), recording, name)):
            for writer, samples in zip(writers, block[1:], strict=True):
                if writer:
                    writer.write(samples)
            kept.append(block)
            held += len(block[0])
            while held - len(kept[0][0]) >= wanted:
                held -= len(kept.popleft()[0])
    if coefficients is not None:
        content = {
            "controller": name, "step": step, "rate": recording.rate, "taps": design.taps,
            "reference_scale": 1 / acoustics.peak,
            "weights": {key: values.tolist() for key, values in controller.weights().items()},
        }  # fmt: skip
        write_target(coefficients, (jsonlib.dumps(content, indent=1) + "\n").encode(), "coefficients")
    return stream.measures, [np.concatenate(each)[-wanted:] for each in zip(*kept, strict=True)], step


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _answer(measures: Measures, step: float, interior: bool) -> dict[str, Any]:
    from counterflow.noise_control.measures import nominal

    return {
        "reduction_db": _number(measures.reduction_db),
        "a_weighted_db": _number(measures.a_weighted_db),
        "third_octaves_db": {f"{nominal(middle):g}": _number(value) for middle, value in measures.thirds_db.items()},
        "step": step,
        "step_is_interior": interior,
    }


def _table(answers: dict[str, dict[str, Any]]) -> str:
    """Noise reductions, a column a controller."""
    names = [*answers]
    width = max(10, *(len(name) + 2 for name in names))
    rows = [("noise reduction, dB", names)]

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    rows.append(("overall", [cell(answers[name]["reduction_db"]) for name in names]))
    rows.append(("A-weighted", [cell(answers[name]["a_weighted_db"]) for name in names]))
    for band in answers[names[0]]["third_octaves_db"]:
        rows.append((f"{band} Hz", [cell(answers[name]["third_octaves_db"][band]) for name in names]))
    rows.append(("step", [f"{answers[name]['step']:.5g}" for name in names]))
    text = "\n".join(f"{head:20}" + "".join(f"{value:>{width}}" for value in values) for head, values in rows)
    edges = [name for name in names if not answers[name]["step_is_interior"]]
    if edges:
        text += f"\nthe best step of {', '.join(edges)} is at an end of those tried; try others with --step"
    return text
