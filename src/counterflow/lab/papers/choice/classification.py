"""Figure 4: CIFAR10-Quick by each method, and who wins which class.

Inputs are pixels from 0 to 255 less the mean of the training pictures, without augmentation. SGD with momentum .9 and a
weight decay of .004, on biases too as in Caffe; the rate is .001, twice that for biases, and a tenth after four fifths
of the updates. Where the rate falls Caffe's momentum still holds steps of the old rate, PyTorch's does not.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import counterflow as cf
from counterflow.choice import assignment_matrix, oracle_accuracy, winners
from counterflow.lab.data import cifar10
from counterflow.lab.loop import Batches, Curves
from counterflow.lab.papers.choice.ensembles import Problem, alternate, fit, in_turn
from counterflow.lab.papers.choice.nets import quick, weights_and_biases
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import numpy_generator, seed_of

__all__ = ["Pictures", "learn", "pictures"]

CHUNK = 500
WATCHED = 400  # training pictures for the curve of the oracle loss
TENTHS = 10


class Pictures:
    """Pictures of a split and their classes.

    Args:
        images: ``(pictures, 3, 32, 32)``, uint8.
        labels: ``(pictures,)``.
        mean: The mean of the training pictures, ``(3, 32, 32)``.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor) -> None:
        self.images, self.labels, self.mean = images, labels, mean

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str) -> Pictures:
        """The same on a device."""
        return Pictures(self.images.to(device), self.labels.to(device), self.mean.to(device))

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and classes of some pictures."""
        inputs = self.images[rows].float() - self.mean
        return inputs.contiguous(memory_format=torch.channels_last), self.labels[rows]


@functools.lru_cache(maxsize=1)
def pictures(examples: int, tested: int) -> tuple[Pictures, Pictures]:
    """Pictures for training and testing, drawn once and for all."""
    data, mean, found = cifar10(), torch.empty(0), []
    for name, split, count in (("train", data.train, examples), ("test", data.test, tested)):
        chosen = numpy_generator(0, "choice", name).permutation(len(split))[:count]
        images = torch.from_numpy(split.images(chosen)).permute(0, 3, 1, 2).contiguous()
        mean = images.float().mean(0) if name == "train" else mean
        found.append(Pictures(images, torch.from_numpy(split.labels[chosen]), mean))
    return found[0], found[1]


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Per-example losses."""
    return F.cross_entropy(out, y, reduction="none")


def outputs(ensemble: nn.Module, part: Pictures) -> Tensor:
    """What all members make of a part, ``(members, pictures, classes)``."""
    with torch.no_grad():
        pieces = [ensemble(part.batch(rows)[0]) for rows in torch.split(torch.arange(len(part)), CHUNK)]
    return torch.cat(pieces, 1)


def losses_of(outputs: Tensor, labels: Tensor) -> Tensor:
    """Per-example losses of all members, ``(members, pictures)``."""
    return torch.stack([cross_entropy(out, labels) for out in outputs])


def _sgd(net: nn.Module) -> Optimizer:
    groups = [{"params": g["params"], "lr": 1e-3 * g["factor"]} for g in weights_and_biases(net)]
    return torch.optim.SGD(groups, lr=1e-3, momentum=0.9, weight_decay=0.004)


