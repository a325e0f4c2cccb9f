"""The auto-encoder of section 4.2, and the readings of what the paper leaves to its supplement, which is lost.

The sizes are those of Hinton & Salakhutdinov that Martens took, 784-1000-500-250-30 and back: eight layers. Hyperbolic
tangents, a linear code, logistic outputs, weights normal with deviation 1/sqrt(fan-in), biases zero. The loss is the
squared error summed over the pixels, its mean over the batch. All methods but Adam have momentum .9. Batches are of
128, those of batch normalization of 256. Of MNIST's 60,000 training pictures 5,000 are for validation; the training
error is that of 2,500 of those learned from, the same for all methods. Rates are chosen on the validation error of
short runs, with a seed that serves for nothing else, among equally many for each method. PRONG's epsilon of 1 and T of
500 were set beforehand, in runs of some hundred updates; figure 3a-b shows what others give.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.data import mnist
from counterflow.lab.loop import Batches, points, train
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import numpy_generator, torch_generator

__all__ = ["SIZES", "Pictures", "build", "error", "examples_of", "learn", "load_pictures", "make_optimizer", "whitened"]

SIZES = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
VALIDATION = 5000
MONITORED = 2500
MOMENTUM = 0.9
POINTS = 50


@dataclass(frozen=True)
class Pictures:
    """MNIST as rows of pixels between 0 and 1.

    Args:
        training: Those that are learned from.
        monitored: Some of them, whose error is the training error.
        validation: Those that choose a learning rate.
        test: MNIST's own.
    """

    training: Tensor
    monitored: Tensor
    validation: Tensor
    test: Tensor


@functools.lru_cache(maxsize=1)
def load_pictures() -> Pictures:
    """Read MNIST, and split it as all trials do."""
    data = mnist()
    order = numpy_generator(0, "whitening validation").permutation(len(data.train_images))

    def rows(images: Any) -> Tensor:
        return torch.from_numpy(images.reshape(len(images), -1) / 255.0).float()

    training = rows(data.train_images[order[VALIDATION:]])
    validation = rows(data.train_images[order[:VALIDATION]])
    return Pictures(training, training[:MONITORED], validation, rows(data.test_images))


def build(seed: int, sizes: Sequence[int], normalized: bool) -> nn.Sequential:
    """The auto-encoder, down to the logits of its pixels.

    Args:
        seed: Of its weights.
        sizes: Of its layers.
        normalized: Whether all hidden layers but the code are batch-normalized, before the nonlinearity.
    """
    generator = torch_generator(seed, "weights")
    modules: list[nn.Module] = []
    code, last = len(sizes) // 2 - 1, len(sizes) - 2
    for number in range(last + 1):
        linear = nn.Linear(sizes[number], sizes[number + 1])
        with torch.no_grad():
            linear.weight.normal_(0.0, sizes[number] ** -0.5, generator=generator)
            linear.bias.zero_()
        modules.append(linear)
        if number not in (code, last):
            modules += [nn.BatchNorm1d(sizes[number + 1])] if normalized else []
            modules.append(nn.Tanh())
    return nn.Sequential(*modules)


def error(model: nn.Module, pictures: Tensor) -> Tensor:
    """The squared error, summed over pixels, its mean over pictures."""
    return F.mse_loss(torch.sigmoid(model(pictures)), pictures, reduction="sum") / len(pictures)


def make_optimizer(method: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """A method's optimizer: SGD with momentum below PRONG and batch normalization."""
    if method == "rmsprop":
        return torch.optim.RMSprop(model.parameters(), lr=rate, momentum=MOMENTUM)
    if method == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)


def examples_of(settings: Mapping[str, Any]) -> int:
    """How many training pictures a trial has."""
    return int(settings["examples"] or len(load_pictures().training))


def whitened(
    model: nn.Module, optimizer: torch.optim.Optimizer, pictures: Tensor, seed: int, settings: Mapping[str, Any]
) -> cf.whitening.WhitenHandle:
    """Algorithm 1: statistics come from forward passes over N_s training pictures."""
    chosen = numpy_generator(seed, "statistics").permutation(len(pictures))[: settings["samples"]]
    return cf.whiten(
        model,
        optimizer,
        every=settings["every"],
        samples=settings["samples"],
        epsilon=settings["epsilon"],
        loader=torch.split(pictures[torch.from_numpy(chosen)], 512),
        initial=settings["initial"],
    )


def learn(method: str, seed: int, settings: Mapping[str, Any], context: Context) -> Outcome:
    """One training run.

    Args:
        method: ``"sgd"``, ``"rmsprop"``, ``"adam"``, ``"bn"`` or ``"prong"``.
        seed: Of weights, batches and statistics.
        settings: ``rate``, ``batch``, ``updates``, ``sizes``, ``examples``; for PRONG ``every``, ``samples``,
            ``epsilon``, ``initial``.
        context: The trial's.

    Returns:
        ``error``, ``validation`` and ``test`` at the end, None where the run diverged, and ``start``, the error of the
        untrained net; the curve of the training error.
    """
    pictures, count = load_pictures(), examples_of(settings)
    training = pictures.training[:count]
    model = build(seed, settings["sizes"], method == "bn")
    optimizer = make_optimizer(method, model, settings["rate"])
    if method == "prong":
        whitened(model, optimizer, training, seed, settings)
    batches = Batches(count, settings["batch"], seed)

    def loss(step: int) -> Tensor:
        return error(model, training[torch.from_numpy(batches[step])])

    def measured(pictures: Tensor) -> float:
        model.eval()
        with torch.no_grad():
            sums = [float(error(model, part)) * len(part) for part in torch.split(pictures, 500)]
        model.train()
        return sum(sums) / len(pictures)

    at = points(settings["updates"], max(1, min(POINTS, settings["updates"] // 10)))
    curves = train(model, optimizer, loss, lambda: {"error": measured(pictures.monitored)}, at, context)
    final = curves["error"][-1]
    metrics: dict[str, list[float | None]] = {"error": [final], "start": [curves["error"][0]]}
    for name, part in (("validation", pictures.validation), ("test", pictures.test)):
        value = None if final is None else measured(part)
        metrics[name] = [value if value is not None and math.isfinite(value) else None]
    return Outcome(metrics, curves)
