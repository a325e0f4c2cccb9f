"""Table 1: the variance of stochastic gradients around the gradient of the whole training set.

Variational dropout with one learned rate a weight (type B; appendix E: type A, a rate an input unit) is trained in
batches of 1000, the size that the gradients are measured at, by Adam at its defaults. Then the training set is cut into
batches anew, and of some of them the gradient of the log-likelihood, scaled to the whole set, is estimated in each way;
the mean over a layer's weights of the squared distance from the full gradient is kept, one number an estimate. The full
gradient is the mean over the whole set of gradients under local noise, in several passes, since all estimators agree in
expectation; without noise it is exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import counterflow as cf
from counterflow.lab.data import mnist
from counterflow.lab.loop import Batches, train
from counterflow.lab.papers.variational import nets
from counterflow.lab.papers.variational.plan import ESTIMATORS
from counterflow.lab.trials import Context, Outcome
from counterflow.lab.trials.record import write_whole
from counterflow.seeding import seed_of, torch_generator
from counterflow.variational import Estimator

__all__ = ["measure"]

DONE = "variances.json"


def measure(noise: str, seed: int, settings: Mapping[str, Any], context: Context) -> Outcome:
    """Train a net, and measure.

    Args:
        noise: ``"a"`` or ``"b"``.
        seed: Of weights, batches and noise.
        settings: ``width``, ``examples``, ``epochs``, ``batch``, ``batches``.
        context: The trial's.

    Returns:
        ``test``, the test error in percent; curves ``"<estimator> top"`` and ``"<estimator> bottom"``.
    """
    data, count, size = mnist(), settings["examples"], settings["batch"]

    def rows(images: Any) -> Tensor:
        return torch.from_numpy(images.reshape(len(images), -1) / 255.0).float().to(context.device)

    def classes(labels: Any) -> Tensor:
        return torch.from_numpy(labels.copy()).to(context.device)

    images, labels = rows(data.train_images[:count]), classes(data.train_labels[:count])
    tests, answers = rows(data.test_images), classes(data.test_labels)
    net = nets.noisy(nets.perceptron(seed, settings["width"]), f"variational {noise}").to(context.device)
    optimizer = torch.optim.Adam(net.parameters())
    batches = Batches(count, size, seed)

    def loss(step: int) -> Tensor:
        chosen = torch.from_numpy(batches[step]).to(context.device)
        nll = F.cross_entropy(net(images[chosen]), labels[chosen], reduction="none")
        return cf.variational.elbo(nll, net, data_size=count).loss

    def wrong() -> dict[str, float]:
        net.eval()
        with torch.no_grad():
            logits = torch.cat([net(piece) for piece in torch.split(tests, 500)])
        net.train()
        return {
            "error": float(F.cross_entropy(logits, answers)),
            "test": 100 * float((logits.argmax(1) != answers).double().mean()),
        }

    at = range(0, settings["epochs"] * batches.of_epoch + 1, batches.of_epoch)
    curves = train(net, optimizer, loss, wrong, at, context, noise=seed)
    names = [name for name, _ in net.named_parameters() if name.endswith("weight")]
    layers = {"bottom": names[0], "top": names[-1]}
    order = torch.randperm(count, generator=torch_generator(seed, "gradients")).to(context.device)
    parts = [(images[chosen], labels[chosen]) for chosen in torch.split(order, size) if len(chosen) == size]
    path = context.folder / DONE
    found: dict[str, list[float | None]] = json.loads(path.read_text()) if path.exists() else {}
    for number, estimator in enumerate(ESTIMATORS):
        if f"{estimator} top" in found:
            continue

        def told(done: int, number: int = number, estimator: Estimator = estimator) -> None:
            share = (number + done / settings["batches"]) / len(ESTIMATORS)
            context.progress(share, f"gradients, {estimator}")

        torch.manual_seed(seed_of(seed, "gradients", estimator))
        variances = cf.variational.gradient_variance(
            net, F.cross_entropy, parts, estimator, data_size=count, estimates=settings["batches"], progress=told
        )
        found |= {f"{estimator} {layer}": variances[name].tolist() for layer, name in layers.items()}
        write_whole(path, json.dumps(found).encode())
    return Outcome({"test": [curves["test"][-1]]}, {**curves, **found})
