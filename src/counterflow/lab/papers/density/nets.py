"""One net on one split: built at its size, learned and tested; and the error that reaches its hidden Markov models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow import backward
from counterflow.density import (
    Alphanet,
    ComparativeDensityNet,
    ComparativeDensityNet1,
    DensityNet,
    MixtureNet,
    RelativeDensityNet,
    conjugate_gradients,
    matched_sizes,
    train,
)
from counterflow.exceptions import CounterflowError
from counterflow.lab.papers.density.speakers import Half, Split, corpus, one_sentence, split
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import seed_of, torch_generator

__all__ = ["NETS", "build", "descend", "errors", "learn"]

NETS = ("rdn", "alphanet", "mixture", "cdn", "cdn1")
SCALE = 0.1  # of all initial weights behind the models; the paper only says small
STATES = 4
RATES = (0.01, 0.1, 1.0, 10.0)  # of gradient descent: as many for either treatment


def build(settings: Mapping[str, Any], features: int, classes: int, seed: int) -> DensityNet:
    """A net at its matched size, with its own random weights.

    Args:
        settings: ``net``, ``models`` of the relative density net that it is matched to, ``average``, ``scale`` of the
            first weights behind the models, ``first`` (``"random"`` or ``"pairs"``).
        features: Of a frame.
        classes: Speakers.
        seed: Of the weights.
    """
    models, net = settings["models"], settings["net"]
    sizes = matched_sizes(models, classes, features, STATES)
    options: dict[str, Any] = {"time_average": settings["average"], "dtype": torch.float64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "density", "weights"))
        if net == "alphanet":
            return Alphanet(sizes.alphanet_states, features, classes, **options)
        if net == "mixture":
            return MixtureNet(sizes.mixture_components, features, classes, **options)
        if net == "rdn":
            return RelativeDensityNet(models, STATES, features, classes, weight_scale=SCALE, **options)
        if net == "cdn1":
            scale = settings["scale"]
            return ComparativeDensityNet1(models, sizes.cdn1_states, features, classes, weight_scale=scale, **options)
        first = settings["first"]
        hidden = None if first == "pairs" else sizes.hidden
        return ComparativeDensityNet(
            models, STATES, features, classes, hidden, first=first, first_scale=settings["scale"], weight_scale=SCALE,
            **options,
        )  # fmt: skip


def recordings_of(settings: Mapping[str, Any], seed: int) -> Split:
    """The split of a seed; with a ``text`` the seed is the sentence too."""
    every = corpus(settings)
    if settings["text"]:
        every = one_sentence(every, seed, settings["text"] == "mixed")
    return split(every, seed)


def accuracy(net: DensityNet, half: Half) -> float:
    """The share of recordings whose speaker is the likeliest."""
    with torch.no_grad():
        return float((net(half.x, half.lengths).argmax(1) == half.y).double().mean())


def bands(net: DensityNet) -> float:
    """How much models differ in which features have small variances.

    The standard deviation over models of a feature's mean log-variance, relative to the model's own mean; the mean over
    features.
    """
    profile = net.bank.log_variances.detach().mean((1, 2))
    return float((profile - profile.mean(1, keepdim=True)).std(0).mean())


def fresh(settings: Mapping[str, Any], side: Half, classes: int, seed: int) -> DensityNet:
    """A net whose means are frames of its recordings."""
    net = build(settings, side.x.shape[2], classes, seed)
    net.initialize(side.x, side.lengths, side.y, generator=torch_generator(seed, "density", "frames"))
    return net


def learn(settings: Mapping[str, Any], seed: int, context: Context) -> Outcome:
    """Conjugate gradients on one split.

    Args:
        settings: As `build` and `recordings_of` want them, and ``iterations``.
        seed: The split, the weights, and the sentence if there is one.
        context: The trial's.

    Returns:
        ``test`` and ``training`` accuracy, ``loss`` and ``initial loss``, ``evaluations``, ``parameters``, ``bands``,
        ``ratio``; the curve of the loss.
    """
    data = recordings_of(settings, seed)
    side = data.training
    net = fresh(settings, side, int(side.y.max()) + 1, seed)
    iterations = settings["iterations"]
    done = conjugate_gradients(
        net, side.x, side.lengths, side.y, iterations=iterations,
        callback=lambda number, loss: context.progress(number / iterations, f"iteration {number}"),
    )  # fmt: skip
    metrics: dict[str, float] = {
        "test": accuracy(net, data.test),
        "training": accuracy(net, side),
        "loss": done.losses[-1],
        "initial loss": done.losses[0],
        "evaluations": done.evaluations,
        "iterations": done.iterations,
        "parameters": net.n_parameters,
        "bands": bands(net) if net.bank.n_models > 1 else 0.0,
        "ratio": data.ratio,
    }
    return Outcome({name: (value,) for name, value in metrics.items()}, {"loss": done.losses})


def errors(settings: Mapping[str, Any], seed: int, context: Context) -> Outcome:
    """The root mean square of the error at the models, before anything is learned.

    Args:
        settings: As `learn`, and ``scales``: initial weights behind the models.
        seed: The split and the weights.
        context: The trial's.

    Returns:
        ``rdn``, ``alphanet``, ``pairs``; ``cdn S`` and ``cdn1 S`` for each scale S.
    """
    data = recordings_of(settings, seed)
    side = data.training
    classes = int(side.y.max()) + 1
    ways: dict[str, dict[str, Any]] = {
        "rdn": {"net": "rdn"},
        "alphanet": {"net": "alphanet"},
        "pairs": {"net": "cdn", "first": "pairs"},
    }
    for net in ("cdn", "cdn1"):
        ways |= {f"{net} {scale:g}": {"net": net, "scale": scale} for scale in settings["scales"]}
    found = {}
    for number, (name, change) in enumerate(ways.items()):
        each = fresh({"first": "random", "scale": SCALE, **settings, **change}, side, classes, seed)
        found[name] = (rms_at_the_models(each, side),)
        context.progress((number + 1) / len(ways), name)
    return Outcome(found)


def rms_at_the_models(net: DensityNet, side: Half) -> float:
    """Of the summed cross-entropy's error at the bank's log-likelihoods, by the probe."""
    with cf.probe(net, "bank", every=1) as seen:
        F.cross_entropy(net(side.x, side.lengths), side.y, reduction="sum").backward()  # type: ignore[no-untyped-call]
    (row,) = (row for row in seen.table() if row.layer == "bank")
    return float(row.values["rms"] or 0.0)


def descend(settings: Mapping[str, Any], seed: int, context: Context) -> Outcome:
    """Gradient descent with momentum on all recordings, plain or tempered, at the rate that held-out recordings choose.

    Args:
        settings: As `learn`, and ``tempered``. The rate is chosen on a third of the training recordings.
        seed: The split and the weights.
        context: The trial's.

    Returns:
        ``test`` and ``training`` accuracy, ``loss``, ``rate`` and whether it is an ``edge`` of those tried.
    """
    every = corpus(settings)
    tuning, data = split(every, seed, inner=True), split(every, seed)
    classes = every.n_speakers
    scores = []
    for number, rate in enumerate(RATES):
        net, loss = _descended(settings, tuning.training, classes, seed, rate)
        scores.append((accuracy(net, tuning.test), -loss))
        context.progress((number + 1) / (len(RATES) + 1), f"rate {rate:g}")
    best = max(range(len(RATES)), key=lambda index: scores[index])
    net, loss = _descended(settings, data.training, classes, seed, RATES[best])
    metrics = {
        "test": accuracy(net, data.test),
        "training": accuracy(net, data.training),
        "loss": loss if math.isfinite(loss) else None,
        "rate": RATES[best],
        "edge": float(best in (0, len(RATES) - 1)),
        "ratio": data.ratio,
    }
    return Outcome({name: (value,) for name, value in metrics.items()})


def _descended(
    settings: Mapping[str, Any], side: Half, classes: int, seed: int, rate: float
) -> tuple[DensityNet, float]:
    """A net after so many steps, and its loss; infinite, with the net as it began, where it diverged."""
    net = fresh(settings, side, classes, seed)
    began = {name: value.clone() for name, value in net.state_dict().items()}
    if settings["tempered"]:
        groups = tempered_groups(net, side, rate)
    else:
        groups = [{"params": list(net.parameters()), "lr": rate}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    try:
        done = train(net, side.x, side.lengths, side.y, optimizer, iterations=settings["iterations"])
        loss = done.losses[-1]
    except CounterflowError:  # parameters that are no numbers any more
        loss = math.inf
    if not math.isfinite(loss):
        net.load_state_dict(began)
        return net, math.inf
    return net, loss


def tempered_groups(net: DensityNet, side: Half, rate: float) -> list[dict[str, Any]]:
    """Temper a comparative net: errors attenuated by the weights as they are, and a rate for each layer.

    What lies behind the models is tempered by `counterflow.temper`. The models feed the first layer, as linear units
    would: their error is divided by the root of the squared weights that they feed (equation 14, with weights in the
    place of the fan-out), their parameters learn at the rate of units with as many inputs as a frame has features
    (equation 8), and rates are those of one sample of the batch's (equation 18).
    """
    assert isinstance(net, ComparativeDensityNet)
    with torch.no_grad():
        scores = net.scores(side.x, side.lengths)
        fed = float(net.first.weight.square().sum(0).mean().sqrt())
    ceiling = rate / math.sqrt(len(side.y))
    top = nn.Sequential(net.first, nn.Sigmoid(), net.output)
    handle = cf.temper(top, scores, loss="cross_entropy", attenuation="weights", shunt=False)
    cf.attach(net, {"bank": backward.scale(1 / fed)})
    own: list[Tensor] = list(net.bank.parameters())
    return [*handle.param_groups(lr=ceiling), {"params": own, "lr": ceiling / net.bank.n_features}]
