r"""Figure 2: the Fisher matrix of a small network, and its condition number through training.

A 3-layer tanh MLP with softmax outputs on MNIST scaled down to 10x10. The matrix is that of equation 3 with labels
drawn from the model,

.. math::
    F = \mathbb{E}_{x}\, \mathbb{E}_{y \sim p(y|x)}
        \left[ \nabla_\theta \log p(y|x)\, \nabla_\theta \log p(y|x)^T \right],

in float64, over a fixed set of examples, with respect to the parameters that the method learns: W and b, with PRONG V
and d, with batch normalization W and its scale and shift, its statistics held at those of the examples.

Some eigenvalues are zero whatever a method does. Pixels at the border are (nearly) constant: those whose deviation is
below `CONSTANT` are left out, since how near to zero their eigenvalues come depends on a handful of pictures. A softmax
takes no notice of a constant: the condition number is the largest eigenvalue over the smallest that is above `ZERO`
times the largest, which is rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.data import mnist
from counterflow.lab.loop import Batches
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import numpy_generator, torch_generator

__all__ = ["METHODS", "build", "condition_number", "conditioning", "fisher_matrix", "small_pictures"]

METHODS = ("sgd", "rmsprop", "bn", "prong")
MOMENTUM = 0.9
CONSTANT = 0.05  # of the full ink
ZERO = 1e-12
SELECTION = 100  # the seed that rates are chosen on


@functools.lru_cache(maxsize=1)
def small_pictures() -> tuple[Tensor, Tensor]:
    """MNIST's training pictures at 10x10 pixels, without those that are constant, in float64, and their labels.

    A pixel is the mean over its square of 2.8 pixels' side, and covers parts of some.
    """
    data = mnist()
    fine, coarse = data.train_images.shape[1], 10
    edges = np.linspace(0, fine, coarse + 1)
    share = np.clip(
        np.minimum(edges[1:, None], np.arange(1, fine + 1)) - np.maximum(edges[:-1, None], range(fine)), 0, 1
    )
    share /= share.sum(1, keepdims=True)
    wide = (data.train_images.reshape(-1, fine) / 255.0 @ share.T).reshape(-1, fine, coarse)
    small = share @ wide
    rows = torch.from_numpy(small.reshape(len(small), -1))
    return rows[:, rows.std(0) >= CONSTANT], torch.from_numpy(data.train_labels.copy())


def build(seed: int, pixels: int, hidden: int, normalized: bool) -> nn.Sequential:
    """Two hidden layers of tanh, ten logits; float64, fan-in initialization."""
    generator = torch_generator(seed, "weights")
    sizes = (pixels, hidden, hidden, 10)
    modules: list[nn.Module] = []
    for number in range(3):
        # Batch normalization has its own shift, beside which a bias would be one more zero eigenvalue.
        linear = nn.Linear(sizes[number], sizes[number + 1], bias=not (normalized and number < 2), dtype=torch.float64)
        with torch.no_grad():
            linear.weight.normal_(0.0, sizes[number] ** -0.5, generator=generator)
            if linear.bias is not None:
                linear.bias.zero_()
        modules.append(linear)
        if number < 2:
            modules += [nn.BatchNorm1d(sizes[number + 1], dtype=torch.float64)] if normalized else []
            modules.append(nn.Tanh())
    return nn.Sequential(*modules)


def _gradients(model: nn.Module, x: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """Gradients of log p(y | x), one row an example with its y drawn, and which module each column belongs to."""
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    hooks = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0].detach(), output

        return hook

    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.BatchNorm1d)}
    for name, layer in layers.items():
        hooks.append(layer.register_forward_hook(keep(name)))
    logits = model(x)
    for hook in hooks:
        hook.remove()
    chosen = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
    # No example looks at another one's, so the gradient of the sum is every example's own.
    errors = torch.autograd.grad(logits.log_softmax(1).gather(1, chosen).sum(), list(outputs.values()))
    parts, owners = [], []
    for (name, layer), error in zip(layers.items(), errors, strict=True):
        h = inputs[name]
        if isinstance(layer, nn.Linear):
            part = torch.einsum("nk,nm->nkm", error, _whitened(layer, h)).flatten(1)
            of_layer = [part] if layer.bias is None else [part, error]
        else:
            assert isinstance(layer, nn.BatchNorm1d)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            of_layer = [error * (h - layer.running_mean) / (layer.running_var + layer.eps).sqrt(), error]
        for part in of_layer:
            parts.append(part)
            owners += [name] * part.shape[1]
    return torch.cat(parts, 1), owners


def _whitened(layer: nn.Linear, h: Tensor) -> Tensor:
    """The inputs as the learned weights see them: U(h - c) in a whitened layer.

    The metric P is all that the canonical form keeps of U; its symmetric root is a U, and the eigenvalues of the
    Fisher matrix do not depend on which.
    """
    if not hasattr(layer, "whiten_metric"):
        return h
    mean, metric = layer.get_buffer("whiten_mean")[0], layer.get_buffer("whiten_metric")[0]
    values, vectors = torch.linalg.eigh(metric)
    white: Tensor = (h - mean) @ (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    return white


def fisher_matrix(model: nn.Module, x: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """The Fisher matrix, and the module that each row belongs to.

    Args:
        model: Built by `build`, whitened or not.
        x: The examples.
        generator: Labels are drawn from it.
    """
    gradients, owners = _gradients(model.eval(), x, generator)
    model.train()
    return gradients.T @ gradients / len(x), owners


def condition_number(matrix: Tensor) -> float:
    """Largest eigenvalue over the smallest that is not zero but for rounding.

    Example:
        >>> condition_number(torch.diag(torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64)))
        2.0
    """
    values = torch.linalg.eigvalsh(matrix)
    return float(values[-1] / values[values > ZERO * values[-1]][0])


def _train(
    method: str,
    seed: int,
    rate: float,
    settings: Mapping[str, Any],
    look: Callable[[int, nn.Module], None] = lambda update, model: None,
    at: Sequence[int] = (),
) -> float:
    """Train, look at some updates (at 0 before and after the first projection), and return the training error."""
    pictures, labels = (part[: settings["examples"]] for part in small_pictures())
    model = build(seed, pictures.shape[1], settings["hidden"], method == "bn")
    batches = Batches(len(pictures), settings["batch"], seed)
    if method == "rmsprop":
        optimizer: torch.optim.Optimizer = torch.optim.RMSprop(model.parameters(), lr=rate, momentum=MOMENTUM)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)
    if method == "bn":
        _settle(model, pictures)
    look(-1, model)
    if method == "prong":
        cf.whiten(model, optimizer, every=settings["every"], epsilon=settings["epsilon"], loader=[pictures])
    for update in range(settings["updates"] + 1):
        if update in at:
            if method == "bn":
                _settle(model, pictures)
            look(update, model)
        if update < settings["updates"]:
            chosen = torch.from_numpy(batches[update])
            optimizer.zero_grad()
            F.cross_entropy(model(pictures[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()
    if method == "bn":
        _settle(model, pictures)
        model.eval()
    with torch.no_grad():
        return float(F.cross_entropy(model(pictures), labels))


def _settle(model: nn.Module, pictures: Tensor) -> None:
    """Give batch normalization the statistics of all examples, in place of a running mean."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean, of one batch
    model.train()
    with torch.no_grad():
        model(pictures)
    for norm in norms:
        norm.momentum = 0.1


