"""Section 5.3: positive and negative reviews, by ten folds within each domain, beside a logistic regression.

Features are the words and pairs of words that are most frequent in the nine folds that are learned from, present or
not. The net's learning rate is the one of five that is best for the other domains, its epochs and schedule are fixed.
The logistic regression chooses its penalty, one of five, inside the nine folds, so that what the net stands beside is
as good as such a baseline gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from counterflow.competition import max_norm
from counterflow.lab.data import Review, sentiment
from counterflow.lab.loop import Batches
from counterflow.lab.papers.competition import nets
from counterflow.lab.papers.competition.digits import schedules_of
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import numpy_generator

__all__ = ["classify", "folds_of"]

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)


def folds_of(positive: NDArray[np.bool_], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Which fold each review belongs to: of each class as many in each, or one more."""
    found = np.empty(len(positive), np.int64)
    for label in (False, True):
        members = np.flatnonzero(positive == label)
        order = numpy_generator(seed, "folds", int(label)).permutation(len(members))
        found[members[order]] = np.arange(len(members)) % folds
    return found


def classify(folds: Sequence[int], settings: Mapping[str, Any], context: Context, beside: bool = True) -> Outcome:
    """Some folds of a domain.

    Args:
        folds: Those that are tested, each after learning from the others; also the seeds of weights and batches.
        settings: ``domain``, ``reviews`` (of each class, at the most), ``titles``, ``units``, ``words``, ``folds``,
            ``batch``, ``epochs``, and the schedule.
        context: The trial's.
        beside: Whether the logistic regression is there, too.

    Returns:
        Accuracies in percent, one a fold: ``lwta all`` and ``logistic all``; ``lwta unique`` and ``logistic unique``
        over the fold's reviews whose text is in none of the other folds; ``repeated``, how many are not counted there.
    """
    reviews = [
        review
        for label in (False, True)
        for review in [r for r in sentiment().examples if r.domain == settings["domain"] and r.positive == label][
            : settings["reviews"]
        ]
    ]
    positive = np.array([review.positive for review in reviews])
    present = _words(reviews, settings["titles"])
    fold = folds_of(positive, settings["folds"])
    metrics: dict[str, list[float | None]] = {}
    for number, tested in enumerate(folds):
        training, testing = np.flatnonzero(fold != tested), np.flatnonzero(fold == tested)
        known = {reviews[i].text for i in training}
        unique = np.array([reviews[i].text not in known for i in testing])
        x = _most_frequent(present, training, settings["words"])
        guesses = {"lwta": _net(x, positive, training, tested, settings)[testing]}
        if beside:
            guesses["logistic"] = _logistic(x[training], positive[training], x[testing])
        for name, guess in guesses.items():
            right = guess == positive[testing]
            metrics.setdefault(f"{name} all", []).append(100 * float(right.mean()))
            metrics.setdefault(f"{name} unique", []).append(100 * float(right[unique].mean()))
        metrics.setdefault("repeated", []).append(float((~unique).sum()))
        context.progress((number + 1) / len(folds), f"fold {tested + 1}")
    return Outcome(metrics)


def _words(reviews: Sequence[Review], titles: bool) -> Any:
    """Which words and pairs of words each review has: a sparse matrix of all that occur."""
    from sklearn.feature_extraction.text import CountVectorizer  # slow to import

    written = [f"{r.title}\n{r.text}" if titles else r.text for r in reviews]
    return CountVectorizer(ngram_range=(1, 2), binary=True, dtype=np.float32).fit_transform(written).tocsr()


def _most_frequent(present: Any, training: NDArray[np.int64], words: int) -> NDArray[np.float32]:
    """The columns that most of the reviews learned from have; the first in the alphabet where as many have them."""
    count = np.asarray(present[training].sum(0)).ravel()
    kept = np.argsort(-count, kind="stable")[:words]
    found: NDArray[np.float32] = present[:, kept[count[kept] > 0]].toarray()
    return found


def _net(
    features: NDArray[np.float32],
    positive: NDArray[np.bool_],
    training: NDArray[np.int64],
    seed: int,
    settings: Mapping[str, Any],
) -> NDArray[np.bool_]:
    x, y = torch.from_numpy(features), torch.from_numpy(positive.astype(np.int64))
    net = nets.texts(seed, x.shape[1], settings["units"])
    optimizer = torch.optim.SGD(net.parameters(), lr=settings["rate"], momentum=settings["momentum"][0], fused=True)
    max_norm(net, optimizer, settings["limit"])
    schedules = schedules_of(optimizer, settings)
    batches = Batches(len(training), settings["batch"], seed)
    for epoch in range(settings["epochs"]):
        for step in range(epoch * batches.of_epoch, (epoch + 1) * batches.of_epoch):
            chosen = torch.from_numpy(training[batches[step]])
            optimizer.zero_grad()
            F.cross_entropy(net(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    with torch.no_grad():
        guess: NDArray[np.bool_] = (net(x).argmax(1) == 1).numpy()
    return guess


def _logistic(x: NDArray[np.float32], positive: NDArray[np.bool_], tested: NDArray[np.float32]) -> NDArray[np.bool_]:
    from scipy.sparse import csr_array
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    model = GridSearchCV(LogisticRegression(solver="liblinear"), {"C": PENALTIES}, cv=3)
    model.fit(csr_array(x), positive)
    guess: NDArray[np.bool_] = model.predict(csr_array(tested))
    return guess
