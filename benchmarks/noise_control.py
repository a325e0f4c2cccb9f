"""Controllers that learn sample by sample, beside padasip and torch's autograd.

    python benchmarks/noise_control.py [--json FILE] [--repeats N]

Processor time of one thread, the least of several repeats in which all take turns, so that a ratio is taken within one
run. The perceptron has 25 taps, 10 hidden units and one output, 260 connections (biases are not counted), each of which
is used and updated at every sample. padasip's filters get the same samples, cut into its rows beforehand, and have to
give the same output. Autograd takes one step of gradient descent a sample, of the same perceptron in double precision.
The real-time factor is the time over that of the samples at 16 kHz.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from counterflow.analog import ChipPerceptron, DeviceModel
from counterflow.lab.loop import keep_freed_memory
from counterflow.noise_control import LMS, NLMS, RLS, FilteredX, Perceptron, Volterra

sys.path.insert(0, str(Path(__file__).parent))
from common.command import output, positive, status_of
from common.measuring import in_turns, timed
from common.records import write_record

TAPS, HIDDEN, RATE = 25, 10, 16_000
BARS = {"updates": 800e6, "autograd": 1500.0, "lms": 150.0, "nlms": 250.0, "rls": 50.0, "chip": 5.0}
SAMPLES = 40_000
MET = {True: "  pass", False: "  MISS", None: ""}


def task(samples: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    x = 0.3 * draw.standard_normal(samples)
    u = np.convolve(x, [0.174, 0.6, 0.6, 0.174])[:samples]
    return x, u - 0.2 * u**3 + 0.01 * draw.standard_normal(samples)


def best_times(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least seconds of each, all taking turns; the first turn, in which code is compiled, does not count."""
    times = in_turns({name: timed(work) for name, work in works.items()}, repeats, warm=1)
    return {name: min(each) for name, each in times.items()}


def autograd(x: np.ndarray, d: np.ndarray) -> None:
    """The perceptron, one step a sample."""
    state = Perceptron(TAPS, HIDDEN).state()
    names = ("hidden_weights", "hidden_biases", "output_weights", "output_bias")
    w, a, v, b = (torch.tensor(state[name], requires_grad=True) for name in names)
    padded = torch.from_numpy(np.concatenate([np.zeros(TAPS - 1), x]))
    targets = torch.from_numpy(d)
    for t in range(len(d)):
        loss = 0.5 * (targets[t] - b[0] - v @ torch.tanh(a + w @ padded[t : t + TAPS])) ** 2
        loss.backward()
        with torch.no_grad():
            for parameter in (w, a, v, b):
                parameter -= 0.05 * parameter.grad
                parameter.grad = None


def perceptron(repeats: int, samples: int = SAMPLES, steps: int = 200) -> dict[str, Any]:
    """Updates a second, and the ratio to autograd."""
    x, d = task(samples)
    found = best_times(
        {
            "perceptron": lambda: Perceptron(TAPS, HIDDEN).run(x, d),
            "autograd": lambda: autograd(x[:steps], d[:steps]),
        },
        repeats,
    )
    each = found["perceptron"] / samples
    updates, ratio = (TAPS * HIDDEN + HIDDEN) / each, found["autograd"] / steps / each
    return {
        "nanoseconds": 1e9 * each,
        "updates": updates,
        "autograd": ratio,
        "real-time factor": each * RATE,
        "pass": {"updates": updates >= BARS["updates"], "autograd": ratio >= BARS["autograd"]},
    }


def keep(answers: dict[str, np.ndarray], name: str, work: Callable[[], np.ndarray]) -> None:
    answers[name] = work()


def filters(repeats: int, samples: int = SAMPLES // 2) -> list[dict[str, Any]]:
    """Each linear filter beside padasip's; none where it is not installed."""
    if importlib.util.find_spec("padasip") is None:
        return []
    import padasip

    rows = []
    for name, taps, mine, theirs, settings in (
        ("lms", 25, lambda: LMS(25, 0.01), padasip.filters.FilterLMS, {"mu": 0.01}),
        ("nlms", 32, lambda: NLMS(32, 0.5), padasip.filters.FilterNLMS, {"mu": 0.5, "eps": 1e-3}),
        ("rls", 25, lambda: RLS(25, 0.999), padasip.filters.FilterRLS, {"mu": 0.999, "eps": 0.1}),
    ):
        x, d = task(samples)
        padded = np.concatenate([np.zeros(taps - 1), x])
        windows = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(padded, taps)[:, ::-1])
        answers: dict[str, np.ndarray] = {}
        ours = partial(keep, answers, "mine", lambda make=mine, x=x, d=d: make().run(x, d)[0])
        other = partial(theirs, n=taps, w="zeros", **settings)
        peers = partial(keep, answers, "theirs", lambda make=other, d=d, rows=windows: make().run(d, rows)[0])
        found = best_times({"mine": ours, "theirs": peers}, repeats)
        apart = float(np.abs(answers["mine"] - answers["theirs"]).max())
        ratio = found["theirs"] / found["mine"]
        rows.append(
            {
                "filter": name,
                "taps": taps,
                "nanoseconds": 1e9 * found["mine"] / samples,
                "ratio": ratio,
                "bar": BARS[name],
                "apart": apart,
                "real-time factor": found["mine"] / samples * RATE,
                "pass": bool(ratio >= BARS[name] and apart < 1e-10),
            }
        )
    return rows


