"""Whitening: what a step costs over plain SGD's, and a race against the second-order optimizers of today.

    python benchmarks/whitening.py [--only step|race] [--json FILE]

step  The paper's auto-encoder (784-1000-500-250-30 and back) at batches of 128: processor time of two whole periods of
      T = 1000 updates with whitening, its statistics (N_s = 4096, from training batches) and its eigendecompositions in
      them, over as many of plain SGD's, in turns. The bar is 1.5. Beside it the floor that counts products alone,
      [2 n^2 N_s + 9 n^3 + 4 m n^2 + 2 B T n^2] / (6 B n m T) over all layers, which no implementation can be below
      unless it leaves out some of them, and what statistics and projections take.
race  The loss after equally many updates and after equal time: PRONG (`counterflow.whiten` on SGD with momentum)
      beside SGD with momentum, Adam, torch.optim.Muon, K-FAC (`curvlinops-for-pytorch` as a preconditioner of SGD
      with momentum), Shampoo and SOAP (`pytorch-optimizer`), on a deep tanh auto-encoder of MNIST and on a tanh
      classifier of CIFAR-10's raw pixels (16x16), whose inputs are strongly correlated.

The race's rules: the same updates, batches and initial weights for all. One budget: two settings of the one other
parameter that each method is known to depend on (PRONG: epsilon, K-FAC: damping, SGD, Muon: momentum, Adam, Shampoo,
SOAP: the first beta), and for each five learning rates a factor of the root of ten apart and up to two more where the
best lies at the edge, on one tuning seed, judged on validation pictures; the grids' middles are the best of seven
decades in runs of 100 updates, the same for all. The best is run on three fresh seeds, and only those are reported.
Verdicts are PRONG's as in the paper, with bases renewed every 200 updates. Two further forms were added after the first
race had been seen, each with that budget again: bases renewed every 40 updates, and the backpropagated errors whitened
too, damped by .1. They are compared apart, since the best of three forms would have had three times the others' budget.
Matrices of the others are renewed every 20 updates; biases go with Adam under Muon, at its rate. *ahead* and *behind*
are said where the ranges over the seeds do not touch. Time is processor time of one thread, updates of all methods in
turns, renewals in it; equal time is what the faster of two needs for all its updates. Runs that are done are kept in
the results' file, so that a race that was stopped goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.data import cifar10, mnist
from counterflow.lab.papers.whitening import autoencoder

sys.path.insert(0, str(Path(__file__).parent))
from common import bars
from common.command import output, status_of
from common.measuring import in_turns, timed
from common.racing import MORE, RATES, Kept, averages, next_rate

BATCH, STEPS = 128, 400
TUNING_SEED, SEEDS = 0, (1, 2, 3)
WINDOW = 20  # updates over which a training loss is averaged
PRONG_EVERY, PRONG_OFTEN, OTHERS_EVERY = 200, 40, 20
DAMPING = 0.1  # of two-sided whitening
PERIOD, SAMPLES = 1000, 4096


# ---------------------------------------------------------------------------------------------------------------- step


def counted_floor(sizes: Sequence[int], samples: int, period: int) -> float:
    """Products of whitening over those of plain SGD, for dense layers of these sizes."""
    extra = plain = 0.0
    for n, m in itertools.pairwise(sizes):
        extra += 2 * n**2 * samples + 9 * n**3 + 4 * m * n**2 + 2 * BATCH * period * n**2
        plain += 6 * BATCH * n * m * period
    return extra / plain


def step(blocks: int = 10, sizes: Sequence[int] = autoencoder.SIZES, period: int = PERIOD) -> dict[str, Any]:
    """Whole periods with and without whitening, in turns of a tenth of a period."""
    batch = autoencoder.load_pictures().training[: BATCH * 8].split(BATCH)
    parts: dict[str, float] = {"projection": 0.0}

    def learner(whiten: bool) -> Callable[[int], float]:
        model = autoencoder.build(0, sizes, normalized=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)  # of no consequence
        if whiten:
            h = cf.whiten(model, optimizer, every=period, samples=min(SAMPLES, period * BATCH // 2), initial=False)
            project = h._project

            def timed() -> None:
                began = time.process_time()
                project()
                parts["projection"] += time.process_time() - began

            h._project = timed  # type: ignore[method-assign]

        def work(count: int) -> float:
            began = time.process_time()
            for number in range(count):
                optimizer.zero_grad()
                autoencoder.error(model, batch[number % len(batch)]).backward()
                optimizer.step()
            return time.process_time() - began

        work(2)
        return work

    plain, white = learner(False), learner(True)
    seconds: dict[str, list[float]] = {"plain": [], "white": []}
    size = period // blocks
    for block in range(2 * blocks):  # two periods: the first ends with the first projection
        for name, work in (("plain", plain), ("white", white))[:: 1 if block % 2 else -1]:
            seconds[name].append(work(size))
    whole = [sum(seconds["white"][i : i + blocks]) / sum(seconds["plain"][i : i + blocks]) for i in (0, blocks)]
    # Of the second period all but its end is free of statistics and projections.
    quiet = float(np.median(seconds["white"][blocks:-1])) if blocks > 1 else seconds["white"][0]
    total = sum(seconds["white"])
    projection = parts["projection"] / total
    gathering = (total - 2 * blocks * quiet) / total - projection
    return {
        "sizes": list(sizes),
        "period": period,
        "samples": SAMPLES,
        "ratio": sum(seconds["white"]) / sum(seconds["plain"]),
        "periods": whole,
        "floor": 1 + counted_floor(sizes, SAMPLES, period),
        "share of projections": projection,
        "share of statistics": max(gathering, 0.0),
        "plain milliseconds": 1e3 * sum(seconds["plain"]) / (2 * period),
        "pass": sum(seconds["white"]) / sum(seconds["plain"]) <= bars.WHITENED_STEP,
    }


# ---------------------------------------------------------------------------------------------------------------- race


@dataclass(frozen=True)
class Task:
    """A net, its data and its loss."""

    title: str
    sizes: tuple[int, ...]
    data: Callable[[], dict[str, tuple[Tensor, Tensor]]]
    loss: Callable[[], nn.Module]
    middle: Mapping[str, float]


def _split(images: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    return {"train": (images[:10_000], targets[:10_000]), "validation": (images[10_000:], targets[10_000:])}


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """12,000 pictures of MNIST as inputs and targets."""
    found = mnist()
    order = np.random.default_rng(0).permutation(len(found.train_images))[:12_000]
    rows = torch.from_numpy(found.train_images[order].reshape(12_000, -1) / 255.0).float()
    return _split(rows, rows)


def photographs() -> dict[str, tuple[Tensor, Tensor]]:
    """12,000 pictures of CIFAR-10 at 16x16, their values between 0 and 1 as they are."""
    found = cifar10()
    order = np.random.default_rng(0).permutation(len(found.train))[:12_000]
    images = torch.from_numpy(found.train.images(order)).permute(0, 3, 1, 2).float() / 255.0
    return _split(F.avg_pool2d(images, 2).flatten(1), torch.from_numpy(found.train.labels[order]))


TASKS = {
    "autoencoder": Task(
        "deep tanh auto-encoder of MNIST",
        (784, 256, 128, 64, 16, 64, 128, 256, 784),
        digits,
        nn.BCEWithLogitsLoss,
        {"PRONG": 0.1, "SGD": 1.0, "Adam": 1e-3, "Muon": 0.1, "K-FAC": 0.01, "Shampoo": 1.0, "SOAP": 0.01},
    ),
    "classifier": Task(
        "tanh classifier of CIFAR-10's raw pixels",
        (768, 256, 128, 64, 10),
        photographs,
        nn.CrossEntropyLoss,
        {"PRONG": 3e-3, "SGD": 0.01, "Adam": 1e-3, "Muon": 0.01, "K-FAC": 1e-3, "Shampoo": 0.03, "SOAP": 0.01},
    ),
}
# The other parameter of each method, and its two settings.
OTHER: Mapping[str, tuple[str, tuple[float, float]]] = {
    "PRONG": ("epsilon", (0.03, 0.3)),
    "PRONG often": ("epsilon", (0.03, 0.3)),
    "PRONG two-sided": ("epsilon", (0.03, 0.3)),
    "SGD": ("momentum", (0.9, 0.95)),
    "Adam": ("beta1", (0.9, 0.95)),
    "Muon": ("momentum", (0.9, 0.95)),
    "K-FAC": ("damping", (1e-3, 1e-2)),
    "Shampoo": ("beta1", (0.9, 0.95)),
    "SOAP": ("beta1", (0.9, 0.95)),
}
PEERS = {"K-FAC": "curvlinops", "Shampoo": "pytorch_optimizer", "SOAP": "pytorch_optimizer"}


def build(task: Task, seed: int) -> nn.Sequential:
    """Glorot's initialization, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(task.sizes):
        linear = nn.Linear(a, b)
        nn.init.xavier_uniform_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Kfac:
    """SGD with momentum on gradients that K-FAC preconditions; the factors come from the last batches."""

    def __init__(self, model: nn.Module, loss: nn.Module, rate: float, damping: float) -> None:
        self.parameters = list(model.parameters())
        self.inner = torch.optim.SGD(self.parameters, lr=rate, momentum=0.9)
        self._model, self._loss, self._damping = model, loss, damping
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._inverse: Any = None
        self._count = 0

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def see(self, x: Tensor, y: Tensor) -> None:
        """A batch that was learned from."""
        self._seen = [*self._seen[-7:], (x, y)]

    def step(self) -> None:
        from curvlinops import KFACInverseLinearOperator, KFACLinearOperator

        if self._count % OTHERS_EVERY == 0:
            factors = KFACLinearOperator(
                self._model,
                self._loss,
                self.parameters,
                self._seen,
                check_deterministic=False,
                separate_weight_and_bias=False,
            )
            self._inverse = KFACInverseLinearOperator(factors, damping=self._damping, use_heuristic_damping=True)
        self._count += 1
        natural = self._inverse @ [p.grad for p in self.parameters]
        for parameter, gradient in zip(self.parameters, natural, strict=True):
            parameter.grad = gradient.detach()
        self.inner.step()


