"""The acoustic models that are compared, all trained through the alignment from a flat start.

Costs are in nats, so that one grid of grammar scales and word penalties serves all: Gaussians give them, and squared
distances of predictions are divided by twice the mean squared error of a coefficient along training utterances.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from counterflow.lab.papers.speech.corpora import Corpus
from counterflow.seeding import torch_generator
from counterflow.speech import (
    GaussianStates,
    Lexicon,
    Linkage,
    Phoneme,
    PredictorBank,
    add_deltas,
    in_context,
    own_phones,
    train_corrective,
    train_gaussians,
    train_predictors,
)

__all__ = [
    "BUILT_ON",
    "CONFIGS",
    "FUNCTION_WORDS",
    "HAND_MODELS",
    "LABELS",
    "Fitted",
    "bank_of",
    "configured",
    "fit",
    "topology",
]

SIX = Phoneme(6, 3, skip=True)
TWO = Phoneme(2, 2, skip=False)
THREE = Phoneme(3, 3, skip=False)
MEASURED = 100  # training utterances, at most, that tell how large an error is

LABELS: Mapping[str, str] = {
    "lpnn": "predictive networks",
    "corrective": "the same after corrective training",
    "context": "the same, phonemes in context",
    "function": "the same, function words of their own",
    "linear": "linear predictors",
    "gaussian": "Gaussians",
    "gaussian delta": "Gaussians with deltas",
    "two states": "2 states a phoneme",
    "hidden control": "the same by hidden control",
    "global": "one network for everything",
    "mixture": "mixtures of Gaussians",
}
TOPOLOGY: Mapping[str, Phoneme] = {"two states": TWO, "hidden control": TWO, "global": TWO, "mixture": THREE}

# Settings that the sweep tries: six for every model. The last two go on where the best of the first four was outermost.
CONFIGS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    **{
        name: [
            {"hidden": hidden, "lr": lr}
            for hidden, lr in ((8, 0.003), (16, 0.003), (16, 0.01), (32, 0.01), (4, 0.003), (8, 0.001))
        ]
        for name in ("lpnn", "two states", "hidden control")
    },
    "linear": [{"window": window, "lr": lr} for lr in (0.003, 0.01, 0.03) for window in (2, 3)],
    "global": [
        {"hidden": hidden, "lr": lr}
        for hidden, lr in ((64, 0.003), (64, 0.01), (128, 0.003), (128, 0.01), (256, 0.01), (128, 0.03))
    ],
    **{
        name: [{"min_variance": floor} for floor in (0.005, 0.02, 0.05, 0.2, 0.1, 0.4)]
        for name in ("gaussian", "gaussian delta")
    },
    "mixture": [
        {"min_variance": floor, "components": count}
        for floor, count in ((0.02, 8), (0.02, 16), (0.1, 8), (0.1, 16), (0.2, 16), (0.1, 32))
    ],
}
# What is compared with labels by hand: those that align by themselves, with settings that nothing has chosen.
HAND_MODELS: Mapping[str, Mapping[str, Any]] = {
    "lpnn": {"hidden": 16, "lr": 0.01},
    "gaussian": {"min_variance": 0.1},
    "mixture": {"min_variance": 0.1, "components": 8},
}
# Built on the networks: the settings that were chosen for those are theirs, with a scale and a penalty of their own.
BUILT_ON = {"corrective": "lpnn", "context": "lpnn", "function": "lpnn"}
FUNCTION_WORDS = tuple(
    "A AN AND ARE AT BE FOR FROM HAS HAVE IF IN IS IT NOT OF OFF ON OR THAT THE THIS TO WILL YOU YOUR".split()  # noqa: SIM905
)


def configured(model: str) -> str:
    """The model whose settings a model takes."""
    return BUILT_ON.get(model, model)


def topology(model: str) -> Phoneme:
    """The states of its phonemes."""
    return TOPOLOGY.get(model, SIX)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained model.

    Args:
        lexicon: Its pronunciations, perhaps of phonemes in context.
        phoneme: The states of each phoneme.
        distances: Distances as trained on, from the features of an utterance.
        unit: What makes nats of them.
        bank: The predictors; None for Gaussians.
        parameters: How many numbers were learned.
        seconds: Processor time of training.
    """

    lexicon: Lexicon
    phoneme: Phoneme
    distances: Callable[[Tensor], Tensor]
    unit: float
    bank: PredictorBank | None
    parameters: int
    seconds: float

    def costs(self, x: Tensor) -> Tensor:
        """Costs in nats, shape (time, states)."""
        return self.distances(x) * self.unit


