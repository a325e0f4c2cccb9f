"""What a probe costs: a training step with it over the same step without it.

    python benchmarks/probe.py [--json FILE] [--seconds N]

A step is forward, squared error, backward and SGD of a perceptron of ten linear layers with ReLU, batch 128, on one
thread. Steps with and without the probe take turns, so that what else the machine does falls on both; time is the
processor time of this process. `k` is what the probe chose by itself ("every k-th step is looked at"); a round is k
steps of each kind, or more.

The floor adds to every k-th step the time to read each error once from memory. Only where errors are still in the
processor's cache can a probe of every layer be below it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import counterflow as cf

sys.path.insert(0, str(Path(__file__).parent))
from common.command import duration, output, status_of
from common.measuring import ratio
from common.records import write_record

WIDTHS = (512, 256, 128, 64)
LAYERS, BATCH, BAR = 10, 128, 1.10


def make_step(width: int) -> tuple[nn.Module, Callable[[], None]]:
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, target = torch.randn(BATCH, width), torch.randn(BATCH, width)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()

    return model, step


def seconds_of(step: Callable[[], None], times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        step()
    return (time.process_time() - began) / times


def measure(width: int, seconds: float, bandwidth: float) -> dict[str, Any]:
    _, plain = make_step(width)
    model, probed = make_step(width)
    for _ in range(5):
        plain()
        probed()
    with cf.probe(model) as seen:
        for _ in range(20):  # k is chosen in the first of these
            probed()
        times = seen.every * max(1, round(0.02 / (seconds_of(plain, 5) * seen.every)))
        pairs = []
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(pairs) < 9:
            if len(pairs) % 2:  # whichever comes first in a round may find the machine in another state
                with_probe = seconds_of(probed, times)
                pairs.append((seconds_of(plain, times), with_probe))
            else:
                without = seconds_of(plain, times)
                pairs.append((without, seconds_of(probed, times)))
    bare, watched = np.array(pairs).T
    found = ratio(watched, bare)
    read = LAYERS * BATCH * width * 4 / bandwidth
    return {
        "width": width,
        "k": seen.every,
        "step_ms": float(np.median(bare) * 1e3),
        "ratio": found["ratio"],
        "quartiles": [found["low"], found["high"]],
        "rounds": len(pairs),
        "floor": float(1 + read / np.median(bare) / seen.every),
        "pass": found["ratio"] < BAR,
    }


def read_bandwidth() -> float:
    """Bytes a second that one thread reads from memory."""
    block = torch.ones(16 * 1024 * 1024)
    best = min(seconds_of(block.sum, 3) for _ in range(5))
    return block.numel() * 4 / best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=output, help="put the results in there")
    parser.add_argument("--seconds", type=duration, default=8.0, metavar="N", help="for each width (default 8)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bandwidth = read_bandwidth()
    print(
        f"{LAYERS} layers, batch {BATCH}, {torch.get_num_threads()} thread, torch {torch.__version__}; "
        f"memory is read at {bandwidth / 1e9:.1f} GB/s"
    )
    print(f"width  plain step  k   step with probe / plain step      floor   under {BAR:.2f}")
    results = []
    for width in WIDTHS:
        result = measure(width, arguments.seconds, bandwidth)
        results.append(result)
        low, high = result["quartiles"]
        print(
            f"{width:5}  {result['step_ms']:7.2f} ms  {result['k']:<2}  {result['ratio']:.3f} "
            f"(middle half {low:.3f} to {high:.3f})   {result['floor']:.3f}   {'pass' if result['pass'] else 'MISS'}",
            flush=True,
        )
    record = {"threads": 1, "torch": torch.__version__, "bandwidth": bandwidth, "bar": BAR, "results": results}
    write_record(arguments.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