class Several:
    """Optimizers that share a net's parameters out."""

    def __init__(self, *inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def zero_grad(self) -> None:
        for optimizer in self.inner:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.inner:
            optimizer.step()


def make_optimizer(method: str, model: nn.Module, loss: nn.Module, rate: float, other: float) -> Any:
    """A method's optimizer, with whatever it does to the model."""
    parameters = list(model.parameters())
    if method.startswith("PRONG"):
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
        every = PRONG_OFTEN if method == "PRONG often" else PRONG_EVERY
        errors = DAMPING if method == "PRONG two-sided" else None
        cf.whiten(model, optimizer, every=every, samples=1024, epsilon=other, errors=errors)
        return optimizer
    if method == "SGD":
        return torch.optim.SGD(parameters, lr=rate, momentum=other)
    if method == "Adam":
        return torch.optim.Adam(parameters, lr=rate, betas=(other, 0.999))
    if method == "Muon":
        matrices = [p for p in parameters if p.ndim == 2]
        rest = [p for p in parameters if p.ndim != 2]
        return Several(
            torch.optim.Muon(matrices, lr=rate, momentum=other, weight_decay=0.0), torch.optim.Adam(rest, lr=rate)
        )
    if method == "K-FAC":
        return Kfac(model, loss, rate, other)
    import pytorch_optimizer

    if method == "Shampoo":
        return pytorch_optimizer.ScalableShampoo(
            parameters,
            lr=rate,
            betas=(other, 0.999),
            preconditioning_compute_steps=OTHERS_EVERY,
            start_preconditioning_step=OTHERS_EVERY,
        )
    return pytorch_optimizer.SOAP(
        parameters, lr=rate, betas=(other, 0.95), weight_decay=0.0, precondition_frequency=OTHERS_EVERY
    )


def learner(
    task: Task, method: str, rate: float, other: float, seed: int, data: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[nn.Module, Iterator[float]]:
    """A net, and its training losses, batch by batch, as it learns."""
    torch.manual_seed(seed)
    model, loss = build(task, seed), task.loss()
    optimizer = make_optimizer(method, model, loss, rate, other)
    x, y = data["train"]

    def losses() -> Iterator[float]:
        draw = np.random.default_rng(seed)
        while True:
            index = torch.from_numpy(draw.integers(len(x), size=BATCH))
            optimizer.zero_grad()
            value = loss(model(x[index]), y[index])
            value.backward()
            if isinstance(optimizer, Kfac):
                optimizer.see(x[index], y[index])
            optimizer.step()
            yield float(value.detach())

    return model, losses()


def train(
    task: Task, method: str, rate: float, other: float, seed: int, data: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """One run."""
    model, losses = learner(task, method, rate, other, seed, data)
    result: dict[str, Any] = {"rate": rate, "other": other, "seed": seed, "diverged": True}
    found: list[float] = []
    try:
        for _ in range(STEPS):
            found.append(next(losses))
            if not math.isfinite(found[-1]):
                return result
    except (RuntimeError, ValueError) as error:  # a matrix that nothing decomposes: the peer's way to diverge
        return result | {"error": str(error).splitlines()[0][:120]}
    x, y = data["validation"]
    with torch.no_grad():
        validation = float(task.loss()(model(x), y))
    if not math.isfinite(validation):
        return result
    result |= {"diverged": False, "validation": validation}
    if seed == TUNING_SEED:  # it is judged by its validation loss alone
        return result
    return result | {"curve": averages(found, WINDOW)}


def tuned(task: Task, name: str, method: str, data: Mapping[str, tuple[Tensor, Tensor]], kept: Kept) -> dict[str, Any]:
    """A method at its best of one budget, on the fresh seeds."""

    def run(rate: float, other: float, seed: int) -> dict[str, Any]:
        key = f"{name}/{method}/{rate:g}/{OTHER[method][0]} {other:g}/{seed}/{STEPS}"
        return kept.run(key, lambda: train(task, method, rate, other, seed, data))

    found: dict[tuple[float, float], float] = {}
    edges = []
    for other in OTHER[method][1]:
        tried: dict[float, float] = {}
        while (rate := next_rate(tried, task.middle[method.split()[0]])) is not None:
            tried[rate] = run(rate, other, TUNING_SEED).get("validation", math.inf)
        found |= {(rate, other): loss for rate, loss in tried.items()}
        edges.append((min(tried), max(tried)))
    best = min(found, key=lambda cell: found[cell])
    runs = [run(*best, seed) for seed in SEEDS]
    lowest, highest = edges[OTHER[method][1].index(best[1])]
    return {
        "rate": best[0],
        OTHER[method][0]: best[1],
        "tried": len(found),
        "interior": lowest < best[0] < highest,
        "validation": found[best],
        "diverged": sum(run["diverged"] for run in runs),
        "curves": [run["curve"] for run in runs if not run["diverged"]],
    }


def update_seconds(
    task: Task, found: Mapping[str, Any], data: Mapping[str, tuple[Tensor, Tensor]], rounds: int
) -> dict[str, float]:
    """Processor seconds of an update, renewals of matrices in it, the methods taking turns of `PRONG_EVERY` updates."""
    updates = {}
    for method, row in found.items():
        losses = learner(task, method, row["rate"], row[OTHER[method][0]], SEEDS[0], data)[1]
        updates[method] = timed(partial(next, losses), PRONG_EVERY)
    times = in_turns(updates, rounds, warm=1)  # the first round has what is done once
    return {method: float(np.median(values)) for method, values in times.items()}


def says(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Only what the ranges over the seeds bear out."""
    if max(ours) < min(theirs):
        return "ahead"
    return "behind" if min(ours) > max(theirs) else "level"


def compared(found: Mapping[str, Any], seconds: Mapping[str, float], form: str = "PRONG") -> dict[str, Any]:
    """A form of PRONG over each other method: training loss after equal updates, and after equal time."""
    rows: dict[str, Any] = {}
    ours = found[form]
    for method, row in found.items():
        if method.startswith("PRONG"):
            continue
        if ours["diverged"] or row["diverged"]:
            word = "ahead" if not ours["diverged"] else "level" if row["diverged"] else "behind"
            rows[method] = {"updates": word, "time": word, "loss": None, "loss in time": None}
            continue
        points = min(len(curve) for curve in (*ours["curves"], *row["curves"]))
        limit = min(seconds[form], seconds[method])  # of all updates of the faster one
        at = {m: max(1, round(points * limit / seconds[m])) for m in (form, method)}
        last = [curve[-1] for curve in ours["curves"]], [curve[-1] for curve in row["curves"]]
        timed = [c[at[form] - 1] for c in ours["curves"]], [c[at[method] - 1] for c in row["curves"]]
        rows[method] = {
            "loss": float(np.median(last[0]) / np.median(last[1])),
            "updates": says(*last),
            "loss in time": float(np.median(timed[0]) / np.median(timed[1])),
            "time": says(*timed),
            "seconds": seconds[form] / seconds[method],
        }
    return rows


def judged(found: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The verdicts, on PRONG as in the paper; its further forms are compared apart."""
    rows = {form: compared(found, seconds, form) for form in found if form.startswith("PRONG")}
    return {
        "compared": rows,
        "ahead of all on updates": all(row["updates"] == "ahead" for row in rows["PRONG"].values()),
        "behind on time": [m for m, row in rows["PRONG"].items() if row["time"] == "behind"],
    }


def race(name: str, kept: Kept, rounds: int = 3) -> dict[str, Any]:
    """One task."""
    task, data = TASKS[name], TASKS[name].data()
    there = [m for m in OTHER if m not in PEERS or importlib.util.find_spec(PEERS[m]) is not None]
    found = {method: tuned(task, name, method, data, kept) for method in there}
    alive = {method: row for method, row in found.items() if not row["diverged"]}
    seconds = update_seconds(task, alive, data, rounds)
    return {
        "title": task.title,
        "sizes": list(task.sizes),
        "methods": found,
        "seconds": seconds,
        "missing": [m for m in OTHER if m not in there],
        **judged(found, seconds),
    }


def show(result: Mapping[str, Any]) -> str:
    lines = [f"\n{result['title']}: {STEPS} updates of {BATCH}, {len(SEEDS)} seeds"]
    for method, row in result["methods"].items():
        last = [curve[-1] for curve in row["curves"]]
        loss = f"{np.median(last):.4g} ({min(last):.4g} to {max(last):.4g})" if last else "diverged"
        edge = "" if row["interior"] else "  (best rate at the edge of the grid)"
        each, other = result["seconds"].get(method), f"{OTHER[method][0]} {row[OTHER[method][0]]:<6g}"
        took = "" if each is None else f"  {1e3 * each:.3g} ms an update"
        lines.append(f"  {method:15} rate {row['rate']:<8.3g} {other} loss {loss}{took}{edge}")
    for form, rows in result["compared"].items():
        for method, row in rows.items():
            over = f"  {form:15} over {method:8}"
            if row["loss"] is None:
                lines.append(f"{over} {row['updates']}: diverged")
                continue
            timed = f"in equal time {row['loss in time']:.3f} {row['time']}; time an update {row['seconds']:.2f}"
            lines.append(f"{over} loss {row['loss']:.3f} {row['updates']}; {timed}")
    lines.append(f"  ahead of all on updates: {'yes' if result['ahead of all on updates'] else 'NO'}")
    if result["missing"]:
        lines.append(f"  not installed, and left out: {', '.join(result['missing'])}")
    lines.append(f"  behind on time: {', '.join(result['behind on time']) or 'of none'}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("step", "race"), help="this part alone")
    parser.add_argument("--json", metavar="FILE", type=output, help="where results are kept, and taken up again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = Kept(arguments.json)
    kept.content |= {"threads": 1, "torch": torch.__version__, "steps": STEPS, "batch": BATCH, "rates": [RATES, MORE]}
    if arguments.only != "race":
        found = step()
        kept.content["step"] = found
        kept.write()
        told = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items() if k != "pass"
        )
        print(f"step: {told}{'  pass' if found['pass'] else '  MISS'}", flush=True)
    if arguments.only != "step":
        for name in TASKS:
            kept.content["tasks"][name] = race(name, kept)
            kept.write()
            print(show(kept.content["tasks"][name]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
