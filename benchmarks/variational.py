"""What noise costs: nets with variational layers beside the plain net, and beside other packages, on one thread.

    python benchmarks/variational.py [--repeats N] [--json FILE]

A net of 784-1000-1000-10 units sees a batch of 128: forward pass, loss and backward pass, with the divergence wherever
something is learned. What each treatment takes over the plain net is the median over repeats, in which all take turns;
only ratios within one run mean something. Times are processor seconds of one thread. The C library is told to keep
freed memory, for all treatments alike: by default it hands pages back and takes them again where a threshold is
crossed, and the page faults fall on whichever treatment crosses it, the plain net or another.

The bars: type A at most 1.2, type B at most 2.2, per-weight learned rates with the divergence at most 3.0.

"Without loops" is what PyTorch's own operations take where compiled loops do the work otherwise: normal numbers, and
passes over inputs, pre-activations and errors. "In blocks" is an attempt that was given up: the weights' gradients of
type B, made in blocks of rows that stay in the cache, over making them whole.

Peers, each as its own documentation has it, with a posterior for every weight and its divergence summed:

cplxmodule              LinearVD: variational dropout by local reparameterization (Molchanov's approximation)
bayesian-torch          LinearReparameterization (a sample of the weights a batch) and LinearFlipout
blitz-bayesian-pytorch  BayesianLinear: a sample of the weights a batch, the divergence estimated from it
torchbnn                BayesLinear: a sample of the weights a batch

They are in counterflow[peers] and used nowhere else. What they declare would exchange torch or bring torchvision:
`pip install --no-deps cplxmodule bayesian-torch blitz-bayesian-pytorch torchbnn`. One that is missing is left out, and
the results say so.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.loop import keep_freed_memory
from counterflow.variational import loops

sys.path.insert(0, str(Path(__file__).parent))
from common.command import output, positive, status_of
from common.measuring import in_turns, ratio, timed
from common.records import write_record

SIZES: Sequence[int] = (784, 1000, 1000, 10)
BATCH, DATA_SIZE = 128, 60_000
BAR_A, BAR_B, BAR_WEIGHT = 1.2, 2.2, 3.0

Loss = Callable[[], Tensor]
Layer = Callable[[int, int], nn.Module]


def stack(layer: Layer) -> nn.Sequential:
    """A net of such layers, with rectified units between them."""
    layers = [m for a, b in itertools.pairwise(SIZES) for m in (layer(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def picture_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, SIZES[0], generator=generator)
    return x, torch.randint(SIZES[-1], (BATCH,), generator=generator)


def plain(x: Tensor, y: Tensor) -> tuple[nn.Module, Loss]:
    net = stack(nn.Linear)
    return net, lambda: F.cross_entropy(net(x), y)


def ours(x: Tensor, y: Tensor, **options: Any) -> tuple[nn.Module, Loss]:
    """A converted net, with the divergence where it learns one."""
    net = cf.make_variational(stack(nn.Linear), **options).model

    def loss() -> Tensor:
        nll = F.cross_entropy(net(x), y, reduction="none")
        if not options.get("learn", True):
            return nll.mean()
        return cf.variational.elbo(nll, net, data_size=DATA_SIZE).loss

    return net, loss


def cplxmodule(x: Tensor, y: Tensor) -> tuple[nn.Module, Loss]:
    from cplxmodule.nn.relevance import LinearVD, penalties

    net = stack(LinearVD)
    return net, lambda: F.cross_entropy(net(x), y) + sum(penalties(net, reduction="sum")) / DATA_SIZE


def bayesian_torch(x: Tensor, y: Tensor, kind: str) -> tuple[nn.Module, Loss]:
    from bayesian_torch import layers

    net = stack(getattr(layers, kind))

    def loss() -> Tensor:
        h, divergence = x, torch.zeros(())
        for module in net:
            if isinstance(module, nn.ReLU):
                h = module(h)
            else:
                h, own = module(h)
                divergence = divergence + own
        # A layer's divergence is a mean over its weights; its number makes it a sum, at no cost to speak of.
        return F.cross_entropy(h, y) + divergence / DATA_SIZE

    return net, loss


def blitz(x: Tensor, y: Tensor) -> tuple[nn.Module, Loss]:
    from blitz.losses import kl_divergence_from_nn
    from blitz.modules import BayesianLinear

    net = stack(BayesianLinear)
    return net, lambda: F.cross_entropy(net(x), y) + kl_divergence_from_nn(net) / DATA_SIZE


def torchbnn(x: Tensor, y: Tensor) -> tuple[nn.Module, Loss]:
    from torchbnn import BayesLinear, BKLLoss

    net = stack(lambda a, b: BayesLinear(0.0, 0.1, a, b))
    divergence = BKLLoss(reduction="sum")
    return net, lambda: F.cross_entropy(net(x), y) + divergence(net).squeeze() / DATA_SIZE


# What it is, the bar it is held to, how it is made, and the package that it needs.
Treatment = tuple[float | None, Callable[[Tensor, Tensor], tuple[nn.Module, Loss]], str | None]


def converted(**options: Any) -> Callable[[Tensor, Tensor], tuple[nn.Module, Loss]]:
    return lambda x, y: ours(x, y, **options)


TREATMENTS: Mapping[str, Treatment] = {
    "plain": (None, plain, None),
    "A, fixed": (BAR_A, converted(noise="A", learn=False), None),
    "A, a rate a layer": (BAR_A, converted(noise="A"), None),
    "A, a rate an input unit": (BAR_A, converted(noise="A", rates="unit"), None),
    "B, fixed": (BAR_B, converted(learn=False), None),
    "B, a rate a layer": (BAR_B, converted(), None),
    "B, a rate an input unit": (BAR_B, converted(rates="unit"), None),
    "B, a rate a weight": (BAR_WEIGHT, converted(rates="weight"), None),
    "B, a rate a weight, no bound": (BAR_WEIGHT, converted(rates="weight", max_alpha=None), None),
    "B, Gaussian posterior": (None, converted(prior="gaussian"), None),
    "A, fixed, without loops": (None, converted(noise="A", learn=False), None),
    "A, a rate an input unit, without loops": (None, converted(noise="A", rates="unit"), None),
    "B, fixed, without loops": (None, converted(learn=False), None),
    "cplxmodule, LinearVD": (None, cplxmodule, "cplxmodule"),
    "bayesian-torch, LinearReparameterization": (
        None,
        lambda x, y: bayesian_torch(x, y, "LinearReparameterization"),
        "bayesian_torch",
    ),
    "bayesian-torch, LinearFlipout": (None, lambda x, y: bayesian_torch(x, y, "LinearFlipout"), "bayesian_torch"),
    "blitz, BayesianLinear": (None, blitz, "blitz"),
    "torchbnn, BayesLinear": (None, torchbnn, "torchbnn"),
}


def step_of(net: nn.Module, loss: Loss, with_loops: bool = True) -> Callable[[], None]:
    few = loops._FEW

    def step() -> None:
        loops._FEW = few if with_loops else 2**62  # there are never as many numbers
        try:
            net.zero_grad()
            loss().backward()
        finally:
            loops._FEW = few

    return step


def in_blocks(repeats: int, rows: int = 250) -> float:
    """What the gradient of type B's weights takes in blocks of rows, over making it whole: the median of ratios."""
    size = 1000
    weight, whole, part = torch.randn(size, size), torch.empty(size, size), torch.empty(rows, size)
    error, of_variance, x = (torch.randn(BATCH, size) for _ in range(3))
    squares = x.square()

    def at_once() -> None:
        (error.mT @ x).addcmul_(of_variance.mT @ squares, weight, value=2)

    def by_rows() -> None:
        for start in range(0, size, rows):
            those = slice(start, start + rows)
            torch.mm(of_variance[:, those].mT, squares, out=part)
            torch.mm(error[:, those].mT, x, out=whole[those])
            whole[those].addcmul_(part, weight[those], value=2)

    times = in_turns({"whole": timed(at_once), "blocks": timed(by_rows)}, repeats, warm=2)
    return ratio(times["blocks"], times["whole"])["ratio"]


