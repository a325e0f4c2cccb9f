"""What a user would try instead: a linear classifier on the mean spectrum, a small recurrent net, and hmmlearn.

Nothing is tuned for any of them, as nothing is for the nets of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from counterflow.density import matched_sizes
from counterflow.exceptions import MissingExtraError
from counterflow.lab.papers.density.nets import STATES, recordings_of
from counterflow.lab.papers.density.speakers import Half
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import seed_of, torch_generator

__all__ = ["PEERS", "compare"]


def compare(name: str, settings: Mapping[str, Any], seed: int, context: Context) -> Outcome:
    """One of the peers on one split.

    Args:
        name: ``"linear"``, ``"gru"`` or ``"hmmlearn"``.
        settings: As the nets', with ``epochs`` of the recurrent net and ``fitting`` steps of Baum-Welch.
        seed: The split and the weights.
        context: The trial's.

    Returns:
        ``test`` and ``training`` accuracy.

    Raises:
        MissingExtraError: hmmlearn is asked for and not installed.
    """
    data = recordings_of(settings, seed)
    training, test = PEERS[name](data.training, data.test, settings, seed, context)
    return Outcome({"training": (training,), "test": (test,), "ratio": (data.ratio,)})


def _share(found: NDArray[np.int64] | Tensor, half: Half) -> float:
    return float((np.asarray(found) == half.y.numpy()).mean())


def _linear(
    training: Half, test: Half, settings: Mapping[str, Any], seed: int, context: Context
) -> tuple[float, float]:
    """Logistic regression on each recording's mean features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # What is behind a recording's end is zero.
    means = [(half.x.sum(1) / half.lengths[:, None]).numpy() for half in (training, test)]
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(means[0], training.y.numpy())
    return _share(linear.predict(means[0]), training), _share(linear.predict(means[1]), test)


class _Recurrent(nn.Module):
    """Gated recurrent units, and a linear layer on their mean over time."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.units = nn.GRU(features, hidden, batch_first=True)
        self.output = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.units(x)
        inside = (torch.arange(x.shape[1]) < lengths[:, None]).unsqueeze(-1)
        out: Tensor = self.output((states * inside).sum(1) / lengths[:, None])
        return out


def _gru(training: Half, test: Half, settings: Mapping[str, Any], seed: int, context: Context) -> tuple[float, float]:
    """A recurrent net of at most as many parameters as the relative density net, by Adam."""
    classes, features = int(training.y.max()) + 1, training.x.shape[2]
    target = matched_sizes(settings["models"], classes, features, STATES).parameters
    # 3 H^2 + (3 D + 6 + K) H + K parameters
    linear = 3 * features + 6 + classes
    hidden = max(1, int((math.sqrt(linear**2 + 12 * (target - classes)) - linear) / 6))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "density", "weights"))
        net = _Recurrent(features, hidden, classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    order = torch_generator(seed, "density", "order")
    x, epochs = training.x.float(), settings["epochs"]
    for epoch in range(epochs):
        for batch in torch.split(torch.randperm(len(x), generator=order), 32):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch], training.lengths[batch]), training.y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        context.progress((epoch + 1) / epochs, f"epoch {epoch + 1}")
    with torch.no_grad():
        found = [net(half.x.float(), half.lengths).argmax(1) for half in (training, test)]
    return _share(found[0], training), _share(found[1], test)


def _hmmlearn(
    training: Half, test: Half, settings: Mapping[str, Any], seed: int, context: Context
) -> tuple[float, float]:
    """One model a speaker, of the Alphanet's size, each fitted by Baum-Welch to its own recordings."""
    try:
        from hmmlearn.hmm import GaussianHMM
    except ImportError as error:
        raise MissingExtraError("dev", "the comparison with hmmlearn") from error
    classes, features = int(training.y.max()) + 1, training.x.shape[2]
    states = matched_sizes(settings["models"], classes, features, STATES).alphanet_states
    scores = [np.zeros((len(half.y), classes)) for half in (training, test)]
    for speaker in range(classes):
        mine = [x[:n].numpy() for x, n, y in zip(training.x, training.lengths, training.y, strict=True) if y == speaker]
        model = GaussianHMM(states, "diag", n_iter=settings["fitting"], random_state=seed, implementation="scaling")
        model.fit(np.concatenate(mine), [len(each) for each in mine])
        for half, score in zip((training, test), scores, strict=True):
            for index, (x, n) in enumerate(zip(half.x, half.lengths, strict=True)):
                score[index, speaker] = model.score(x[:n].numpy())
        context.progress((speaker + 1) / classes, f"speaker {speaker + 1}")
    return _share(scores[0].argmax(1), training), _share(scores[1].argmax(1), test)


PEERS = {"linear": _linear, "gru": _gru, "hmmlearn": _hmmlearn}
