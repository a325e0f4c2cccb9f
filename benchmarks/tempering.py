"""Tempering beyond its paper: does the treatment help today's nets? Beside plain SGD, Adam and mup, on three tasks.

    python benchmarks/tempering.py [--task NAME ...] [--json FILE] [--pictures DIR]

Tasks: a deep tanh auto-encoder, a deep ReLU classifier and a small transformer that reads a picture row by row, on
10,000 pictures of MNIST, in mini-batches of 128, on one thread.

Every treatment gets the same: the same steps and batches, the same initial weights (Glorot's for tanh, He's for ReLU,
torch's for the transformer; mup rescales them, which is its method), and the same tuning budget: five learning rates a
factor of sqrt(10) apart on one tuning seed, judged by the loss on 2,000 pictures for validation, and up to two more
rates where the best lies at the edge. The best rate is then run on three fresh seeds, and only those are reported and
tested, on 2,000 of the test pictures. The trivial loss is that of the mean picture, or of constant odds for the
classes: whoever is not below it has learned nothing.

Ratios are tempering over the plain baseline in this one run: the final training loss, the steps that it takes to reach
the baseline's final training loss, and the time of a step (processor time, steps taken in turns). Runs that are done
are kept in the results' file, so that a run that was stopped goes on.

mup is the only peer: `pip install --no-deps mup` and `pip install pandas seaborn tqdm pyyaml`, since its declared
dependencies would exchange torch. Without it the other treatments run, and the results say that it is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.data import mnist

sys.path.insert(0, str(Path(__file__).parent))
from common.command import folder, output, status_of
from common.measuring import in_turns, timed
from common.racing import Kept, averages, next_rate

BATCH, STEPS = 128, 500
TUNING_SEED, SEEDS = 0, (1, 2, 3)
BASE = 32  # width from which mup scales
WINDOW = 20  # steps over which a training loss is averaged
TEMPERED: Mapping[str, dict[str, Any]] = {
    "tempering": {},
    "tempering, weights": {"attenuation": "weights"},
    "tempering, measured": {"variance": "measured"},
    "tempering, centered": {"center_inputs": True},
}
PLAIN = ("SGD", "Adam", "mup")


class Attention(nn.Module):
    """A transformer block with one head, its attention written out."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm1(x)
        attention = (self.query(seen) @ self.key(seen).transpose(-1, -2) * self.scale).softmax(-1)
        x = x + self.out(attention @ self.value(seen))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class Rows(nn.Module):
    """Reads a picture as 28 rows of 28 pixels; the mean over the rows is classified."""

    def __init__(self, width: int, readout: type[nn.Linear]) -> None:
        super().__init__()
        self.embed = nn.Linear(28, width)
        self.place = nn.Parameter(torch.randn(28, width) * 0.1, requires_grad=False)
        # mup divides by the width where others divide by its root; both are the same at mup's base width.
        scale = width**-0.5 if readout is nn.Linear else BASE**0.5 / width
        self.blocks = nn.Sequential(Attention(width, scale), Attention(width, scale))
        self.norm = nn.LayerNorm(width)
        self.head = readout(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unflatten(1, (28, 28))) + self.place
        y: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return y


def autoencoder(width: int, readout: type[nn.Linear]) -> nn.Module:
    sizes = [784, 2 * width, width, width // 2, width // 8, width // 2, width, 2 * width]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, readout(2 * width, 784))


def relu_net(width: int, readout: type[nn.Linear]) -> nn.Module:
    sizes = [784, *[width] * 9]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, readout(width, 10))


@dataclass(frozen=True)
class Task:
    """A net, its loss, and where each treatment's grid of rates begins: its middle."""

    title: str
    make: Callable[[int, type[nn.Linear]], nn.Module]
    width: int
    loss: str
    middle: Mapping[str, float]
    initial: Callable[[Tensor], Any] | None = None


