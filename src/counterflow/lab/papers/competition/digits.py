"""Tables 2 and 3, and figure 3: nets that learn to read digits, under the paper's schedule.

The momentum rises over the first half of a run, and the rate falls by a constant factor an epoch, to its floor in the
last one. A run ends early once the mean training error of an epoch, with the weights as they were at each batch, is
below what counts as converged.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.competition import AnnealedRate, LocalWinnerTakeAll, MomentumRamp, max_norm, subnetworks
from counterflow.lab.data import mnist
from counterflow.lab.loop import Batches, Parts, moved, train
from counterflow.lab.papers.competition import nets
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import numpy_generator

__all__ = ["PAIRS", "learn", "pictures", "schedules_of", "wrong"]

PAIRS = tuple(itertools.combinations_with_replacement(range(10), 2))  # figure 3's 55


@functools.lru_cache(maxsize=1)
def pictures(examples: int, held: int, tested: int) -> Parts:
    """Rows of pixels between 0 and 1, and labels: for training, held out for choosing, and for testing.

    Args:
        examples: Training pictures, the held ones with them; the first ones.
        held: How many of them, the last, are held out.
        tested: Test pictures, drawn where it is not all.
    """
    raw = mnist()
    test = numpy_generator(0, "competition test").permutation(len(raw.test_images))[:tested]
    chosen = {
        "train": (raw.train_images[: examples - held], raw.train_labels[: examples - held]),
        "held": (raw.train_images[examples - held : examples], raw.train_labels[examples - held : examples]),
        "test": (raw.test_images[test], raw.test_labels[test]),
    }
    return {
        name: (torch.tensor(images).flatten(1).float().div_(raw.maximum), torch.tensor(labels))
        for name, (images, labels) in chosen.items()
    }


def schedules_of(
    optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> tuple[torch.optim.lr_scheduler.LRScheduler, ...]:
    """The paper's schedule over a run's epochs: ``momentum`` from and to, and ``floor``, a share of the rate."""
    epochs, floor = settings["epochs"], settings["floor"]
    initial, final = settings["momentum"]
    factor = floor ** (1 / max(epochs - 1, 1))
    rate = optimizer.param_groups[0]["lr"]
    return (
        AnnealedRate(optimizer, factor, floor * rate),
        MomentumRamp(optimizer, initial, final, max(epochs // 2, 1)),
    )


def learn(method: str, seed: int, settings: Mapping[str, Any], context: Context) -> Outcome:
    """One training run.

    Args:
        method: One of `counterflow.lab.papers.competition.nets.METHODS`, or ``"conv"``.
        seed: Of weights, batches and noise.
        settings: As `counterflow.lab.papers.competition.plan` names them.
        context: The trial's.

    Returns:
        ``test`` and ``held``, errors in percent at the end, ``train``, the cross-entropy over the last epoch, and
        ``epochs``; ``test`` and ``train`` as curves over updates. Of ``"lwta"``, curves ``untrained 0``, ``trained 0``
        and so on have the units in common of the 55 pairs of classes, layer by layer, over the test pictures.
    """
    parts = moved(pictures(settings["examples"], settings["held"], settings["tested"]), context)
    if method == "conv":
        parts = {name: (x.view(-1, 1, 28, 28), y) for name, (x, y) in parts.items()}
        net = nets.convolutional(seed)
    else:
        net = nets.perceptron(method, seed, settings["units"])
    net.to(context.device)
    drawn = method == "lwta"
    shared = _overlaps("untrained", net, *parts["test"]) if drawn else {}
    images, labels = parts["train"]
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": settings.get("decay", 0.0)},
            {"params": [p for p in net.parameters() if p.ndim == 1]},
        ],
        lr=settings["rate"],
        momentum=settings["momentum"][0],
        # On a graphics card it refuses gradients in another memory format than their weights, as cuDNN gives them here.
        fused=context.device == "cpu",
    )
    if settings["limit"] is not None:
        max_norm(net, optimizer, settings["limit"])
    batches = Batches(len(images), settings["batch"], seed)
    losses: list[float] = []

    def loss(step: int) -> Tensor:
        chosen = torch.from_numpy(batches[step]).to(context.device)
        value = F.cross_entropy(net(images[chosen]), labels[chosen])
        losses.append(float(value.detach()))
        return value

    def measured() -> dict[str, float]:
        if losses:
            mean = sum(losses) / len(losses)
            losses.clear()
        else:
            with torch.no_grad():
                mean = float(F.cross_entropy(net(images[:1000]), labels[:1000]))
        return {"train": mean, "test": wrong(net, *parts["test"]), "error": mean}

    at = range(0, settings["epochs"] * batches.of_epoch + 1, batches.of_epoch)
    curves = train(
        net,
        optimizer,
        loss,
        measured,
        at,
        context,
        noise=seed,
        schedules=schedules_of(optimizer, settings),
        until=lambda found: found["train"] < settings["enough"],
    )
    shared |= _overlaps("trained", net, *parts["test"]) if drawn else {}
    ended = {
        "test": curves["test"][-1],
        "held": wrong(net, *parts["held"]) if settings["held"] else None,
        "train": curves["train"][-1],
        "epochs": float(len(curves["test"]) - 1),
    }
    del curves["error"]
    return Outcome({name: [value] for name, value in ended.items()}, {**curves, **shared})


def _overlaps(when: str, net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Units in common of all pairs of digits, layer by layer."""
    layers = [name for name, module in net.named_modules() if isinstance(module, LocalWinnerTakeAll)]
    found = {}
    for number, layer in enumerate(layers):
        pairs = {(a, b): share for a, b, share in subnetworks(net, images, labels, layer).pairs()}
        found[f"{when} {number}"] = [pairs[pair] for pair in PAIRS]
    return found


def wrong(net: nn.Module, x: Tensor, labels: Tensor) -> float:
    """The error in percent, without dropout."""
    mode = net.training
    net.eval()
    with torch.no_grad():
        guessed = torch.cat([net(piece).argmax(1) for piece in torch.split(x, 500)])
    net.train(mode)
    return 100 * float((guessed != labels).double().mean())