def conditioning(method: str, seed: int, settings: Mapping[str, Any], context: Context) -> Outcome:
    """One method: its condition number through training, at the rate that brings it to a given training error.

    Args:
        method: One of `METHODS`.
        seed: Of weights, batches and labels.
        settings: ``hidden``, ``examples``, ``fisher`` (examples behind the matrix), ``batch``, ``updates``, ``rates``,
            ``target``, ``every``, ``epsilon``, ``points``.
        context: The trial's.

    Returns:
        ``first`` and ``last``: the condition number after the first reparametrization, and at the end, over the
        initial one; ``error``, ``rate``; the curve; with PRONG also the middle layer's block before and after.
    """
    target = settings["target"]
    errors = {rate: _train(method, SELECTION, rate, settings) for rate in settings["rates"][method]}
    rate = min(errors, key=lambda r: abs(errors[r] - target) if errors[r] == errors[r] else float("inf"))
    context.progress(0.3, f"rate {rate:g}")
    found: dict[int, float] = {}
    blocks: dict[str, list[float | None]] = {}
    chosen = numpy_generator(seed, "fisher").permutation(settings["examples"])[: settings["fisher"]]
    examples = small_pictures()[0][torch.from_numpy(chosen)]

    def look(update: int, model: nn.Module) -> None:
        matrix, owners = fisher_matrix(model, examples, torch_generator(seed, "labels"))
        found[update] = condition_number(matrix)
        if method == "prong" and update <= 0:
            middle = sorted(set(owners), key=owners.index)[1]
            rows = [i for i, owner in enumerate(owners) if owner == middle][: settings["drawn"]]
            blocks["before" if update < 0 else "after"] = matrix[rows][:, rows].abs().flatten().tolist()
        context.progress(0.3 + 0.7 * max(update, 0) / settings["updates"], f"update {update}")

    every = max(1, settings["updates"] // settings["points"])
    error = _train(method, seed, rate, settings, look, range(0, settings["updates"] + 1, every))
    initial = found.pop(-1)
    curves = {"update": [float(u) for u in found], "condition": [value / initial for value in found.values()]}
    last = found[max(found)] / initial
    metrics = {"first": [found[0] / initial], "last": [last], "initial": [initial], "error": [error], "rate": [rate]}
    return Outcome(metrics, {**curves, **blocks})