def measure(repeats: int, told: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """One row a treatment: its time over the plain net's, the median and the quartiles over repeats.

    Args:
        repeats: Steps of each that count; a fifth as many, and two at least, go before.
        told: Is told of packages that are missing.
    """
    x, y = picture_batch()
    steps: dict[str, Callable[[], float]] = {}
    for name, (_, make, package) in TREATMENTS.items():
        if package is not None and importlib.util.find_spec(package) is None:
            told(f"{package} is not installed, and is left out")
            continue
        torch.manual_seed(0)
        with warnings.catch_warnings():  # peers warn of what they import
            warnings.simplefilter("ignore")
            steps[name] = timed(step_of(*make(x, y), with_loops="without loops" not in name))
    seconds = in_turns(steps, repeats, warm=max(2, repeats // 5))
    rows = []
    for name, taken in seconds.items():
        bar = TREATMENTS[name][0]
        found = ratio(taken, seconds["plain"])
        row = {"treatment": name, "seconds": float(np.median(taken)), **found, "bar": bar}
        rows.append(row | {"pass": None if bar is None else found["ratio"] <= bar})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=60, metavar="N", help="steps of each (default 60)")
    parser.add_argument("--json", metavar="FILE", type=output, help="where the results are written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'-'.join(map(str, SIZES))}, batch {BATCH}, one thread, torch {torch.__version__}")
    kept = keep_freed_memory()
    missing: list[str] = []
    rows = measure(arguments.repeats, missing.append)
    for row in rows:
        verdict = {True: f"  pass (at most {row['bar']})", False: f"  MISS (at most {row['bar']})", None: ""}
        times = f"{row['ratio']:6.2f} ({row['low']:.2f} to {row['high']:.2f})"
        print(f"  {row['treatment']:42}{times}{verdict[row['pass']]}")
    blocks = in_blocks(arguments.repeats)
    print(f"  gradients of weights in blocks, over whole ones: {blocks:.2f}")
    for text in dict.fromkeys(missing):
        print(f"  {text}", file=sys.stderr)
    found = {"threads": 1, "torch": torch.__version__, "sizes": list(SIZES), "batch": BATCH}
    found |= {"repeats": arguments.repeats, "keeps memory": kept, "rows": rows, "in blocks": blocks}
    found["missing"] = list(dict.fromkeys(missing))
    write_record(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
