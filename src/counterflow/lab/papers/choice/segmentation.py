"""Figure 5: a small segmenter on CamVid by each method.

The paper has PASCAL VOC and FCN on a pretrained net; here are street scenes of half CamVid's stored size, and a net
that begins from nothing. sMCL starts from a trained plain ensemble, as in the paper, and is fine-tuned for three tenths
of its epochs; the plain ensemble that it is compared with is trained on for as long at the same rate, and so are the
others' last epochs. Adam takes the place of SGD, since no weights are given that a rate would belong to. The last rate
is a tenth of the first and not a hundredth: without pretrained weights so few epochs would move nothing. Unlabeled
pixels do not count. Every scene holds nearly all classes, so who wins whole pictures can say little of classes here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import counterflow as cf
from counterflow.choice import oracle_mean_iou, winners
from counterflow.lab.data import camvid
from counterflow.lab.loop import Batches, Curves, moved
from counterflow.lab.papers.choice.ensembles import Part, Problem, alternate, fit, in_turn
from counterflow.lab.papers.choice.nets import Segmenter, pixel_losses
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import seed_of

__all__ = ["learn", "scenes"]

CLASSES, IGNORED = 11, 11
RATE, FINE = 1e-3, 0.1
BATCH = 8


@functools.lru_cache(maxsize=1)
def scenes(examples: int, tested: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Pictures, ``(scenes, 3, 60, 80)``, and masks, ``(scenes, 60, 80)``, for training and testing."""
    data = camvid()
    found = {}
    for name, split, count in (("train", data.train, examples), ("test", data.test, tested)):
        chosen = torch.arange(len(split))[:: max(len(split) // count, 1)][:count]
        images = torch.tensor(split.images)[chosen].permute(0, 3, 1, 2).float()
        halved = nn.functional.avg_pool2d(images, 2) / 64 - 2
        found[name] = halved, torch.tensor(split.masks)[chosen][:, ::2, ::2].long()
    return found


def losses(out: Tensor, masks: Tensor) -> Tensor:
    """Per-example losses."""
    return pixel_losses(out, masks, IGNORED)


def predicted(net: nn.Module, x: Tensor) -> Tensor:
    """A member's classes of all pixels."""
    with torch.no_grad():
        return torch.cat([net(piece).argmax(1) for piece in torch.split(x, 32)])


def learn(method: str, seed: int, settings: Mapping[str, Any], context: Context) -> Outcome:
    """One seed's ensembles.

    Args:
        method: ``"warm"``: a plain ensemble, and fine-tuned from it sMCL of each of ``sizes`` and the plain ensemble;
            ``"dey"`` or ``"mcl"``.
        seed: Of weights and batches.
        settings: ``members``, ``sizes``, ``epochs`` and ``fine`` (epochs of fine-tuning), ``rounds``, ``examples``,
            ``tested``.
        context: The trial's.

    Returns:
        ``METHOD m``, the oracle mean IoU of m members in percent; of ``warm``, ``share m`` for each ensemble of m
        members, the share of a class's scenes that go to the member with most of them, in percent and averaged, and
        curves ``class c of m`` of the matrix.
    """
    parts = moved(scenes(settings["examples"], settings["tested"]), context)
    x, y = parts["train"]
    batches = Batches(len(x), BATCH, seed)
    share = settings["epochs"] / (settings["epochs"] + settings["fine"])
    problem = Problem(
        batches=batches,
        batch=lambda rows: (x[rows], y[rows]),
        loss=losses,
        optimizer=lambda net: torch.optim.Adam(net.parameters(), RATE),
        updates=(settings["epochs"] + settings["fine"]) * batches.of_epoch,
        losses=lambda ensemble: ensemble.losses(x[:32], y[:32], losses),
        examples=len(x),
        rate=lambda done: 1.0 if done < share or method == "warm" else FINE,
    )
    nets: list[nn.Module] = [
        Segmenter(CLASSES, seed_of(seed, "member", number)).to(context.device) for number in range(settings["members"])
    ]
    if method == "warm":
        return _warm(nets, problem, settings, parts["test"], context)
    curves: Curves
    if method == "dey":
        turn, of = in_turn(nets, problem, context, lambda net: _ious(predicted(net, x), y))
        curves = {"mean weight": turn.mean_weight.tolist(), "gradient": [part["gradient 0"][-1] for part in of]}
        return Outcome(_oracles("dey", nets, parts["test"], range(1, len(nets) + 1)), curves)

    def measure(ensemble: cf.MultipleChoice) -> Tensor:
        with torch.no_grad():
            pieces = zip(torch.split(x, 32), torch.split(y, 32), strict=True)
            return torch.cat([ensemble.losses(inputs, masks, losses) for inputs, masks in pieces], 1)

    done, of = alternate(cf.MultipleChoice(nets), problem, context, measure, settings["rounds"])
    curves = {"error": [part["error"][-1] for part in of], "entropy": [float(each.entropy) for each in done]}
    return Outcome(_oracles("mcl", nets, parts["test"], [len(nets)]), curves)


def _warm(
    nets: list[nn.Module], problem: Problem, settings: Mapping[str, Any], test: tuple[Tensor, Tensor], context: Context
) -> Outcome:
    of_epoch, members = problem.batches.of_epoch, len(nets)
    begin, more = settings["epochs"] * of_epoch, settings["fine"] * of_epoch
    share = 0.7 if settings["fine"] else 1.0
    plain = cf.MultipleChoice(nets, k=members)
    curves = fit(plain, problem, Part(context, "start", 0.0, share), updates=begin)
    start = [{name: value.clone() for name, value in net.state_dict().items()} for net in nets]
    metrics: dict[str, list[float | None]] = {}
    stages = [("independent", members), *(("smcl", size) for size in settings["sizes"])]
    for number, (method, size) in enumerate(stages):
        for net, state in zip(nets, start, strict=True):
            net.load_state_dict(state)
        tuned = cf.MultipleChoice(nets[:size], k=members if method == "independent" else 1)
        part = Part(context, f"{method} {size}", share + (1 - share) * number / len(stages), (1 - share) / len(stages))
        found = fit(tuned, problem, part, first=begin, updates=more, factor=FINE)
        sizes = range(1, size + 1) if method == "independent" else [size]
        metrics |= _oracles(method, nets, test, sizes)
        if method == "smcl":
            curves |= {f"{name} {size}": found[name] for name in ("entropy", "dead", "error")}
            matrix = _matrix(nets[:size], test)
            metrics[f"share {size}"] = [float(matrix[~matrix.isnan().any(1)].max(1).values.mean())]
            for c, row in enumerate(matrix.tolist()):
                curves[f"class {c} of {size}"] = row
    return Outcome(metrics, curves)


def _oracles(
    method: str, nets: list[nn.Module], test: tuple[Tensor, Tensor], sizes: Any
) -> dict[str, list[float | None]]:
    x, y = test
    classes = torch.stack([predicted(net, x) for net in nets])
    return {f"{method} {size}": [100 * oracle_mean_iou(classes[:size], y, CLASSES, IGNORED)] for size in sizes}


def _ious(classes: Tensor, masks: Tensor) -> Tensor:
    """The mean intersection over union of each scene."""
    pairs = zip(classes, masks, strict=True)
    found = [oracle_mean_iou(c[None, None], m[None], CLASSES, IGNORED) for c, m in pairs]
    return torch.tensor(found, device=masks.device)


def _matrix(nets: list[nn.Module], test: tuple[Tensor, Tensor]) -> Tensor:
    """Which share of the scenes that hold a class has its best segmentation by each member, in percent."""
    x, y = test
    best = winners(-torch.stack([_ious(predicted(net, x), y) for net in nets])).double()
    holds = torch.stack([(y == c).flatten(1).any(1) for c in range(CLASSES)]).double()
    return 100 * (holds @ best.T) / holds.sum(1, keepdim=True)