TASKS = {
    "autoencoder": Task(
        "deep tanh auto-encoder",
        autoencoder,
        128,
        "binary_cross_entropy_with_logits",
        {"SGD": 3.0, "Adam": 3e-3, "mup": 3e-3},
        nn.init.xavier_uniform_,
    ),
    "relu": Task(
        "deep ReLU net",
        relu_net,
        128,
        "cross_entropy",
        {"SGD": 0.1, "Adam": 1e-3, "mup": 3e-3},
        partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    ),
    "transformer": Task("small transformer", Rows, 48, "cross_entropy", {"SGD": 0.1, "Adam": 1e-3, "mup": 3e-3}),
}


@dataclass(frozen=True)
class Pictures:
    """Parts of MNIST, scaled to [0, 1]: training and validation from its training split, testing from its other."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def pictures() -> Pictures:
    found = mnist()
    order = np.random.default_rng(0).permutation(len(found.train_images))

    def part(images: Any, labels: Any, index: Any) -> tuple[Tensor, Tensor]:
        chosen = images[index].reshape(len(index), -1).astype(np.float32) / found.maximum
        return torch.from_numpy(chosen), torch.from_numpy(labels[index].copy())

    train, labels = found.train_images, found.train_labels
    return Pictures(
        part(train, labels, order[:10_000]),
        part(train, labels, order[10_000:12_000]),
        part(found.test_images, found.test_labels, np.arange(2_000)),
    )


def loss_of(task: Task, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    target = x if task.make is autoencoder else labels
    loss: Tensor = getattr(F, task.loss)(model(x), target)
    return loss


def initialize(task: Task, model: nn.Module) -> nn.Module:
    """Give all linear layers the task's initial weights, and biases of zero; torch's stay where it names none."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and task.initial is not None:
            task.initial(module.weight)
            nn.init.zeros_(module.bias)
    return model


def prepare(task: Task, treatment: str, rate: float, seed: int, x: Tensor) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A net in its initial state, and its optimizer."""
    torch.manual_seed(seed)
    if treatment == "mup":
        import mup

        base, delta = (task.make(width, mup.MuReadout) for width in (BASE, 2 * BASE))
        torch.manual_seed(seed)
        model = initialize(task, task.make(task.width, mup.MuReadout))
        mup.set_base_shapes(model, base, delta=delta)
        return model, mup.MuAdam(model.parameters(), lr=rate)
    model = initialize(task, task.make(task.width, nn.Linear))
    if treatment == "Adam":
        return model, torch.optim.Adam(model.parameters(), lr=rate)
    if treatment == "SGD":
        return model, torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    handle = cf.temper(model, x[:BATCH], loss=task.loss, **TEMPERED[treatment])
    return model, torch.optim.SGD(handle.param_groups(lr=rate), momentum=0.9)


def train(task: Task, treatment: str, rate: float, seed: int, data: Pictures, steps: int) -> dict[str, Any]:
    """One run: losses on the training batches averaged over `WINDOW` steps, then on the other splits."""
    x, labels = data.train
    model, optimizer = prepare(task, treatment, rate, seed, x)
    draw = np.random.default_rng(seed)
    losses: list[float] = []
    for _ in range(steps):
        index = torch.from_numpy(draw.integers(len(x), size=BATCH))
        optimizer.zero_grad()
        loss = loss_of(task, model, x[index], labels[index])
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        loss.backward()
        optimizer.step()
    result: dict[str, Any] = {"rate": rate, "seed": seed, "diverged": True}
    model.eval()
    with torch.no_grad():
        validation = loss_of(task, model, *data.validation).item()
        if not (math.isfinite(losses[-1]) and math.isfinite(validation)):  # the last step may have blown it up
            return result
        result |= {"diverged": False, "validation": validation}
        if seed != TUNING_SEED:
            result["test"] = loss_of(task, model, *data.test).item()
            if task.make is not autoencoder:
                result["error"] = (model(data.test[0]).argmax(1) != data.test[1]).float().mean().item()
    result["curve"] = averages(losses, WINDOW)
    return result


def middle_of(task: Task, treatment: str) -> float:
    # Equation 18's ceiling, one over the root of the batch, less the tenth that momentum makes of it.
    return task.middle.get(treatment, 0.1 / math.sqrt(BATCH))


def compare(task: Task, treatments: Sequence[str], data: Pictures, steps: int, kept: Kept) -> dict[str, Any]:
    """Tune, run the fresh seeds and sum up."""
    found: dict[str, Any] = {}

    def run_of(treatment: str, rate: float, seed: int) -> dict[str, Any]:
        initial = getattr(getattr(task.initial, "func", task.initial), "__name__", "torch")
        key = f"{task.title}/{task.width}/{initial}/{treatment}/{rate:g}/{seed}/{steps}x{BATCH}"
        return kept.run(key, lambda: train(task, treatment, rate, seed, data, steps))

    for treatment in treatments:
        tried: dict[float, float] = {}
        while (rate := next_rate(tried, middle_of(task, treatment))) is not None:
            run = run_of(treatment, rate, TUNING_SEED)
            tried[rate] = run.get("validation", math.inf)
        best = min(tried, key=lambda rate: tried[rate])
        runs = [run_of(treatment, best, seed) for seed in SEEDS]
        interior = math.isfinite(tried[best]) and best not in (min(tried), max(tried))
        found[treatment] = {"rate": best, "tried": len(tried), "interior": interior}
        found[treatment] |= summary(runs)
    return found


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and range over the seeds; a diverged run makes the whole a failure."""
    if any(run["diverged"] for run in runs):
        return {"diverged": sum(run["diverged"] for run in runs)}
    result: dict[str, Any] = {"curve": np.median([run["curve"] for run in runs], axis=0).tolist()}
    for name, values in {
        "train": [run["curve"][-1] for run in runs],
        "test": [run["test"] for run in runs],
        "error": [run["error"] for run in runs if "error" in run],
    }.items():
        if values:
            result[name] = {"median": float(np.median(values)), "low": min(values), "high": max(values)}
    return result


