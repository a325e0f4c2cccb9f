"""Competing units over rectified ones: the time of a training step.

    python benchmarks/competition.py [--json FILE] [--repeats N]

A perceptron of 784-1000-1000-1000-10 and the paper's convolutional net, in which every rectifier has been exchanged
for local winner-take-all in blocks of two or four, beside the same net with ReLU: forward pass, backward pass and a
step of SGD, processor time of one thread, the nets taking turns, medians. ``again`` is a second ReLU net: what the
measurement itself is worth. The bars hold for the perceptron at batches of 128: 1.05 for blocks of two, 1.08 for
four, and 1.10 under torch.compile; the paper's batches of 20 stand beside them. The floor counts bytes of the
elementwise passes alone, ours over ReLU's: forward, ReLU reads and writes 4 bytes a unit, and we write a byte more;
backward, ReLU reads 8 and writes 4, and we read 5 and write 4.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from counterflow import LocalWinnerTakeAll
from counterflow.lab.loop import keep_freed_memory

sys.path.insert(0, str(Path(__file__).parent))
from common import bars
from common.command import output, positive, status_of
from common.measuring import in_turns, timed
from common.records import write_record

FLOOR = (4 + 4 + 1 + 4 + 1 + 4) / (4 + 4 + 8 + 4)


def perceptron(act: Callable[[], nn.Module]) -> nn.Module:
    sizes = [784, 1000, 1000, 1000]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers, nn.Linear(1000, 10))


def convolutional(act: Callable[[], nn.Module]) -> nn.Module:
    maps = nn.Conv2d(1, 16, 7), act(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 6), act(), nn.MaxPool2d(2), nn.Flatten()
    head = nn.Linear(288, 128), act(), nn.Linear(128, 128), act(), nn.Linear(128, 10)
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *maps, *head)


NETS = {"perceptron": perceptron, "convolutional": convolutional}


def ratios(name: str, batch: int, compiled: bool, repeats: int) -> dict[str, Any]:
    """Median step times over ReLU's."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "again": nn.ReLU,
        "2": lambda: LocalWinnerTakeAll(2),
        "4": lambda: LocalWinnerTakeAll(4),
    }
    torch.manual_seed(0)
    x, y = torch.rand(batch, 784), torch.randint(10, (batch,))
    steps: dict[str, Callable[[], float]] = {}
    for kind, act in kinds.items():
        torch.manual_seed(0)
        model = NETS[name](act)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        net: Any = torch.compile(model) if compiled else model

        def step(net: Any = net, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()

        steps[kind] = timed(step)
    median = {kind: float(np.median(each)) for kind, each in in_turns(steps, repeats, warm=5).items()}
    targets = bars.COMPETITION.get((name, batch, "compiled" if compiled else "plain"), {})
    row: dict[str, Any] = {"net": name, "batch": batch, "compiled": compiled, "relu ms": 1e3 * median["relu"]}
    row |= {kind: median[kind] / median["relu"] for kind in ("again", "2", "4")}
    return row | {"pass": all(row[str(block)] <= bar for block, bar in targets.items()) if targets else None}


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """All cases."""
    for name, batch, compiled in (
        ("perceptron", 128, False),
        ("perceptron", 128, True),
        ("perceptron", 20, False),
        ("convolutional", 128, False),
        ("convolutional", 20, False),
    ):
        yield ratios(name, batch, compiled, repeats if batch == 128 else 2 * repeats)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=output, help="put the results in there")
    parser.add_argument("--repeats", type=positive, default=60, metavar="N", help="steps of each net (default 60)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # else whichever net's gradients lie last in memory pays for their pages anew
    found = []
    print(f"floor of the elementwise passes, in bytes: {FLOOR:.2f}")
    for row in rows(arguments.repeats):
        found.append(row)
        verdict = {True: "  pass", False: "  MISS", None: ""}[row["pass"]]
        told = (
            f"ReLU {row['relu ms']:.2f} ms, again {row['again']:.3f}, blocks of 2 {row['2']:.3f}, of 4 {row['4']:.3f}"
        )
        form = "compiled" if row["compiled"] else ""
        print(f"{row['net']:14} batch {row['batch']:<4} {form:9} {told}{verdict}", flush=True)
    write_record(arguments.json, {"threads": 1, "torch": torch.__version__, "floor": FLOOR, "rows": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(status_of(main))
