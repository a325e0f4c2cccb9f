"""Figure 4a-b: CIFAR-10 with a small net after VGG, on 24x24 crops and reflections.

Three stages of two 3x3 convolutions and a pooling, of one, two and four times a width, then a linear layer. Of 50,000
training pictures 5,000 are for validation. All methods have momentum .9 and the waterfall: the rate is divided by ten
when the validation error has not improved for some evaluations. PRONG takes its statistics from the training batches,
so from augmented pictures. Test and validation pictures are cropped in the middle.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.data import cifar10
from counterflow.lab.loop import Batches, train
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import numpy_generator, torch_generator

__all__ = ["METHODS", "augmented", "build", "learn"]

METHODS = ("sgd", "bn", "prong", "prong+")
VALIDATION = 5000
CROP = 24
MARGIN = 32 - CROP
MOMENTUM = 0.9


@functools.lru_cache(maxsize=1)
def _pictures(examples: int, tested: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Pictures (count, 3, 32, 32), uint8, and labels; only those that are needed are decoded."""
    data = cifar10()
    order = numpy_generator(0, "whitening validation").permutation(len(data.train))
    kept = max(1, tested // 2)
    found = {}
    for name, split, chosen in (
        ("train", data.train, order[VALIDATION : VALIDATION + examples]),
        ("validation", data.train, order[: min(VALIDATION, kept)]),
        ("test", data.test, numpy_generator(0, "whitening test").permutation(len(data.test))[:tested]),
    ):
        images = torch.from_numpy(split.images(chosen)).permute(0, 3, 1, 2).contiguous()
        found[name] = images, torch.from_numpy(split.labels[chosen])
    return found


def _floats(images: Tensor) -> Tensor:
    return images.float().div_(64.0).sub_(2.0)  # about zero mean and unit variance


def augmented(images: Tensor, seed: int, step: int) -> Tensor:
    """A random 24x24 crop of each picture, reflected or not; what is drawn depends on the seed and the step alone."""
    draws = numpy_generator(seed, "crops", step)
    corners = draws.integers(0, MARGIN + 1, (len(images), 2))
    mirrored = draws.random(len(images)) < 0.5
    rows = torch.from_numpy(corners[:, :1]) + torch.arange(CROP)
    columns = torch.from_numpy(corners[:, 1:]) + torch.arange(CROP)
    columns = torch.where(torch.from_numpy(mirrored)[:, None], columns.flip(1), columns)
    which = torch.arange(len(images))[:, None, None]
    # Indices of three dimensions around a slice bring the channels last.
    return _floats(images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2))


def build(seed: int, width: int, normalized: bool) -> nn.Sequential:
    """The net; weights normal with deviation sqrt(2 / fan-in), biases zero."""
    generator = torch_generator(seed, "weights")
    modules: list[nn.Module] = []
    channels = 3
    for stage in (width, 2 * width, 4 * width):
        for _ in range(2):
            modules.append(nn.Conv2d(channels, stage, 3, padding=1))
            modules += [nn.BatchNorm2d(stage)] if normalized else []
            modules.append(nn.ReLU())
            channels = stage
        modules.append(nn.MaxPool2d(2))
    modules += [nn.Flatten(), nn.Linear(channels * (CROP // 8) ** 2, 10)]
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            with torch.no_grad():
                module.weight.normal_(0.0, (2 / fan_in) ** 0.5, generator=generator)
                assert module.bias is not None
                module.bias.zero_()
    return nn.Sequential(*modules)


def learn(method: str, seed: int, settings: Mapping[str, Any], context: Context) -> Outcome:
    """One training run.

    Args:
        method: One of `METHODS`.
        seed: Of weights, batches and crops.
        settings: ``rate``, ``updates`` (of whole epochs), ``batch``, ``width``, ``examples``, ``tested``, ``patience``
            (epochs), and for PRONG ``every``, ``samples``, ``epsilon``.
        context: The trial's.

    Returns:
        ``error``, the cross-entropy on some training pictures at the end, ``validation`` and ``test``, wrong
        classifications in percent; None where the run diverged; ``start``, the cross-entropy before. Curves ``error``
        and ``validation`` of the same, and ``wrong``, the training pictures in percent, epoch by epoch.
    """
    pictures = _pictures(settings["examples"], settings["tested"])
    images, labels = pictures["train"]
    model = build(seed, settings["width"], method in ("bn", "prong+"))
    optimizer = torch.optim.SGD(model.parameters(), lr=settings["rate"], momentum=MOMENTUM)
    if method in ("prong", "prong+"):
        cf.whiten(model, optimizer, every=settings["every"], samples=settings["samples"], epsilon=settings["epsilon"])
    annealing = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=settings["patience"])
    batches = Batches(len(images), settings["batch"], seed)
    size = settings["tested"]

    def loss(step: int) -> Tensor:
        chosen = torch.from_numpy(batches[step])
        return F.cross_entropy(model(augmented(images[chosen], seed, step)), labels[chosen])

    def measured(images: Tensor, labels: Tensor) -> tuple[float, float]:
        half = MARGIN // 2
        model.eval()
        with torch.no_grad():
            cropped = [part[:, :, half : half + CROP, half : half + CROP] for part in torch.split(images, 500)]
            logits = torch.cat([model(_floats(part)) for part in cropped])
        model.train()
        wrong = (logits.argmax(1) != labels).double().mean()
        return float(F.cross_entropy(logits, labels)), 100 * float(wrong)

    def curves() -> dict[str, float]:
        training, wrong = measured(images[:size], labels[:size])
        return {"error": training, "wrong": wrong, "validation": measured(*pictures["validation"])[1]}

    at = range(0, settings["updates"] + 1, batches.of_epoch)
    found = train(model, optimizer, loss, curves, at, context, annealing)
    alive = found["error"][-1] is not None
    test = measured(*pictures["test"])[1] if alive else None
    metrics: dict[str, list[float | None]] = {
        "start": [found["error"][0]],
        "error": [found["error"][-1]],
        "validation": [found["validation"][-1]],
        "test": [test],
    }
    return Outcome(metrics, found)