def bank_of(model: str, phones: int, features: int, config: Mapping[str, Any], seed: int) -> PredictorBank:
    """Untrained predictors."""
    per = topology(model).predictors
    networks, states = {"hidden control": (phones, per), "global": (1, phones * per)}.get(model, (phones * per, 1))
    return PredictorBank(
        networks,
        features,
        states=states,
        window=config.get("window", 2),
        hidden=config.get("hidden", 16),
        kind="linear" if model == "linear" else "perceptron",
        generator=torch_generator(seed, "weights"),
    )


def fit(model: str, corpus: Corpus, chosen: Sequence[int], config: Mapping[str, Any], seed: int) -> Fitted:
    """Train one.

    Args:
        model: One of `LABELS`.
        corpus: The corpus.
        chosen: Utterances to learn from.
        config: ``hidden``, ``lr``, ``window``, ``passes``, ``min_variance``, ``components``: those that the model
            knows.
        seed: Of weights and order.
    """
    began = time.process_time()
    lexicon, phoneme = corpus.lexicon, topology(model)
    texts = [corpus.texts[index] for index in chosen]
    if model == "context":
        lexicon = in_context(lexicon, texts)
    elif model == "function":
        lexicon = own_phones(lexicon, [word for word in FUNCTION_WORDS if word in lexicon])
    patterns = [Linkage(text, lexicon, phoneme) for text in texts]
    utterances = [corpus.features[index] for index in chosen]
    passes = int(config.get("passes", 10))
    if model in ("gaussian", "gaussian delta", "mixture"):
        orders = {"gaussian": 0, "gaussian delta": 1}.get(model, 2)

        def seen(x: Tensor) -> Tensor:
            return add_deltas(x, orders=orders) if orders else x

        utterances = [seen(x) for x in utterances]
        states = GaussianStates(
            len(lexicon.phones) * phoneme.predictors, utterances[0].shape[1], int(config.get("components", 1))
        )
        train_gaussians(states, utterances, patterns, passes=passes, min_variance=config["min_variance"])
        count = int(torch.isfinite(states.get_buffer("log_weights")).sum()) * (2 * states.n_features + 1)
        return Fitted(lexicon, phoneme, lambda x: states.costs(seen(x)), 1.0, None, count, time.process_time() - began)
    bank = bank_of(model, len(lexicon.phones), utterances[0].shape[1], config, seed)
    order = torch_generator(seed, "order")
    # As many passes for all: corrective training has its passes out of them.
    corrective = max(1, passes // 6) if model == "corrective" else 0
    train_predictors(bank, utterances, patterns, passes=passes - corrective, lr=config["lr"], generator=order)
    if corrective:
        train_corrective(bank, utterances, patterns, passes=corrective, generator=order)
    count = sum(each.numel() for each in bank.parameters())
    some = range(0, len(utterances), -(-len(utterances) // MEASURED))
    error = sum(patterns[index].align(bank.costs(utterances[index]))[1] for index in some)
    unit = utterances[0].shape[1] * sum(len(utterances[index]) for index in some) / (2 * error)
    return Fitted(lexicon, phoneme, bank.costs, unit, bank, count, time.process_time() - began)
