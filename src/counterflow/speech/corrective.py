r"""Corrective training: predictors learn from the frames of other phonemes, too.

Source: J. Tebelskis, A. Waibel, B. Petek, O. Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural
Networks", NIPS 1990, sections 5 and 6, which call for it, since "it is not obvious what predictive output target is
meaningful for negative instances", and leave it open. Here a negative instance has no target: what is learned from is
the difference of two distances, in the manner of E. McDermott and S. Katagiri's LVQ2, which the paper cites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from counterflow.exceptions import InputError
from counterflow.speech.lexicon import Linkage
from counterflow.speech.predictors import PredictorBank

__all__ = ["train_corrective"]


def train_corrective(
    bank: PredictorBank,
    utterances: Sequence[Tensor],
    patterns: Sequence[Linkage],
    *,
    phones: Sequence[int] | None = None,
    passes: int = 3,
    lr: float = 0.002,
    batch: int = 4,
    anchor: float = 0.1,
    generator: torch.Generator | None = None,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    r"""Tell the aligned phoneme's predictor apart from the best predictor of any other phoneme.

    .. math::

       L = \sum_t \sigma\!\Big(\frac{d_t - r_t}{\tau}\Big) + \frac{a}{\tau} d_t, \qquad
       r_t = \min_{n \notin \mathrm{phoneme}(t)} d_{t,n}

    d is the distance along the alignment, r that of the best rival, and the temperature tau the mean distance in the
    alignments of up to 32 utterances before training. The sigmoid counts frames on which a rival is nearer; where the
    difference is large it is flat, so that no distance grows without bound. Steps are Adam's, with a rate that falls to
    zero as a cosine.

    Args:
        bank: Trained predictors; they are changed in place.
        utterances: Each of shape (time, features).
        patterns: Their linkage patterns, all of one topology.
        phones: Of which phone each of the lexicon's is a case, as `cases_of` gives them for one that `in_context` made:
            cases of one phone are not each other's rivals. By default each is a phone by itself.
        passes: Passes over all utterances, each with alignments by the bank as it is.
        lr: The first learning rate.
        batch: Utterances a step.
        anchor: a, which keeps the predictors predicting.
        generator: Of the order of the utterances.
        report: Called after each pass with its number and share.

    Returns:
        The share of frames on which a rival was nearer, in each pass.

    Raises:
        InputError: If there is nothing to train on, one phoneme only, a number is out of range, ``phones`` has not one
            number for each phone, or a transcript is too long for its audio.

    Example:
        >>> from counterflow.speech import Lexicon, Phoneme, train_predictors
        >>> draw = torch.Generator().manual_seed(0)
        >>> lexicon, phoneme = Lexicon({"A": [("A",)]}), Phoneme(1, 1)
        >>> bank = PredictorBank(len(lexicon.phones), 4, generator=draw)
        >>> x = [torch.randn(50, 4, generator=draw).cumsum(0) / 4 for _ in range(4)]
        >>> patterns = [Linkage(["A"], lexicon, phoneme) for _ in x]
        >>> _ = train_predictors(bank, x, patterns, passes=2, generator=draw)
        >>> shares = train_corrective(bank, x, patterns, passes=10, lr=0.01, generator=draw)
        >>> shares[-1] < shares[0]
        True
    """
    if not utterances or len(utterances) != len(patterns):
        raise InputError(f"as many utterances as patterns are needed, got {len(utterances)} and {len(patterns)}")
    if passes < 1 or batch < 1 or not lr > 0 or not anchor >= 0:
        given = f"passes={passes}, batch={batch}, lr={lr}, anchor={anchor}"
        raise InputError(f"passes and batch must be 1 or more, lr above 0 and anchor 0 or more; got {given}")
    each = patterns[0].phoneme.predictors
    cases = bank.n_predictors // each
    if phones is not None and len(phones) != cases:
        raise InputError(f"phones has {len(phones)} numbers, and the bank has {cases} phones; give one for each")
    phone = torch.arange(cases) if phones is None else torch.as_tensor(phones)
    if len(set(phone.tolist())) < 2:
        raise InputError("the bank has one phoneme; corrective training tells several apart")
    one_phone = phone[:, None] == phone
    optimizer = torch.optim.Adam(bank.parameters(), lr=lr)
    steps = passes * -(-len(utterances) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    frames = sum(map(len, utterances))
    sample = [index * len(utterances) // min(len(utterances), 32) for index in range(min(len(utterances), 32))]
    total = sum(patterns[index].align(bank.costs(utterances[index]))[1] for index in sample)
    temperature = max(total / sum(len(utterances[index]) for index in sample), 1e-12)
    found = []
    for number in range(passes):
        order = torch.randperm(len(utterances), generator=generator).tolist()
        wrong = 0
        for begin in range(0, len(order), batch):
            optimizer.zero_grad()
            chosen = order[begin : begin + batch]
            count = sum(len(utterances[index]) for index in chosen)
            for index in chosen:
                x, pattern = utterances[index], patterns[index]
                costs = bank.costs(x)
                states, _ = pattern.align(costs)
                own = torch.from_numpy(pattern.units)[states]
                rivals = costs.clone().view(len(x), -1, each)
                rivals[one_phone[own // each]] = torch.inf
                rival = rivals.flatten(1).argmin(1)
                distance, other = bank.aligned_error(x, own), bank.aligned_error(x, rival)
                loss = torch.sigmoid((distance - other) / temperature) + anchor / temperature * distance
                (loss.sum() / count).backward()  # type: ignore[no-untyped-call]
                wrong += int((other < distance).sum())
            optimizer.step()
            schedule.step()
        found.append(wrong / frames)
        if report is not None:
            report(number, found[-1])
    return found
