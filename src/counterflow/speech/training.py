"""Training through the alignment: forward pass, alignment, backward pass, over and over.

Source: J. Tebelskis, A. Waibel, B. Petek, O. Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural
Networks", NIPS 1990, section 2.1. How it begins, the optimizer, the rate and the number of passes are not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from counterflow.exceptions import DivergenceError, InputError
from counterflow.speech.classifier import StateClassifier
from counterflow.speech.gaussians import GaussianStates
from counterflow.speech.lexicon import Linkage, brief
from counterflow.speech.predictors import PredictorBank
from counterflow.speech.resume import Checkpoint, optimizer_state, restore

__all__ = [
    "Discrimination",
    "discrimination",
    "flat_start",
    "train_classifier",
    "train_gaussians",
    "train_predictors",
]


def flat_start(pattern: Linkage, frames: int) -> Tensor:
    """An alignment to begin from: equal time for each phoneme of the first pronunciation of each word, and silence.

    Args:
        pattern: The linkage pattern.
        frames: How many frames the utterance has.

    Returns:
        The predictor of each frame, shape (frames,).

    Raises:
        InputError: If there are too few frames.

    Example:
        >>> from counterflow.speech import Lexicon, Phoneme
        >>> flat_start(Linkage(["A"], Lexicon({"A": [("A",)]}), Phoneme(1, 1), silence=False), 4).tolist()
        [1, 1, 1, 1]
    """
    if frames < pattern.least_frames:
        raise InputError(
            f"{brief(pattern.words)!r} takes {pattern.least_frames} frames or more, and there are "
            f"{frames}: the transcript is too long for its audio"
        )
    states = pattern.first_pronunciations()
    states = states[torch.arange(frames) * len(states) // frames]
    return torch.from_numpy(pattern.units)[states]


def _checked(utterances: Sequence[Tensor], patterns: Sequence[Linkage], passes: int) -> None:
    if not utterances or len(utterances) != len(patterns):
        raise InputError(f"as many utterances as patterns are needed, got {len(utterances)} and {len(patterns)}")
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
        raise InputError(f"passes must be a whole number from 1 on, got {passes!r}")


def _aligned(pattern: Linkage, costs: Tensor, named: Linkage | None = None) -> tuple[Tensor, float]:
    states, cost = pattern.align(costs)
    return torch.from_numpy((named or pattern).units)[states], cost


def _all_aligned(
    model: GaussianStates,
    utterances: Sequence[Tensor],
    patterns: Sequence[Linkage],
    named: Sequence[Linkage] | None = None,
) -> tuple[list[Tensor], float]:
    """The states of all utterances and their summed cost, as many at once as torch has threads.

    ``named`` are the same patterns with other names of their states, which the states are called by.
    """

    def one(x: Tensor, pattern: Linkage, name: Linkage) -> tuple[Tensor, float]:
        # States of other phonemes have no part in the alignment.
        return _aligned(pattern, model.costs(x, torch.from_numpy(np.unique(pattern.units))), name)

    names = patterns if named is None else named

    threads = torch.get_num_threads()
    if threads == 1:
        found = [one(*each) for each in zip(utterances, patterns, names, strict=True)]
    else:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(one, utterances, patterns, names))
    return [path for path, _ in found], sum(cost for _, cost in found)


def _networks(bank: PredictorBank, pattern: Linkage) -> Tensor:
    """The networks of a pattern's phonemes."""
    return torch.from_numpy(np.unique(pattern.units // bank.states))


def train_gaussians(
    model: GaussianStates,
    utterances: Sequence[Tensor],
    patterns: Sequence[Linkage],
    *,
    passes: int = 8,
    min_variance: float = 0.05,
    report: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[float]:
    """Fit Gaussian states and align in turn, from a flat start.

    All but the last two passes have one Gaussian a state.

    Args:
        model: The states; it is changed in place.
        utterances: Each of shape (time, features).
        patterns: Their linkage patterns.
        passes: Alignments.
        min_variance: No variance goes below this share of that of all frames.
        report: Called after each pass with its number and cost.
        checkpoint: Where the state is kept after each pass, and gone on from.

    Returns:
        The mean cost of a frame at each alignment, in nats.

    Raises:
        InputError: If there is nothing to train on, or a transcript is too long for its audio.

    Example:
        >>> from counterflow.speech import Lexicon, Phoneme
        >>> lexicon, phoneme = Lexicon({"AB": [("A", "B")]}), Phoneme(1, 1)
        >>> draw, steps = torch.Generator().manual_seed(0), torch.tensor([[0.0]] * 4 + [[5.0]] * 4)
        >>> x = [steps + 0.1 * torch.randn(8, 1, generator=draw) for _ in range(2)]
        >>> patterns = [Linkage(["AB"], lexicon, phoneme)] * 2
        >>> costs = train_gaussians(GaussianStates(len(lexicon.phones), 1), x, patterns, passes=3)
        >>> len(costs), costs[-1] <= costs[0]
        (3, True)
    """
    _checked(utterances, patterns, passes)
    paths = [flat_start(pattern, len(x)) for x, pattern in zip(utterances, patterns, strict=True)]
    frames = sum(map(len, utterances))
    found: list[float] = []
    whole = model.n_components
    if checkpoint is not None:
        found, held = checkpoint.over("gaussians") or checkpoint.load("gaussians")
        if held:
            with checkpoint.readable():
                paths = list(torch.split(held["paths"].long(), [len(x) for x in utterances]))
    for number in range(len(found), passes):
        single = GaussianStates(model.n_states, model.n_features).to(utterances[0])
        fitted = single if number < passes - 2 and whole > 1 else model
        fitted.fit(utterances, paths, min_variance=min_variance)
        paths, total = _all_aligned(fitted, utterances, patterns)
        found.append(total / frames)
        if checkpoint is not None:
            checkpoint.save("gaussians", found, {"paths": torch.cat(paths)})
        if report is not None:
            report(number, found[-1])
    if checkpoint is not None and checkpoint.over("gaussians") is None:
        checkpoint.end("gaussians", found, {"paths": torch.cat(paths)})
    model.fit(utterances, paths, min_variance=min_variance)
    return found


def train_classifier(
    model: StateClassifier,
    utterances: Sequence[Tensor],
    patterns: Sequence[Linkage],
    helper: GaussianStates,
    heard: Sequence[Tensor] | None = None,
    *,
    named: Sequence[Linkage] | None = None,
    passes: int = 8,
    lr: float = 0.003,
    batch: int | None = None,
    generator: torch.Generator | None = None,
    report: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[float]:
    """Train a classifier on the alignment that other models have found.

    Args:
        model: The classifier; it is changed in place.
        utterances: Each of shape (time, features).
        patterns: Their linkage patterns.
        helper: Trained Gaussians, which align.
        heard: What the helper sees of the utterances, where its features are others.
        named: The patterns in a lexicon that tells more phones apart than the helper's, such as `in_context` makes of
            it; then these are what the classifier learns.
        passes: Over all frames.
        lr: The first learning rate.
        batch: Frames a step, as `StateClassifier.fit`.
        generator: Of the order of the frames and of the units that are left out.
        report: Called after each pass with its number and cross-entropy.
        checkpoint: Where the state is kept after each pass, and gone on from.

    Returns:
        The mean cross-entropy in each pass, in nats.

    Raises:
        DivergenceError: If the cross-entropy of a pass is not finite.
        InputError: If there is nothing to train on, a number is out of range, or a transcript is too long for its
            audio.

    Example:
        >>> from counterflow.speech import Lexicon, Phoneme
        >>> lexicon, phoneme = Lexicon({"AB": [("A", "B")]}), Phoneme(1, 1)
        >>> draw, steps = torch.Generator().manual_seed(0), torch.tensor([[0.0]] * 4 + [[5.0]] * 4)
        >>> x = [steps + 0.1 * torch.randn(8, 1, generator=draw) for _ in range(2)]
        >>> patterns, helper = [Linkage(["AB"], lexicon, phoneme)] * 2, GaussianStates(len(lexicon.phones), 1)
        >>> _ = train_gaussians(helper, x, patterns, passes=3)
        >>> model = StateClassifier(len(lexicon.phones), 1, reach=1, hidden=8, generator=draw)
        >>> entropies = train_classifier(model, x, patterns, helper, passes=4, generator=draw)
        >>> len(entropies), entropies[-1] < entropies[0]
        (4, True)
    """
    _checked(utterances, patterns, passes)
    seen = utterances if heard is None else heard
    if named is not None and any(len(a.units) != len(b.units) for a, b in zip(named, patterns, strict=True)):
        raise InputError("named has patterns of other lengths; they take the same pronunciations with other phones")
    paths, _ = _all_aligned(helper, seen, patterns, named)
    return model.fit(
        utterances,
        paths,
        passes=passes,
        lr=lr,
        batch=batch,
        generator=generator,
        report=report,
        checkpoint=checkpoint,
    )


def train_predictors(
    bank: PredictorBank,
    utterances: Sequence[Tensor],
    patterns: Sequence[Linkage],
    *,
    passes: int = 10,
    lr: float = 0.01,
    batch: int = 4,
    generator: torch.Generator | None = None,
    report: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[float]:
    r"""Train predictors through the alignment.

    .. math::

       E = \frac{1}{\sum_u T_u} \sum_u \min_{s_u} \sum_t \lVert x_t - \hat x_t^{(s_u(t))} \rVert^2

    The first pass has a flat start for its alignment; from then on each utterance is aligned by the bank as it is, and
    only the predictions on the path are computed for the backward pass. Steps are Adam's, with a rate that falls to
    zero as a cosine.

    Args:
        bank: The predictors; they are changed in place.
        utterances: Each of shape (time, features).
        patterns: Their linkage patterns.
        passes: Passes over all utterances.
        lr: The first learning rate.
        batch: Utterances a step; 1 is on-line training.
        generator: Of the order of the utterances; what is resumed needs one.
        report: Called after each pass with its number and cost.
        checkpoint: Where the state is kept after each pass, and gone on from.

    Returns:
        The mean squared error of a frame on its path in each pass.

    Raises:
        DivergenceError: If the error of a pass is not finite.
        InputError: If there is nothing to train on, a number is out of range, or a transcript is too long for its
            audio.

    Example:
        >>> from counterflow.speech import Lexicon, Phoneme
        >>> lexicon, phoneme = Lexicon({"AB": [("A", "B")]}), Phoneme(1, 1)
        >>> bank, draw = PredictorBank(len(lexicon.phones), 2), torch.Generator().manual_seed(0)
        >>> x = [torch.randn(20, 2, generator=draw).cumsum(0) for _ in range(2)]
        >>> errors = train_predictors(bank, x, [Linkage(["AB"], lexicon, phoneme)] * 2, passes=5, generator=draw)
        >>> len(errors), errors[-1] < errors[0]
        (5, True)
    """
    _checked(utterances, patterns, passes)
    if batch < 1 or not lr > 0:
        raise InputError(f"batch must be 1 or more and lr above 0, got {batch} and {lr}")
    optimizer = torch.optim.Adam(bank.parameters(), lr=lr)
    steps = passes * -(-len(utterances) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    frames = sum(map(len, utterances))
    found: list[float] = []
    if checkpoint is not None:
        found, held = checkpoint.load("predictors")
        if held:
            with checkpoint.readable():
                restore(held, bank, optimizer, schedule, generator)
    for number in range(len(found), passes):
        total = 0.0
        order = torch.randperm(len(utterances), generator=generator).tolist()
        for begin in range(0, len(order), batch):
            optimizer.zero_grad()
            chosen = order[begin : begin + batch]
            some = [utterances[index] for index in chosen]
            for index, x in zip(chosen, some, strict=True):
                # Networks of other phonemes have no part in the alignment.
                path = (
                    flat_start(patterns[index], len(x))
                    if number == 0
                    else _aligned(patterns[index], bank.costs(x, _networks(bank, patterns[index])))[0]
                )
                error = bank.aligned_error(x, path).sum()
                total += float(error.detach())
                (error / sum(map(len, some))).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        found.append(total / frames)
        if not torch.isfinite(torch.tensor(found[-1])):
            raise DivergenceError(
                f"training diverged in pass {number + 1} with lr={lr}; lower it, or normalize the features"
            )
        if checkpoint is not None:
            checkpoint.save("predictors", found, optimizer_state(bank, optimizer, schedule, generator))
        if report is not None:
            report(number, found[-1])
    return found


@dataclass(frozen=True)
class Discrimination:
    """How well the aligned phoneme stands out among all (section 5 of the paper, as numbers).

    Args:
        rank: The mean rank of the aligned phoneme's cost among all phonemes', from 1.
        ratio: The median over frames of the aligned phoneme's cost to the least of the others'.
        frame_error: The share of frames on which another phoneme is cheaper.
        chance: The rank of a phoneme drawn at random.
    """

    rank: float
    ratio: float
    frame_error: float
    chance: float


def discrimination(costs: Tensor, predictors: Tensor, per_phoneme: int) -> Discrimination:
    """Compare the aligned phoneme's cost with all others', frame by frame.

    A phoneme's cost at a frame is that of its best predictor.

    Args:
        costs: Distances, shape (time, predictors).
        predictors: The aligned predictor of each frame, shape (time,).
        per_phoneme: Predictors of a phoneme.

    Returns:
        The measures.

    Raises:
        InputError: If the shapes do not fit together, or there is one phoneme only.

    Example:
        >>> discrimination(torch.tensor([[1.0, 2.0, 4.0], [3.0, 2.0, 4.0]]), torch.tensor([0, 2]), 1)
        Discrimination(rank=2.0, ratio=0.5, frame_error=0.5, chance=2.0)
    """
    fits = costs.ndim == 2 and len(costs) and predictors.shape == costs.shape[:1] and per_phoneme >= 1
    if not fits or costs.shape[1] % per_phoneme or costs.shape[1] < 2 * per_phoneme:
        shapes = f"costs {tuple(costs.shape)}, predictors {tuple(predictors.shape)}, per_phoneme {per_phoneme}"
        raise InputError(f"{shapes}: (time, predictors), (time,) and a divisor that leaves two phonemes are needed")
    best = costs.reshape(len(costs), -1, per_phoneme).amin(-1)
    own = best.gather(1, (predictors // per_phoneme)[:, None])
    others = best.scatter(1, (predictors // per_phoneme)[:, None], torch.inf)
    rank = 1 + (others < own).sum(1)
    return Discrimination(
        rank=float(rank.double().mean()),
        ratio=float((own[:, 0] / others.amin(1)).median()),
        frame_error=float((rank > 1).double().mean()),
        chance=(1 + best.shape[1]) / 2,
    )
