"""Figure 1: the test error of nets of several sizes under each kind of dropout.

Early stopping: after every epoch validation and test error are measured, and the epoch with the least validation error
counts; the test error chooses nothing. Noise is drawn anew from the seed at every update, so that a run that was
stopped goes on to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import counterflow as cf
from counterflow.lab.data import cifar10, mnist
from counterflow.lab.loop import Batches, moved, train
from counterflow.lab.papers.variational import nets
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import numpy_generator

__all__ = ["learn", "pictures"]


@functools.lru_cache(maxsize=1)
def pictures(data: str, examples: int, validation: int, tested: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Pictures and labels for training, validation and testing: MNIST as rows of pixels between 0 and 1, CIFAR-10 as
    maps about zero, of about unit variance.
    """
    if data == "mnist":
        raw = mnist()
        order = numpy_generator(0, "variational validation").permutation(len(raw.train_images))
        rows = {"train": raw.train_images, "test": raw.test_images}
        labels = {"train": raw.train_labels, "test": raw.test_labels}

        def part(split: str, chosen: Any) -> tuple[Tensor, Tensor]:
            images = rows[split][chosen].reshape(len(chosen), -1) / 255.0
            return torch.from_numpy(images).float(), torch.from_numpy(labels[split][chosen])
    else:
        encoded = cifar10()
        splits = {"train": encoded.train, "test": encoded.test}
        order = numpy_generator(0, "variational validation").permutation(len(encoded.train))

        def part(split: str, chosen: Any) -> tuple[Tensor, Tensor]:
            images = torch.from_numpy(splits[split].images(chosen)).permute(0, 3, 1, 2).contiguous()
            return images.float().div_(64.0).sub_(2.0), torch.from_numpy(splits[split].labels[chosen])

    test = numpy_generator(0, "variational test").permutation(10_000)[:tested]
    return {
        "train": part("train", order[validation : validation + examples]),
        "validation": part("train", order[:validation]),
        "test": part("test", test),
    }


def learn(data: str, method: str, seed: int, settings: Mapping[str, Any], context: Context) -> Outcome:
    """One training run.

    Args:
        data: ``"mnist"`` or ``"cifar10"``.
        method: One of `counterflow.lab.papers.variational.plan.METHODS`.
        seed: Of weights, batches and noise.
        settings: ``size``, ``epochs``, ``batch``, ``examples``, ``validation``, ``tested``.
        context: The trial's.

    Returns:
        ``validation`` and ``test``, errors in percent at the end; the same as curves over updates, with ``rate``, the
        mean dropout rate of the layers but the first, and ``error``, the validation cross-entropy.
    """
    parts = moved(pictures(data, settings["examples"], settings["validation"], settings["tested"]), context)
    images, labels = parts["train"]
    plain = nets.perceptron(seed, settings["size"]) if data == "mnist" else nets.convolutional(seed, settings["size"])
    net = nets.noisy(plain, method, image=data == "cifar10").to(context.device)
    averaged = nets.Averaged(net)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    optimizer.register_step_post_hook(lambda *_: averaged.update())
    batches = Batches(len(images), settings["batch"], seed)
    scale = nets.kl_scale(method)

    def loss(step: int) -> Tensor:
        chosen = torch.from_numpy(batches[step]).to(context.device)
        nll = F.cross_entropy(net(images[chosen]), labels[chosen], reduction="none")
        if scale is None:
            return nll.mean()
        return cf.variational.elbo(nll, net, data_size=len(images), kl_weight=scale).loss

    def measured() -> dict[str, float]:
        found: dict[str, float] = {"rate": nets.dropout_rate(averaged.average.module)}
        averaged.eval()
        for name in ("validation", "test"):
            x, y = parts[name]
            with torch.no_grad():
                logits = torch.cat([averaged.average(piece) for piece in torch.split(x, 500)])
            found[name] = 100 * float((logits.argmax(1) != y).double().mean())
            if name == "validation":
                found["error"] = float(F.cross_entropy(logits, y))
        averaged.train()
        return found

    at = range(0, settings["epochs"] * batches.of_epoch + 1, batches.of_epoch)
    curves = train(averaged, optimizer, loss, measured, at, context, noise=seed)
    return Outcome({name: [curves[name][-1]] for name in ("validation", "test")}, curves)