def member(seed: int, number: int, attempt: int = 0) -> nn.Module:
    """A net with the initial weights of that seed and number."""
    net: nn.Module = quick(seed_of(seed, "member", number, attempt))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def learn(method: str, seed: int, settings: Mapping[str, Any], context: Context) -> Outcome:
    """One ensemble.

    Args:
        method: ``"smcl"``, ``"independent"``, ``"dey"``, ``"mcl"`` or ``"mcl restarts"``.
        seed: Of weights and batches.
        settings: ``members``, ``k`` (sMCL), ``rounds`` (MCL), ``updates``, ``batch``, ``examples``, ``tested``.
        context: The trial's.

    Returns:
        What `describe` finds, and ``rows``.
    """
    training, testing = (part.to(context.device) for part in pictures(settings["examples"], settings["tested"]))
    watched = torch.arange(min(WATCHED, len(training)))
    few = Pictures(training.images[watched], training.labels[watched], training.mean)
    problem = Problem(
        batches=Batches(len(training), settings["batch"], seed),
        batch=training.batch,
        loss=cross_entropy,
        optimizer=_sgd,
        updates=settings["updates"],
        # Of four members, as in figure 4b, also where six are trained.
        losses=lambda ensemble: losses_of(outputs(cf.MultipleChoice(list(ensemble.members[:4])), few), few.labels),
        examples=len(training),
        rate=lambda share: 1.0 if share < 0.8 else 0.1,
    )
    nets = [member(seed, number).to(context.device) for number in range(settings["members"])]
    k = {"smcl": settings.get("k", 1), "independent": len(nets)}.get(method, 1)
    ensemble = cf.MultipleChoice(nets, k=k)
    curves: Curves
    if method in ("smcl", "independent"):
        curves = fit(ensemble, problem, context)
        rows = float(curves["rows"][-1] or 0.0)
    elif method == "dey":
        turn, parts = in_turn(nets, problem, context, lambda net: _right(net, training))
        curves = {"mean weight": turn.mean_weight.tolist(), "gradient": [part["gradient 0"][-1] for part in parts]}
        rows = sum(float(part["rows"][-1] or 0.0) for part in parts)
    else:

        def restart(attempt: int) -> None:
            for number, net in enumerate(nets):
                net.load_state_dict(member(seed, number, attempt).state_dict())

        done, parts = alternate(
            ensemble,
            problem,
            context,
            lambda ensemble: losses_of(outputs(ensemble, training), training.labels),
            settings["rounds"],
            restart if method == "mcl restarts" else None,
        )
        curves = {"error": [part["error"][-1] for part in parts], "entropy": [float(each.entropy) for each in done]}
        rows = sum(float(part["rows"][-1] or 0.0) for part in parts)
    metrics, more = describe(outputs(ensemble, testing), testing.labels, prefixes=method in ("independent", "dey"))
    return Outcome({**{name: [value] for name, value in metrics.items()}, "rows": [rows]}, {**curves, **more})


def _right(net: nn.Module, part: Pictures) -> Tensor:
    out = outputs(cf.MultipleChoice([net]), part)[0]
    return (out.argmax(-1) == part.labels).float()


def describe(outputs: Tensor, labels: Tensor, prefixes: bool) -> tuple[dict[str, float], Curves]:
    """What is measured of a trained ensemble's outputs.

    Args:
        outputs: On the test pictures, ``(members, pictures, classes)``.
        labels: Their classes.
        prefixes: Whether the first m members are an ensemble, too.

    Returns:
        ``accuracy m``, the oracle's in percent, and of the first four members ``share j``, the share of a class's
        pictures that the j members with most of it win, in percent and averaged over the classes, ``sure``, how many
        classes give at least 99.5% to one member, and the ``largest`` and ``smallest`` cell; the matrix as curves
        ``class c``, and ``tenths m``, accuracies of tenths of the pictures.
    """
    members = len(outputs)
    metrics: dict[str, float] = {}
    curves: Curves = {}
    for m in range(1 if prefixes else members, members + 1):
        metrics[f"accuracy {m}"] = 100 * oracle_accuracy(outputs[:m], labels)
    first = outputs[: min(4, members)]
    losses = losses_of(first, labels)
    metrics["loss"] = float(losses.min(0).values.mean())
    pieces = torch.arange(len(labels)).chunk(TENTHS)
    curves["tenths"] = [100 * oracle_accuracy(first[:, piece], labels[piece]) for piece in pieces]
    curves["tenths loss"] = [float(losses[:, piece].min(0).values.mean()) for piece in pieces]
    matrix = 100 * assignment_matrix(winners(losses), labels, 10)
    there = matrix[~matrix.isnan().any(1)]
    ordered = there.sort(1, descending=True).values
    for j in range(1, len(first) + 1):
        metrics[f"share {j}"] = float(ordered[:, :j].sum(1).mean())
    metrics |= {"sure": float((ordered[:, 0] >= 99.5).sum())}
    metrics |= {"largest": float(there.max()), "smallest": float(there.min())}
    for c, row in enumerate(matrix.tolist()):
        curves[f"class {c}"] = row
    return metrics, curves