def chip(repeats: int, samples: int = SAMPLES) -> list[dict[str, Any]]:
    """The chip's model over the float perceptron: with all imperfections but write noise, and with that as well."""
    x, d = task(samples)
    devices = {
        "ideal": DeviceModel.ideal(),
        "every imperfection but write noise": DeviceModel.paper().without("write_noise"),
        "every imperfection": DeviceModel.paper(),
    }
    works: dict[str, Callable[[], object]] = {"perceptron": lambda: Perceptron(TAPS, HIDDEN).run(x, d)}
    works |= {
        name: lambda device=device: ChipPerceptron(TAPS, HIDDEN, device=device).run(x, d)
        for name, device in devices.items()
    }
    found = best_times(works, repeats)
    rows = []
    for name in devices:
        ratio = found[name] / found["perceptron"]
        bar = BARS["chip"] if name.endswith("but write noise") else None
        rows.append(
            {
                "device": name,
                "nanoseconds": 1e9 * found[name] / samples,
                "ratio": ratio,
                "bar": bar,
                "pass": None if bar is None else ratio <= bar,
            }
        )
    return rows


def others(repeats: int, samples: int = SAMPLES) -> list[dict[str, Any]]:
    """Controllers that no peer has, with 25 taps."""
    x, d = task(samples)
    path = [0.0, 0.7, 0.2]
    found = best_times(
        {
            "volterra": lambda: Volterra(TAPS).run(x, d),
            "filtered-x": lambda: FilteredX(TAPS, secondary=path).run(x, d),
            "filtered-x, blocks in the frequency domain": lambda: FilteredX(
                TAPS, 0.01, secondary=path, block=64, domain="frequency"
            ).run(x, d),
            "perceptron behind a path of 3 taps": lambda: Perceptron(TAPS, HIDDEN, secondary=path).run(x, d),
        },
        repeats,
    )
    return [
        {"controller": name, "nanoseconds": 1e9 * each / samples, "real-time factor": each / samples * RATE}
        for name, each in found.items()
    ]


def scaling(repeats: int, samples: int = SAMPLES) -> list[dict[str, Any]]:
    """Time over samples and over connections, relative to the first."""
    x, d = task(4 * samples)
    sizes = [(n, TAPS, HIDDEN) for n in (samples, 2 * samples, 4 * samples)]
    sizes += [(samples, TAPS, 2 * HIDDEN), (samples, 2 * TAPS, 2 * HIDDEN), (samples, 4 * TAPS, 4 * HIDDEN)]
    works = {
        str(size): lambda size=size: Perceptron(size[1], size[2], 0.01).run(x[: size[0]], d[: size[0]])
        for size in sizes
    }
    found = best_times(works, repeats)
    rows = []
    for n, taps, hidden in sizes:
        seconds = found[str((n, taps, hidden))]
        connections = taps * hidden + hidden
        rows.append(
            {
                "samples": n,
                "connections": connections,
                "nanoseconds a sample": 1e9 * seconds / n,
                "picoseconds a connection": 1e12 * seconds / n / connections,
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=output, help="put the results in there")
    parser.add_argument("--repeats", type=positive, default=20, metavar="N", help="turns of each (default 20)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # else every run pays for the pages of its arrays anew
    machine = f"{processor()}, one thread"
    print(machine)
    learned = perceptron(arguments.repeats)
    print(
        f"perceptron 25-10-1: {learned['updates'] / 1e6:.0f} million connection updates a second, "
        f"{learned['autograd']:.0f} times autograd, real-time factor {learned['real-time factor']:.4f}; at least "
        f"{BARS['updates'] / 1e6:.0f} million{MET[learned['pass']['updates']]}, {BARS['autograd']:.0f} times"
        f"{MET[learned['pass']['autograd']]}"
    )
    linear = filters(arguments.repeats)
    missing = [] if linear else ["padasip is not installed, and is left out: pip install padasip"]
    for text in missing:
        print(text, file=sys.stderr)
    for row in linear:
        print(
            f"{row['filter']:5} {row['taps']} taps: {row['ratio']:.0f} times padasip (at least {row['bar']:.0f}), "
            f"{row['apart']:.1e} apart, real-time factor {row['real-time factor']:.5f}{MET[row['pass']]}"
        )
    chips = chip(arguments.repeats)
    for row in chips:
        bar = "" if row["bar"] is None else f" (at most {row['bar']:g})"
        print(
            f"chip, {row['device']}: {row['ratio']:.2f} times the perceptron{bar}, "
            f"{row['nanoseconds']:.0f} ns{MET[row['pass']]}"
        )
    rest = others(arguments.repeats)
    for row in rest:
        print(f"{row['controller']}: {row['nanoseconds']:.0f} ns, real-time factor {row['real-time factor']:.5f}")
    grown = scaling(max(3, arguments.repeats // 3))
    for row in grown:
        print(
            f"{row['samples']} samples, {row['connections']} connections: "
            f"{row['nanoseconds a sample']:.0f} ns a sample, {row['picoseconds a connection']:.0f} ps a connection"
        )
    content = {
        "machine": machine, "numba": numba.__version__, "torch": torch.__version__, "bars": BARS,
        "perceptron": learned, "filters": linear, "chip": chips, "others": rest, "scaling": grown, "missing": missing,
    }  # fmt: skip
    write_record(arguments.json, content)
    return 0


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "an unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else "an unknown processor"


if __name__ == "__main__":
    raise SystemExit(status_of(main))