def ratios(found: Mapping[str, Any], treatment: str, plain: str) -> dict[str, Any] | None:
    """Tempering over a baseline: final training loss, test loss, and steps to the baseline's final training loss."""
    ours, theirs = found[treatment], found.get(plain)
    if theirs is None or "train" not in ours or "train" not in theirs:
        return None
    goal = theirs["train"]["median"]
    reached = next((i + 1 for i, loss in enumerate(ours["curve"]) if loss <= goal), None)
    apart = ours["train"]["high"] < theirs["train"]["low"], ours["train"]["low"] > theirs["train"]["high"]
    return {
        "train": ours["train"]["median"] / goal,
        "test": ours["test"]["median"] / theirs["test"]["median"],
        "steps": None if reached is None else reached / len(theirs["curve"]),
        # Said only where the ranges over the seeds do not touch.
        "says": "helps" if apart[0] else "harms" if apart[1] else "no clear difference",
    }


def step_seconds(task: Task, treatments: Sequence[str], data: Pictures, rounds: int) -> dict[str, float]:
    """Median processor time of a training step, the treatments taking turns; a fifth of the rounds does not count."""
    steps: dict[str, Callable[[], float]] = {}
    x, labels = data.train[0][:BATCH], data.train[1][:BATCH]
    for treatment in treatments:
        model, optimizer = prepare(task, treatment, middle_of(task, treatment) / 100, 0, x)

        def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            loss_of(task, model, x, labels).backward()
            optimizer.step()

        steps[treatment] = timed(step)
    times = in_turns(steps, rounds - rounds // 5, warm=rounds // 5)
    return {treatment: float(np.median(values)) for treatment, values in times.items()}


def draw_errors(task: Task, name: str, data: Pictures, where: Path) -> None:
    """The probe's picture of the error's path in the untrained net, plain and tempered."""
    x, labels = data.train[0][:BATCH], data.train[1][:BATCH]
    for treatment, word in (("SGD", "plain"), ("tempering", "tempered")):
        model, _ = prepare(task, treatment, 1e-9, 1, x)
        with cf.probe(model) as seen:
            loss_of(task, model, x, labels).backward()
        seen.plot(where / f"tempering-{name}-{word}.png")


def trivial_loss(task: Task, data: Pictures) -> float:
    """What the best constant output costs on the training pictures."""
    x, labels = data.train
    if task.make is autoencoder:
        mean = x.mean(0).clamp(1e-6, 1 - 1e-6)
        return F.binary_cross_entropy(mean.expand_as(x), x).item()
    odds = labels.bincount(minlength=10) / len(labels)
    return -(odds * odds.log()).sum().item()


def show(task: Task, found: Mapping[str, Any]) -> str:
    lines = [f"\n{task.title}: {STEPS} steps of {BATCH}, median of {len(SEEDS)} seeds (lowest to highest)"]
    lines.append(f"  trivial loss {found['trivial']:.4f}")
    for treatment, row in found["treatments"].items():
        if "train" not in row:
            lines.append(
                f"  {treatment:20} rate {row['rate']:<8.3g} diverged on {row['diverged']} of {len(SEEDS)} seeds"
            )
            continue
        spread = f"{row['train']['median']:.4f} ({row['train']['low']:.4f} to {row['train']['high']:.4f})"
        error = f"  error {row['error']['median']:.2%}" if "error" in row else ""
        edge = "" if row["interior"] else "  (best rate at the edge of the grid)"
        lines.append(
            f"  {treatment:20} rate {row['rate']:<8.3g} train {spread}  test {row['test']['median']:.4f}{error}{edge}"
        )
    lines.append("                       over   train loss  test loss  steps to its loss  time a step")
    for treatment, plain in itertools.product(TEMPERED, PLAIN):
        row = found["ratios"][treatment][plain]
        if row is None:
            lines.append(f"  {treatment:20} {plain:5}  not compared: missing or diverged")
            continue
        steps = "not reached" if row["steps"] is None else f"{row['steps']:.2f}"
        numbers = f"{row['train']:<11.3f} {row['test']:<10.3f} {steps:18} {row['time']:.2f}"
        lines.append(f"  {treatment:20} {plain:5}  {numbers}   {row['says']}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), action="append", help="only this one; may be given again")
    parser.add_argument("--json", metavar="FILE", type=output, help="where results are kept, and taken up again")
    parser.add_argument(
        "--pictures", metavar="DIR", type=folder, help="draw the error's path before and after, into this folder"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = pictures()
    treatments = [*PLAIN, *TEMPERED]
    if importlib.util.find_spec("mup") is None:
        print("mup is not installed, and is left out: pip install --no-deps mup", file=sys.stderr)
        treatments.remove("mup")
    kept = Kept(arguments.json)
    for name in arguments.task or TASKS:
        task = TASKS[name]
        found = compare(task, treatments, data, STEPS, kept)
        seconds = step_seconds(task, treatments, data, rounds=60)
        rows: dict[str, dict[str, Any]] = {}
        for treatment, plain in itertools.product(TEMPERED, PLAIN):
            row = ratios(found, treatment, plain)
            if row is not None:
                row["time"] = seconds[treatment] / seconds[plain]
            rows.setdefault(treatment, {})[plain] = row
        result = {
            "title": task.title,
            "trivial": trivial_loss(task, data),
            "treatments": found,
            "ratios": rows,
            "seconds": seconds,
        }
        result |= {"threads": 1, "torch": torch.__version__, "steps": STEPS, "batch": BATCH, "seeds": len(SEEDS)}
        kept.content["tasks"][name] = result
        kept.write()
        print(show(task, result), flush=True)
        if arguments.pictures:
            draw_errors(task, name, data, arguments.pictures)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
